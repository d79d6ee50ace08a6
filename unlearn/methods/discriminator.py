"""The PatchGAN discriminator on latents."""

from __future__ import annotations

import math

from torch import Tensor, nn

MAX_BLOCKS = 4
MIN_MAP = 2
NORMS = ("group", "batch")


def map_size(sample_size: int, num_blocks: int) -> int:
    """Return the side of the logit map.

    A 4x4 convolution of stride 2 and padding 1 halves the side, rounding down; the last one, of
    stride 1, takes one off.

    Args:
        sample_size: The side of the latent.
        num_blocks: How many blocks of stride 2 come before the last convolution.
    """
    return sample_size // (1 << num_blocks) - 1


class PatchDiscriminator(nn.Module):
    """Give patches of a latent a logit, which is positive for those of the trained model.

    A block is a 4x4 convolution with stride 2, a normalisation from the second block on, and
    LeakyReLU(0.2). After the blocks, a 4x4 convolution makes one channel of logits. The channels
    double with each block, to at most eight times those of the first.

    Source: Isola et al. 2017, section 6.1.2, on latents in place of pixels.
    """

    def __init__(
        self,
        in_channels: int = 4,
        sample_size: int = 64,
        base_channels: int = 64,
        norm: str = "group",
        num_blocks: int | None = None,
    ) -> None:
        """Build the network.

        Args:
            in_channels: The latent's channels C.
            sample_size: The side of the latent.
            base_channels: The first block's channels.
            norm: "group", which is exact under data parallelism, or "batch".
            num_blocks: How many blocks; by default the most, up to 4, that leave a 2x2 map.

        Raises:
            ValueError: If ``norm`` is not known, or the logit map would be smaller than 2x2.
        """
        super().__init__()
        if norm not in NORMS:
            raise ValueError(f"norm={norm!r} is not one of {', '.join(NORMS)}")
        self.num_blocks = _fit(sample_size) if num_blocks is None else num_blocks
        if self.num_blocks < 1 or map_size(sample_size, self.num_blocks) < MIN_MAP:
            raise ValueError(
                f"num_blocks={num_blocks} does not fit sample_size={sample_size}: "
                f"at least one block and a logit map of at least {MIN_MAP}x{MIN_MAP} are needed"
            )
        channels = in_channels
        layers: list[nn.Module] = []
        for block in range(self.num_blocks):
            width = base_channels * min(2**block, 8)
            layers.append(nn.Conv2d(channels, width, kernel_size=4, stride=2, padding=1))
            if block > 0:
                layers.append(_norm(norm, width))
            layers.append(nn.LeakyReLU(0.2))
            channels = width
        layers.append(nn.Conv2d(channels, 1, kernel_size=4, stride=1, padding=1))
        self.net = nn.Sequential(*layers)

    def forward(self, latents: Tensor) -> Tensor:
        """Return the logits of shape (B, 1, m, m) for latents of shape (B, C, h, w)."""
        logits: Tensor = self.net(latents)
        return logits


def _fit(sample_size: int) -> int:
    """Return the most blocks up to ``MAX_BLOCKS`` that leave a large enough map, or 0."""
    return sum(map_size(sample_size, n) >= MIN_MAP for n in range(1, MAX_BLOCKS + 1))


def _norm(norm: str, channels: int) -> nn.Module:
    """Return the normalisation of so many channels, "group" or "batch"."""
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    # Four channels a group or more, at most 32 groups: 32 at the default widths.
    return nn.GroupNorm(max(1, math.gcd(channels, 128) // 4), channels)
