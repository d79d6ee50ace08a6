"""The table, the claims and the trade-off plot, from the kept rows alone.

python -m experiments.table2.table [RESULTS]
"""

from __future__ import annotations

import argparse
import csv
import html
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image, ImageDraw

from experiments.table2.bootstrap import Estimate, Samples, difference, rate_of

HERE = Path(__file__).parent
TARGET_SETS, REST = ("seen_target", "unseen_target"), ("related", "unrelated")
# column: the sets that it counts over, the flag of an image, and of which images
COLUMNS: dict[str, tuple[tuple[str, ...], str, str]] = {
    "unseen target": (("unseen_target",), "unlearned_right", "counts"),
    "seen target": (("seen_target",), "unlearned_right", "counts"),
    "anchor": (TARGET_SETS, "unlearned_anchor", "counts"),
    "broken": ((*TARGET_SETS, *REST), "unlearned_broken", "counts"),
    "base broken": ((*TARGET_SETS, *REST), "base_broken", "counts"),
    "retention, related": (("related",), "unlearned_right", "base_right"),
    "retention, unrelated": (("unrelated",), "unlearned_right", "base_right"),
    "retention": (REST, "unlearned_right", "base_right"),
}
SHOWN = [c for c in COLUMNS if c != "retention"]  # the plot and the claims take both sets together
CLAIMS = (  # its number, the row that makes it, and the row beside it
    (1, "doco", "concept_ablation"),
    (2, "doco", "unlearn_only"),
    (2, "doco", "weighted_sum"),
    (1, "base_start", "concept_ablation"),
    (2, "base_start", "base_start_unlearn_only"),
    (2, "base_start", "base_start_weighted_sum"),
)
MARGIN = 0.02  # a claim's "not worse"
TARGETS = 6  # that a claim needs
Rows = list[tuple[str, int, dict[str, Estimate]]]  # row, its number of runs, its columns
Kept = dict[str, dict[str, dict[int, list[dict[str, str]]]]]  # row, target, seed: its images


def read_kept(folder: Path, plan: dict[str, Any]) -> Kept:
    """The images of all kept runs."""
    kept: Kept = {}
    for path in sorted(folder.glob("*.csv")):
        row, concept, seed = path.stem.rsplit("-", 2)
        with path.open(encoding="utf-8") as file:
            kept.setdefault(row, {}).setdefault(concept, {})[int(seed)] = list(csv.DictReader(file))
    return {row: kept[row] for row in plan["rows"] if row in kept}


def counted(images: list[dict[str, str]], column: str) -> tuple[list[int], list[int]]:
    """Hits and counts of a column, by prompt of its sets in their order.

    A flag that the judge could not tell is empty, and does not count.
    """
    sets, flag, among = COLUMNS[column]
    prompts: dict[tuple[str, str], list[int]] = {}
    for image in images:
        if image["set"] in sets:
            cell = prompts.setdefault((image["set"], image["prompt"]), [0, 0])
            if image["counts"] == "1" and image[among] == "1" and image[flag]:
                cell[0] += int(image[flag])
                cell[1] += 1
    cells = [cell for cell in prompts.values() if cell[1]]  # the same prompts for every row
    return [hits for hits, _ in cells], [count for _, count in cells]


def samples_of(kept: Kept, rows: list[str], column: str) -> Samples:
    """Of the targets and seeds that all the rows have."""
    samples: Samples = []
    for target in kept[rows[0]]:
        if not all(target in kept[row] for row in rows):
            continue
        seeds = set.intersection(*(set(kept[row][target]) for row in rows))
        by_seed = []
        for seed in sorted(seeds):
            pairs = [counted(kept[row][target][seed], column) for row in rows]
            by_seed.append((np.array([h for h, _ in pairs]), np.array([n for _, n in pairs])))
        if by_seed and by_seed[0][1].size:
            samples.append(by_seed)
    return samples


def table(kept: Kept) -> Rows:
    """Each row with its number of runs and its columns."""
    return [
        (row, sum(map(len, targets.values())),
         {column: rate_of(samples_of(kept, [row], column)) for column in COLUMNS})
        for row, targets in kept.items()
    ]  # fmt: skip


def verdict(holds: bool, targets: int) -> str:
    """In words; a claim needs `TARGETS` targets."""
    if targets < TARGETS:
        return f"undecided, {TARGETS} are needed"
    return "shown" if holds else "not shown"


def claims(kept: Kept, plan: dict[str, Any]) -> list[str]:
    """The two claims of the paper, each with its differences in points, and its verdict.

    Of the default, and of DoCo from the base model, as in the paper.

    1. Domain correction generalises: the unseen-target rate of DoCo is under Concept Ablation's,
       and its retention not worse by more than 2 points.
    2. The concept-preserving gradient keeps the model: retention with surgery is over that without,
       at an unseen-target rate not worse by more than 2 points.
    """
    lines = []
    for number, row, other in CLAIMS:
        if row not in kept or other not in kept:
            continue
        pairs = [samples_of(kept, [row, other], c) for c in ("unseen target", "retention")]
        if not all(pairs):
            continue
        unseen, retention = map(difference, pairs)
        if number == 1:
            holds = unseen.high < 0 and retention.low > -MARGIN
        else:
            holds = retention.low > 0 and unseen.high < MARGIN
        lines.append(
            f"Claim {number}, {plan['rows'][row]['label']} less {plan['rows'][other]['label']}: "
            f"unseen-target rate {unseen.points}, retention {retention.points} points, on "
            f"{len(pairs[0])} targets: "
            f"{verdict(holds, len(pairs[0]))}."
        )
    return lines


