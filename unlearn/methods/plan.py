"""What a method may ask of the rest of a run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainingPlan:
    """Hold the settings of a run, other than the method's options, that a method may ask for.

    Attributes:
        steps: the steps of the run, of the warm-up too.
        batch_size: the samples of a device's batch.
        gradient_checkpointing: activations are computed again in the backward pass.
        guidance_scale: the scale of classifier-free guidance that the model samples with.
        relearn_images: how many images of what must remain are drawn.
    """

    steps: int
    batch_size: int
    gradient_checkpointing: bool
    guidance_scale: float
    relearn_images: int
