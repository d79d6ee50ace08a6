"""Regression under the shield, against its equation."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.conftest import ALPHAS
from tests.helpers.methods import make_batch
from unlearn.methods.concept_preserving_options import ConceptPreservingOptions
from unlearn.methods.regression import Regression
from unlearn.models.noise_schedule import NoiseSchedule
from unlearn.models.pipeline import load_pipeline


def test_its_gradient_is_that_of_the_squared_error_to_the_teacher(random_model: Path) -> None:
    pipe, batch = load_pipeline(str(random_model)), make_batch()
    schedule = NoiseSchedule.from_scheduler(pipe.scheduler)
    regression = Regression(pipe.unet, schedule, ConceptPreservingOptions())
    (g_u, g_r, g_d), metrics = regression.gradients(batch)
    t = batch["timesteps"][:, 0]
    alpha = ALPHAS[t][:, None, None, None]
    z_t = alpha.sqrt() * batch["latents"][:, 0] + (1 - alpha).sqrt() * batch["noise"][:, 0]
    teacher = load_pipeline(str(random_model)).unet(z_t, t, batch["teacher_states"]).sample
    loss = (pipe.unet(z_t, t, batch["states"][:, 0]).sample - teacher).square().mean()
    torch.testing.assert_close(metrics["loss/unlearn"], loss.detach())
    assert not g_d
    assert len(g_r) == len(g_u)
    for ours, plain in zip(g_u, torch.autograd.grad(loss, regression.weights), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-3, atol=1e-7)
