"""Compute noise, training targets and predicted originals of diffusion models and flows.

A flow is a rectified flow. Shapes: B samples of shape (C, h, w), a `NoiseSchedule` of T timesteps.
Every function takes one timestep a sample. Every function computes in the widest of its arguments'
dtypes, so that a float32 schedule gives float32.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

PREDICTION_TYPES = ("epsilon", "v_prediction", "flow")
# diffusers' schedulers whose training schedule is that of their betas, however they sample
DIFFUSION_SCHEDULERS = (
    "DDIMParallelScheduler", "DDIMScheduler", "DDPMParallelScheduler", "DDPMScheduler",
    "DEISMultistepScheduler", "DPMSolverMultistepScheduler", "DPMSolverSDEScheduler",
    "DPMSolverSinglestepScheduler", "EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler",
    "HeunDiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler",
    "LCMScheduler", "LMSDiscreteScheduler", "PNDMScheduler", "SASolverScheduler", "TCDScheduler",
    "UniPCMultistepScheduler",
)  # fmt: skip
FLOW_SCHEDULERS = ("FlowMatchEulerDiscreteScheduler",)
KNOWN_SCHEDULERS = (*DIFFUSION_SCHEDULERS, *FLOW_SCHEDULERS)
# options that give those schedulers other noise than that of their betas
OTHER_NOISE = {"timestep_type": "continuous", "use_flow_sigmas": True}


class NoiseDraw(NamedTuple):
    """The random numbers of one batch.

    Attributes:
        noise: the diffusion noise ε, of shape (B, C, h, w).
        posterior_noise: noise that draws a latent from the VAE's posterior, of the same shape.
        timesteps: timesteps uniform in [0, T), of shape (B,).
    """

    noise: Tensor
    posterior_noise: Tensor
    timesteps: Tensor


class NoiseSchedule(nn.Module):
    """The noise at each of T timesteps, in z_t = a_t x0 + σ_t ε, and what the model predicts.

    The schedule is a module, so that it follows the trained module to its device. Its state dict is
    empty.

    Attributes:
        signal: a, of shape (T,).
        sigma: σ, of shape (T,), which rises.
        times: the time that the network is given at each timestep, of shape (T,).

    Args:
        signal, sigma: the attributes.
        prediction_type: one of `PREDICTION_TYPES`.
        times: the attribute; None gives the timesteps themselves.

    Raises:
        ValueError: `prediction_type` is not known.
    """

    signal: Tensor
    sigma: Tensor
    times: Tensor

    def __init__(
        self,
        signal: Tensor,
        sigma: Tensor,
        prediction_type: str = "epsilon",
        times: Tensor | None = None,
    ) -> None:
        super().__init__()
        if prediction_type not in PREDICTION_TYPES:
            raise ValueError(
                f"prediction_type={prediction_type!r} is not one of {', '.join(PREDICTION_TYPES)}"
            )
        self.prediction_type = prediction_type
        self.register_buffer("signal", signal, persistent=False)
        self.register_buffer("sigma", sigma, persistent=False)
        times = torch.arange(len(signal)) if times is None else times
        self.register_buffer("times", times, persistent=False)

    def __len__(self) -> int:
        return len(self.signal)

    @classmethod
    def from_alphas_cumprod(
        cls, alphas_cumprod: Tensor, prediction_type: str = "epsilon"
    ) -> NoiseSchedule:
        """Return the variance-preserving schedule a = √ᾱ, σ = √(1-ᾱ) of ᾱ, of shape (T,).

        Source: Ho et al. 2020, equation 4.
        """
        return cls(alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt(), prediction_type)

    @classmethod
    def from_scheduler(cls, scheduler: Any) -> NoiseSchedule:
        """Return the schedule that a diffusers scheduler trains on, however it samples.

        A flow's schedule is a = 1-σ, with σ shifted towards noise as the configuration says.
        Uniform timesteps are therefore drawn from the shifted schedule. A flow's network is given
        the time T σ.

        Source: Esser et al. 2024 (Stable Diffusion 3, arXiv 2403.03206), sections 3 and 5.3.2.

        Raises:
            ValueError: the scheduler is not known; see `check_scheduler`.
        """
        check_scheduler(type(scheduler).__name__, scheduler.config)
        if type(scheduler).__name__ in DIFFUSION_SCHEDULERS:
            kind = scheduler.config.prediction_type
            return cls.from_alphas_cumprod(scheduler.alphas_cumprod.float(), kind)
        fresh = type(scheduler).from_config(scheduler.config)  # sampling replaces its sigmas
        sigma, times = fresh.sigmas.flip(0), fresh.timesteps.flip(0)
        return cls(1 - sigma, sigma, "flow", times)

    def at(self, timesteps: Tensor, ndim: int) -> tuple[Tensor, Tensor]:
        """Return a_t and σ_t, each of shape (B, 1, ..., 1) with `ndim` dimensions."""
        shape = (-1, *(1,) * (ndim - 1))
        return self.signal[timesteps].reshape(shape), self.sigma[timesteps].reshape(shape)


def check_scheduler(name: str, config: Mapping[str, Any]) -> None:
    """Refuse a scheduler whose noise schedule is not known.

    Args:
        name: the scheduler's class.
        config: its configuration.

    Raises:
        ValueError: the class is none of `KNOWN_SCHEDULERS`, or an option replaces the noise of its
            betas. The message names the class or the option.
    """
    if name not in KNOWN_SCHEDULERS:
        raise ValueError(
            f"a scheduler {name!r}, whose noise schedule is not known; known are "
            f"{', '.join(KNOWN_SCHEDULERS)}"
        )
    for key, value in OTHER_NOISE.items():
        if name in DIFFUSION_SCHEDULERS and config.get(key) == value:
            raise ValueError(f"{name} with {key}={value}, whose noise schedule is not known")
    own = config.get("prediction_type", "epsilon")
    if name in DIFFUSION_SCHEDULERS and own not in PREDICTION_TYPES[:2]:
        raise ValueError(
            f"{name} with prediction_type={own!r}; known are {', '.join(PREDICTION_TYPES[:2])}"
        )
    if own == "epsilon" and config.get("rescale_betas_zero_snr"):
        raise ValueError(
            f"{name} with prediction_type='epsilon' and rescale_betas_zero_snr=true: the last "
            "timestep is noise alone, from which ε tells nothing"
        )


def add_noise(latents: Tensor, noise: Tensor, timesteps: Tensor, schedule: NoiseSchedule) -> Tensor:
    """Return the noisy latents z_t = a_t x0 + σ_t ε, of shape (B, C, h, w).

    Args:
        latents: the clean latents x0, of shape (B, C, h, w).
        noise: ε, of shape (B, C, h, w).
        timesteps: one a sample, of shape (B,).
        schedule: a and σ.
    """
    signal, sigma = schedule.at(timesteps, latents.ndim)
    return signal * latents + sigma * noise


def noise_target(
    latents: Tensor, noise: Tensor, timesteps: Tensor, schedule: NoiseSchedule
) -> Tensor:
    """Return what the model is trained to output at z_t, of shape (B, C, h, w).

    The target is ε for "epsilon", v = a_t ε - σ_t x0 for "v_prediction" and ε - x0 for "flow".

    Args:
        latents: the clean latents x0, of shape (B, C, h, w).
        noise: ε, of shape (B, C, h, w).
        timesteps: one a sample, of shape (B,).
        schedule: a, σ and the prediction type.

    Source: Salimans and Ho 2022, section 2.4 (v); Esser et al. 2024, section 3 (flow).
    """
    if schedule.prediction_type == "epsilon":
        return noise
    if schedule.prediction_type == "flow":
        return noise - latents
    signal, sigma = schedule.at(timesteps, latents.ndim)
    return signal * noise - sigma * latents


def predict_x0(
    model_output: Tensor, z_t: Tensor, timesteps: Tensor, schedule: NoiseSchedule
) -> Tensor:
    """Return the predicted original sample x̂0, of shape (B, C, h, w).

    x̂0 is (z_t - σ_t ε)/a_t for "epsilon", a_t z_t - σ_t v for "v_prediction" and z_t - σ_t v for
    "flow".

    Args:
        model_output: ε or v as the model predicts it, of shape (B, C, h, w).
        z_t: the noisy latents, of shape (B, C, h, w).
        timesteps: one a sample, of shape (B,).
        schedule: a, σ and the prediction type.

    Source: Ho et al. 2020, equation 15; Salimans and Ho 2022, appendix D.
    """
    signal, sigma = schedule.at(timesteps, z_t.ndim)
    if schedule.prediction_type == "epsilon":
        return (z_t - sigma * model_output) / signal
    if schedule.prediction_type == "flow":
        return z_t - sigma * model_output
    return signal * z_t - sigma * model_output


def sample_generator(seed: int, step: int, index: int) -> torch.Generator:
    """Return the CPU generator of one sample in one step.

    The generator's seed is a hash of the three numbers, so neighbouring samples and steps are
    unrelated. The process that asks plays no part. torch's CPU generator keeps the seed's low 32
    bits.

    Args:
        seed: the run's seed.
        step: the training step.
        index: the sample's index in the global batch.
    """
    digest = hashlib.blake2b(f"{seed}/{step}/{index}".encode(), digest_size=8).digest()
    # 63 bits fit a signed integer
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def draw_noise(
    seed: int, step: int, indices: Sequence[int], shape: Sequence[int], num_timesteps: int
) -> NoiseDraw:
    """Return the noise and timesteps of the given samples, on the CPU.

    A sample's numbers depend on (seed, step, index) alone, not on the samples drawn beside it. One
    process and several therefore see the same numbers at the same global batch.

    Args:
        seed: the run's seed.
        step: the training step.
        indices: the samples' indices in the global batch, B of them.
        shape: the shape of one sample, (C, h, w).
        num_timesteps: T; timesteps are uniform in [0, T).
    """
    noise, posterior_noise, timesteps = [], [], []
    for index in indices:
        generator = sample_generator(seed, step, index)
        timesteps.append(torch.randint(num_timesteps, (), generator=generator))
        noise.append(torch.randn(*shape, generator=generator))
        posterior_noise.append(torch.randn(*shape, generator=generator))
    return NoiseDraw(torch.stack(noise), torch.stack(posterior_noise), torch.stack(timesteps))
