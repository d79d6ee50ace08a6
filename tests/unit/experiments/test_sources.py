"""The numbers of the pages against the files that hold them; a table without a source fails."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
RESULTS = ROOT / "experiments" / "table2" / "results"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs" / "results").glob("*.md"))]
NUMBER = r"[-+]?\d+\.\d"
IN_README = (  # columns of table2.csv in the README's order
    "unseen target", "anchor", "retention, related", "retention, unrelated",
)  # fmt: skip
Table = list[list[str]]
# Tables by the first cell of their head; the last group is in no file (docs/results/sources.md).
FROM_TABLE2 = "what does the work (row of the table)"
CLAIMS = "claim"
NO_NUMBERS = ("method", "what")
NOT_KEPT = ("prompts", "concept", "run")


def tables_of(path: Path) -> dict[str, Table]:
    """The lines of a page's tables without their rules, by the first cell of the head."""
    tables: dict[str, Table] = {}
    lines: Table = []
    for line in [*path.read_text(encoding="utf-8").splitlines(), ""]:
        if line.startswith("|"):
            lines.append([cell.strip() for cell in line.strip().strip("|").split("|")])
        elif lines:
            tables[lines[0][0]] = [lines[0], *lines[2:]]
            lines = []
    return tables


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_table_has_a_source(path: Path) -> None:
    known = {FROM_TABLE2, CLAIMS, *NO_NUMBERS, *NOT_KEPT}
    assert set(tables_of(path)) <= known
    for head, (_, *lines) in tables_of(path).items():
        if head in NO_NUMBERS:
            assert not any(re.search(r"\d%", cell) for line in lines for cell in line)


def test_readme_has_the_numbers_of_table_2() -> None:
    with (RESULTS / "table2.csv").open(encoding="utf-8") as file:
        rows = {r["method"]: r for r in csv.DictReader(file) if r["targets"] == "targets"}
    _, *lines = tables_of(ROOT / "README.md")[FROM_TABLE2]
    assert len(lines) == 5
    for first, *cells in lines:
        (label,) = re.findall(r"`(.+?)`", first)
        assert cells == [f"{100 * float(rows[label][f'{c}: value']):.1f}%" for c in IN_README]


def test_the_claims_on_the_page_are_those_of_the_kept_rows() -> None:
    lines = (RESULTS / "table2.md").read_text(encoding="utf-8").splitlines()
    triple = rf"({NUMBER}) \[({NUMBER}), ({NUMBER})\]"
    found = {
        (line[len("Claim ")], *(tuple(map(float, t)) for t in re.findall(triple, line)))
        for line in lines
        if line.startswith("Claim ")
    }
    _, *shown = tables_of(ROOT / "docs" / "results" / "table2.md")[CLAIMS]
    assert len(shown) == 9
    for claim, *cells in shown:
        triples = []
        for cell in cells:
            numbers = [float(n) for n in re.findall(NUMBER, cell)]
            triples.append((*numbers, 0.0, 0.0) if "no draw differs" in cell else tuple(numbers))
        assert (claim[0], *triples) in found, claim


def test_the_page_of_sources_names_files_and_modules_that_are_there() -> None:
    text = (ROOT / "docs" / "results" / "sources.md").read_text(encoding="utf-8")
    files = re.findall(r"`(experiments/[^`]+)`", text)
    modules = re.findall(r"python -m ([\w.]+)", text)
    assert len(files) >= 7 and len(modules) >= 5
    assert [f for f in files if not (ROOT / f).exists()] == []
    assert [m for m in modules if not (ROOT / f"{m.replace('.', '/')}.py").exists()] == []
