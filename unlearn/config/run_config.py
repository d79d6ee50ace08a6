"""Hold all that a run needs to know, in frozen objects that are built once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from unlearn.concepts.concept import Concept
from unlearn.config.base_model import BaseModel
from unlearn.config.concepts import ConceptSections, build_concepts
from unlearn.config.schema import EvaluationOptions, TrainerOptions
from unlearn.data.training_data import DataOptions
from unlearn.generation.sampling import Sampler
from unlearn.methods.options import MethodOptions
from unlearn.methods.plan import TrainingPlan
from unlearn.models.pipeline import device_for


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The configuration of an unlearned model and its base model, for drawing and evaluation.

    Attributes:
        sections: the config sections of each concept that the run itself forgets.
        earlier: the config sections of each concept that earlier runs had forgotten.
        vocabulary: the vocabulary that the model knows, "emoji" or None.
        base: the base model.
        guidance_scale: the scale of classifier-free guidance.
        sampling_batch_size: images drawn at a time; None: see `default_batch_size`.
        precision: "32-true" or "bf16-mixed".
        accelerator: Lightning's name of it.
        evaluation: options of the four prompt sets; None where a published protocol was chosen.
        method: the method's name; None for external weights.
        folder: where the results lie, and a run's weights.
        saved: the whole configuration in plain containers, as config.yaml holds it.
    """

    sections: tuple[ConceptSections, ...]
    earlier: tuple[ConceptSections, ...] = ()
    vocabulary: str | None
    base: BaseModel
    guidance_scale: float
    sampling_batch_size: int | None
    precision: str
    accelerator: str
    evaluation: EvaluationOptions | None
    method: str | None
    folder: Path
    saved: Mapping[str, Any] = field(repr=False)

    @cached_property
    def concept(self) -> Concept:
        """The concept that the weights forget, joined with those that earlier runs forgot.

        Raises:
            ValueError: a concept is not valid; see `build_concepts`.
        """
        return build_concepts([*self.earlier, *self.sections], self.vocabulary)

    @property
    def earlier_names(self) -> set[str]:
        """The names of the concepts that earlier runs forgot."""
        return {sections.concept.name for sections in self.earlier}

    @property
    def own_name(self) -> str:
        """The name of the concept that the run itself forgets."""
        return "+".join(sections.concept.name for sections in self.sections)

    @property
    def weights(self) -> Path:
        """The path of the file with the changed weights."""
        return self.folder / "unlearned.safetensors"

    @property
    def device(self) -> str:
        """The device that images are drawn on."""
        return device_for(self.accelerator)

    @property
    def prompt_sets(self) -> EvaluationOptions:
        """The options of the four prompt sets.

        Raises:
            ValueError: a published protocol was chosen in their place.
        """
        if self.evaluation is None:
            raise ValueError("evaluation: the four prompt sets are needed (prompt_sets)")
        return self.evaluation

    def sampler(self, num_inference_steps: int) -> Sampler:
        """Return a sampler that draws with the model's settings, in a given number of steps."""
        return Sampler(
            num_inference_steps, self.guidance_scale, self.precision, self.sampling_batch_size
        )


@dataclass(frozen=True, kw_only=True)
class RunConfig(ModelConfig):
    """The configuration of a run to train: a `ModelConfig` with what training needs besides.

    The fields from `seed` to `dry_run` are those of `RunOptions`.

    Attributes:
        method: the method's name.
        recipe: the file of conf/recipe with the method's settings.
        trained: the concepts that the run itself trains on, as one joint concept.
        options: the method's options.
        data: options of the images to train on.
        trainer: options of the section `trainer`.
        lightning_options: further options of Lightning's Trainer.
        loggers: by name, what `hydra.utils.instantiate` takes.
        callbacks: by name, what `hydra.utils.instantiate` takes.
        log_images_every: steps between pictures; 0: none.
        after: the run directory whose weights the run starts from; None: the base model's weights.
    """

    method: str
    recipe: str
    trained: Concept
    options: MethodOptions
    data: DataOptions
    trainer: TrainerOptions
    lightning_options: Mapping[str, Any]
    loggers: Mapping[str, Mapping[str, Any]]
    callbacks: Mapping[str, Mapping[str, Any]]
    seed: int
    steps: int
    batch_size: int
    gradient_checkpointing: bool
    checkpoint_every: int
    keep_every: int
    log_images_every: int
    resume: bool
    dry_run: bool
    after: Path | None

    @property
    def plan(self) -> TrainingPlan:
        """The part of the run's settings that a method may check."""
        return TrainingPlan(
            steps=self.steps,
            batch_size=self.batch_size,
            gradient_checkpointing=self.gradient_checkpointing,
            guidance_scale=self.guidance_scale,
            relearn_images=self.data.relearn_images,
        )

    def changed(self, **values: Any) -> RunConfig:
        """Return a copy of the configuration with some fields replaced."""
        return replace(self, **values)
