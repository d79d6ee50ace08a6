"""Table 2 on Stable Diffusion 1.4: our runs under published protocols, beside published figures.

python -m experiments.table2.published [RUNS]
"""

from __future__ import annotations

import argparse
import csv
import json
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from experiments.lines import read_lines
from experiments.table2 import table
from unlearn.config.compose import compose
from unlearn.evaluation.distances import InceptionFeatures

HERE = Path(__file__).parent
BASE = "SD 1.4"  # the base model's label, which erased ""
NAMES = {
    "clip_score": "CS",
    "clip_error_rate": "CER %",
    "fid": "FID",
    "kid": "KID",
    "fid_reference": "FID to photographs",
}
OF_TARGET, OF_OTHERS = ("clip_score", "clip_error_rate"), ("fid", "kid", "fid_reference")
HEADER = """# Table 2 on Stable Diffusion 1.4, under published protocols

Each cell: our figure with its 95 % interval, and in brackets the published one, whose source is in
published.csv. CS and CER: CLIP score, 100 · 2.5 · max(cos, 0) of each image, and error rate, of the
erased concept (a lower CS and a higher CER forget more). FID and KID (ours: torchmetrics'): of
other concepts, to the base model's images of the same prompts and noise (lower keeps more). Columns
say how many images are behind our figures. DoCo's own published cells were not available.
"""
SETTINGS = (
    "The settings of the comparison methods are the papers' (conf/model/sd14.yaml), the prompts "
    "and images this framework's."
)
RANDOM = "**Random weights: these figures show that the path runs, and nothing of any method.**\n"


class Figure(NamedTuple):
    """One number; a rate is in per cent.

    Attributes:
        label: of the row.
        erased: a target of the plan; "" for the base model.
        concept: what was drawn.
        metric: a key of `NAMES`, or another.
        value: the number.
        low, high: its 95 % interval; None where there is none.
        n: images behind it.
        source: of a published one.
    """

    label: str
    erased: str
    concept: str
    metric: str
    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None
    source: str = ""


def read_published(plan: dict[str, Any], path: Path = HERE / "published.csv") -> list[Figure]:
    """The published figures, under the labels of the plan's rows where they have one."""
    rows = plan["rows"].values()
    labels = {row["published"]: row["label"] for row in rows if "published" in row}
    return [
        Figure(
            labels.get(line["method"], line["method"]), line["erased"], line["concept"],
            line["metric"], float(line["value"]), source=line["source"],
        )
        for line in read_lines(path)
    ]  # fmt: skip


