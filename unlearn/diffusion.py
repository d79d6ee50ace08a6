"""Noise, training targets and predicted originals of a variance-preserving diffusion model.

Shapes: B samples of shape (C, h, w); ``alphas_cumprod`` is ᾱ of shape (T,). Every function
takes one timestep a sample and computes in the widest of its arguments' dtypes, so that a float32
ᾱ gives float32.
"""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

PREDICTION_TYPES = ("epsilon", "v_prediction")


class NoiseDraw(NamedTuple):
    """The random numbers of one batch.

    Attributes:
        noise: The diffusion noise ε, of shape (B, *shape).
        posterior_noise: Draws a latent from the VAE's posterior, of shape (B, *shape).
        timesteps: Uniform in [0, T), of shape (B,).
    """

    noise: Tensor
    posterior_noise: Tensor
    timesteps: Tensor


def add_noise(latents: Tensor, noise: Tensor, timesteps: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """Returns the noisy latents z_t = √ᾱ_t x0 + √(1-ᾱ_t) ε, of shape (B, C, h, w).

    Args:
        latents: The clean latents x0, of shape (B, C, h, w).
        noise: ε, of shape (B, C, h, w).
        timesteps: One a sample, of shape (B,).
        alphas_cumprod: ᾱ, of shape (T,).

    Source: Ho et al. 2020, equation 4.
    """
    signal, sigma = _coefficients(timesteps, alphas_cumprod, latents.ndim)
    return signal * latents + sigma * noise


def noise_target(
    latents: Tensor, noise: Tensor, timesteps: Tensor, alphas_cumprod: Tensor, prediction_type: str
) -> Tensor:
    """Returns what the model is trained to output at z_t, of shape (B, C, h, w).

    It is ε for "epsilon" and v = √ᾱ_t ε - √(1-ᾱ_t) x0 for "v_prediction".

    Args:
        latents: The clean latents x0, of shape (B, C, h, w).
        noise: ε, of shape (B, C, h, w).
        timesteps: One a sample, of shape (B,).
        alphas_cumprod: ᾱ, of shape (T,).
        prediction_type: One of ``PREDICTION_TYPES``.

    Raises:
        ValueError: If ``prediction_type`` is not known.

    Source: Salimans and Ho 2022, section 2.4 (v).
    """
    _check(prediction_type)
    if prediction_type == "epsilon":
        return noise
    signal, sigma = _coefficients(timesteps, alphas_cumprod, latents.ndim)
    return signal * noise - sigma * latents


def predict_x0(
    model_output: Tensor,
    z_t: Tensor,
    timesteps: Tensor,
    alphas_cumprod: Tensor,
    prediction_type: str,
) -> Tensor:
    """Returns the predicted original sample x̂0, of shape (B, C, h, w).

    It is (z_t - √(1-ᾱ_t) ε)/√ᾱ_t for "epsilon" and √ᾱ_t z_t - √(1-ᾱ_t) v for "v_prediction".

    Args:
        model_output: ε or v as the model predicts it, of shape (B, C, h, w).
        z_t: The noisy latents, of shape (B, C, h, w).
        timesteps: One a sample, of shape (B,).
        alphas_cumprod: ᾱ, of shape (T,).
        prediction_type: One of ``PREDICTION_TYPES``.

    Raises:
        ValueError: If ``prediction_type`` is not known.

    Source: Ho et al. 2020, equation 15; Salimans and Ho 2022, appendix D.
    """
    _check(prediction_type)
    signal, sigma = _coefficients(timesteps, alphas_cumprod, z_t.ndim)
    if prediction_type == "epsilon":
        return (z_t - sigma * model_output) / signal
    return signal * z_t - sigma * model_output


def sample_generator(seed: int, step: int, index: int) -> torch.Generator:
    """Returns the CPU generator of one sample in one step.

    The seed is a hash of the triple, so neighbouring triples are unrelated and the process that
    asks plays no part. torch's CPU generator keeps the seed's low 32 bits.

    Args:
        seed: The run's seed.
        step: The training step.
        index: The sample's index in the global batch.
    """
    digest = hashlib.blake2b(f"{seed}/{step}/{index}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def draw_noise(
    seed: int, step: int, indices: Sequence[int], shape: Sequence[int], num_timesteps: int
) -> NoiseDraw:
    """Returns the noise and timesteps of the given samples, on the CPU.

    What a sample gets depends on (seed, step, index) alone, not on the samples drawn beside it: one
    process and several see the same numbers at the same global batch.

    Args:
        seed: The run's seed.
        step: The training step.
        indices: The samples' indices in the global batch, B of them.
        shape: The shape of one sample, (C, h, w).
        num_timesteps: T; timesteps are uniform in [0, T).
    """
    noise, posterior_noise, timesteps = [], [], []
    for index in indices:
        generator = sample_generator(seed, step, index)
        timesteps.append(torch.randint(num_timesteps, (), generator=generator))
        noise.append(torch.randn(*shape, generator=generator))
        posterior_noise.append(torch.randn(*shape, generator=generator))
    return NoiseDraw(torch.stack(noise), torch.stack(posterior_noise), torch.stack(timesteps))


def _coefficients(timesteps: Tensor, alphas_cumprod: Tensor, ndim: int) -> tuple[Tensor, Tensor]:
    """Returns √ᾱ_t and √(1-ᾱ_t), each of shape (B, 1, ..., 1) with ``ndim`` dimensions."""
    alpha = alphas_cumprod[timesteps].reshape(-1, *(1,) * (ndim - 1))
    return alpha.sqrt(), (1 - alpha).sqrt()


def _check(prediction_type: str) -> None:
    if prediction_type not in PREDICTION_TYPES:
        raise ValueError(
            f"prediction_type={prediction_type!r} is not one of {', '.join(PREDICTION_TYPES)}"
        )
