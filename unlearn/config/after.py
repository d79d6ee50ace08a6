"""Go on from the weights of an earlier run."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from safetensors import safe_open

from unlearn.config.concepts import earlier_sections, trained_sections
from unlearn.config.saved import WEIGHTS_FILE, earlier_run_dir, load_run
from unlearn.methods.base import UnlearningModule
from unlearn.methods.registry import METHODS


def record_earlier_concepts(config: DictConfig, base: str) -> None:
    """Note in the config what was forgotten by the run that `after` names, and by those before it.

    Args:
        config: of the run that starts from its weights.
        base: the name of the base model.

    Raises:
        ValueError: it is no finished run, one of another base model, or one that acts at inference.
    """

    before, folder = load_run(str(earlier_run_dir(config.after)))
    with safe_open(folder / WEIGHTS_FILE, framework="pt") as file:
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
    config.earlier = [*earlier_sections(before), *trained_sections(before)]
