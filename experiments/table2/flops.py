"""Operations of Stable Diffusion 1.4's networks for one sample, counted without weights or memory.

By torch's FLOP counter on the real architecture, on the device "meta". A multiply-add is two.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from unlearn.methods.registry import METHODS
from unlearn.models.noise_schedule import NoiseSchedule
from unlearn.models.random_weights import MAX_TOKENS, SD1


def counted(run: Callable[[], Any]) -> int:
    """The operations of a call."""
    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


class Networks(NamedTuple):
    """Operations for one sample: of the UNet, the VAE's two halves and the text encoder."""

    unet: int
    encode: int
    decode: int
    text: int


def unet_inputs(unet: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    """Latents, timestep and text states of one sample."""
    config: Any = unet.config
    latents = torch.empty(1, config.in_channels, config.sample_size, config.sample_size)
    return latents, torch.zeros(1).long(), torch.empty(1, MAX_TOKENS, config.cross_attention_dim)


@cache
@torch.no_grad()
def networks(width: float = 1.0, image_size: int = SD1.image_size) -> Networks:
    """Counted for one image of that size."""
    with torch.device("meta"):
        unet, vae = SD1.build_unet(width, image_size), SD1.build_vae(width, image_size)
        text_encoder, inputs = SD1.encoders[0].build(width), unet_inputs(unet)
        pixels, tokens = (
            torch.empty(1, 3, image_size, image_size),
            torch.zeros(1, MAX_TOKENS).long(),
        )
    return Networks(
        counted(lambda: unet(*inputs)),
        counted(lambda: vae.encode(pixels)),
        counted(lambda: vae.decode(inputs[0])),
        counted(lambda: text_encoder(tokens)),
    )


class Passes(NamedTuple):
    """Operations of a method's own UNet for one sample: forward, and with the gradient too."""

    forward: int
    trained: int


@cache
def passes(
    method: str, trained: str | None = None, width: float = 1.0, image_size: int = SD1.image_size
) -> Passes:
    """Counted with what the method adds to the UNet and for the weights that it trains.

    Args:
        method: a key of `METHODS`.
        trained: of ESD, "x" or "u".
        width, image_size: see `Architecture`.
    """
    chosen: dict[str, Any] = {"trained": trained} if trained else {}
    with torch.device("meta"):
        unet = SD1.build_unet(width, image_size).eval()
        schedule = NoiseSchedule.from_alphas_cumprod(torch.empty(1000))
        options = METHODS[method].Options(**chosen)
        weights = METHODS[method](unet, schedule, options).weights
        inputs = unet_inputs(unet)

    def output() -> Tensor:
        return unet(*inputs).sample

    with torch.no_grad():
        forward = counted(output)
    if not weights:
        return Passes(forward, forward)
    return Passes(forward, counted(lambda: torch.autograd.grad(output().sum(), weights)))
