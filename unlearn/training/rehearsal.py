"""Estimate the memory and time of a run's large passes from small ones."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from diffusers import DiffusionPipeline
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from unlearn.generation.sampling import image_side
from unlearn.methods.base import UnlearningModule
from unlearn.models.pipeline import get_denoiser
from unlearn.models.text_states import encode_text, predict_output


class PeakMemory(TorchDispatchMode):
    """A context that adds up the bytes of tensors made inside it, as long as they live.

    Tensors made before do not count, nor do views of them. Memory that a kernel allocates for
    itself is not seen.

    Attributes:
        peak: the most bytes that the tensors held at one time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.sizes: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        for tensor in tree_leaves((args, kwargs)):  # an unknown argument was made before
            self.count(tensor, False)
        output = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            self.count(tensor, True)
        return output

    def count(self, tensor: Any, made: bool) -> None:
        """Count a tensor's storage until the storage is freed.

        A storage counts once. With `made` False it counts as no bytes.
        """
        if not isinstance(tensor, Tensor):
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self.sizes:
            self.sizes[key] = storage.nbytes() if made else 0
            self.now += self.sizes[key]
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.forget, key)

    def forget(self, key: int) -> None:
        """Stop counting a storage that was freed."""
        self.now -= self.sizes.pop(key)


class CallCost(NamedTuple):
    """The memory and time of a call for a number of samples, estimated from small calls.

    Attributes:
        fixed: bytes beside the networks' weights, whatever the number of samples.
        each: further bytes of each sample.
        seconds: seconds of a sample, in a call as large as one second allows.
    """

    fixed: int
    each: int
    seconds: float

    def memory(self, samples: int) -> int:
        """Return the bytes of a call for so many samples, beside the networks' weights."""
        return self.fixed + samples * self.each


def measure_call_cost(
    call: Callable[[int], Any], most: int, afford: Callable[[int], None]
) -> CallCost:
    """Measure a call's memory for one and for two samples, and its time for up to `most` samples.

    Args:
        call: takes a number of samples.
        most: the number of samples that the run needs at a time.
        afford: raises if the device lacks the bytes of a call for `most` samples; called before any
            large call.
    """
    peaks = []
    for samples in (1, 2):
        with PeakMemory() as memory:
            call(samples)
        peaks.append(memory.peak)
    each = peaks[1] - peaks[0]
    afford(peaks[0] + (most - 1) * each)
    seconds = seconds_per_sample(call, 1)
    if (samples := min(most, int(1 / seconds))) > 1:
        call(samples)  # warm-up: a GPU loads kernels at the first call of a size
        seconds = seconds_per_sample(call, samples)
    return CallCost(peaks[0] - each, each, seconds)


def seconds_per_sample(call: Callable[[int], Any], samples: int) -> float:
    """Measure the seconds that a call takes, divided by its samples."""
    wait_for_device()
    start = time.perf_counter()
    call(samples)
    wait_for_device()
    return (time.perf_counter() - start) / samples


def wait_for_device() -> None:
    """Wait until the GPU, if there is one, has finished its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class NetworkPasses:
    """The forward and backward passes that a run is made of, for any number of samples.

    Args:
        pipe: the pipeline on its device.
        precision: "32-true", or "bf16-mixed", which runs the networks under autocast.
    """

    def __init__(self, pipe: DiffusionPipeline, precision: str) -> None:
        self.pipe, self.precision = pipe, precision
        self.text = encode_text(pipe, [""])

    def inputs(self, samples: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return latents (N, C, h, w), timesteps (N,) and text states (N, L, D) for N samples."""
        config, device = get_denoiser(self.pipe).config, self.pipe.device
        shape = (samples, config.in_channels, config.sample_size, config.sample_size)
        timesteps = torch.zeros(samples, dtype=torch.long, device=device)
        text = self.text.expand(samples, *self.text.shape[1:])
        return torch.zeros(shape, device=device), timesteps, text

    def autocast(self) -> torch.autocast:
        """Return a context with the run's precision."""
        mixed = self.precision == "bf16-mixed"
        return torch.autocast(self.pipe.device.type, torch.bfloat16, enabled=mixed)

    @torch.no_grad()
    def forward(self, samples: int) -> None:
        """Run the denoising network once, without gradient."""
        with self.autocast():
            predict_output(get_denoiser(self.pipe), *self.inputs(samples))

    @torch.no_grad()
    def decode(self, samples: int) -> None:
        """Decode latents to images."""
        with self.autocast():
            self.pipe.vae.decode(self.inputs(samples)[0])

    @torch.no_grad()
    def encode(self, samples: int) -> None:
        """Encode images to latents, which never runs under autocast."""
        side = image_side(self.pipe)
        self.pipe.vae.encode(torch.zeros(samples, 3, side, side, device=self.pipe.device))

    def trained(self, samples: int, method: UnlearningModule) -> None:
        """Compute the gradient of the method's weights."""
        with self.autocast():
            output = method.output(*self.inputs(samples)).float().sum()
            torch.autograd.grad(output, method.weights, allow_unused=True)
