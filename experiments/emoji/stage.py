"""What all stages that train share: a batch made from its step's number, and the optimizer."""

from __future__ import annotations

import hashlib
import json
import math
import random
from pathlib import Path
from typing import Any

import lightning as L
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from experiments.emoji.compose import Composition, caption, compose
from unlearn.concepts.vocabulary import Vocabulary

HELD_OUT = 1 << 40  # seeds from here on are never trained on


class Stage(L.LightningModule):
    """Shared by all stages: seeded batches, AdamW with warm-up and cosine decay."""

    name: str

    def __init__(self, config: DictConfig, art: Tensor, words: Vocabulary) -> None:
        super().__init__()
        self.config, self.art, self.words = config, art, words
        self.settings = config[self.name]

    def generator(self, step: int) -> torch.Generator:
        """The generator that decides the whole of one step's batch."""
        return torch.Generator().manual_seed(self.config.seed * 1_000_003 + step)

    def batch(self, step: int) -> dict[str, Tensor]:
        """What `training_step` gets at a step; made on the CPU, by workers if there are any."""
        raise RuntimeError(f"{type(self).__name__} makes no batches")

    def composition(self, step: int, batch: int | None = None) -> Composition:
        """A batch of compositions for a step; held-out ones for steps from `HELD_OUT` on."""
        size = batch or self.settings.batch
        return compose(self.art, self.words, size, self.generator(step))

    @property
    def key(self) -> str:
        """Names the stage's checkpoints by all that decides its weights."""
        own, config = OmegaConf.to_container(self.settings), self.config
        facts = [own, config.steps, config.epoch, config.seed, config.precision, repr(self.words)]
        return key_of(facts, self.art, *self.built_on())

    def built_on(self) -> list[Any]:
        """What it takes of earlier stages, as facts for `key_of`."""
        return []

    def describe(
        self, labels: tuple[Tensor, Tensor, Tensor], rng: random.Random
    ) -> list[tuple[str, str | None, str | None]]:
        """A random caption of each row, with the style and background that it names, if any.

        Args:
            labels: objects, styles and backgrounds, each (B,).
            rng: decides the captions.
        """
        described = []
        colours = list(self.words.backgrounds)
        for obj, s, b in zip(*(column.tolist() for column in labels), strict=True):
            style = self.words.styles[s] if rng.random() < 0.75 else None
            colour = colours[b] if rng.random() < 0.6 else None
            text = caption(self.words, self.words.names[obj], style, colour, rng)
            described.append((text, style, colour))
        return described

    def configure_optimizers(self) -> Any:
        """AdamW; 100 steps of warm-up, then cosine to zero."""
        total = self.config.steps or self.settings.steps
        parameters = [p for p in self.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            parameters, lr=self.settings.lr, weight_decay=1e-2, fused=True
        )

        def rate(step: int) -> float:
            return min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * min(1, step / total)))

        schedule = {"scheduler": LambdaLR(optimizer, rate), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip to norm 1 (by hand: Lightning refuses to clip for a fused optimizer)."""
        torch.nn.utils.clip_grad_norm_(self.parameters(), 1.0)

    def export(self, folder: Path) -> None:
        """Print the stage's bar and write its weights under `folder`."""
        raise RuntimeError(f"{type(self).__name__} has no export")


def key_of(*facts: Any) -> str:
    """Names a file by all that decides it: tensors, and what JSON can hold."""
    digest = hashlib.blake2b(digest_size=8)
    for fact in facts:
        own = fact.numpy().tobytes() if isinstance(fact, Tensor) else json.dumps(fact).encode()
        digest.update(own)
    return digest.hexdigest()
