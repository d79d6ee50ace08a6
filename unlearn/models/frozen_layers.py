"""Frozen layers in less memory: bf16 storage, convolutions that keep no input."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

CAST = (nn.Linear, nn.Conv2d)  # whose weights autocast takes in bf16


def store_in_bf16(network: nn.Module, but: Iterable[str]) -> None:
    """Keep a frozen network's weights as autocast to bf16 takes them, half as large.

    Its outputs under autocast stay the same bits, and no pass casts the weights anew.

    Args:
        network: changes in place.
        but: the names of weights that stay as they are, since they train.
    """
    kept = {*but}
    for name, module in network.named_modules():
        if isinstance(module, CAST):
            for own, weight in module.named_parameters(recurse=False):
                if f"{name}.{own}" not in kept:
                    weight.data = weight.data.bfloat16()


class FrozenConvolution(torch.autograd.Function):
    """A 2D convolution that keeps its weight for the backward pass, and not its input.

    PyTorch's own keeps both, whether the weight has a gradient or not.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, *options: Any
    ) -> Tensor:
        """Of input (B, C, h, w); `options` are stride, padding, dilation and groups."""
        ctx.save_for_backward(weight)
        ctx.input, ctx.options = (input.shape, input.dtype), options
        return F.conv2d(input, weight, bias, *options)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """The input's gradient."""
        (weight,), (shape, dtype) = ctx.saved_tensors, ctx.input
        # autocast took weight and input in the output's dtype
        found = conv2d_input(shape, weight.to(grad.dtype), grad, *ctx.options)
        return found.to(dtype), *[None] * (2 + len(ctx.options))


class FrozenConv2d(nn.Conv2d):
    """A convolution whose weight does not train, in less memory; `weight` and `bias` keep their
    names and values.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        options = (self.stride, self.padding, self.dilation, self.groups)
        return FrozenConvolution.apply(input, weight, bias, *options)


def forget_inputs(network: nn.Module) -> None:
    """Keep no input of a frozen convolution for the backward pass: nothing needs it.

    A sixth of what a Stable Diffusion UNet keeps in bf16. Outputs and gradients stay the same bits.

    Args:
        network: changes in place. Convolutions that train stay as they are.
    """
    for module in network.modules():
        frozen = not any(weight.requires_grad for weight in module.parameters(recurse=False))
        if type(module) is nn.Conv2d and module.padding_mode == "zeros" and frozen:
            module.__class__ = FrozenConv2d
