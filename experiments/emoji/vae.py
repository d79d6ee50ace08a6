"""Stage `vae`: the autoencoder of images."""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from omegaconf import DictConfig
from torch import Tensor

from experiments.emoji.stage import HELD_OUT, Stage
from unlearn.concepts.vocabulary import Vocabulary


class VAEStage(Stage):
    """L1, gradient and KL losses on compositions."""

    name = "vae"

    def __init__(self, config: DictConfig, art: Tensor, words: Vocabulary) -> None:
        super().__init__(config, art, words)
        self.vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            block_out_channels=(32, 64, 64),
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=16,
            sample_size=64,
            mid_block_add_attention=False,
        ).to(memory_format=torch.channels_last)

    def batch(self, step: int) -> dict[str, Tensor]:
        return {"images": self.composition(step).images}

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        images = batch["images"]
        posterior = self.vae.encode(images).latent_dist
        decoded = self.vae.decode(posterior.sample()).sample.float()
        loss = F.l1_loss(decoded, images)
        for dim in (2, 3):
            loss = loss + F.l1_loss(decoded.diff(dim=dim), images.diff(dim=dim))
        kl = posterior.kl().mean() / posterior.mean[0, 0].numel()
        self.log("loss", loss, prog_bar=True)
        return loss + self.settings.kl_weight * kl

    @torch.inference_mode()
    def export(self, folder: Path) -> None:
        self.vae.eval()
        images = self.composition(HELD_OUT, 256).images
        latents = self.vae.encode(images).latent_dist.sample(self.generator(0))
        self.vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 5))
        error = F.mse_loss(self.vae.decode(latents).sample.clamp(-1, 1), images)
        print(f"VAE PSNR on held-out compositions: {10 * math.log10(4 / error.item()):.2f} dB")
        self.vae.half().save_pretrained(folder / "vae")
