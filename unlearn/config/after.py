"""Find out what an earlier run forgot, for a run that starts from its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import safe_open

from unlearn.config.concepts import earlier_sections, trained_sections
from unlearn.config.saved import WEIGHTS_FILE, earlier_run_dir, load_run_config, read_run_config
from unlearn.methods.base import UnlearningModule
from unlearn.methods.registry import METHODS


def read_earlier_concepts(
    after: str, base: str, run_dir: Path, method: str
) -> list[dict[str, Any]]:
    """Return the config sections of every concept that an earlier run's weights forget.

    The list begins with the concepts that runs before the earlier run forgot.

    Args:
        after: the value of the key `after`, which names the earlier run.
        base: the name of the new run's base model.
        run_dir: the new run's directory.
        method: the name of the new run's method.

    Raises:
        ValueError: `after` names no finished run, a run of another base model, or the new run
            itself; or the method of one of the two runs acts at inference.
    """
    folder = earlier_run_dir(after)
    before, config = read_run_config(folder), load_run_config(folder)
    with safe_open(folder / WEIGHTS_FILE, framework="pt") as file:
        facts = file.metadata() or {}
    if facts.get("base") != base:
        raise ValueError(
            f"after={after}: it was made for the base model {facts.get('base')!r}, and "
            f"this run's is {base!r}"
        )
    if folder.resolve() == run_dir.resolve():
        raise ValueError(f"run_dir={run_dir}: the run that `after` names; choose another")
    for name in (config.method, method):
        kind = METHODS.get(name or "", UnlearningModule)  # a merged model names no method
        if kind.install is not UnlearningModule.install:
            raise ValueError(
                f"after={after}: method.name={name!r} acts at inference, so no weights "
                "alone hold what both runs forget"
            )
    return [*earlier_sections(before), *trained_sections(before)]
