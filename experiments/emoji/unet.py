"""Stage `unet`: the denoiser, and with it the whole pipeline."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.models.attention_processor import AttnProcessor
from omegaconf import DictConfig
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import CLIPTextModel

from experiments.emoji.latents import DEVICE, LatentStage
from experiments.emoji.tokenizer import train_tokenizer
from unlearn.concepts.vocabulary import Vocabulary


class UNetStage(LatentStage):
    """Epsilon prediction with min-SNR weights under CLIP's frozen text encoder, as in SD."""

    name = "unet"

    def __init__(self, config: DictConfig, art: Tensor, words: Vocabulary) -> None:
        super().__init__(config, art, words)
        self.tokenizer = train_tokenizer(words, Path(config.output) / "tokenizer")
        clip = Path(config.output) / "clip"
        if not clip.exists():
            raise ValueError(f"output={config.output}: no clip there yet; run stage=clip first")
        self.text_encoder = CLIPTextModel.from_pretrained(clip, torch_dtype=torch.float32)
        self.text_encoder.eval().requires_grad_(False)
        self.unet = UNet2DConditionModel(
            sample_size=16,
            block_out_channels=(64, 128, 192),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=128,
            attention_head_dim=2,
            norm_num_groups=16,
        ).to(memory_format=torch.channels_last)
        if DEVICE == "cpu":  # where fused attention is slower in the backward pass
            self.unet.set_attn_processor(AttnProcessor())
        average = get_ema_multi_avg_fn(self.settings.ema)
        self.ema_unet = AveragedModel(self.unet, multi_avg_fn=average)
        self.ema_unet.requires_grad_(False)
        self.scheduler = DDPMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            steps_offset=1,
        )
        self.load_latents()

    def built_on(self) -> list[Any]:
        return [*super().built_on(), *self.text_encoder.state_dict().values()]

    def batch(self, step: int) -> dict[str, Tensor]:
        generator = self.generator(step)
        size = self.settings.batch
        rows = torch.randint(len(self.pool["latents"]), (size,), generator=generator)
        latents = self.pool["latents"][rows].float()
        noise = torch.randn(latents.shape, generator=generator)
        # one timestep in each of `size` equal parts of the schedule: less variance
        parts = torch.arange(size) + torch.rand(size, generator=generator)
        timesteps = (parts * (1000 / size)).long()
        alphas = self.scheduler.alphas_cumprod[timesteps]
        snr = alphas / (1 - alphas)
        rng = random.Random(step)
        objects, styles, backgrounds = (
            self.pool[name][rows] for name in ("objects", "styles", "backgrounds")
        )
        described = self.describe((objects, styles, backgrounds), rng)
        texts = ["" if rng.random() < self.settings.empty_prompts else d[0] for d in described]
        tokens = self.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
        return {
            "noisy": self.scheduler.add_noise(latents, noise, timesteps),
            "noise": noise,
            "timesteps": timesteps,
            "weight": snr.clamp(max=self.settings.min_snr) / snr,
            "tokens": tokens.input_ids,
        }

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        with torch.no_grad():
            states = self.text_encoder(batch["tokens"]).last_hidden_state
        output = self.unet(batch["noisy"], batch["timesteps"], states).sample.float()
        error = (output - batch["noise"]).square().mean((1, 2, 3))
        self.log("loss", error.mean(), prog_bar=True)
        return (batch["weight"] * error).mean()

    def on_train_batch_end(self, *args: Any) -> None:
        self.ema_unet.update_parameters(self.unet)

    def export(self, folder: Path) -> None:
        scheduler = DPMSolverMultistepScheduler.from_config(self.scheduler.config)
        self.vae.register_to_config(_name_or_path="")  # else the folder of the build is recorded
        pipe = StableDiffusionPipeline(
            vae=self.vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            unet=self.ema_unet.module,
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipe.to(dtype=torch.float16).save_pretrained(folder)
        # transformers would load the stored type, where diffusers loads fp32
        config = folder / "text_encoder" / "config.json"
        text = config.read_text(encoding="utf-8")
        config.write_text(
            text.replace('"dtype": "float16"', '"dtype": "float32"'), encoding="utf-8"
        )
