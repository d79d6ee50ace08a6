"""What every trained method shares: the network, its frozen teacher, one collective a step."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from unlearn.backbone import applying, split_cross_attention

Batch = dict[str, Tensor]
Metrics = dict[str, Tensor]


class UnlearningModule(L.LightningModule):
    """A UNet whose cross-attention keys and values train, by manual optimization.

    Args:
        unet: the base network; its cross-attention keys and values are replaced and trained.
        alphas_cumprod: ᾱ of the noise schedule (T,).
        prediction_type: "epsilon" or "v_prediction".
        detach_first_token: take the first text token's key and value from the weights without
            gradient.
        accumulate: batches a step.

    Raises:
        ValueError: `accumulate` is less than 1.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        alphas_cumprod: Tensor,
        prediction_type: str = "epsilon",
        detach_first_token: bool = False,
        accumulate: int = 1,
    ) -> None:
        super().__init__()
        if accumulate < 1:
            raise ValueError(f"method.accumulate={accumulate}: at least one batch a step is needed")
        self.automatic_optimization = False
        self.strict_loading = False
        self.accumulate, self.prediction_type = accumulate, prediction_type
        self.unet = unet.requires_grad_(False)
        self.layers_by_name = split_cross_attention(self.unet, detach_first_token)
        self.split_layers = list(self.layers_by_name.values())
        self.register_buffer("alphas_cumprod", alphas_cumprod.float(), persistent=False)
        self.sums: list[Tensor] = []  # of the gradients of the step's batches so far

    @property
    def weights(self) -> list[Tensor]:
        """The trained key and value weights."""
        return [layer.weight for layer in self.split_layers]

    @property
    def trained_weights(self) -> dict[str, Tensor]:
        """The trained weights under their names in the UNet."""
        return {f"{name}.weight": layer.weight for name, layer in self.layers_by_name.items()}

    @torch.no_grad()
    def teacher(self, z_t: Tensor, timesteps: Tensor, states: Tensor) -> Tensor:
        """The frozen base model's output (B, C, h, w)."""
        with applying(self.split_layers, [[layer.base for layer in self.split_layers]]):
            return self.unet(z_t, timesteps, states).sample

    def mean_gradients(self, gradients: list[Tensor], last: bool) -> list[Tensor]:
        """After the step's last batch, the mean over its batches and the ranks; before, nothing.

        The mean over ranks is one collective.
        """
        gradients = [g / self.accumulate for g in gradients]
        if self.sums:
            gradients = [a + b for a, b in zip(self.sums, gradients, strict=True)]
        self.sums = [] if last else gradients
        return self.reduce(gradients) if last else []

    def reduce(self, gradients: list[Tensor]) -> list[Tensor]:
        """The mean of gradients over ranks, in one collective."""
        if self.trainer.world_size == 1:
            return gradients
        flat = torch.cat([g.flatten() for g in gradients])
        flat = self.trainer.strategy.reduce(flat, reduce_op="mean")
        parts = flat.split([g.numel() for g in gradients])
        return [p.view_as(g) for p, g in zip(parts, gradients, strict=True)]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep only what was trained: keys, values and the discriminator."""
        trained = tuple(f"unet.{n}." for n in self.layers_by_name)
        checkpoint["state_dict"] = {
            k: v
            for k, v in checkpoint["state_dict"].items()
            if k.startswith((*trained, "discriminator."))
        }


def step_with(optimizer: Any, parameters: list[Any], gradients: list[Tensor]) -> None:
    """One optimizer step along given gradients.

    They are made contiguous, as the parameters are: on CPU, fused optimizers read both in the order
    of memory, whatever the strides, and double backward gives channels-last gradients.
    """
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.contiguous()
    optimizer.step()
    optimizer.zero_grad()
