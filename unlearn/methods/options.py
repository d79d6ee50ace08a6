"""The options of a method, as a frozen dataclass."""

from __future__ import annotations

from dataclasses import dataclass

from unlearn.utils.options import option


@dataclass(frozen=True, kw_only=True)
class MethodOptions:
    """Hold the options of a method; the base class of all such dataclasses has none.

    A subclass is a frozen dataclass with `kw_only=True`, and makes each field with
    `unlearn.utils.options.option`. OmegaConf must know the types of the fields: bool, int, float,
    str and lists of these. A `str` with `choices` takes the place of a `Literal`.
    """


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(MethodOptions):
    """Hold the options that every trained method has."""

    lr: float = option(1e-5, at_least=0, help="learning rate", at_most=100)
    accumulate_grad_batches: int = option(
        1, at_least=1, help="batches a step, whose gradients are averaged", at_most=10_000
    )


def batches_per_step(options: MethodOptions) -> int:
    """Return how many batches a step takes; 1 for a method that does not train."""
    return options.accumulate_grad_batches if isinstance(options, TrainingOptions) else 1
