"""Table 2 as a page and in LaTeX, and figures that are equal when drawn again."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

from matplotlib.figure import Figure

from experiments.table2.pages import latex, latex_cell, latex_table, page
from unlearn.reports.plot_style import NO_DATE, save_figure

CELLS = [["method", "unseen"], ["DoCo, g_u + 0.1 g_r", "9.2% [0.3%, 21.7%] (40) !"], ["<b>", "n/a"]]


class Tags(HTMLParser):
    """The tags in order, and the text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_page_opens_with_the_table_and_fits_a_phone() -> None:
    source = page([("targets", CELLS), ("fresh_targets", CELLS)], ["a note"], ["a & claim"])
    read = Tags(source)
    body = read.tags[read.tags.index("body") :]
    assert body[1:5] == ["h1", "p", "div", "table"]
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in source
    assert "<b>" in read.text and "b" not in read.tags  # as text
    assert read.text.index("<b>") < read.text.index("a & claim") < read.text.index("a note")


def test_latex_cells() -> None:
    assert latex_cell(CELLS[1][1]) == r"9.2\% ! {\scriptsize [0.3\%, 21.7\%]}"
    assert latex_cell("n/a") == "n/a"
    assert latex(CELLS[1][0]) == r"DoCo, $g_u + 0.1\,g_r$"
    assert latex("DoCo, g_u only & λ_1") == r"DoCo, $g_u$ only \& $\lambda$\_1"


def test_latex_table_has_booktabs_rules_and_equal_rows() -> None:
    lines = latex_table("targets", CELLS).splitlines()
    assert lines[1] == r"\begin{tabular}{lr}"
    assert [lines[2], lines[4], lines[-2], lines[-1]] == [
        r"\toprule", r"\midrule", r"\bottomrule", r"\end{tabular}",
    ]  # fmt: skip
    assert all(line.count(" & ") == 1 and line.endswith(r" \\") for line in lines[5:-2])


def test_a_figure_drawn_again_has_the_same_bytes(tmp_path: Path) -> None:
    drawn = []
    for name in ("a", "b"):
        figure = Figure(figsize=(2, 2))
        axes = figure.subplots()
        axes.errorbar([1, 2], [1, 2], yerr=[0.1, 0.2], fmt="o")
        axes.set_xlabel("x")
        save_figure(figure, tmp_path / f"{name}.png")
        drawn.append([(tmp_path / f"{name}.{kind}").read_bytes() for kind in NO_DATE])
    assert drawn[0] == drawn[1]
    assert [data[:4] for data in drawn[0]] == [b"\x89PNG", b"<?xm", b"%PDF"]
