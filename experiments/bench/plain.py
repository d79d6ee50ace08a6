"""A plain DoCo step, written from the method's equations: what the package's own is measured by."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn

from unlearn.methods.discriminator import PatchDiscriminator
from unlearn.methods.losses import discriminator_loss, domain_correction_loss, relearn_loss
from unlearn.methods.manual_steps import optimizer_step
from unlearn.methods.surgery import clip_to_norm, project
from unlearn.models.cross_attention import cross_attention_layers
from unlearn.models.frozen_layers import drop_frozen_inputs
from unlearn.models.noise_schedule import NoiseSchedule, add_noise, predict_x0


class PlainStep:
    """DoCo's step with a second network, an encoder in the loop, and a backward pass a gradient.

    It has what every implementation has: frozen weights without gradient, fused attention, the same
    dtype as the package's step.

    Attributes:
        networks: all that the step needs.

    Args:
        pipe: the base pipeline.
        batch: see `make_batch`.
        encode: run the VAE and the text encoder on the batch, as against reading their outputs.
        keep_inputs: of frozen convolutions, as PyTorch does.
    """

    def __init__(
        self,
        pipe: StableDiffusionPipeline,
        batch: dict[str, Any],
        encode: bool = True,
        keep_inputs: bool = True,
    ) -> None:
        self.pipe, self.batch, self.encode = pipe, batch, encode
        self.unet = copy.deepcopy(pipe.unet).requires_grad_(False)
        self.weights = [layer.weight for layer in cross_attention_layers(self.unet).values()]
        for weight in self.weights:
            weight.requires_grad_(True)
        if not keep_inputs:
            drop_frozen_inputs(self.unet)
        torch.manual_seed(0)
        config = self.unet.config
        self.discriminator = PatchDiscriminator(config.in_channels, config.sample_size).to(
            pipe.device
        )
        self.for_weights = torch.optim.AdamW(self.weights, 1e-5, weight_decay=1e-2)
        self.for_discriminator = torch.optim.Adam(
            self.discriminator.parameters(), 1e-5, betas=(0.5, 0.999)
        )
        self.optimizers = [self.for_weights, self.for_discriminator]
        self.schedule = NoiseSchedule.from_scheduler(pipe.scheduler).to(pipe.device)
        encoders: list[nn.Module] = [pipe.vae, pipe.text_encoder] if encode else []
        self.networks = [self.unet, pipe.unet, self.discriminator, *encoders]

    def joined(self, key: str) -> Tensor:
        """Both halves of the batch, one after the other."""
        return torch.cat([self.batch[key][:, 0], self.batch[key][:, 1]])

    def inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        """Latents (2B, C, h, w), text states (2B, T, D) and the teacher's text states (B, T, D)."""
        if not self.encode:
            latents, states = self.joined("latents"), self.joined("states")
            return latents, states, self.batch["teacher_states"]
        with torch.no_grad():
            posterior = self.pipe.vae.encode(self.batch["pixels"]).latent_dist
            moments = posterior.mean, posterior.std
            latents = moments[0] + moments[1] * self.batch["posterior_noise"]
            states = self.pipe.text_encoder(self.batch["tokens"])[0]
        size = len(latents)
        return latents * self.pipe.vae.config.scaling_factor, states[:size], states[size:]

    def outputs(self) -> tuple[Tensor, Tensor, Tensor]:
        """x̂0 of the teacher (B, C, h, w), the student's, and the student's relearn output."""
        latents, states, teacher_states = self.inputs()
        noise, timesteps = self.joined("noise"), self.joined("timesteps")
        half = len(latents) // 2
        z_t = add_noise(latents, noise, timesteps, self.schedule)
        output = self.unet(z_t, timesteps, states).sample
        with torch.no_grad():
            anchor = self.pipe.unet(z_t[:half], timesteps[:half], teacher_states).sample
        at = (z_t[:half], timesteps[:half], self.schedule)
        return predict_x0(anchor, *at), predict_x0(output[:half], *at), output[half:]

    def train_discriminator(self, real: Tensor, fake: Tensor) -> None:
        """One step of D."""
        loss = discriminator_loss(self.discriminator(real), self.discriminator(fake.detach()))
        parameters = list(self.discriminator.parameters())
        gradients = torch.autograd.grad(loss, parameters)
        optimizer_step(self.for_discriminator, parameters, gradients)

    def warmup_step(self) -> None:
        """A step of the warm-up: all is computed, D alone trains."""
        real, fake, _ = self.outputs()
        self.train_discriminator(real, fake)

    def __call__(self) -> list[Tensor]:
        """One step; returns g_u and g_r."""
        real, fake, kept = self.outputs()
        unlearn = domain_correction_loss(self.discriminator(fake))
        relearn = relearn_loss(kept, self.batch["noise"][:, 1])
        g_u = list(torch.autograd.grad(unlearn, self.weights, retain_graph=True))
        g_r = list(torch.autograd.grad(relearn, self.weights))
        self.train_discriminator(real, fake)
        clipped_u, clipped_r = clip_to_norm(g_u, 1.0)[0], clip_to_norm(g_r, 1.0)[0]
        optimizer_step(self.for_weights, self.weights, project(clipped_u, clipped_r)[0])
        return [*g_u, *g_r]


class PlainFp32(PlainStep):
    """The plain step on fp32 weights, whatever autocast is on around it.

    Args:
        pipe: the base pipeline, in fp32.
        batch: see `make_batch`.
        tf32: a GPU may round what matrix products and convolutions take to TF32.
    """

    def __init__(self, pipe: StableDiffusionPipeline, batch: dict[str, Any], tf32: bool) -> None:
        super().__init__(pipe, batch)
        self.tf32 = tf32

    def warmup_step(self) -> None:
        """A step of the warm-up."""
        with in_fp32(self.pipe.device.type, self.tf32):
            super().warmup_step()

    def __call__(self) -> list[Tensor]:
        """One step; returns g_u and g_r."""
        with in_fp32(self.pipe.device.type, self.tf32):
            return super().__call__()


@contextmanager
def in_fp32(device: str, tf32: bool) -> Iterator[None]:
    """Neither autocast nor, unless it is asked for, TF32."""
    backends: list[Any] = [torch.backends.cuda.matmul, torch.backends.cudnn]
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = tf32
        with torch.autocast(device, enabled=False):
            yield
    finally:
        for backend, allowed in zip(backends, before, strict=True):
            backend.allow_tf32 = allowed
