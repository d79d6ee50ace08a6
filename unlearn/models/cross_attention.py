"""Split the key and value projections of text, so that one pass gives several gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn


class SplitLinear(nn.Linear):
    """A linear layer that applies one weight to each chunk of the batch.

    `weight` keeps its name and place, so state dicts are those of the plain network. Outside
    `per_chunk_weights`, the layer is an ordinary linear layer.
    """

    # one weight a chunk, set by `per_chunk_weights`; empty outside of it
    leaves: tuple[Tensor, ...] = ()
    detach_first_token = False

    @classmethod
    def from_linear(cls, linear: nn.Linear) -> SplitLinear:
        """Return a split layer with a copy of the weights of `linear`; a bias is frozen."""
        place = {"device": linear.weight.device, "dtype": linear.weight.dtype}
        split = cls(linear.in_features, linear.out_features, linear.bias is not None, **place)
        split.load_state_dict(linear.state_dict())
        if split.bias is not None:
            split.bias.requires_grad_(False)
        return split

    def forward(self, input: Tensor) -> Tensor:
        """Return keys or values (B, T, out) of text states (B, T, in).

        B is a multiple of the number of chunks.
        """
        if not self.leaves:
            return F.linear(input, self.weight, self.bias)
        chunks = input.chunk(len(self.leaves))
        return torch.cat([self.apply_leaf(c, w) for c, w in zip(chunks, self.leaves, strict=True)])

    def apply_leaf(self, input: Tensor, weight: Tensor) -> Tensor:
        """Return the keys or values of one chunk.

        With `detach_first_token`, the weight gets no gradient from token 0.
        """
        if not self.detach_first_token:
            return F.linear(input, weight, self.bias)
        first, rest = input[:, :1], input[:, 1:]
        sides = F.linear(first, weight.detach(), self.bias), F.linear(rest, weight, self.bias)
        return torch.cat(sides, dim=1)


def text_projections(attention: Attention) -> tuple[str, ...]:
    """Return the names of the projections that give an attention's keys and values of text.

    The projections are those of a cross-attention, or those that a joint attention has beside the
    image's own. A self-attention has none.
    """
    if attention.is_cross_attention:
        return "to_k", "to_v"
    return ("add_k_proj", "add_v_proj") if attention.add_k_proj is not None else ()


def cross_attention_layers(network: nn.Module) -> dict[str, nn.Linear]:
    """Return the key and value projections of text in every attention, by name in the network."""
    return {
        f"{name}.{side}": getattr(module, side)
        for name, module in network.named_modules()
        if isinstance(module, Attention)
        for side in text_projections(module)
    }


def install_split_layers(
    network: nn.Module, detach_first_token: bool = False
) -> dict[str, SplitLinear]:
    """Replace the key and value projections of text by trainable split layers, and return them.

    The result's keys are the layers' names in the network.
    """
    layers = {}
    for name, linear in cross_attention_layers(network).items():
        parent, _, side = name.rpartition(".")
        layers[name] = SplitLinear.from_linear(linear)
        layers[name].detach_first_token = detach_first_token
        setattr(network.get_submodule(parent), side, layers[name])
    return layers


@contextmanager
def per_chunk_weights(
    layers: Sequence[SplitLinear], weights: Sequence[Sequence[Tensor]]
) -> Iterator[None]:
    """Apply `weights[i]` to batch chunk i inside the block.

    Args:
        layers: the split layers.
        weights: for each chunk, one tensor a layer.
    """
    for layer, *leaves in zip(layers, *weights, strict=True):
        layer.leaves = tuple(leaves)
    try:
        yield
    finally:
        for layer in layers:
            layer.leaves = ()
