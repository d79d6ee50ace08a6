"""Join several concepts into one that a single run forgets."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

from unlearn.concepts.concept import Concept


def join_concepts(parts: Sequence[Concept]) -> Concept:
    """Return several concepts as one, whose `parts` are the given concepts.

    Each part stays as it is, save that its `others` hold the rest of the parts. One concept alone
    is returned unchanged.

    Raises:
        ValueError: two concepts have the same name or target, or the target of one is the anchor of
            another.
    """
    if len(parts) == 1:
        return parts[0]
    for one, other in itertools.permutations(parts, 2):
        pair = f"concept=[{one.name}, {other.name}]"
        if one.name == other.name:
            raise ValueError(f"{pair}: forgotten twice, in one run or one after another")
        if both := sorted({*one.targets} & {*other.targets}):
            raise ValueError(f"{pair}: {both} are targets of both")
        if both := sorted({*one.targets} & {*other.anchors.values()}):
            raise ValueError(f"{pair}: {both} are targets of the first and anchors of the second")
    aware = tuple(replace(p, others=tuple(o for o in parts if o is not p)) for p in parts)
    targets = {t for p in parts for t in p.targets}
    related = dict.fromkeys(n for p in parts for n in p.related if n not in targets)
    return Concept(
        kind="+".join(dict.fromkeys(p.kind for p in parts)),
        name="+".join(p.name for p in parts),
        anchors={t: a for p in parts for t, a in p.anchors.items()},
        synonyms={t: s for p in parts for t, s in p.synonyms.items()},
        seen=[],
        unseen=[],
        related=list(related),
        unrelated=aware[0].safe_unrelated,
        words=parts[0].words,
        parts=aware,
    )
