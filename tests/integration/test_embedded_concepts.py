"""The embedded model obeys the prompts of every concept that ships for it."""

from __future__ import annotations

import pytest

from unlearn.backbone import load_pipeline
from unlearn.config import compose, concept_of, embedded_concepts, sampler_of
from unlearn.evaluation.evaluate import OBEYED, load_judge, verdicts
from unlearn.generate import generate
from unlearn.prompts import evaluation_probes

PROMPTS = 12  # of each target


@pytest.mark.slow
def test_the_base_draws_every_target() -> None:
    config = compose(["concept=panda"])
    jobs = []
    for name in embedded_concepts():
        concept = concept_of(compose([f"concept={name}"]))
        probes = [p for p in evaluation_probes(concept) if p.set == "seen_target"]
        for target in concept.targets:
            chosen = [p for p in probes if target in (p.object, p.style)]
            jobs.append((concept, target, (chosen * 2)[:PROMPTS]))
    prompts = [p.prompt for _, _, probes in jobs for p in probes]
    sampler = sampler_of(config, config.evaluation.sampling_steps)
    seeds = range(4_000_000, 4_000_000 + len(prompts))
    verdict = load_judge(config).judge(generate(load_pipeline("emoji"), prompts, seeds, **sampler))
    start, disobeyed = 0, []
    for concept, target, probes in jobs:
        part = type(verdict)(*(field[start : start + len(probes)] for field in verdict))
        share = verdicts(concept, probes, part)["right"].float().mean().item()
        if share < OBEYED:
            disobeyed.append((concept.name, target, share))
        start += len(probes)
    assert start == len(prompts) == len(verdict.objects)
    assert not disobeyed
