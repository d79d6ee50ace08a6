"""ESD, erased stable diffusion (Gandikota et al. 2023, arXiv 2303.07345)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from unlearn.methods.base import Batch
from unlearn.methods.negative_guidance import NegativeGuidance

NOT_U = ("attn2", "conv_norm_out", "conv_out", "time_embedding")


class ESD(NegativeGuidance):
    """Training of the UNet's own weights towards negatively guided output.

    Args:
        trained: "x", the cross-attentions, or "u", all but the cross-attentions, the time
            embedding and the output layers.
        options: lr (Adam), eta, guidance, num_inference_steps,
            accumulate_grad_batches: see `NegativeGuidance`.

    Raises:
        ValueError: an option has none of its allowed values.

    Source: Gandikota et al. 2023, section 4.
    """

    CHOICES: ClassVar[dict[str, tuple[str, ...]]] = {"trained": ("x", "u")}

    def __init__(self, *args: Any, trained: str = "x", **options: Any) -> None:
        super().__init__(*args, **options)

    def choose_weights(self) -> dict[str, Tensor]:
        """ESD-x: everything in the cross-attentions. ESD-u: all but what `NOT_U` names."""
        weights = dict(self.network.named_parameters())
        if self.hparams.trained == "x":
            return {name: weight for name, weight in weights.items() if "attn2" in name}
        return {n: weight for n, weight in weights.items() if not any(part in n for part in NOT_U)}

    def configure_optimizers(self) -> Any:
        """Adam."""
        return torch.optim.Adam(self.weights, self.hparams.lr)

    def loss(self, batch: Batch) -> Tensor:
        """See `erase`."""
        return self.erase(batch)[0]
