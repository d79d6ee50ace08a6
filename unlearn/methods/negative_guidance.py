"""What ESD and SPM share: the model's own noisy latents, and negatively guided targets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, DiffusionPipeline
from torch import Tensor

from unlearn.concepts.concept import Concept
from unlearn.methods.base import UnlearningModule
from unlearn.methods.manual_steps import Batch
from unlearn.methods.options import MethodOptions, TrainingOptions
from unlearn.methods.plan import TrainingPlan
from unlearn.models.text_states import unconditional_text
from unlearn.utils.options import option


@dataclass(frozen=True, kw_only=True)
class NegativeGuidanceOptions(TrainingOptions):
    """Hold the options of `NegativeGuidance`."""

    lr: float = option(1e-5, at_least=0, help="learning rate", at_most=100)
    eta: float = option(1.0, at_least=0, help="η of the negative guidance", at_most=1000)
    guidance_scale: float = option(
        3.0,
        at_least=0,
        help="scale of classifier-free guidance that draws the latents",
        at_most=1000,
    )
    num_inference_steps: int = option(
        50, at_least=1, help="steps of DDIM that draw the latents", at_most=1000
    )


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
    """Return the latents of each sample after its own number of DDIM steps, and the timesteps.

    Args:
        network: maps z_t, t (a scalar) and text states to the model's output.
        scheduler: DDIM with its timesteps set.
        noise: where each sample starts (B, C, h, w).
        stops: steps to take, under the scheduler's number of steps (B,).
        states: texts (B, T, D), as `encode_text` returns them.
        null: the text of no prompt, (B, T, D).
        guidance_scale: scale of classifier-free guidance.

    Returns:
        Latents (B, C, h, w), and the timesteps that they stand at, (B,).
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
    """Return ε*(∅) - η [ε*(c) - ε*(∅)], which points away from the prompt c.

    Args:
        null: ε*(∅), the teacher's output without a prompt, (B, C, h, w).
        with_text: ε*(c), the teacher's output for the prompt, (B, C, h, w).
        eta: η, how far it points away.

    Source: ESD (Gandikota et al. 2023, arXiv 2303.07345), equation 7.
    """
    return null - eta * (with_text - null)


def mean_stop(batch: int, steps: int) -> float:
    """Return the mean of the largest of `batch` numbers drawn from 0 to `steps` - 1.

    A batch's latents are drawn for so many steps: as far as the sample that goes farthest. The mean
    is E max = Σ P(max > k).
    """
    return sum(1 - ((k + 1) / steps) ** batch for k in range(steps))


class NegativeGuidance(UnlearningModule):
    """Train the target prompt's output towards negatively guided output of the base model.

    The noisy latents are the trained model's own. They are drawn for the target prompt, up to a
    random step. Images play no part.
    """

    Options: ClassVar[type[MethodOptions]] = NegativeGuidanceOptions
    options: NegativeGuidanceOptions
    of_unets = True

    @classmethod
    def samples(cls, options: Any, plan: TrainingPlan) -> tuple[float, float]:
        """Return how many samples a device's run takes through the network, see the base class.

        Those that draw the latents and those of the teacher go forward without gradient, both with
        and without the prompt.
        """
        _, number = super().samples(options, plan)
        drawing = mean_stop(plan.batch_size, options.num_inference_steps)
        return 2 * number * (drawing + 1), number

    def prepare(self, pipe: DiffusionPipeline, concept: Concept) -> None:
        """Take the text of no prompt, and the sampler of the latents."""
        self.register_buffer("null_states", unconditional_text(pipe), persistent=False)
        self.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
        self.scheduler.set_timesteps(self.options.num_inference_steps)

    def erase(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return MSE(ε_θ(z_t, c_t), ε*(∅) - η [ε*(c_t) - ε*(∅)]), z_t and its timesteps.

        Returns:
            A 0-dim tensor, the latents (B, C, h, w) and the timesteps (B,).
        """
        states = batch["states"][:, 0]
        null = self.null_states.expand_as(states)
        # the timestep drawn for the sample, in [0, T), says where its sampling stops
        count, total = self.options.num_inference_steps, len(self.schedule)
        stops = count - 1 - batch["timesteps"][:, 0] * count // total

        start, guidance_scale = batch["noise"][:, 0], self.options.guidance_scale
        z_t, timesteps = denoise(
            self.output, self.scheduler, start, stops, states, null, guidance_scale
        )
        pair = (torch.cat([z_t, z_t]), torch.cat([timesteps, timesteps]))
        without, with_text = self.teacher(*pair, torch.cat([null, states])).chunk(2)
        target = negative_guidance(without, with_text, self.options.eta)
        output = self.output(z_t, timesteps, states)
        return F.mse_loss(output.float(), target.float()), z_t, timesteps
