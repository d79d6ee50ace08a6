"""Stable Diffusion 1.4 without its weights: the published architecture, its weights drawn anew."""

from __future__ import annotations

import math

import torch
from diffusers import (
    AutoencoderKL,
    PNDMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from unlearn.vocabulary import EMBEDDED

PUBLISHED = "CompVis/stable-diffusion-v1-4"  # whose architecture this is
IMAGE_SIZE, TOKENS = 512, 77
SEED = 0  # of the weights: a run and its evaluation must draw the same ones


def multiple(size: int, width: float, unit: int) -> int:
    """The multiple of `unit`, at least one, nearest to `size` x `width`."""
    return unit * max(1, round(size * width / unit))


def build_unet(width: float = 1.0, image_size: int = IMAGE_SIZE) -> UNet2DConditionModel:
    """The UNet; its first width is a multiple of its 8 heads."""
    channels = multiple(320, width, 8)
    return UNet2DConditionModel(
        sample_size=image_size // 8,
        block_out_channels=tuple(channels * i for i in (1, 2, 4, 4)),
        norm_num_groups=math.gcd(32, channels),
        cross_attention_dim=multiple(768, width, 12),
        attention_head_dim=8,  # diffusers' name for the number of heads
    )


def build_vae(width: float = 1.0, image_size: int = IMAGE_SIZE) -> AutoencoderKL:
    """The VAE, which maps 8 x 8 pixels to a latent of 4 channels."""
    channels = multiple(128, width, 8)
    return AutoencoderKL(
        sample_size=image_size,
        block_out_channels=tuple(channels * i for i in (1, 2, 4, 4)),
        norm_num_groups=math.gcd(32, channels),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
    )


def build_text_encoder(width: float = 1.0) -> CLIPTextModel:
    """CLIP ViT-L/14's text encoder; its width is a multiple of its 12 heads."""
    hidden = multiple(768, width, 12)
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=49408,
            hidden_size=hidden,
            intermediate_size=4 * hidden,
            projection_dim=hidden,
            num_hidden_layers=12,
            num_attention_heads=12,
            max_position_embeddings=TOKENS,
            hidden_act="quick_gelu",
        )
    )


def build_scheduler() -> PNDMScheduler:
    """The noise schedule and the sampler."""
    return PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        steps_offset=1,
        set_alpha_to_one=False,
        skip_prk_steps=True,
    )


def random_pipeline(width: float = 1.0, image_size: int | None = None) -> StableDiffusionPipeline:
    """The fp32 pipeline with seeded random weights, on the CPU; nothing is downloaded.

    It takes a method through everything that Stable Diffusion asks of it, but draws nothing that
    one could recognise. Since its text encoder knows no word either, the tokenizer is the embedded
    model's with Stable Diffusion's 77 tokens: other ids, and a few more of them a prompt.

    Args:
        width: scales the channels of the three networks, to the nearest that their groups and
            heads divide.
        image_size: side of the images; null: 512.

    Raises:
        ValueError: a size that no such network has.

    Source: the configuration files of CompVis/stable-diffusion-v1-4.
    """
    if not 0 < width <= 1:
        raise ValueError(f"model.width={width}: more than 0 and at most 1 is needed")
    size = IMAGE_SIZE if image_size is None else image_size
    if size < 64 or size % 64:
        raise ValueError(f"model.image_size={size}: a multiple of 64 is needed")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        networks = {
            "unet": build_unet(width, size),
            "vae": build_vae(width, size),
            "text_encoder": build_text_encoder(width),
        }
    return StableDiffusionPipeline(
        **networks,
        tokenizer=CLIPTokenizer.from_pretrained(EMBEDDED / "tokenizer", model_max_length=TOKENS),
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
