"""DoCo without its discriminator: the base model's output for the anchor is the target itself."""

from __future__ import annotations

from torch import Tensor

from unlearn.methods.base import Metrics
from unlearn.methods.concept_preserving import ConceptPreserving
from unlearn.methods.losses import relearn_loss


class Regression(ConceptPreserving):
    """Mean squared error to the teacher, under the same shield: an ablation of DoCo.

    What a discriminator can at best do for a pair of outputs of one z_t, this loss does: it tells
    what stands in the way of forgetting apart from what the discriminator fails to see.
    """

    def unlearn(
        self, output: Tensor, teacher: Tensor, z_t: Tensor, timesteps: Tensor
    ) -> tuple[Tensor, list[Tensor], Metrics]:
        """MSE(ε_θ(z_t, c_t), ε*(z_t, c_a))."""
        return relearn_loss(output, teacher), [], {}
