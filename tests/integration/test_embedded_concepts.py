"""The embedded model obeys the prompts of every concept that ships for it."""

from __future__ import annotations

import pytest

from unlearn.concepts.prompts import evaluation_prompts
from unlearn.config.compose import compose
from unlearn.config.concept_files import embedded_concepts
from unlearn.config.parse import parse_config
from unlearn.evaluation.evaluate import load_judge
from unlearn.evaluation.summary import MIN_BASE_ACCURACY, judge_flags
from unlearn.generation.sampling import generate

PROMPTS = 12  # of each target


@pytest.mark.slow
def test_the_base_draws_every_target() -> None:
    config = parse_config(compose(["concept=panda"]))
    jobs = []
    for name in embedded_concepts():
        concept = parse_config(compose([f"concept={name}"])).concept
        probes = [p for p in evaluation_prompts(concept) if p.set == "seen_target"]
        for target in concept.targets:
            chosen = [p for p in probes if target in (p.object, p.style)]
            jobs.append((concept, target, (chosen * 2)[:PROMPTS]))
    prompts = [p.prompt for _, _, probes in jobs for p in probes]
    sampler = config.sampler(config.prompt_sets.num_inference_steps)
    seeds = range(4_000_000, 4_000_000 + len(prompts))
    judge = load_judge(config, jobs[0][0])
    verdict = judge.judge(generate(config.base.load(), prompts, seeds, sampler))
    start, disobeyed = 0, []
    for concept, target, probes in jobs:
        part = type(verdict)(*(field[start : start + len(probes)] for field in verdict))
        share = judge_flags(concept, probes, part)["right"].float().mean().item()
        if share < MIN_BASE_ACCURACY:
            disobeyed.append((concept.name, target, share))
        start += len(probes)
    assert start == len(prompts) == len(verdict.objects)
    assert not disobeyed
