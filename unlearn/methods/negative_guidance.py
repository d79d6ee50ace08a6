"""What ESD and SPM share: the model's own noisy latents, and negatively guided targets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, DiffusionPipeline
from torch import Tensor

from unlearn.concepts.concept import Concept
from unlearn.methods.base import Batch, UnlearningModule, batches_of
from unlearn.models.text_states import unconditional_text


@torch.no_grad()
def denoise(
    network: Callable[[Tensor, Tensor, Tensor], Tensor],
    scheduler: DDIMScheduler,
    noise: Tensor,
    stops: Tensor,
    states: Tensor,
    null: Tensor,
    guidance_scale: float,
) -> tuple[Tensor, Tensor]:
    """Latents of each sample after its own number of DDIM steps (B, C, h, w), and timesteps (B,).

    Args:
        network: maps z_t, t (a scalar) and text states to the model's output.
        scheduler: DDIM with its timesteps set.
        noise: where each sample starts (B, C, h, w).
        stops: steps to take, under the scheduler's number of steps (B,).
        states: texts (B, T, D), see `conditions`.
        null: of no prompt, same shape.
        guidance: scale of classifier-free guidance.
    """
    latents = noise
    for number in range(int(stops.max())):
        t = scheduler.timesteps[number].to(noise.device)
        both = network(torch.cat([latents, latents]), t, torch.cat([null, states]))
        without, with_text = both.chunk(2)
        output = without + guidance_scale * (with_text - without)
        moved = scheduler.step(output, t, latents).prev_sample
        latents = torch.where((number < stops)[:, None, None, None], moved, latents)
    return latents, scheduler.timesteps.to(noise.device)[stops]


def negative_guidance(null: Tensor, with_text: Tensor, eta: float) -> Tensor:
    """ε*(∅) - η [ε*(c) - ε*(∅)]: what points away from c, as far as η says.

    Source: ESD (Gandikota et al. 2023, arXiv 2303.07345), equation 7.
    """
    return null - eta * (with_text - null)


def mean_stop(batch: int, steps: int) -> float:
    """The mean of the largest of `batch` numbers drawn from 0 to `steps` - 1: E max = Σ P(max > k).

    So many steps a batch's latents are drawn for: as far as the sample that goes farthest.
    """
    return sum(1 - ((k + 1) / steps) ** batch for k in range(steps))


class NegativeGuidance(UnlearningModule):
    """The target prompt's output is trained towards negatively guided output of the base model.

    The noisy latents are the trained model's own, drawn for the target prompt to a random step.
    Images play no part.

    Args:
        lr: learning rate.
        eta: η of the negative guidance.
        guidance: scale of classifier-free guidance that draws the latents.
        num_inference_steps: of DDIM that draw them.
    """

    POSITIVE = (*UnlearningModule.POSITIVE, "num_inference_steps")
    of_unets = True

    def __init__(
        self,
        *args: Any,
        lr: float = 1e-5,
        eta: float = 1.0,
        guidance_scale: float = 3.0,
        num_inference_steps: int = 50,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)

    @classmethod
    def samples(cls, config: Any) -> tuple[float, float]:
        """With those that draw the latents; the teacher's come with and without the prompt."""
        number = config.batch_size * batches_of(config)
        drawing = mean_stop(config.batch_size, config.method.num_inference_steps)
        return 2 * number * (drawing + 1), number

    def prepare(self, pipe: DiffusionPipeline, concept: Concept) -> None:
        """The text of no prompt, and the sampler of the latents."""
        self.register_buffer("null_states", unconditional_text(pipe), persistent=False)
        self.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
        self.scheduler.set_timesteps(self.hparams.num_inference_steps)

    def erase(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """MSE(ε_θ(z_t, c_t), ε*(∅) - η [ε*(c_t) - ε*(∅)]), z_t and its timesteps."""
        states = batch["states"][:, 0]
        null = self.null_states.expand_as(states)
        # the timestep drawn for the sample, in [0, T), says where its sampling stops
        count, total = self.hparams.num_inference_steps, len(self.schedule)
        stops = count - 1 - batch["timesteps"][:, 0] * count // total

        start, guidance_scale = batch["noise"][:, 0], self.hparams.guidance_scale
        z_t, timesteps = denoise(
            self.output, self.scheduler, start, stops, states, null, guidance_scale
        )
        pair = (torch.cat([z_t, z_t]), torch.cat([timesteps, timesteps]))
        without, with_text = self.teacher(*pair, torch.cat([null, states])).chunk(2)
        target = negative_guidance(without, with_text, self.hparams.eta)
        output = self.output(z_t, timesteps, states)
        return F.mse_loss(output.float(), target.float()), z_t, timesteps
