"""One run of the experiment, in a module of its own, so that other processes can import it."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from unlearn.cli import load_run
from unlearn.evaluation.evaluate import evaluate
from unlearn.merge import FILE, MergeOptions, merge_runs
from unlearn.train import train


def perform(config: DictConfig) -> Path:
    """A training run, or a merged model and its evaluation; returns the run directory."""
    if "merged" not in config:
        return train(config)
    run = Path(config.run_dir)
    if not (run / FILE).exists():
        merge_runs([Path(folder) for folder in config.merged], run, MergeOptions())
    evaluate(*load_run(str(run)))
    return run
