"""Load a diffusers pipeline; split its cross-attention weights for one-pass gradients."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline, SD3Transformer2DModel, UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

from unlearn.random_weights import random_pipeline
from unlearn.stored import stored_pipeline

DENOISERS: dict[str, Any] = {"unet": UNet2DConditionModel, "transformer": SD3Transformer2DModel}
NETWORKS = (  # of a pipeline, where it has them
    *DENOISERS, "vae", "text_encoder", "text_encoder_2", "text_encoder_3"
)  # fmt: skip


def load_pipeline(
    pretrained: str,
    *,
    random_weights: bool = False,
    width: float = 1.0,
    image_size: int | None = None,
    config: str | None = None,
) -> DiffusionPipeline:
    """The frozen fp32 pipeline at `pretrained`.

    Args:
        pretrained: "emoji", a diffusers folder, a single file or a hub id.
        random_weights: build the architecture alone, with seeded random weights.
        width, image_size: of the architecture with random weights, see `random_pipeline`.
        config: of a single file, see `stored_pipeline`.

    Raises:
        ValueError: see `stored_pipeline` and `random_pipeline`, a stored model is asked for
            another size than its own, or random weights for a configuration.
    """
    if random_weights and config is not None:
        raise ValueError(f"model.config={config!r}: model.random_weights=true reads no file")
    if random_weights:
        pipe = random_pipeline(pretrained, width, image_size)
    elif width != 1 or image_size is not None:
        raise ValueError(
            f"model.width={width}, model.image_size={image_size}: only a model of random weights "
            "has another size than its own (model.random_weights=true)"
        )
    else:
        pipe = stored_pipeline(pretrained, config)
    for network in networks_of(pipe).values():
        network.float().eval().requires_grad_(False)
    return pipe


def networks_of(pipe: DiffusionPipeline) -> dict[str, nn.Module]:
    """All networks of the pipeline, by their names."""
    return {name: part for name in NETWORKS if (part := getattr(pipe, name, None)) is not None}


def denoiser(pipe: DiffusionPipeline) -> Any:
    """The network that denoises, which is the one that trains: a UNet, or a transformer."""
    return next(getattr(pipe, name) for name in DENOISERS if hasattr(pipe, name))


def part_of(network: nn.Module) -> str:
    """What pipelines call such a network that denoises."""
    return next(name for name, kind in DENOISERS.items() if isinstance(network, kind))


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


def device_of(accelerator: str) -> str:
    """Where images are drawn: on the current GPU if Lightning's `accelerator` allows one."""
    return "cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu"


class SplitLinear(nn.Linear):
    """A linear layer that applies one weight to each chunk of the batch.

    `weight` keeps its name and place, so state dicts are those of the plain network. Outside
    `applying`, the layer is an ordinary linear layer.
    """

    leaves: tuple[Tensor, ...] = ()
    detach_first_token = False

    @classmethod
    def from_linear(cls, linear: nn.Linear) -> SplitLinear:
        """A split layer that shares nothing with `linear`; a bias stays frozen."""
        place = {"device": linear.weight.device, "dtype": linear.weight.dtype}
        split = cls(linear.in_features, linear.out_features, linear.bias is not None, **place)
        split.load_state_dict(linear.state_dict())
        if split.bias is not None:
            split.bias.requires_grad_(False)
        return split

    def forward(self, input: Tensor) -> Tensor:
        """Keys or values (B, T, out) of text states (B, T, in), B a multiple of the chunks."""
        if not self.leaves:
            return F.linear(input, self.weight, self.bias)
        chunks = input.chunk(len(self.leaves))
        return torch.cat([self.apply_leaf(c, w) for c, w in zip(chunks, self.leaves, strict=True)])

    def apply_leaf(self, input: Tensor, weight: Tensor) -> Tensor:
        """Keys or values of one chunk; with `detach_first_token`, no gradient from token 0."""
        if not self.detach_first_token:
            return F.linear(input, weight, self.bias)
        first, rest = input[:, :1], input[:, 1:]
        sides = F.linear(first, weight.detach(), self.bias), F.linear(rest, weight, self.bias)
        return torch.cat(sides, dim=1)


def text_sides(attention: Attention) -> tuple[str, ...]:
    """The names of the projections that give an attention's keys and values of text.

    Those of a cross-attention, and of a joint attention the ones beside the image's own; a
    self-attention has none.
    """
    if attention.is_cross_attention:
        return "to_k", "to_v"
    return ("add_k_proj", "add_v_proj") if attention.add_k_proj is not None else ()


def cross_attention_layers(network: nn.Module) -> dict[str, nn.Linear]:
    """The key and value projections of text in every attention, by their names in the network."""
    return {
        f"{name}.{side}": getattr(module, side)
        for name, module in network.named_modules()
        if isinstance(module, Attention)
        for side in text_sides(module)
    }


def split_cross_attention(
    network: nn.Module, detach_first_token: bool = False
) -> dict[str, SplitLinear]:
    """Replace the key and value projections of text by trainable split layers, and return them."""
    layers = {}
    for name, linear in cross_attention_layers(network).items():
        parent, _, side = name.rpartition(".")
        layers[name] = SplitLinear.from_linear(linear)
        layers[name].detach_first_token = detach_first_token
        setattr(network.get_submodule(parent), side, layers[name])
    return layers


@contextmanager
def applying(layers: Sequence[SplitLinear], weights: Sequence[Sequence[Tensor]]) -> Iterator[None]:
    """Inside, each batch chunk i goes through `weights[i]` (one tensor a layer)."""
    for layer, *leaves in zip(layers, *weights, strict=True):
        layer.leaves = tuple(leaves)
    try:
        yield
    finally:
        for layer in layers:
            layer.leaves = ()
