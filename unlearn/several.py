"""Several concepts in one model: forgotten together, one run after another, or merged."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from safetensors import safe_open

from unlearn.cli import load_run
from unlearn.concepts import AnchorConfig, Concept, ConceptConfig, build_concept
from unlearn.sections import plain, section
from unlearn.vocabulary import vocabulary

WEIGHTS = "unlearned.safetensors"


def run_of(after: str) -> Path:
    """The run directory that `after` names: it, or the weights in it."""
    path = Path(after)
    return path.parent if path.name == WEIGHTS else path


OmegaConf.register_new_resolver(  # of `run_dir` in conf/train.yaml
    "then", lambda after: f"{run_of(after).name}-then-" if after else "", replace=True
)


def listed(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """The names of `concept=[a,b]`, and the other overrides; without such a list, no names.

    Raises:
        ValueError: the list is empty, or another override is of the concept or the anchor.
    """
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    lists = [o.value() for o in parsed if o.key_or_group == "concept"]
    if not lists or not isinstance(chosen := lists[-1], list):
        return [], list(overrides)
    names = [str(name) for name in chosen]
    if not names:
        raise ValueError("concept=[]: at least one concept is needed")
    rest = [o for o in parsed if o.key_or_group != "concept"]
    for override in rest:
        if len(names) > 1 and re.match(r"(concept|anchor)\b", override.key_or_group):
            raise ValueError(
                f"{override.input_line}: it would hold for each of concept={names}; a file of "
                "one's own says it for one (unlearn new-concept NAME)"
            )
    return names, [str(o.input_line) for o in rest]


def sections_of(config: DictConfig) -> list[dict[str, Any]]:
    """The sections `concept` and `anchor` of each concept that a run trains on."""
    if "concepts" in config:
        return list(plain(config.concepts))
    for key in ("concept", "anchor"):
        if OmegaConf.is_missing(config[key], "name"):
            raise ValueError(
                f"{key}.name is missing: choose a file of conf/{key} (concept=panda), or give "
                "concept.name=... and anchor.name=..."
            )
    return [{key: plain(config[key]) for key in ("concept", "anchor")}]


def earlier_of(config: DictConfig) -> list[dict[str, Any]]:
    """Those sections of what was forgotten before the run, by the runs that it goes on from."""
    return list(plain(config.get("earlier") or []))


def join_configs(configs: Sequence[DictConfig]) -> DictConfig:
    """One config for the concepts of several.

    It is that of most steps, the first of equals: settings that were chosen together stay
    together. Its `concept.kind` is the kind whose settings they are; `concepts` holds the sections
    of every concept.
    """
    if len(configs) == 1:
        return configs[0]
    joint = max(configs, key=lambda c: c.get("steps") or 0).copy()
    OmegaConf.set_struct(joint, False)
    concepts = [s for c in configs for s in (*earlier_of(c), *sections_of(c))]
    name = "+".join(s["concept"]["name"] for s in concepts)
    joint.concept = {"name": name, "kind": joint.concept.kind}
    joint.concepts = concepts
    for key in ("anchor", "earlier"):
        joint.pop(key, None)
    return joint


def check_alike(configs: Sequence[DictConfig]) -> None:
    """Refuse concepts whose kinds want another form of the method, not only other numbers.

    Raises:
        ValueError: names the option, and what each concept's kind would have.
    """
    for key in configs[0].get("method") or {}:
        values = {c.concept.name: c.method[key] for c in configs}
        if len({*values.values()}) > 1 and any(isinstance(v, str) for v in values.values()):
            raise ValueError(
                f"concept={list(values)}: method.{key} differs by kind: {values}; "
                f"method.{key}=... sets it for all"
            )


def concept_of(config: DictConfig, own: bool = False) -> Concept:
    """What the weights of a run forget, checked against what its model knows.

    Args:
        config: the run's.
        own: only what the run itself trains on, not what was forgotten before it.

    Raises:
        ValueError: see `section`, `build_concept` and `join`.
    """
    chosen = sections_of(config) if own else [*earlier_of(config), *sections_of(config)]
    known = config.model.vocabulary
    if known not in (None, "emoji"):
        raise ValueError(f"model.vocabulary={known!r}: allowed are 'emoji' and null")
    words = vocabulary() if known else None
    return join(
        [
            build_concept(
                section(s["concept"], "concept", ConceptConfig),
                section(s["anchor"], "anchor", AnchorConfig),
                words,
            )
            for s in chosen
        ]
    )


def join(parts: Sequence[Concept]) -> Concept:
    """The concepts as one, each of which keeps what it is and knows of the others.

    Raises:
        ValueError: two have the same name or target, or the target of one is the anchor of another.
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
        unrelated=aware[0].spared,
        words=parts[0].words,
        parts=aware,
    )


def go_on(config: DictConfig, base: str) -> None:
    """Note in the config what was forgotten by the run that `after` names, and by those before it.

    Args:
        config: of the run that starts from its weights.
        base: the name of the base model.

    Raises:
        ValueError: it is no finished run, one of another base model, or one that acts at inference.
    """
    from unlearn.methods import METHODS
    from unlearn.methods.base import UnlearningModule

    before, folder = load_run(str(run_of(config.after)))
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        facts = file.metadata() or {}
    if facts.get("base") != base:
        raise ValueError(
            f"after={config.after}: it was made for the base model {facts.get('base')!r}, and "
            f"this run's is {base!r}"
        )
    if folder.resolve() == Path(config.run_dir).resolve():
        raise ValueError(f"run_dir={config.run_dir}: the run that `after` names; choose another")
    for name in (before.method.name, config.method.name):
        method = METHODS.get(name, UnlearningModule)  # a merge is none
        if method.install is not UnlearningModule.install:
            raise ValueError(
                f"after={config.after}: method.name={name!r} acts at inference, so no weights "
                "alone hold what both runs forget"
            )
    OmegaConf.set_struct(config, False)
    config.earlier = [*earlier_of(before), *sections_of(before)]
