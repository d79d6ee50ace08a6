"""Hold frozen layers in less memory: bf16 storage, convolutions that keep no input."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

AUTOCAST_LAYERS = (nn.Linear, nn.Conv2d)  # the layers whose weights autocast casts to bf16


def store_in_bf16(network: nn.Module, but: Iterable[str]) -> None:
    """Store a frozen network's weights in bf16, half as large, as autocast to bf16 uses them.

    The network's outputs under autocast stay equal bit for bit, and no pass casts the weights anew.

    Args:
        network: the network, which is changed in place.
        but: the names of weights that stay as they are, since they train.
    """
    kept = {*but}
    for name, module in network.named_modules():
        if isinstance(module, AUTOCAST_LAYERS):
            for own, weight in module.named_parameters(recurse=False):
                if f"{name}.{own}" not in kept:
                    weight.data = weight.data.bfloat16()


class FrozenConvolution(torch.autograd.Function):
    """A 2D convolution that keeps its weight for the backward pass, and not its input.

    PyTorch's own convolution keeps both, whether the weight has a gradient or not.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, *options: Any
    ) -> Tensor:
        """Return the convolution of the input (B, C, h, w).

        `options` are stride, padding, dilation and groups.
        """
        ctx.save_for_backward(weight)
        ctx.input, ctx.options = (input.shape, input.dtype), options
        return F.conv2d(input, weight, bias, *options)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Return the input's gradient, and None for the other arguments."""
        (weight,), (shape, dtype) = ctx.saved_tensors, ctx.input
        # autocast took weight and input in the output's dtype
        found = conv2d_input(shape, weight.to(grad.dtype), grad, *ctx.options)
        return found.to(dtype), *[None] * (2 + len(ctx.options))


class FrozenConv2d(nn.Conv2d):
    """A convolution in less memory, whose weight does not train.

    `weight` and `bias` keep their names and values.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        options = (self.stride, self.padding, self.dilation, self.groups)
        return FrozenConvolution.apply(input, weight, bias, *options)


def drop_frozen_inputs(network: nn.Module) -> None:
    """Make the network's frozen convolutions keep no input for the backward pass.

    Nothing needs those inputs, a sixth of what a Stable Diffusion UNet keeps in bf16. Outputs and
    gradients stay equal bit for bit.

    Args:
        network: the network, which is changed in place; convolutions that train stay as they are.
    """
    for module in network.modules():
        frozen = not any(weight.requires_grad for weight in module.parameters(recurse=False))
        if type(module) is nn.Conv2d and module.padding_mode == "zeros" and frozen:
            # the same module and weights, so names, hooks and state dicts stay
            module.__class__ = FrozenConv2d
