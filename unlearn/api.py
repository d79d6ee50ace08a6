"""Train, evaluate and draw from Python: the public API of `import unlearn`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from PIL import Image

from unlearn.config.compose import compose
from unlearn.config.parse import parse_config
from unlearn.config.run_config import ModelConfig
from unlearn.config.run_files import read_result
from unlearn.config.saved import load_run_config
from unlearn.evaluation.jobs import evaluate_all
from unlearn.evaluation.samples import draw_samples
from unlearn.evaluation.table import markdown_table
from unlearn.methods.registry import METHODS, register_method
from unlearn.training.run import train as train_run
from unlearn.weights.delta import load_unlearned

__all__ = [
    "METHODS", "Run", "evaluate", "load_run", "load_unlearned", "register_method", "sample", "train"
]  # fmt: skip


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        folder: the run directory.
        config: the checked configuration: the base model, the concepts and the method.
    """

    folder: Path
    config: ModelConfig

    @property
    def weights(self) -> Path:
        """The file of the changed weights, for `load_unlearned`."""
        return self.config.weights

    @property
    def result(self) -> dict[str, Any]:
        """The rates of the four prompt sets, as result.json holds them; empty without that file.

        Raises:
            ValueError: the file is damaged.
        """
        path = self.folder / "result.json"
        return dict(read_result(path)) if path.exists() else {}

    @property
    def table(self) -> str:
        """The four prompt sets as a Markdown table; empty where nothing was judged."""
        result = self.result
        return markdown_table(result) if result.get("sets") else ""

    @property
    def before_after(self) -> Image.Image:
        """The picture of each prompt set, the base model's row above the unlearned model's."""
        with Image.open(self.folder / "before_after.png") as picture:
            return picture.convert("RGB")

    def load_pipeline(self) -> DiffusionPipeline:
        """Return the base model's pipeline with the run's weights in it.

        Raises:
            ValueError: the base model cannot be loaded, or the weights do not fit it.
        """
        return load_unlearned(self.config.base.load(), self.weights)


def train(overrides: Sequence[str]) -> Run:
    """Train a model that forgets a concept, evaluate it, and return the run.

    The run is that of `unlearn train OVERRIDES`.

    Args:
        overrides: those of the command line, such as ["concept=panda", "seed=1"].

    Raises:
        ValueError: an override is not valid. The message names the key, the value and the allowed
            values.
        RunError: the run met a fault that it cannot go on with.
    """
    config = parse_config(compose(list(overrides)))
    if config.dry_run:
        raise ValueError("dry_run=true: there is no run to return; `unlearn train` prints the plan")
    return Run(train_run(config), config)  # not read: other ranks of DDP may be here before rank 0


def evaluate(run: Run | str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Evaluate a run again, or by a published protocol, and return the result.

    Args:
        run: a run, its directory, or a path of weights from elsewhere.
        overrides: those of `unlearn evaluate`, such as ["evaluation.images_per_prompt=4"] or
            ["evaluation=spm_general"].

    Raises:
        ValueError: there is no such run, or an override is not valid.
        RunError: the disk is full, or the memory does not suffice.
    """
    (result,) = evaluate_all([str(folder_of(run))], overrides)
    return result


def sample(run: Run | str | Path, prompts: Sequence[str]) -> Image.Image:
    """Return a picture with a row a prompt: the base model's image beside the unlearned model's.

    The picture is written to sample.png of the run directory too.

    Args:
        run: a run, or its directory.
        prompts: the prompts to draw.

    Raises:
        ValueError: there is no such run, or the model cannot read a prompt.
    """
    return draw_samples(load_run_config(folder_of(run)), prompts)[1]


def load_run(path: str | Path) -> Run:
    """Return the finished run in a directory.

    Raises:
        ValueError: the directory holds no finished run.
    """
    return Run(Path(path), load_run_config(Path(path)))


def folder_of(run: Run | str | Path) -> Path:
    """Return the directory of a run."""
    return run.folder if isinstance(run, Run) else Path(run)
