"""What is shown and logged of training: the pictures of the prompt sets, one row a step."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from tests.conftest import make_concept
from tests.helpers.methods import make_batch
from unlearn.concepts.concept import Concept
from unlearn.concepts.prompts import evaluation_prompts
from unlearn.generation.sampling import Sampler
from unlearn.methods.registry import METHODS
from unlearn.models.noise_schedule import NoiseSchedule
from unlearn.models.pipeline import load_pipeline
from unlearn.training.callbacks import ProgressPictures, picture_prompts
from unlearn.training.metrics_file import MetricsFile

STYLE = {"kind": "style", "unrelated": ["panda", "fox", "bus", "pizza", "guitar"]}


@pytest.mark.parametrize(
    ("concept", "rows"),
    [
        (make_concept("panda", "bear", related=["koala"], unrelated=["pizza"]), 4),
        (make_concept("panda", "bear", related=["koala"], unrelated=[]), 3),
        (make_concept("contrast", "", related=[], **STYLE), 3),
    ],
    ids=["four sets", "no unrelated", "a style without related"],
)
def test_a_set_without_prompts_is_no_row(
    concept: Concept, rows: int, random_model: Path, tmp_path: Path
) -> None:
    assert len({probe.set for probe in evaluation_prompts(concept)}) == rows
    pipe = load_pipeline(str(random_model))
    pictures = ProgressPictures(pipe, concept, tmp_path, every=2, sampler=Sampler(1, 1.0))
    trainer: Any = SimpleNamespace(is_global_zero=True, loggers=[])
    pictures.on_train_batch_end(trainer, SimpleNamespace(accumulate_grad_batches=1), None, None, 1)
    with Image.open(tmp_path / "images" / "step_000002.png") as picture:
        assert picture.size == (4 * 64, rows * 64)


def test_the_prompts_of_a_picture_lie_evenly_in_their_set() -> None:
    templates = [f"{size} {{}}" for size in ("a", "big", "small", "old", "new", "red", "sad")]
    concept = make_concept(
        "panda", "bear", related=["koala"], unrelated=["pizza"], seen_templates=templates
    )
    assert picture_prompts(concept)[:4] == ["a panda", "big panda", "old panda", "red panda"]


@pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")
@pytest.mark.parametrize(
    ("method", "options", "name", "metrics_of"),
    [
        (
            "doco",
            {"warmup_steps": 1, "discriminator_channels": 8},
            "loss/discriminator",
            lambda module, batch: module.warmup_gradients(batch)[1],
        ),
        ("regression", {}, "loss/relearn", lambda module, batch: module.gradients(batch)[1]),
        (
            "concept_ablation",
            {},
            "loss/unlearn",
            lambda module, batch: {"loss/unlearn": module.loss(batch).detach()},
        ),
    ],
)
def test_accumulated_batches_are_one_row_of_means(
    method: str,
    options: dict[str, Any],
    name: str,
    metrics_of: Callable[[Any, Any], dict[str, torch.Tensor]],
    random_model: Path,
    tmp_path: Path,
) -> None:
    def module() -> Any:
        torch.manual_seed(1)
        pipe = load_pipeline(str(random_model))
        schedule = NoiseSchedule.from_scheduler(pipe.scheduler)
        own = METHODS[method].Options(accumulate_grad_batches=2, **options)
        return METHODS[method](pipe.unet, schedule, own)

    batches = [make_batch(seed) for seed in range(6)]
    trained, path = module(), tmp_path / "metrics.csv"
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=1, logger=MetricsFile(path), log_every_n_steps=1,
        default_root_dir=tmp_path, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(trained, DataLoader(batches, batch_size=None))  # type: ignore[arg-type]
    rows = list(csv.DictReader(path.open()))
    assert [row["step"] for row in rows] == ["0", "1", "2"]
    assert all(rows[-1].values())
    fresh = module()
    first, second = (float(metrics_of(fresh, batch)[name]) for batch in batches[:2])
    assert first != second
    assert float(rows[0][name]) == pytest.approx((first + second) / 2, rel=1e-5)
