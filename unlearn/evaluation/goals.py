"""Say whether a run forgets its concept and keeps the rest, by comparing its rates with goals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from unlearn.evaluation.intervals import Rate
from unlearn.evaluation.score import TARGET_SETS

# Each goal: its column, the bar for the unlearned model's share, whether a larger share is better.
# Styles have "object below base" in place of "anchor".
GOALS = (
    ("seen target", 0.05, False),
    ("unseen target", 0.15, False),
    ("anchor", 0.70, True),
    ("object below base", 0.10, False),
    ("broken above base", 0.05, False),
    ("retention, unrelated", 0.85, True),
    ("retention, related", 0.60, True),
)


class Measure(NamedTuple):
    """A run's value for one goal, with the ends of its 95 % interval."""

    value: float
    low: float
    high: float


def verdict(measure: Measure, bar: float, more: bool) -> str:
    """Return "met", "not met" or "undecided" for a measure and its bar.

    A goal is met where the whole interval lies on the good side of the bar, the bar included. It is
    not met where the whole interval lies beyond the bar. Otherwise the images are too few to tell.
    Of equal shares, more images only turn "undecided" into one of the other two.

    Args:
        measure: the value and its interval.
        bar: the goal's bar.
        more: whether a larger value is better.
    """
    if measure.low >= bar if more else measure.high <= bar:
        return "met"
    return "not met" if (measure.high < bar if more else measure.low > bar) else "undecided"


def goal_values(result: Mapping[str, Any]) -> list[float | None]:
    """Return the values of `goal_measures`."""
    return [measure and measure.value for measure in goal_measures(result)]


def goal_measures(result: Mapping[str, Any]) -> list[Measure | None]:
    """Return the measures of the columns of `GOALS` from a run's `result.json`.

    "anchor" covers concepts that are no style, and "object below base" covers styles. Both are over
    the two target sets. "broken above base" is the worst of the four sets. A measure is None where
    nothing was measured. The interval of a difference goes from the least to the largest difference
    of the two intervals' ends.
    """
    sets, concepts = result["sets"], list(result.get("concepts", {"": result}).values())
    styles = [own for own in concepts if own["kind"] == "style"]
    before, after = (anchor_measure(styles, side) for side in ("base", "unlearned"))
    broken = [row["broken"] for row in sets.values() if row["broken"]["base"]["n"]]
    rises = [difference(measure_of(pair["unlearned"]), measure_of(pair["base"])) for pair in broken]
    return [
        measure_of(sets["seen_target"]["right"]["unlearned"]),
        measure_of(sets["unseen_target"]["right"]["unlearned"]),
        anchor_measure([own for own in concepts if own["kind"] != "style"], "unlearned"),
        difference(before, after),
        Measure(*(max(ends) for ends in zip(*filter(None, rises), strict=True))) if rises else None,
        measure_of(sets["unrelated"]["retention"]["unlearned"]),
        measure_of(sets["related"]["retention"]["unlearned"]),
    ]


def measure_of(rate: Mapping[str, Any]) -> Measure | None:
    """Return a rate of result.json as a measure, or None where no image counts."""
    return Measure(rate["value"], rate["low"], rate["high"]) if rate["n"] else None


def difference(one: Measure | None, other: Measure | None) -> Measure | None:
    """Return a difference of two measures, or None where one of them is None."""
    if one is None or other is None:
        return None
    return Measure(one.value - other.value, one.low - other.high, one.high - other.low)


def anchor_measure(results: Iterable[Mapping[str, Any]], side: str) -> Measure | None:
    """Return the share of images that show the anchor, or for a style the prompt's object.

    The share, and each end of its interval, is the mean over both target sets of the results,
    weighted by their images. It is None where no image counts.

    Args:
        results: the results of some concepts.
        side: "base" or "unlearned".
    """
    cells = [own["sets"][name]["anchor"][side] for own in results for name in TARGET_SETS]
    counted = [cell for cell in cells if cell["n"]]
    n = sum(cell["n"] for cell in counted)
    ends = ("value", "low", "high")
    return Measure(*(sum(c["n"] * c[end] for c in counted) / n for end in ends)) if n else None


def describe_outcome(result: Mapping[str, Any]) -> dict[str, Any]:
    """Describe a run's `result.json` in words, and by the goals that it misses.

    Returns:
        "head", a headline; "text", a paragraph; "missed" and "undecided", those goals as text;
        "verdict": "met" where all was measured and every goal is met, "not met" where one is
        missed, else "undecided".
    """
    if not result["sets"]:
        return {
            "head": "Not judged", "text": "", "missed": [], "undecided": [], "verdict": "undecided"
        }  # fmt: skip
    measures = goal_measures(result)
    goals: dict[str, list[str]] = {"met": [], "not met": [], "undecided": []}
    verdicts = []
    for measure, (name, bar, more) in zip(measures, GOALS, strict=True):
        verdicts.append("met" if measure is None else verdict(measure, bar, more))
        if measure is not None:
            value, low, high = (f"{share:z.0%}" for share in measure)
            sign = "≥" if more else "≤"
            goals[verdicts[-1]].append(f"{name} {value} [{low}, {high}] (bar: {sign} {bar:.0%})")
    missed, undecided = goals["not met"], goals["undecided"]
    seen, unseen, *_, unrelated, related = measures
    measured = bool(seen and unseen and (unrelated or related))
    overall = "not met" if missed else "met" if measured and not undecided else "undecided"
    return {
        "head": headline(measures, verdicts), "text": describe_rates(result), "missed": missed,
        "undecided": undecided, "verdict": overall,
    }  # fmt: skip


def headline(measures: Sequence[Measure | None], verdicts: Sequence[str]) -> str:
    """Return the verdict on a run as one line.

    The target counts as forgotten where the goal of the unseen prompts is met, and that of the
    seen prompts is not missed.

    Args:
        measures: those of `goal_measures`.
        verdicts: on each of them; "met" where nothing was measured.
    """
    seen, unseen, *_, unrelated, related = measures
    if seen is None or unseen is None:
        return "No target prompt counts: the base model obeys none"
    if "not met" in verdicts[:2]:
        return "Not forgotten"
    if verdicts[1] == "undecided":
        return "Undecided: too few images to tell whether the target is forgotten"
    if unrelated is None and related is None:
        return "Forgotten; what is kept was not measured"
    if "not met" in verdicts:
        return "Forgotten, with a cost"
    if open_goals := verdicts.count("undecided"):
        return f"Forgotten; too few images to decide {open_goals} of the goals"
    return "Forgotten, and the rest kept"


def describe_rates(result: Mapping[str, Any]) -> str:
    """Return a paragraph on how often the target, the anchor and what is kept are drawn."""

    def rate(name: str) -> str:
        pair = {side: Rate(**cell) for side, cell in result["sets"][name]["right"].items()}
        return f"{pair['unlearned']} (base {pair['base'].value:.0%})" if pair["base"].n else "n/a"

    *_, unrelated, related = goal_measures(result)
    anchor = anchor_measure([result], "unlearned")
    text = (
        f"The target is still drawn on {rate('seen_target')} of the prompts that "
        f"unlearning saw and on {rate('unseen_target')} of those that it never saw"
    )
    shown = "the prompt's object" if result["kind"] == "style" else "the anchor instead"
    text += "." if anchor is None else f"; {anchor.value:.0%} of these images show {shown}."
    kept = [f"{m.value:.0%} of the {n}" for m, n in ((related, "related"), (unrelated, "unrelated"))
            if m is not None]  # fmt: skip
    if kept:
        text += f" Of what the base model drew right, {' and '.join(kept)} images are still right."
    return text
