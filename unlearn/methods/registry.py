"""The unlearning methods by name."""

from __future__ import annotations

from typing import Any

from diffusers import DiffusionPipeline

from unlearn.methods.base import UnlearningModule
from unlearn.methods.concept_ablation import ConceptAblation
from unlearn.methods.doco import DoCo
from unlearn.methods.doco_reference import DoCoReference
from unlearn.methods.esd import ESD
from unlearn.methods.forget_me_not import ForgetMeNot
from unlearn.methods.guidance import SLD, NegativePrompt
from unlearn.methods.regression import Regression
from unlearn.methods.salun import SalUn
from unlearn.methods.spm import SPM
from unlearn.methods.uce import UCE
from unlearn.models.noise_schedule import NoiseSchedule
from unlearn.models.pipeline import denoiser, denoiser_name
from unlearn.utils.checks import check_choice

METHODS: dict[str, type[UnlearningModule]] = {
    "doco": DoCo,
    "doco_reference": DoCoReference,
    "regression": Regression,
    "concept_ablation": ConceptAblation,
    "esd": ESD,
    "uce": UCE,
    "spm": SPM,
    "forget_me_not": ForgetMeNot,
    "salun": SalUn,
    "negative_prompt": NegativePrompt,
    "sld": SLD,
}


def build_method(pipe: DiffusionPipeline, name: str, **options: Any) -> UnlearningModule:
    """The method `name` on the pipeline's network and noise schedule, on the pipeline's device.

    Raises:
        ValueError: there is no such method, it does not take such a pipeline, or an option of it
            is not valid.
    """
    schedule = NoiseSchedule.of(pipe.scheduler)
    return method_for(pipe, name)(denoiser(pipe), schedule, **options).to(pipe.device)


def method_for(pipe: DiffusionPipeline, name: str) -> type[UnlearningModule]:
    """The class of the method `name`, for such a pipeline.

    Raises:
        ValueError: there is no such method, or it is one of UNets and the pipeline has none.
    """
    check_choice("method.name", name, list(METHODS))
    if METHODS[name].of_unets and denoiser_name(denoiser(pipe)) != "unet":
        taken = [own for own, method in METHODS.items() if not method.of_unets]
        raise ValueError(
            f"method.name={name!r}: is bound to a UNet, and a {type(pipe).__name__} has none; it "
            f"takes {taken}"
        )
    return METHODS[name]
