"""Stages `judge` and `second_judge`: what tells which object and style an image shows."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from omegaconf import DictConfig
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from experiments.emoji.compose import compose
from experiments.emoji.latents import DEVICE, LatentStage
from experiments.emoji.stage import HELD_OUT, key_of
from unlearn.concepts.vocabulary import Vocabulary
from unlearn.evaluation.judge import Judge
from unlearn.utils.atomic import atomic_path


class JudgeStage(LatentStage):
    """Object and style cross-entropy on art, half of each batch after a VAE round trip."""

    name = "judge"
    architecture = "resnet"
    backbone = {  # noqa: RUF012
        "embedding_size": 32,
        "hidden_sizes": [48, 96, 192],
        "depths": [1, 1, 1],
        "layer_type": "basic",
    }

    def __init__(self, config: DictConfig, art: Tensor, words: Vocabulary) -> None:
        super().__init__(config, art, words)
        self.judge = Judge(self.architecture, self.backbone, art.shape[1], art.shape[0])
        self.load_latents()
        self.decoded = self.decode_pool()

    @torch.inference_mode()
    def decode_pool(self) -> Tensor:
        """The first `settings.decoded` latents of the pool as uint8 images, cached."""
        size = self.settings.decoded
        path = Path(self.config.cache) / f"decoded-{key_of(self.pool_key, size)}.safetensors"
        if not path.exists():
            latents = self.pool["latents"][:size].float() / self.vae.config.scaling_factor
            vae = self.vae.to(DEVICE)
            chunks = tqdm(latents.split(128), desc="decoding latents")
            images = [to_uint8(vae.decode(chunk.to(DEVICE)).sample).cpu() for chunk in chunks]
            vae.cpu()
            with atomic_path(path) as partial:
                save_file({"images": torch.cat(images)}, partial)
        return load_file(path)["images"]

    def batch(self, step: int) -> dict[str, Tensor]:
        half = self.settings.batch // 2
        generator = self.generator(step)
        rows = torch.randint(len(self.decoded), (half,), generator=generator)
        shown = compose(self.art, self.words, half, generator)
        return {
            "images": torch.cat([shown.images, self.decoded[rows].float() / 127.5 - 1]),
            "objects": torch.cat([shown.objects, self.pool["objects"][rows]]),
            "styles": torch.cat([shown.styles, self.pool["styles"][rows]]),
        }

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        objects, styles = self.judge(batch["images"])
        loss = F.cross_entropy(objects, batch["objects"])
        loss = loss + F.cross_entropy(styles, batch["styles"])
        self.log("loss", loss, prog_bar=True)
        return loss

    def export(self, folder: Path) -> None:
        self.judge.eval()
        confidences, right = [], []
        for i in range(16):
            shown = self.composition(HELD_OUT + i, 128)
            after = round_trip(self.vae, shown.images, self.generator(i))
            objects, styles, sure = self.judge.classify(to_uint8(after))
            right.append(torch.stack([objects == shown.objects, styles == shown.styles]))
            confidences.append(sure)
        confidence, hits = torch.cat(confidences), torch.cat(right, 1).float().mean(1)
        # broken: less sure than not, and than 99 % of real images
        threshold = round(min(0.5, confidence.quantile(0.01).item()), 4)
        self.judge.config["broken_threshold"] = threshold
        under = (confidence < threshold).float().mean()
        print(
            f"{self.config.stage} after a VAE round trip: object {hits[0]:.1%}, style {hits[1]:.1%}"
            f"; {under:.1%} under the broken threshold {threshold}"
        )
        self.judge.save(folder / "judges" / self.config.stage)


class SecondJudgeStage(JudgeStage):
    """Another architecture and another seed, to check the first judge."""

    architecture = "convnext"
    backbone = {  # noqa: RUF012
        "patch_size": 4,
        "hidden_sizes": [48, 96, 192],
        "depths": [2, 2, 2],
        "num_stages": 3,
    }

    def generator(self, step: int) -> torch.Generator:
        return super().generator(step + 500_000_000)


def to_uint8(images: Tensor) -> Tensor:
    """Images in [-1, 1] as bytes."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().byte()


@torch.no_grad()
def round_trip(vae: AutoencoderKL, images: Tensor, generator: torch.Generator) -> Tensor:
    """Images (B, 3, 64, 64) encoded and decoded."""
    return vae.decode(vae.encode(images).latent_dist.sample(generator)).sample.float()
