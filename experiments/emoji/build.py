"""Build the embedded model from art to weights, one stage a call.

    python -m experiments.emoji.build stage=vae
    python -m experiments.emoji.build stage=clip
    python -m experiments.emoji.build stage=unet
    python -m experiments.emoji.build stage=judge
    python -m experiments.emoji.build stage=second_judge

A stage that was killed resumes from its last checkpoint in `cache`, which holds them by all that
decides a stage's weights: with other settings, or after an earlier stage was built anew, it begins
anew.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import hydra
import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, TQDMProgressBar
from omegaconf import DictConfig
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from experiments.emoji.art import load_art
from experiments.emoji.clip import CLIPStage
from experiments.emoji.judge import JudgeStage, SecondJudgeStage
from experiments.emoji.stage import Stage
from experiments.emoji.unet import UNetStage
from experiments.emoji.vae import VAEStage
from unlearn.concepts.vocabulary import load_vocabulary

STAGES: dict[str, type[Stage]] = {
    "vae": VAEStage,
    "clip": CLIPStage,
    "unet": UNetStage,
    "judge": JudgeStage,
    "second_judge": SecondJudgeStage,
}


class Batches(Dataset[dict[str, Tensor]]):
    """A stage's batches by step number."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        return self.stage.batch(step)


class EpochSteps(Sampler[int]):
    """The step numbers of one epoch; Lightning tells it which."""

    def __init__(self, length: int) -> None:
        self.length, self.epoch = length, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.epoch * self.length, (self.epoch + 1) * self.length))


def fit(stage: Stage, steps: int, config: DictConfig) -> None:
    """Train `stage` for `steps`, resuming from its checkpoint if there is one of its key."""
    folder = Path(config.cache) / "checkpoints" / f"{config.stage}-{stage.key}"
    checkpoint = ModelCheckpoint(folder, filename="last", enable_version_counter=False)
    trainer = L.Trainer(
        accelerator="auto",
        devices=1,
        precision=config.precision,
        max_steps=steps,
        max_epochs=-1,
        logger=False,
        callbacks=[checkpoint, TQDMProgressBar(refresh_rate=5)],
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    last = folder / "last.ckpt"
    loader = DataLoader(
        Batches(stage),
        batch_size=None,
        sampler=EpochSteps(config.epoch),
        num_workers=config.workers,
        persistent_workers=config.workers > 0,
        pin_memory=torch.cuda.is_available(),
    )
    trainer.fit(stage, loader, ckpt_path=last if last.exists() else None, weights_only=True)


@hydra.main(version_base="1.3", config_path="conf", config_name="build")
def main(config: DictConfig) -> None:
    """Run one stage, print its bar, and write its weights."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    if config.stage not in STAGES:
        raise ValueError(f"stage={config.stage!r}: allowed are {sorted(STAGES)}")
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.set_flush_denormal(True)  # denormals slow CPU convolutions several times
    L.seed_everything(config.seed)
    words = load_vocabulary()
    art = load_art(words, Path(config.cache))
    stage = STAGES[config.stage](config, art, words)
    fit(stage, config.steps or stage.settings.steps, config)
    stage.export(Path(config.output))


if __name__ == "__main__":
    main()
