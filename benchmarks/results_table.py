"""The table of results in README.md and README.ja.md, from benchmarks/results.csv: `python -m benchmarks.results_table`

Add a row to the CSV and run this: what stands between the two marker comments is replaced.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
CSV = ROOT / "benchmarks" / "results.csv"
DOCUMENTS = (ROOT / "README.md", ROOT / "README.ja.md")
BEGIN, END = "<!-- results: benchmarks/results.csv -->", "<!-- end of results -->"


def render() -> str:
    """The CSV as Markdown, every cell as it is written there; commands as code."""
    with CSV.open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    lines = [header, ["---"] * len(header), *([*row[:-1], f"`{row[-1]}`"] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def updated(text: str) -> str:
    """The document with the table between its markers.

    Raises:
        ValueError: it does not hold both markers once.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"expected {BEGIN} and {END} once each")
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{render()}\n{END}{rest.split(END)[1]}"


def main() -> None:
    for document in DOCUMENTS:
        document.write_text(updated(document.read_text(encoding="utf-8")), encoding="utf-8")
        sys.stdout.write(f"{document.name}\n")


if __name__ == "__main__":
    main()