HEADER = (
    "Our protocol, not the paper's Table 2 (which was not available): methods by the four prompt "
    "sets. Means over targets and training seeds, with 95 % intervals "
    "bootstrapped over targets, seeds and prompts. Each method's settings are the best of three "
    "trials on four other concepts (DoCo's, on instances, the second best); rows with fewer runs "
    "are ablations on two targets, or have one seed."
)


def write_texts(results: Path, plan: dict[str, Any], kept: Kept, rows: Rows) -> None:
    """table2.md, table2.csv and table2.html."""
    head = ["method", "runs", *SHOWN]
    cells = [
        [plan["rows"][row]["label"], str(runs), *(str(estimates[c]) for c in SHOWN)]
        for row, runs, estimates in rows
    ]
    lines = claims(kept, plan)
    marked = ["| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *cells)]
    (results / "table2.md").write_text("\n".join([HEADER, "", *marked, "", *lines, ""]), "utf-8")
    with (results / "table2.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([head, *cells])
    body = "".join(
        "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in line) + "</tr>\n"
        for tag, line in [("th", head), *(("td", line) for line in cells)]
    )
    verdicts = "".join(f"<p>{html.escape(line)}</p>\n" for line in lines)
    (results / "table2.html").write_text(
        "<!doctype html><meta charset=utf-8><title>Table 2</title>\n"
        "<style>body{font:14px sans-serif}td,th{padding:4px 8px;border-bottom:1px solid #ccc}"
        f"</style>\n<p>{html.escape(HEADER)}</p>\n<table>\n{body}</table>\n{verdicts}"
        '<img src="tradeoff.png" alt="trade-off"><img src="contact.png" alt="contact sheet">\n',
        "utf-8",
    )


def draw_tradeoff(results: Path, plan: dict[str, Any], rows: Rows) -> None:
    """Unseen-target rate against retention, one colour a method."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for number, (row, _, estimates) in enumerate(rows):
        x, y = estimates["unseen target"], estimates["retention"]
        bars = [[[max(0, e.value - e.low)], [max(0, e.high - e.value)]] for e in (x, y)]
        axes.errorbar(
            x.value, y.value, xerr=bars[0], yerr=bars[1], fmt="osD^v"[number // 10 % 5],
            color=f"C{number % 10}", capsize=2, label=plan["rows"][row]["label"],
        )  # fmt: skip
    axes.set(xlabel="unseen-target rate (left is better)", ylabel="retention (up is better)")
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(results / "tradeoff.png", dpi=150)


def draw_contact_sheet(results: Path, plan: dict[str, Any], kept: Kept) -> None:
    """Methods by prompts, cut from the runs' own pictures: two prompts of each set a target."""
    from unlearn.evaluation.pictures import TILE, tile_corner
    from unlearn.prompts import SETS

    size, margin = TILE // 2, 190
    tiles = [(t, s, column) for t in plan["ablation_targets"] for s in SETS for column in (0, 4)]
    sheet = Image.new("RGB", (margin + len(tiles) * size, (len(kept) + 1) * size), "white")
    draw = ImageDraw.Draw(sheet)
    base_drawn: set[int] = set()
    for line, row in enumerate(kept, start=1):
        draw.text((6, line * size + size // 2 - 6), plan["rows"][row]["label"], "black")
        for place, (target, part, column) in enumerate(tiles):
            path = results / "pictures" / f"{row}-{target}-0.png"
            if not path.exists():
                continue
            with Image.open(path) as picture:
                for side, top in ((0, 0), (1, line * size)):
                    if side or place not in base_drawn:
                        x, y = tile_corner(part, side, column)
                        tile = picture.crop((x, y, x + TILE, y + TILE)).resize((size, size))
                        sheet.paste(tile, (margin + place * size, top))
            base_drawn.add(place)
    draw.text((6, size // 2 - 6), "base model", "black")
    sheet.save(results / "contact.png")


def render(results: Path, plan: dict[str, Any]) -> None:
    """Write everything that the kept rows allow."""
    kept = read_kept(results / "rows", plan)
    rows = table(kept)
    write_texts(results, plan, kept, rows)
    draw_tradeoff(results, plan, rows)
    draw_contact_sheet(results, plan, kept)


def main() -> None:
    """Render, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("results", nargs="?", type=Path, default=HERE / "results")
    results = parser.parse_args().results
    if not any((results / "rows").glob("*.csv")):
        parser.error(f"{results}: no rows in it; make reproduce-table2 makes them")
    render(results, yaml.safe_load((HERE / "rows.yaml").read_text(encoding="utf-8")))
    print((results / "table2.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
