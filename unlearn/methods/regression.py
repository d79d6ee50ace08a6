"""DoCo without its discriminator: the base model's output for the anchor is the target itself."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from unlearn.methods.concept_preserving import ConceptPreserving
from unlearn.methods.concept_preserving_options import ConceptPreservingOptions
from unlearn.methods.losses import relearn_loss
from unlearn.methods.manual_steps import Metrics
from unlearn.methods.options import MethodOptions


class Regression(ConceptPreserving):
    """Train by the mean squared error to the teacher with the same surgery: an ablation of DoCo.

    For a pair of outputs of one z_t, this loss does what a discriminator can at best do. It tells
    what stands in the way of forgetting apart from what the discriminator fails to see.
    """

    Options: ClassVar[type[MethodOptions]] = ConceptPreservingOptions

    def unlearn(
        self, output: Tensor, teacher: Tensor, z_t: Tensor, timesteps: Tensor
    ) -> tuple[Tensor, list[Tensor], Metrics]:
        """Return MSE(ε_θ(z_t, c_t), ε*(z_t, c_a)), with neither g_D nor metrics."""
        return relearn_loss(output, teacher), [], {}
