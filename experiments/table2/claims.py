"""The kept runs, and the paper's two claims on them as paired differences."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

from experiments.lines import Lines, read_lines
from experiments.table2.bootstrap import Samples, difference, mean_rates, sample, sign_flip
from unlearn.evaluation.score import count_by_prompt

CLAIMS = (  # its number, the row that makes it, and the row beside it
    (1, "doco", "concept_ablation"),
    (2, "doco", "unlearn_only"),
    (2, "doco", "weighted_sum"),
    (1, "base_start", "concept_ablation"),
    (2, "base_start", "base_start_unlearn_only"),
    (2, "base_start", "base_start_weighted_sum"),
    (1, "without_contexts", "concept_ablation"),
)
MARGIN = 0.02  # a claim's "not worse"
TARGETS, SEEDS = 6, 2  # that a claim needs
MORE = ("further", "fresh")  # targets beside the table's, see rows.yaml
Kept = dict[str, dict[str, dict[int, Lines]]]  # row, target, seed: its images


def read_kept(folder: Path, plan: dict[str, Any]) -> Kept:
    """The images of all kept runs."""
    kept: Kept = {}
    for path in sorted(folder.glob("*.csv")):
        row, concept, seed = path.stem.rsplit("-", 2)
        kept.setdefault(row, {}).setdefault(concept, {})[int(seed)] = read_lines(path)
    return {row: kept[row] for row in plan["rows"] if row in kept}


def on_targets(kept: Kept, targets: list[str]) -> Kept:
    """What is kept of some targets alone."""
    return {
        row: own
        for row, runs in kept.items()
        if (own := {t: runs[t] for t in runs if t in targets})
    }


def samples_of(kept: Kept, rows: list[str], column: str, model: str = "unlearned") -> Samples:
    """Of the targets, seeds and prompts that all the rows have; see `count_by_prompt`."""
    samples: Samples = []
    for target in kept[rows[0]]:
        if not all(target in kept[row] for row in rows):
            continue
        seeds = set.intersection(*(set(kept[row][target]) for row in rows))
        cells = [
            [count_by_prompt(kept[row][target][seed], column, model) for row in rows]
            for seed in sorted(seeds)
        ]
        if prompts := common([cell for by_row in cells for cell in by_row]):
            samples.append([sample([[c[p] for p in prompts] for c in by_row]) for by_row in cells])
    return samples


def common(cells: list[dict[tuple[str, str], tuple[int, int]]]) -> list[tuple[str, str]]:
    """The prompts that count in all of the cells."""
    return sorted(set.intersection(*map(set, cells))) if cells else []


def verdict(holds: bool, targets: int, seeds: int) -> str:
    """In words; a claim needs `TARGETS` targets, each with `SEEDS` training seeds."""
    if targets < TARGETS or seeds < SEEDS:
        return f"undecided, {TARGETS} and {SEEDS} are needed"
    return "shown" if holds else "not shown"


def by_target(kept: Kept, row: str, other: str) -> str:
    """The difference of two rows' unseen-target rates on each target, in points."""
    parts = []
    for target in kept[row]:
        own = {r: {target: kept[r].get(target, {})} for r in (row, other)}
        for one in samples_of(own, [row, other], "unseen target"):
            first, second = mean_rates([one])
            parts.append(f"{target} {100 * (first - second):+.1f}")
    return ", ".join(parts)


def claim(number: int, row: str, other: str, kept: Kept, plan: dict[str, Any], which: str) -> str:
    """A claim's differences on the targets kept, in points, and its verdict; empty where none are.

    Args:
        number, row, other: the claim, the row that makes it, and the row beside it.
        kept: the runs to look at.
        plan: see rows.yaml.
        which: says which targets these are.
    """
    if row not in kept or other not in kept:
        return ""
    pairs = [samples_of(kept, [row, other], c) for c in ("unseen target", "retention")]
    if not all(pairs):
        return ""
    unseen, retention = map(difference, pairs)
    if number == 1:
        holds = unseen.high < 0 and retention.low > -MARGIN
    else:
        holds = retention.low > 0 and unseen.high < MARGIN
    targets = min(map(len, pairs))
    seeds = min(len(target) for samples in pairs for target in samples)
    p = [sign_flip(samples) for samples in pairs]
    means = [100 * mean_rates(samples) for samples in pairs]
    unseen_means, retention_means = (f"{own:.1f} less {others:.1f}" for own, others in means)
    return (
        f"Claim {number}, {plan['rows'][row]['label']} less {plan['rows'][other]['label']}, on "
        f"{which} {targets} targets with {seeds} training seed{'s' * (seeds > 1)} or more: "
        f"unseen-target rate {unseen.points}, sign-flip p {p[0]:.2g}, {unseen_means} "
        f"({by_target(kept, row, other)}), retention {retention.points}, sign-flip p {p[1]:.2g}, "
        f"{retention_means} points: "
        f"{verdict(holds, targets, seeds)}."
    )


def claims(kept: Kept, plan: dict[str, Any]) -> list[str]:
    """The two claims of the paper, each with its differences in points, and its verdict.

    Of the default, of DoCo from the base model, as in the paper, and of the default before
    contexts; on the table's targets, and once both rows have all further or all fresh targets, on
    those and on all.

    1. Domain correction generalises: the unseen-target rate of DoCo is under Concept Ablation's,
       and its retention not worse by more than 2 points.
    2. The concept-preserving gradient keeps the model: retention with surgery is over that without,
       at an unseen-target rate not worse by more than 2 points.
    """
    lines = []
    for number, row, other in CLAIMS:
        groups = {"the table's": list(plan["targets"])}
        for name in MORE:
            targets = list(plan.get(f"{name}_targets", []))
            if targets and all(set(targets) <= set(kept.get(r, {})) for r in (row, other)):
                groups[f"the {name}"] = targets
        if len(groups) > 1:
            groups["all these"] = list(chain(*groups.values()))
        for which, targets in groups.items():
            lines.append(claim(number, row, other, on_targets(kept, targets), plan, which))
    return [line for line in lines if line]
