"""Whether a run forgets and keeps the rest: its rates against bars."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from unlearn.evaluation.intervals import Rate
from unlearn.evaluation.score import TARGET_SETS

# (column, bar on the unlearned model's share, whether a larger share is better); styles are held to
# the prompt's object in place of the anchor
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
    """The columns of `GOALS`, from a run's `result.json`; None where nothing was measured.

    "anchor", of concepts that are no style, and "object below base", of styles, are over both
    target sets; "broken above base" is the worst of the four sets.
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
    """The share of images that show the anchor, for a style the prompt's object.

    Over both target sets of the results; None where no image counts.
    """
    cells = [own["sets"][name]["anchor"][side] for own in results for name in TARGET_SETS]
    n = sum(cell["n"] for cell in cells)
    return sum(cell["n"] * cell["value"] for cell in cells if cell["n"]) / n if n else None


def describe_outcome(result: dict[str, Any]) -> dict[str, Any]:
    """What a run's `result.json` says in words: "head", "text", "missed" bars, "good": none.

    What was not measured misses no bar; without a target set, or both retentions, nothing is good.
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
