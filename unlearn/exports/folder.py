"""A whole unlearned pipeline as a diffusers folder."""

from __future__ import annotations

import shutil
from pathlib import Path

from unlearn.config.run_config import ModelConfig
from unlearn.config.run_files import read_result
from unlearn.exports.model_card import model_card
from unlearn.models.loading import absent_components, read_model_index
from unlearn.utils.atomic import atomic_folder
from unlearn.weights.delta import load_unlearned, read_weights_alone

RUN_FILES = ("unlearned.safetensors", "config.yaml", "result.json", "before_after.png")  # copied


def export_run(config: ModelConfig, out: Path) -> Path:
    """Write the whole unlearned pipeline as a diffusers folder, and return the folder.

    The folder gets the changed weights, the run's result and a model card too.

    Args:
        config: the run's configuration.
        out: the folder to make.

    Raises:
        ValueError: `out` exists and is not empty, the run lacks a file, or the method acts at
            inference, so that weights alone are not its result.
    """
    run = config.folder
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out}: is not empty; name a folder that does not exist yet")
    for name in RUN_FILES:
        if not (run / name).exists():
            raise ValueError(
                f"{run}: {name} is missing; `unlearn evaluate {run}` writes the results"
            )
    read_weights_alone(config.weights)
    concept = config.concept  # here, so that a missing prompt pack is refused before any work
    result = read_result(run / "result.json")
    pipe = load_unlearned(config.base.load(), config.weights)
    with atomic_folder(out) as partial:
        pipe.save_pretrained(partial)
        absent = absent_components(type(pipe), read_model_index(str(partial)))
        card = model_card(config, concept, result, absent)
        (partial / "README.md").write_text(card, encoding="utf-8")
        for name in RUN_FILES:
            shutil.copyfile(run / name, partial / name)
    return out