def read_results(runs: Path, plan: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """Label, target and result of every finished evaluation, in the plan's order.

    Those under other protocols than the plan's for the target's kind are no part of the table.
    """
    return [
        (entry["label"], target, json.loads(path.read_text(encoding="utf-8")))
        for row, entry in plan["rows"].items()
        for target in plan["targets"]
        for path in sorted(
            runs.glob(f"{row}-{target}-*/evaluation/{protocol_of(target, plan)}.json")
        )
    ]


def protocol_of(target: str, plan: dict[str, Any]) -> str:
    """The name of the protocol for a target's kind."""
    return str(plan["protocols"][kind_of(target)]["name"])


@cache
def kind_of(concept: str) -> str:
    """Instance or style."""
    return str(compose([f"concept={concept}"]).concept.kind)


def figures_of(results: list[tuple[str, str, dict[str, Any]]]) -> list[Figure]:
    """The figures of the results, and once the base model's.

    A FID on other features than the published ones is a metric of its own, in published.csv alone.
    """
    own: list[Figure] = []
    base: dict[Figure, None] = {}
    for label, target, result in results:
        features = result["features"]
        for cell in result["cells"]:
            metric = cell["metric"]
            scale = 100 if metric == "clip_error_rate" else 1
            if metric.startswith("fid") and features != InceptionFeatures.name:
                metric = f"{metric} on {features}"
            drawn = (cell["concept"], metric)
            if side := cell["unlearned"]:
                own.append(Figure(label, target, *drawn, *numbers_of(side, scale)))
            if side := cell["base"]:
                base[Figure(BASE, "", *drawn, *numbers_of(side, scale))] = None
    return [figure for figure in (*base, *own) if figure.value is not None]


def numbers_of(side: dict[str, Any], scale: int) -> list[Any]:
    """Value, bounds and number of images of one model's cell."""
    numbers = (side[key] for key in ("value", "low", "high"))
    return [*(x if x is None else scale * x for x in numbers), side["n"]]


def text_of(ours: list[Figure], published: list[Figure]) -> str:
    """A cell: ours, one after another where there are several seeds, and the published figure."""
    parts = []
    for figure in ours:
        form = ".3g" if figure.metric == "kid" else ".2f"  # KID is small
        parts.append(f"{figure.value:{form}}")
        if figure.low is not None and figure.high is not None:
            parts.append(f"[{figure.low:{form}}, {figure.high:{form}}]")
    parts += [f"({figure.value:.2f})" for figure in published]
    return " ".join(parts)


def section(erased: str, title: str, ours: list[Figure], published: list[Figure]) -> list[str]:
    """The table of one erased concept, the base model's row first.

    Args:
        erased: the target.
        title: what the protocol calls it.
        ours, published: all figures.
    """
    own, known = ([f for f in side if f.erased == erased] for side in (ours, published))
    there = {(f.concept, f.metric) for f in (*own, *known)}
    concepts = dict.fromkeys([title, *(f.concept for f in (*own, *known))])
    columns = [
        (concept, metric)
        for concept in concepts
        for metric in (OF_TARGET if concept == title else OF_OTHERS)
        if (concept, metric) in there
    ]
    heads = []
    for concept, metric in columns:
        counts = sorted({f.n for f in own if f[2:4] == (concept, metric) and f.n})
        shown = f" (n = {'/'.join(map(str, counts))})" if counts else ""
        heads.append(f"{concept} {NAMES[metric]}{shown}")
    lines = [["method", *heads]]
    for label in dict.fromkeys([BASE, *(f.label for f in (*own, *known))]):
        owner = (label, "" if label == BASE else erased)
        cells = [
            [[f for f in side if f[:4] == (*owner, *column)] for side in (ours, published)]
            for column in columns
        ]
        lines.append([label, *(text_of(*cell) for cell in cells)])
    head, *body = lines
    marked = ["| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *body)]
    return [f"## {title} erased", "", *marked, ""]


def keep_judged(runs: Path, plan: dict[str, Any], results: Path) -> None:
    """Render the four prompt sets of the runs that were judged, as of the embedded model."""
    for folder in ("rows", "pictures"):
        (results / folder).mkdir(parents=True, exist_ok=True)
    for finished in runs.glob("*/result.json"):
        if (finished.parent / "images.csv").exists():  # there was a judge
            table.keep_run(finished.parent, results, finished.parent.name, picture=True)
    if any((results / "rows").iterdir()):
        table.render(results, plan, SETTINGS)


def render(runs: Path, plan: dict[str, Any]) -> Path:
    """Write everything that the finished runs allow into `results` beside them.

    Args:
        runs: the folder of the runs.
        plan: see sd14.yaml.

    Returns:
        The path of published.md.
    """
    found, results = read_results(runs, plan), runs / "results"
    keep_judged(runs, plan, results)
    ours, published = figures_of(found), read_published(plan)
    lines = [HEADER]
    if any(result["base"].startswith("random:") for *_, result in found):
        lines.append(RANDOM)
    for erased in plan["targets"]:
        if titles := [title_of(erased, r) for _, target, r in found if target == erased]:
            lines += section(erased, titles[0], ours, published)
    notes = [f"CLIP: {r['clip']}; KID and FID on {r['features']}" for *_, r in found]
    notes += [warning for *_, result in found for warning in result["warnings"]]
    lines += [f"- {note}" for note in dict.fromkeys(notes)]
    path = results / "published.md"
    path.write_text("\n".join([*lines, ""]), encoding="utf-8")
    with (results / "published.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["of", *Figure._fields])
        writer.writerows(["ours", *figure] for figure in ours)
        writer.writerows(["published", *figure] for figure in published)
    return path


def title_of(erased: str, result: dict[str, Any]) -> str:
    """What the protocol calls the erased concept: "Van Gogh" for van_gogh."""
    names = [cell["concept"] for cell in result["cells"]]
    return next(name for name in names if name.lower().replace(" ", "_") == erased)


def main() -> None:
    """Render, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", nargs="?", type=Path, default=Path("runs/table2-sd14"))
    runs = parser.parse_args().runs
    if not any(runs.glob("*/evaluation/*.json")):
        parser.error(f"{runs}: no evaluated run in it; make reproduce-table2 SCALE=sd14 makes them")
    plan = yaml.safe_load((HERE / "sd14.yaml").read_text(encoding="utf-8"))
    print(render(runs, plan).read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
