"""What every bad input must come to: one line that says why, exit status 2, and nothing written."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hydra.core.global_hydra import GlobalHydra

from unlearn.cli import main as cli
from unlearn.config.compose import compose
from unlearn.config.parse import parse_config
from unlearn.models.cross_attention import cross_attention_layers
from unlearn.models.pipeline import load_pipeline
from unlearn.training.run_dir import config_text
from unlearn.utils.atomic import write_text
from unlearn.weights.delta import save_unlearned

FREE = "model=sd14 model.pretrained={model} evaluation.judge=none anchor.name=dog"  # any name goes


def nothing(work: Path) -> None:
    """Files that a case needs: none."""


class Case(NamedTuple):
    """One bad input.

    Attributes:
        command: arguments of the console script, {work} and {model} filled in.
        message: a regular expression of the whole line, without "unlearn: ".
        prepare: makes the files that it needs in the working folder.
        loads: the refusal may need the base model; else none is loaded.
    """

    command: Sequence[str]
    message: str
    prepare: Callable[[Path], Any] = nothing
    loads: bool = False


def train(overrides: str, message: str, prepare: Any = nothing, **options: Any) -> Case:
    """A case of `unlearn train concept=panda`, of overrides without spaces in them."""
    chosen = [] if "concept=" in overrides.replace("+concept=", "") else ["concept=panda"]
    return Case(["train", *chosen, *overrides.split()], message, prepare, **options)


def free(overrides: str, message: str, **options: object) -> Case:
    """Of a model whose vocabulary is not known."""
    return Case(["train", *FREE.split(), *overrides.split()], message, **options)  # type: ignore[arg-type]


def files(**contents: str | bytes) -> Callable[[Path], None]:
    """Makes files; "__" in a name stands for a folder."""

    def write(work: Path) -> None:
        for name, content in contents.items():
            path = work / name.replace("__", "/").replace("_dot_", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return write


def name_of(case: Case) -> str:
    """The case's name in pytest's report."""
    return " ".join(case.command)[:90]


def snapshot(*folders: Path) -> dict[str, tuple[int, int, int]]:
    """Every file, link and folder, with its kind, size and time of writing."""
    found = {}
    for folder in folders:
        for path in [folder, *folder.rglob("*")]:
            stat = path.lstat()
            found[str(path)] = (stat.st_mode, stat.st_size, stat.st_mtime_ns)
    return found


def write_config(folder: Path, *overrides: str) -> None:
    """Write config.yaml as the run of those overrides does."""
    config = parse_config(compose([*overrides, f"run_dir={folder.name}"]))
    write_text(folder / "config.yaml", config_text(config))


def make_run(folder: Path, model: Path) -> Path:
    """A finished run of the random model: its config, and weights that fit it."""
    folder.mkdir(parents=True)
    chosen = ["concept=panda", f"model.pretrained={model}", "evaluation.images_per_prompt=1"]
    write_config(folder, *chosen)
    layers = cross_attention_layers(load_pipeline(str(model)).unet)
    weights = {f"{name}.weight": 9 * layer.weight for name, layer in layers.items()}
    save_unlearned(weights, folder / "unlearned.safetensors", {"base": str(model)})
    return folder


class NoModel:
    """Stands where a base model would be loaded."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        pytest.fail("a base model is loaded before the input is refused")


def assert_refused(
    case: Case, work: Path, model: Path, patch: pytest.MonkeyPatch, capture: Any
) -> None:
    """The console script says the message, in one line, and leaves everything as it was."""
    cache = work.parent / "cache"
    cache.mkdir()
    patch.setenv("UNLEARN_CACHE", str(cache))
    patch.setenv("HF_HUB_OFFLINE", "1")
    patch.chdir(work)
    if not case.loads:
        patch.setattr("unlearn.config.base_model.load_pipeline", NoModel())
        patch.setattr("unlearn.models.pipeline.load_stored_pipeline", NoModel())
    case.prepare(work)
    given = [p.replace("{work}", str(work)).replace("{model}", str(model)) for p in case.command]
    patch.setattr(sys, "argv", ["unlearn", *given])
    GlobalHydra.instance().clear()
    before = snapshot(work, cache)
    with pytest.raises(SystemExit) as end:
        cli.main()
    said = capture.readouterr().err
    assert end.value.code == 2
    assert "Traceback" not in said, said
    *bars, line = said.rstrip("\n").splitlines()
    assert all("image" in bar for bar in bars if bar), said  # of a progress bar
    assert line.startswith("unlearn: ")
    assert re.search(case.message, line), line
    assert snapshot(work, cache) == before
