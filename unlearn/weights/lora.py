"""Express changes of weights as LoRA factors, of the least rank that an error bound allows."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor

DOWN, UP = ".lora_A.weight", ".lora_B.weight"  # PEFT's names of the two factors
LEAST_ERROR = 1e-5  # what fp32 factors reach with a margin


def factorise_change(change: Tensor, error: float) -> tuple[Tensor, Tensor]:
    """Return the fp32 factors down (r, in) and up (out, r) of the least rank r within the error.

    The truncated singular value decomposition is the nearest matrix of its rank. Its squared error
    is the sum of the squared singular values left out (Eckart & Young 1936).

    Args:
        change: the change of a weight (out, in).
        error: the largest allowed ‖up · down − change‖ / ‖change‖ (Frobenius).
    """
    left, values, right = torch.linalg.svd(change.double(), full_matrices=False)
    lost = values.square().flip(0).cumsum(0).flip(0)  # squared, by rank from 0 on
    rank = int((lost > error**2 * lost[0]).sum())
    # the two factors share the singular values evenly
    root = values[:rank].sqrt()
    return (root[:, None] * right[:rank]).float(), (left[:, :rank] * root).float()


def lora_factors(
    base: Mapping[str, Tensor], weights: Mapping[str, Tensor], error: float
) -> dict[str, Tensor]:
    """Return the factors of each weight that has changed, in PEFT's naming.

    Args:
        base: the base model's weights.
        weights: the unlearned weights, under the names that they have in `base`.
        error: the relative error of each layer's change, and so of all changes together.

    Raises:
        ValueError: `error` is not valid, no weight has changed, or a changed weight is no matrix.
    """
    if not LEAST_ERROR <= error < 1:
        raise ValueError(f"error={error}: at least {LEAST_ERROR} and less than 1 is needed")
    factors = {}
    for name, weight in weights.items():
        change = weight.double() - base[name].double()
        if not change.any():
            continue
        if change.ndim != 2:
            raise ValueError(
                f"{name} has changed and is no linear layer's matrix, which is all that a LoRA "
                "holds; format=delta and format=folder hold everything"
            )
        layer = name.removesuffix(".weight")
        factors[layer + DOWN], factors[layer + UP] = factorise_change(change, error)
    if not factors:
        raise ValueError("the run's weights are its base model's: a LoRA would hold nothing")
    return factors


def layer_ranks(factors: Mapping[str, Tensor]) -> dict[str, int]:
    """Return the rank of each layer, by the layer's name."""
    return {n.removesuffix(DOWN): len(f) for n, f in factors.items() if n.endswith(DOWN)}


def to_peft_format(factors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of diffusers' file: PEFT's names and its config of ranks.

    Each layer's alpha is its rank. A program that does not read the config therefore takes the
    factors in full too.

    Source: diffusers' `save_lora_weights`.
    """
    part = next(iter(factors)).partition(".")[0]
    ranks = {layer.removeprefix(f"{part}."): rank for layer, rank in layer_ranks(factors).items()}
    [(common, _)] = Counter(ranks.values()).most_common(1)
    others = {layer: rank for layer, rank in ranks.items() if rank != common}
    config = {
        f"{part}.r": common,
        f"{part}.lora_alpha": common,
        f"{part}.rank_pattern": others,
        f"{part}.alpha_pattern": others,
        f"{part}.target_modules": sorted(ranks),
    }
    return factors, {"lora_adapter_metadata": json.dumps(config, sort_keys=True)}


def to_kohya_format(factors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of kohya's file.

    In that format a layer's factors count alpha / rank times. diffusers reads only one alpha for
    all layers right. So alpha is 1 everywhere, and the upper factor is multiplied by its layer's
    rank.

    Source: kohya's sd-scripts (networks/lora.py; resize_lora.py, for ranks that differ).
    """
    tensors = {}
    for layer, rank in layer_ranks(factors).items():
        name = f"lora_{layer.replace('.', '_')}"
        tensors[f"{name}.lora_down.weight"] = factors[layer + DOWN]
        tensors[f"{name}.lora_up.weight"] = rank * factors[layer + UP]
        tensors[f"{name}.alpha"] = torch.tensor(1.0)
    sizes = {"ss_network_dim": "Dynamic", "ss_network_alpha": "1"}
    return tensors, {"ss_network_module": "networks.lora", **sizes}
