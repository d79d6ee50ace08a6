"""Unlearning methods: one LightningModule a file, chosen by `method.name`."""

from typing import Any

from diffusers import DiffusionPipeline

from unlearn.concepts import check
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
    """The method `name` on the pipeline's UNet and noise schedule.

    Raises:
        ValueError: there is no such method, or an option of it is not valid.
    """
    check("method.name", name, list(METHODS))
    schedule = pipe.scheduler
    kind = schedule.config.prediction_type
    return METHODS[name](pipe.unet, schedule.alphas_cumprod, kind, **options)
