"Rows of figures in CSV files, and tables of them in Markdown."
import csv
from pathlib import Path

from zerodiff.data import replacing


def read(path):
    "The rows there are: a dict of strings each."
    if not Path(path).exists(): return []
    with open(path, newline="") as f: return list(csv.DictReader(f))


def write(path, rows, names=None):
    "All rows with the columns `names` (those of the first row), the old file replaced at once."
    with replacing(path) as aside, open(aside, "w", newline="") as f:
        writer = csv.DictWriter(f, names or rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def told(row, name, error, digits=3):
    "A figure of a row with its error, as far as the row has them."
    return " ± ".join(f"{float(row[k]):.{digits}f}" for k in (name, error) if row.get(k))


def table(head, rows):
    "A table in Markdown."
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in (head, ["---"] * len(head), *rows))


def fill(path, **tables):
    "Put tables into a Markdown file, each between its marks `<!-- name -->` and `<!-- end of name -->`; what else is there stays as it is."
    text = Path(path).read_text()
    for name, new in tables.items():
        before, begin, rest = text.partition(f"<!-- {name} -->\n")
        old, end, after = rest.partition(f"<!-- end of {name} -->")
        if not (begin and end): raise ValueError(f"{path}: expected <!-- {name} --> and <!-- end of {name} --> around the place of the table")
        text = f"{before}{begin}{new}\n{end}{after}"
    with replacing(path) as aside: aside.write_text(text)
