"""SalUn: the mask by sorting, the loss written out, and what the mask leaves alone."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.conftest import ALPHAS
from tests.helpers.methods import make_batch
from unlearn.methods.gradients import Gradients
from unlearn.methods.salun import SalUn, SalUnOptions, salient
from unlearn.models.noise_schedule import NoiseSchedule
from unlearn.models.pipeline import load_pipeline


def make_salun(folder: Path, **options: object) -> SalUn:
    pipe = load_pipeline(str(folder))
    return SalUn(pipe.unet, NoiseSchedule.from_scheduler(pipe.scheduler), SalUnOptions(**options))


def test_the_mask_takes_the_largest_gradients_of_all() -> None:
    torch.manual_seed(0)
    gradients = [torch.randn(3, 4), torch.randn(8)]
    masks = salient(gradients, 0.3)
    entries = torch.cat([g.flatten() for g in gradients]).abs().tolist()
    largest = sorted(entries, reverse=True)[:6]
    chosen = [g[m].abs() for g, m in zip(gradients, masks, strict=True)]
    assert sorted(torch.cat(chosen).tolist(), reverse=True) == largest
    assert all(m.all() for m in salient(gradients, 1.0))


def test_the_loss_relabels_the_target_and_keeps_the_rest(random_model: Path) -> None:
    salun, batch = make_salun(random_model, alpha=0.25), make_batch()
    alphas = ALPHAS[batch["timesteps"]][..., None, None, None]
    z_t = alphas.sqrt() * batch["latents"] + (1 - alphas).sqrt() * batch["noise"]
    t = batch["timesteps"]
    with torch.no_grad():
        relabelled = salun.unet(z_t[:, 0], t[:, 0], batch["teacher_states"]).sample
        forget = salun.unet(z_t[:, 0], t[:, 0], batch["states"][:, 0]).sample - relabelled
        remain = salun.unet(z_t[:, 1], t[:, 1], batch["states"][:, 1]).sample - batch["noise"][:, 1]
        expected = forget.square().mean() + 0.25 * remain.square().mean()
        torch.testing.assert_close(salun.loss(batch), expected)


def test_only_salient_weights_train(random_model: Path) -> None:
    """The mask is of the training loss on the first batches; its gradient is zero elsewhere."""
    salun = make_salun(random_model, share=0.1, mask_batches=2)
    batches = [make_batch(seed) for seed in range(3)]
    loader = SimpleNamespace(train_dataloader=lambda: batches)
    salun._trainer = SimpleNamespace(datamodule=loader, world_size=1)
    salun.on_fit_start()
    total = [torch.zeros_like(w) for w in salun.weights]
    for batch in batches[:2]:
        gradient = torch.autograd.grad(salun.training_loss(batch, 0), salun.weights)
        total = [a + b for a, b in zip(total, gradient, strict=True)]
    for mask, expected in zip(salun.masks, salient(total, 0.1), strict=True):
        assert torch.equal(mask, expected)
    gradient = list(torch.autograd.grad(salun.loss(batches[2]), salun.weights))
    masked = salun.mean_gradients(Gradients(unlearn=gradient), last=True)
    assert masked is not None
    for before, after, mask in zip(gradient, masked.unlearn, salun.masks, strict=True):
        assert torch.equal(after, torch.where(mask, before, 0))
    share = sum(int(m.sum()) for m in salun.masks) / sum(m.numel() for m in salun.masks)
    assert share == pytest.approx(0.1, abs=1e-3)


def test_bad_options_are_refused(random_model: Path) -> None:
    with pytest.raises(ValueError, match=r"method\.share=0\.0: .* more than 0 and at most 1"):
        make_salun(random_model, share=0.0)
    with pytest.raises(ValueError, match=r"method\.mask_batches=0"):
        make_salun(random_model, mask_batches=0)
