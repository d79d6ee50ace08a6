"""The curve and its table, from the kept rows alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from experiments.lines import Lines, read_lines
from experiments.several.plan import DEFAULT, WAYS, Job, groups_of
from experiments.table2.bootstrap import Estimate, Samples, rate_of, sample
from unlearn.evaluation.score import count_by_prompt

SHOWN = {"unseen target": "unseen-target rate", "retention": "retention"}
HEADER = (
    f"DoCo with {' '.join(DEFAULT)} trainer.precision=auto. Concepts of the embedded model "
    "forgotten together (joint), one run after another (sequential), or each alone with the "
    "changes of weights added up (merged). Means over all concepts, at each number in disjoint "
    "groups, on the prompts that every row has, with 95 % intervals bootstrapped over concepts "
    "and prompts (at least Wilson's, each prompt being one image) and the number of images; one "
    "training seed."
)
LATER = "What later runs do to what was forgotten before, one run after another:"


def read_rows(folder: Path) -> dict[str, dict[str, Lines]]:
    """The images of each kept run, by its name and by concept."""
    rows: dict[str, dict[str, Lines]] = {}
    for path in sorted(folder.glob("*.csv")):
        alone = path.stem.partition("-")[2]
        for image in read_lines(path):
            concept = image.get("concept", alone)
            rows.setdefault(path.stem, {}).setdefault(concept, []).append(image)
    return rows


def common(rows: dict[str, dict[str, Lines]]) -> dict[str, set[tuple[str, str]]]:
    """The sets and prompts of each concept that every run which forgets it was asked."""
    asked: dict[str, set[tuple[str, str]]] = {}
    for by_concept in rows.values():
        for concept, images in by_concept.items():
            own = {(image["set"], image["prompt"]) for image in images}
            asked[concept] = asked.get(concept, own) & own
    return asked


def point(rows: dict[str, dict[str, Lines]], jobs: list[Job], column: str) -> Estimate | None:
    """A column over the concepts of the jobs; None while one of them is not run."""
    if any(job.name not in rows for job in jobs):
        return None
    prompts, samples = common(rows), []
    for job in jobs:
        for concept, images in rows[job.name].items():
            samples += samples_of(images, column, prompts[concept])
    return rate_of(samples)


def samples_of(images: Lines, column: str, prompts: set[tuple[str, str]]) -> Samples:
    """Of one concept's images of these prompts; empty where none counts."""
    cells = [c for key, c in count_by_prompt(images, column).items() if key in prompts]
    return [[sample([cells])]] if cells else []


def forgotten_before(rows: dict[str, dict[str, Lines]], concepts: tuple[str, ...]) -> list[str]:
    """A table of each concept's unseen-target rate after each sequential run since its own.

    Empty while one of the runs is missing.
    """
    chain = [
        Job("sequential" if n > 1 else "single", concepts[:n]) for n in range(1, len(concepts) + 1)
    ]
    if any(job.name not in rows for job in chain):
        return []
    prompts = common(rows)
    lines = [
        "| unseen-target rate of | " + " | ".join(f"after {c}" for c in concepts) + " |",
        "|---" * (len(concepts) + 1) + "|",
    ]
    for place, concept in enumerate(concepts):
        rates = [
            rate_of(samples_of(rows[job.name][concept], "unseen target", prompts[concept]))
            for job in chain[place:]
        ]
        lines.append("| " + " | ".join([concept, *[""] * place, *map(str, rates)]) + " |")
    return lines


def points(folder: Path, concepts: tuple[str, ...]) -> dict[tuple[str, int], dict[str, Estimate]]:
    """The columns by way and number of concepts, of what is there; one alone is in no way."""
    rows, found = read_rows(folder), {}
    for way in WAYS:
        for size, groups in groups_of(concepts).items():
            jobs = [Job(way if size > 1 else "single", group) for group in groups]
            values = {column: point(rows, jobs, column) for column in SHOWN}
            if all(values.values()):
                found[way, size] = values
    return found  # type: ignore[return-value]


def render(results: Path, concepts: tuple[str, ...]) -> str:
    """Write curve.png and several.md; returns the table."""
    from matplotlib.figure import Figure

    found = points(results / "rows", concepts)
    lines = ["| way | concepts | " + " | ".join(SHOWN.values()) + " |", "|---" * 4 + "|"]
    for (way, size), values in found.items():
        cells = " | ".join(str(values[column]) for column in SHOWN)
        lines.append(f"| {way if size > 1 else 'alone'} | {size} | {cells} |")
    text = "\n".join(dict.fromkeys(lines))  # one alone is the first point of every way
    if later := forgotten_before(read_rows(results / "rows"), concepts):
        text += "\n\n" + "\n".join([f"{LATER}\n", *later])
    (results / "several.md").write_text(f"{HEADER}\n\n{text}\n", encoding="utf-8")
    figure = Figure(figsize=(9, 4), layout="constrained")
    for axes, (column, label) in zip(figure.subplots(1, 2), SHOWN.items(), strict=True):
        for number, way in enumerate(WAYS):
            line = [(size, v[column]) for (w, size), v in found.items() if w == way]
            bars = [[max(0, e.value - e.low), max(0, e.high - e.value)] for _, e in line]
            axes.errorbar(
                [size * (1 + 0.03 * (number - 1)) for size, _ in line],
                [e.value for _, e in line], yerr=np.array(bars).reshape(-1, 2).T,
                fmt="o-", capsize=3, color=f"C{number}", label=way,
            )  # fmt: skip
        axes.set_xscale("log", base=2)
        ticks = [*groups_of(concepts)]
        axes.set(xlabel="concepts forgotten", ylabel=label, ylim=(-0.02, 1.02))
        axes.set_xticks(ticks, [str(n) for n in ticks])
    figure.axes[0].legend()
    figure.savefig(results / "curve.png", dpi=150)
    return text
