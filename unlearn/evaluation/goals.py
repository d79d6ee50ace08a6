"""Say whether a run forgets its concept and keeps the rest, by comparing its rates with goals."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

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


def goal_values(result: dict[str, Any]) -> list[float | None]:
    """Return the values of the columns of `GOALS` from a run's `result.json`.

    "anchor" covers concepts that are no style, and "object below base" covers styles. Both are over
    the two target sets. "broken above base" is the worst of the four sets. A value is None where
    nothing was measured.
    """
    sets, concepts = result["sets"], list(result.get("concepts", {"": result}).values())
    styles = [own for own in concepts if own["kind"] == "style"]
    before, after = (anchor_rate(styles, side) for side in ("base", "unlearned"))

    def share(name: str, metric: str) -> float | None:
        value: float | None = sets[name][metric]["unlearned"]["value"]
        return value

    broken = [row["broken"] for row in sets.values()]
    rises = [b["unlearned"]["value"] - b["base"]["value"] for b in broken if b["base"]["n"]]
    return [
        share("seen_target", "right"),
        share("unseen_target", "right"),
        anchor_rate([own for own in concepts if own["kind"] != "style"], "unlearned"),
        None if before is None or after is None else before - after,
        max(rises, default=None),
        share("unrelated", "retention"),
        share("related", "retention"),
    ]


def anchor_rate(results: Iterable[dict[str, Any]], side: str) -> float | None:
    """Return the share of images that show the anchor, or for a style the prompt's object.

    The share is over both target sets of the results, and None where no image counts.

    Args:
        results: the results of some concepts.
        side: "base" or "unlearned".
    """
    cells = [own["sets"][name]["anchor"][side] for own in results for name in TARGET_SETS]
    n = sum(cell["n"] for cell in cells)
    return sum(cell["n"] * cell["value"] for cell in cells if cell["n"]) / n if n else None


def describe_outcome(result: dict[str, Any]) -> dict[str, Any]:
    """Describe a run's `result.json` in words, and by the goals that it misses.

    What was not measured misses no goal. Without one of the target sets, or without both
    retentions, no outcome is good.

    Returns:
        "head", a headline; "text", a paragraph; "missed", the missed goals as text; "good", whether
        all was measured and no goal is missed.
    """
    if not result["sets"]:
        return {"head": "Not judged", "text": "", "missed": [], "good": False}
    values = goal_values(result)
    missed = [
        f"{name} {value:.0%} (bar: {'≥' if more else '≤'} {bar:.0%})"
        for value, (name, bar, more) in zip(values, GOALS, strict=True)
        if value is not None and (value < bar if more else value > bar)
    ]
    seen, unseen, *_, unrelated, related = values
    anchor = anchor_rate([result], "unlearned")
    if seen is None or unseen is None:
        head = "No target prompt counts: the base model obeys none"
    elif seen > GOALS[0][1] or unseen > GOALS[1][1]:
        head = "Not forgotten"
    elif unrelated is None and related is None:
        head = "Forgotten; what is kept was not measured"
    else:
        head = "Forgotten, with a cost" if missed else "Forgotten, and the rest kept"
    measured = None not in (seen, unseen) and (unrelated, related) != (None, None)

    def rate(name: str, metric: str) -> str:
        pair = {side: Rate(**cell) for side, cell in result["sets"][name][metric].items()}
        return f"{pair['unlearned']} (base {pair['base'].value:.0%})" if pair["base"].n else "n/a"

    text = (
        f"The target is still drawn on {rate('seen_target', 'right')} of the prompts that "
        f"unlearning saw and on {rate('unseen_target', 'right')} of those that it never saw"
    )
    shown = "the prompt's object" if result["kind"] == "style" else "the anchor instead"
    text += "." if anchor is None else f"; {anchor:.0%} of these images show {shown}."
    kept = [f"{v:.0%} of the {n}" for v, n in ((related, "related"), (unrelated, "unrelated"))
            if v is not None]  # fmt: skip
    if kept:
        text += f" Of what the base model drew right, {' and '.join(kept)} images are still right."
    return {"head": head, "text": text, "missed": missed, "good": measured and not missed}
