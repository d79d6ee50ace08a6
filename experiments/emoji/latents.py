"""What the stages after the VAE train on: its latents of compositions, encoded once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from experiments.emoji.compose import compose
from experiments.emoji.stage import HELD_OUT, Stage, key_of
from unlearn.utils.atomic import atomic_path

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class LatentStage(Stage):
    """A stage that trains on latents.

    Attributes:
        vae: the trained VAE.
        pool: latents of seeded compositions and what they show.
    """

    vae: AutoencoderKL
    pool: dict[str, Tensor]

    def load_latents(self) -> None:
        """Load the VAE and the pool.

        Raises:
            ValueError: there is no VAE yet.
        """
        self.vae = load_vae(Path(self.config.output))
        self.pool = self.latent_pool()

    @property
    def pool_key(self) -> str:
        """Names the pool by all that decides it, the VAE's weights among it."""
        facts = [self.config.seed, self.config.latents, self.vae.config.scaling_factor]
        return key_of(facts, self.art, *self.vae.state_dict().values())

    def built_on(self) -> list[Any]:
        return [self.pool_key]

    @torch.inference_mode()
    def latent_pool(self) -> dict[str, Tensor]:
        """The pool, cached by its key."""
        size, batch = self.config.latents, 128
        path = Path(self.config.cache) / f"latents-{self.pool_key}.safetensors"
        if not path.exists():
            parts = []
            vae = self.vae.to(DEVICE)
            for i in tqdm(range(size // batch), desc="encoding latents"):
                # not `self.generator`: both judges train on one pool
                chosen, noisy = (Stage.generator(self, n) for n in (HELD_OUT // 2 + i, i))
                shown = compose(self.art, self.words, batch, chosen)
                posterior = vae.encode(shown.images.to(DEVICE)).latent_dist
                noise = torch.randn(posterior.mean.shape, generator=noisy)
                latents = posterior.mean.cpu() + posterior.std.cpu() * noise
                latents = (latents * vae.config.scaling_factor).half()
                parts.append([latents, shown.objects, shown.styles, shown.backgrounds])
            vae.cpu()
            names = ("latents", "objects", "styles", "backgrounds")
            columns = zip(*parts, strict=True)
            with atomic_path(path) as partial:
                save_file(dict(zip(names, map(torch.cat, columns), strict=True)), partial)
        return load_file(path)


def load_vae(folder: Path) -> AutoencoderKL:
    """The trained VAE, frozen, in fp32."""
    if not (folder / "vae").exists():
        raise ValueError(f"output={folder}: no vae there yet; run stage=vae first")
    vae = AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float32)
    return vae.eval().requires_grad_(False)
