#!/usr/bin/env python3
"""The site without Quarto: rendered with smalldocs from what nbdev's own processors make, then checked.

    python .ci/site.py render  TOOLS    write _site/zerodiff
    python .ci/site.py links            every link of the site and of the Markdown files leads somewhere
    python .ci/site.py browse  TOOLS    every page in headless Chromium: see browser.mjs

TOOLS is a folder in which `npm install playwright-core katex` was run. Readers and the published site use real Quarto
(`nbdev_docs`); page names, links and the sidebar are the same in both.
"""
import html
import json
import re
import shutil
import subprocess
import sys
import threading
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urldefrag, urljoin

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "_site" / "zerodiff"     # one folder down, as on GitHub pages: a link from the server's root would break there too
BASE = "http://site/zerodiff/"
KNOWN_GAPS = re.compile("format.html.html-math-method is ignored|.*output-file is not read")     # it always uses KaTeX; Book reads the other


# ---------------------------------------------------------------- render

def render(tools: str) -> int:
    "Process the notebooks as nbdev does, build the pages, and put a local KaTeX beside them."
    from nbdev.serve import proc_nbs
    from smalldocs import config, layout, site

    class Book(site.Site):
        "A site whose pages have the names nbdev gives them: `01_noise_schedule.ipynb` is `noise_schedule.html`."
        def read(self, src):
            page = super().read(src)
            if name := page.front.get("output-file"): page.out = src.parent / name
            return page

        def resolve(self, href, page, record=True):
            # nbdev links a name in backticks to the published site: here, to this one
            home = str(self.project.website.get("site-url")).rstrip("/") + "/"
            if not href.startswith(home): return super().resolve(href, page, record)
            name, anchor = urldefrag(href.removeprefix(home))
            return site.rel(PurePosixPath(name or "index.html"), page) + (f"#{anchor}" if anchor else "")

    katex = Path(tools) / "node_modules" / "katex" / "dist"
    if not katex.is_dir(): raise FileNotFoundError(f"{katex}: run npm install katex in {tools}")
    shutil.rmtree(ROOT / "_proc", ignore_errors=True)
    shutil.rmtree(OUT.parent, ignore_errors=True)
    processed = proc_nbs(str(ROOT / "nbs"), n_workers=2)
    layout.KATEX = "site_libs/katex"        # every page is at the top level
    book = Book(config.load(processed), quiet=True)
    book.out = OUT
    pages = book.build()
    shutil.copytree(katex, OUT / "site_libs" / "katex", ignore=shutil.ignore_patterns("*.mjs", "*.ttf", "*.woff", "README.md"))
    for theme in (OUT / "site_libs" / "themes").glob("*.css"):      # fonts from elsewhere: a reader's choice, not a check's
        theme.write_text(re.sub(r"@import url\(['\"]?https?:[^)]*\);?", "", theme.read_text("utf-8")), "utf-8")
    problems = [w for w in book.warnings if not KNOWN_GAPS.match(w)]
    expected = {nb.stem for nb in (ROOT / "nbs").glob("*.ipynb")}
    got = {page.src.stem for page in book.pages.values()}
    problems += [f"{name}: notebook without a page" for name in sorted(expected - got)]
    for line in problems: print(line)
    print(f"{pages} pages rendered, {len(problems)} problems")
    return int(bool(problems))


# ---------------------------------------------------------------- links

class Links(HTMLParser):
    "What a page points at, and what can be pointed at in it."
    def __init__(self):
        super().__init__()
        self.targets, self.ids = [], set()

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids |= {attrs[k] for k in ("id", "name") if attrs.get(k)}
        self.targets += [attrs[k] for k in ("href", "src", "poster") if attrs.get(k)]


def parse(path: Path) -> Links:
    links = Links()
    links.feed(path.read_text("utf-8"))
    return links


def repository_path(url: str) -> str | None:
    "The path in this repository that a GitHub, Colab or Binder address names, or None for other addresses."
    settings = dict(re.findall(r"^(\w+) = (.*)$", (ROOT / "settings.ini").read_text(), re.M))
    name, branch = f"{settings['user']}/{settings['repo']}", settings["branch"]
    m = re.match(rf"https://(?:github\.com/{name}/(?:blob|tree|raw|edit)/{branch}|raw\.githubusercontent\.com/{name}/{branch}"
                 rf"|colab\.research\.google\.com/github/{name}/blob/{branch})/([^#?]*)", url)
    if m: return unquote(m[1])
    m = re.match(rf"https://mybinder\.org/v2/gh/{name}/{branch}\?(?:urlpath=lab/tree|labpath|filepath)=(.*)", url)
    return unquote(m[1]) if m else None


