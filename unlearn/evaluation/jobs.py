"""Evaluate several models, by the four prompt sets or a published protocol."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from unlearn.config.evaluation import parse_evaluation
from unlearn.config.run_config import ModelConfig
from unlearn.evaluation.evaluate import evaluate
from unlearn.evaluation.protocol import Protocol, read_protocol
from unlearn.evaluation.run_protocol import evaluate_published
from unlearn.utils.run_errors import as_run_errors

MEMORY_ADVICE = (
    "a lower evaluation.batch_size or trainer.precision=bf16-mixed"  # advice if memory runs out
)


class EvaluationJob(NamedTuple):
    """One model to evaluate, with all that the evaluation needs.

    Attributes:
        config: the model's configuration; the results go to its folder.
        external_weights: weights made outside this package; None: the run's own weights.
        protocol: a published protocol; None: the four prompt sets.
        changed: the overrides that change the protocol.
    """

    config: ModelConfig
    external_weights: Path | None
    protocol: Protocol | None
    changed: list[str]


def evaluate_all(paths: Sequence[str], overrides: Sequence[str]) -> list[dict[str, Any]]:
    """Evaluate every named model, and return the results.

    All models and overrides are checked before the first evaluation starts.

    Args:
        paths: run directories or external weights.
        overrides: of the evaluations.

    Raises:
        ValueError: a model or an override is not valid, or two models share a result folder.
        RunError: the disk is full or not writable, or memory runs out.
    """
    jobs = [parse_job(Path(path), overrides) for path in paths]
    if len({job.config.folder for job in jobs}) < len(jobs):
        raise ValueError(f"{', '.join(paths)}: their results would lie in one folder")
    return [evaluate_one(job) for job in jobs]


def parse_job(path: Path, overrides: Sequence[str]) -> EvaluationJob:
    """Return the checked evaluation of the model at a path.

    Raises:
        ValueError: the concept is not valid; see also `parse_evaluation` and `read_protocol`.
    """
    config, external, section = parse_evaluation(path, overrides)
    name = config.concept.name
    protocol = None if section is None else read_protocol(section, name)
    changed = [o for o in overrides if re.match(r"[+~]{0,2}evaluation\.", o)]
    return EvaluationJob(config, external, protocol, changed)


def evaluate_one(job: EvaluationJob) -> dict[str, Any]:
    """Evaluate one model, and return the result.

    Raises:
        RunError: the disk is full or not writable, or memory runs out.
    """
    config, external, protocol, changed = job
    weights = external or config.weights
    if protocol is None:
        with as_run_errors(weights):
            return evaluate(config, external)
    with as_run_errors(weights, MEMORY_ADVICE):
        return evaluate_published(config, protocol, weights, changed)
