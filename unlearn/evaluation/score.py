"""Compute the columns that runs are compared by, and one score, from a run's images.csv."""

from __future__ import annotations

from statistics import harmonic_mean, mean

from unlearn.concepts.prompts import SET_NAMES
from unlearn.evaluation.intervals import Rate, wilson_rate

TARGET_SETS, KEPT_SETS = SET_NAMES[:2], SET_NAMES[2:]
Images = list[dict[str, str]]  # rows of images.csv
# column: the sets that it counts over, the flag that makes an image a hit, and the flag that makes
# an image count
SCORE_COLUMNS: dict[str, tuple[tuple[str, ...], str, str]] = {
    "unseen target": (("unseen_target",), "unlearned_right", "counts"),
    "seen target": (("seen_target",), "unlearned_right", "counts"),
    "anchor": (TARGET_SETS, "unlearned_anchor", "counts"),
    "broken": ((*TARGET_SETS, *KEPT_SETS), "unlearned_broken", "counts"),
    "base broken": ((*TARGET_SETS, *KEPT_SETS), "base_broken", "counts"),
    **{
        f"broken, {part.replace('_', ' ')}": ((part,), "unlearned_broken", "counts")
        for part in SET_NAMES
    },
    "retention, related": (("related",), "unlearned_right", "base_right"),
    "retention, unrelated": (("unrelated",), "unlearned_right", "base_right"),
    "retention": (KEPT_SETS, "unlearned_right", "base_right"),
}


def count_by_prompt(
    images: Images, column: str, model: str = "unlearned"
) -> dict[tuple[str, str], tuple[int, int]]:
    """Return the hits and the count of a column, by set and prompt.

    A prompt of which no image counts is left out. An empty flag, which the judge could not tell,
    does not count.

    Args:
        images: rows of images.csv.
        column: a key of `SCORE_COLUMNS`.
        model: whose images to count, "unlearned" or "base".
    """
    sets, flag, among = SCORE_COLUMNS[column]
    flag = flag.replace("unlearned", model)
    prompts: dict[tuple[str, str], list[int]] = {}
    for image in images:
        if image["set"] in sets:
            cell = prompts.setdefault((image["set"], image["prompt"]), [0, 0])
            if image["counts"] == "1" and image[among] == "1" and image[flag]:
                cell[0] += int(image[flag])
                cell[1] += 1
    return {prompt: (hits, count) for prompt, (hits, count) in prompts.items() if count}


def column_rate(images: Images, column: str) -> Rate:
    """Return the rate of a column over all its images."""
    cells = count_by_prompt(images, column).values()
    return wilson_rate(sum(hits for hits, _ in cells), sum(count for _, count in cells))


def forget_keep_score(images: Images) -> float:
    """Return the harmonic mean of what is forgotten and what is kept.

    Forgotten is the share of images for unseen target prompts that are neither the target nor
    broken. Kept is the retention on related and unrelated prompts.

    Raises:
        ValueError: one of the two has no image to count.
    """
    unseen = [i for i in images if i["set"] == "unseen_target" and i["counts"] == "1"]
    kept = column_rate(images, "retention").value
    if not unseen or kept is None:
        raise ValueError(
            "nothing to score: the base model obeys no unseen target prompt, or draws nothing of "
            "the related and unrelated prompts right"
        )
    gone = mean(i["unlearned_right"] == "0" and i["unlearned_broken"] != "1" for i in unseen)
    return harmonic_mean([gone, kept])