def bad_link(url: str, page: Path, ids: dict[Path, set[str]]) -> str | None:
    "Why `url` on the site's `page` leads nowhere, or None."
    if (inside := repository_path(url)) is not None:
        return None if (ROOT / inside).exists() else f"no {inside} in the repository"
    if re.match(r"(https?|mailto|data|javascript):", url): return None
    full, anchor = urldefrag(urljoin(BASE + page.relative_to(OUT).as_posix(), url))
    if not full.startswith(BASE): return "outside the site"
    target = OUT / unquote(full.removeprefix(BASE).partition("?")[0])
    if target.is_dir(): target /= "index.html"
    if not target.is_file(): return "no such file"
    # nbdev points a method in backticks at an anchor of its own, but documents only its class
    anchors = {unquote(anchor), unquote(anchor).partition(".")[0]}
    if anchor and target.suffix == ".html" and not anchors & ids[target]: return f"no #{anchor} in {target.name}"
    return None


def site_links():
    "(page, link, reason or None) for every link of the site."
    pages = {path: parse(path) for path in sorted(OUT.glob("**/*.html"))}
    if not pages: raise FileNotFoundError(f"{OUT}: no pages; run render first")
    ids = {path: links.ids for path, links in pages.items()}
    for path, links in pages.items():
        for url in dict.fromkeys(links.targets): yield path.name, url, bad_link(url, path, ids)


def source_links():
    "(file, link, reason or None) for every relative link of the Markdown files and notebooks, as GitHub shows them."
    for path in [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "nbs").glob("*.ipynb")), *sorted((ROOT / "benchmarks").glob("*.md"))]:
        text = path.read_text("utf-8")
        if path.suffix == ".ipynb":
            text = "\n".join("".join(c["source"]) for c in json.loads(text)["cells"] if c["cell_type"] == "markdown")
        text = re.sub(r"^(```|~~~).*?^\1|`[^`\n]+`|\$\$.*?\$\$|\$[^$\n]+\$", "", text, flags=re.S | re.M)
        for url in dict.fromkeys(re.findall(r"\]\(<?([^)\s>]+)", text) + re.findall(r"(?:src|href)=\"([^\"]+)", text)):
            url = html.unescape(url)
            inside = repository_path(url)
            if inside is not None: found = (ROOT / inside).exists()
            elif re.match(r"[a-z][a-z0-9+.-]*:|#", url): continue
            else: found = (path.parent / unquote(urldefrag(url)[0])).exists()
            yield path.relative_to(ROOT).as_posix(), url, None if found else "no such file"


def links() -> int:
    checked = [*site_links(), *source_links()]
    wrong = [f"{page}: {url}: {why}" for page, url, why in checked if why]
    for line in wrong: print(line)
    print(f"{len(checked)} links checked, {len(wrong)} broken")
    return int(bool(wrong) or not checked)


# ---------------------------------------------------------------- browse

class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args): pass


def chromium() -> str:
    "Chromium's path."
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name): return found
    raise FileNotFoundError("chromium: not found on PATH")


def browse(tools: str) -> int:
    "Serve the site on a free port of this machine and let browser.mjs look at every page."
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(OUT.parent)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/{OUT.name}/"
    pages = [p.relative_to(OUT).as_posix() for p in sorted(OUT.glob("*.html"))]
    if not pages: raise FileNotFoundError(f"{OUT}: no pages; run render first")
    done = subprocess.run(["node", str(ROOT / ".ci" / "browser.mjs"), tools, chromium(), url, *pages], timeout=900)
    server.shutdown()
    return done.returncode


if __name__ == "__main__":
    commands = {"render": render, "links": links, "browse": browse}
    if len(sys.argv) < 2 or sys.argv[1] not in commands: sys.exit(__doc__)
    sys.exit(commands[sys.argv[1]](*sys.argv[2:]))
