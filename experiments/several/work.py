"""One run of the experiment, in a module of its own, so that other processes can import it."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from unlearn.backbone import load_pipeline
from unlearn.config import base_name, base_of
from unlearn.evaluation.evaluate import evaluate
from unlearn.export import named_weights, read_safetensors, save_unlearned
from unlearn.train import train


def perform(config: DictConfig) -> Path:
    """A training run, or a merged model and its evaluation; returns the run directory."""
    if "merged" not in config:
        return train(config)
    run, own = Path(config.run_dir), named_weights(load_pipeline(**base_of(config)))
    merged = {}
    for folder in config.merged:
        for name, weight in read_safetensors(Path(folder) / "unlearned.safetensors")[0].items():
            merged[name] = merged.get(name, own[name]) + weight - own[name]
    weights = {name.removeprefix("unet."): weight for name, weight in merged.items()}
    metadata = {"base": base_name(config), "concept": config.concept.name, "method": "merged"}
    save_unlearned(weights, run / "unlearned.safetensors", metadata)
    (run / "config.yaml").write_text(OmegaConf.to_yaml(config, resolve=True), encoding="utf-8")
    evaluate(config, run)
    return run
