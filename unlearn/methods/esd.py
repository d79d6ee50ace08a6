"""ESD, erased stable diffusion (Gandikota et al. 2023, arXiv 2303.07345)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from unlearn.methods.manual_steps import Batch
from unlearn.methods.negative_guidance import NegativeGuidance, NegativeGuidanceOptions
from unlearn.methods.options import MethodOptions
from unlearn.utils.options import option

NOT_U = ("attn2", "conv_norm_out", "conv_out", "time_embedding")  # names that ESD-u leaves out


@dataclass(frozen=True, kw_only=True)
class ESDOptions(NegativeGuidanceOptions):
    """Hold the options of `ESD`."""

    trained: str = option(
        "x",
        choices=("x", "u"),
        help="what trains: the cross-attentions (x), or all but the cross-attentions, the time "
        "embedding and the output layers (u)",
    )


class ESD(NegativeGuidance):
    """Train the UNet's own weights towards negatively guided output.

    Raises:
        ValueError: an option has none of its allowed values.

    Source: Gandikota et al. 2023, section 4.
    """

    Options: ClassVar[type[MethodOptions]] = ESDOptions
    options: ESDOptions

    def choose_weights(self) -> dict[str, Tensor]:
        """Return every weight of the cross-attentions (x), or all but what `NOT_U` names (u)."""
        weights = dict(self.network.named_parameters())
        if self.options.trained == "x":
            return {name: weight for name, weight in weights.items() if "attn2" in name}
        return {n: weight for n, weight in weights.items() if not any(part in n for part in NOT_U)}

    def configure_optimizers(self) -> Any:
        """Return Adam for the trained weights."""
        return torch.optim.Adam(self.weights, self.options.lr)

    def loss(self, batch: Batch) -> Tensor:
        """Return the loss of `erase`, a 0-dim tensor."""
        return self.erase(batch)[0]
