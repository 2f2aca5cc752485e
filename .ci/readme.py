#!/usr/bin/env python3
"""Makes README.md out of nbs/index.ipynb, or with --check says whether it is up to date.

    python .ci/readme.py            write README.md
    python .ci/readme.py --check    exit 1 and show the difference if README.md is not what would be written

Markdown cells stay as they are, code cells become fences with their text output below. Links relative to nbs/ become
relative to the repository, so that pictures and chapters are found from both places. Cells that start with `#| hide`
are left out. A saved picture in an output cannot live in a README: save it as a file and show that.
"""
import difflib
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"(\]\(|\b(?:src|href)=\")(?![a-z][a-z0-9+.-]*:|//|[#/])([^)\"\s]+)")
FENCE = re.compile(r"^(```|~~~).*?^\1[ ]*$|`[^`\n]*`", re.S | re.M)


def text(value) -> str: return "".join(value) if isinstance(value, list) else value


def relink(markdown: str, folder: str = "nbs") -> str:
    "`markdown` with its relative links, outside code, made relative to the parent of `folder`."
    def point(m):
        path = m[2].removeprefix("./")
        return m[1] + (path[3:] if path.startswith("../") else f"{folder}/{path}")
    parts, end = [], 0
    for code in FENCE.finditer(markdown):
        parts += [LINK.sub(point, markdown[end:code.start()]), code[0]]
        end = code.end()
    # A link around code or around a picture is cut there, but its target still follows a "](".
    return "".join(parts) + LINK.sub(point, markdown[end:])


def outputs(cell: dict):
    "The cell's text outputs as fenced blocks; a ValueError for a picture."
    for out in cell.get("outputs", []):
        data = out.get("data", {})
        if any(kind.startswith("image/") for kind in data):
            raise ValueError(f"index.ipynb: cell {cell.get('id')} has a picture in its output; save it as a file and link that")
        shown = text(out.get("text") or data.get("text/plain") or "").rstrip()
        if shown: yield f"```text\n{shown}\n```"


def blocks(notebook: dict):
    "The README's paragraphs, cell by cell."
    for cell in notebook["cells"]:
        source = text(cell["source"]).strip()
        directives = re.findall(r"^#\|\s*(.+?)\s*$", source, re.M) if cell["cell_type"] == "code" else []
        if not source or {"hide", "default_exp"} & {d.split()[0] for d in directives}: continue
        if cell["cell_type"] == "markdown": yield relink(source)
        if cell["cell_type"] == "code":
            code = re.sub(r"^#\|.*\n?", "", source, flags=re.M).strip()
            yield f"```python\n{code}\n```"
            yield from outputs(cell)


def readme(notebook: Path = ROOT / "nbs" / "index.ipynb") -> str:
    "README.md as `notebook` says it should be."
    note = "<!-- Made from nbs/index.ipynb by .ci/readme.py: edit the notebook, not this file. -->"
    return "\n\n".join([note, *blocks(json.loads(notebook.read_text("utf-8")))]) + "\n"


def main() -> int:
    path, new = ROOT / "README.md", readme()
    if "--check" not in sys.argv[1:]:
        path.write_text(new, "utf-8")
        return 0
    old = path.read_text("utf-8") if path.exists() else ""
    sys.stdout.writelines(difflib.unified_diff(old.splitlines(True), new.splitlines(True), "README.md", "made from nbs/index.ipynb"))
    print("README.md is " + ("up to date" if old == new else "not what nbs/index.ipynb makes: run python .ci/readme.py"))
    return int(old != new)


if __name__ == "__main__": sys.exit(main())
