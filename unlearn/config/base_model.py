"""Name a base model, and resolve the precision that a run computes in."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from diffusers import DiffusionPipeline

from unlearn.config.schema import PRECISIONS, ModelOptions
from unlearn.models.pipeline import device_for, load_pipeline


@dataclass(frozen=True)
class BaseModel:
    """A base model that can be loaded, as the arguments of `load_pipeline`."""

    pretrained: str
    config: str | None = None
    random_weights: bool = False
    width: float = 1.0
    image_size: int | None = None
    variant: str | None = None
    prediction_type: str | None = None
    vae: str | None = None

    @classmethod
    def of(cls, model: ModelOptions) -> BaseModel:
        """Return the base model of a configuration's section `model`."""
        return cls(**{key.name: getattr(model, key.name) for key in fields(cls)})

    @property
    def name(self) -> str:
        """The model's name, with a prefix where the weights are random.

        The prefix keeps a model of random weights from being taken for the published model.
        """
        return f"random:{self.pretrained}" if self.random_weights else self.pretrained

    def load(self) -> DiffusionPipeline:
        """Load the frozen fp32 pipeline.

        Raises:
            ValueError: the pipeline cannot be loaded; see `load_pipeline`.
        """
        return load_pipeline(**vars(self))


def resolve_precision(precision: str, accelerator: str) -> str:
    """Return the precision for Lightning's Trainer.

    "auto" becomes bf16 where the machine computes bf16 natively, else fp32.

    Raises:
        ValueError: the precision is not in `PRECISIONS`; for fp16 the message says why.
    """
    if "16" in precision and "bf16" not in precision:
        raise ValueError(
            f"trainer.precision={precision!r}: the gradients of unlearning and relearning are "
            "combined by hand, where fp16's loss scaling cannot reach; allowed are "
            f"{list(PRECISIONS)}"
        )
    if precision not in PRECISIONS:
        raise ValueError(f"trainer.precision={precision!r}: allowed are {list(PRECISIONS)}")
    if precision != "auto":
        return precision
    if device_for(accelerator) == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = device_for(accelerator) == "cpu" and torch.cpu._is_avx512_bf16_supported()
    return "bf16-mixed" if native else "32-true"
