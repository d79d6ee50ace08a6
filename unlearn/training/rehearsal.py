"""Small passes of a run, tracked and timed: what larger ones will take."""

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
from unlearn.models.pipeline import denoiser
from unlearn.models.text_states import encode_text, predict_output


class PeakMemory(TorchDispatchMode):
    """Adds up what tensors made inside it hold, as long as they live.

    Those made before do not count, nor views of them. What a kernel takes for itself is not seen.

    Attributes:
        peak: the most that they held at one time, in bytes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.sizes: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        for tensor in tree_leaves((args, kwargs)):  # new here: made before
            self.count(tensor, False)
        output = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            self.count(tensor, True)
        return output

    def count(self, tensor: Any, made: bool) -> None:
        """Count a tensor's storage until it is freed, unless it is known."""
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
        """Count a storage no more."""
        self.now -= self.sizes.pop(key)


class Rehearsal(NamedTuple):
    """What a call takes, learnt from small ones.

    Attributes:
        fixed: bytes beside the networks' weights, whatever the number of samples.
        each: further bytes a sample.
        seconds: a sample, in as large a call as took about a second.
    """

    fixed: int
    each: int
    seconds: float

    def memory(self, samples: int) -> int:
        """Bytes of a call of so many samples, beside the networks' weights."""
        return self.fixed + samples * self.each


def rehearse(call: Callable[[int], Any], most: int, afford: Callable[[int], None]) -> Rehearsal:
    """Make a call for one and for two samples, and time one of at most `most`.

    Args:
        call: for a number of samples.
        most: that the run makes at a time.
        afford: refuses the bytes that a call for `most` takes, before that is made.
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
        call(samples)  # the first of its size: a GPU then loads its kernels
        seconds = seconds_per_sample(call, samples)
    return Rehearsal(peaks[0] - each, each, seconds)


def seconds_per_sample(call: Callable[[int], Any], samples: int) -> float:
    """Seconds a sample."""
    synchronize()
    start = time.perf_counter()
    call(samples)
    synchronize()
    return (time.perf_counter() - start) / samples


def synchronize() -> None:
    """Wait for the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Passes:
    """The passes that a run is made of, for any number of samples.

    Args:
        pipe: on its device.
        precision: "32-true" or "bf16-mixed", which autocasts the networks.
    """

    def __init__(self, pipe: DiffusionPipeline, precision: str) -> None:
        self.pipe, self.precision = pipe, precision
        self.text = encode_text(pipe, [""])

    def inputs(self, samples: int) -> tuple[Tensor, Tensor, Tensor]:
        """Latents, timesteps and texts."""
        config, device = denoiser(self.pipe).config, self.pipe.device
        shape = (samples, config.in_channels, config.sample_size, config.sample_size)
        timesteps = torch.zeros(samples, dtype=torch.long, device=device)
        text = self.text.expand(samples, *self.text.shape[1:])
        return torch.zeros(shape, device=device), timesteps, text

    def autocast(self) -> torch.autocast:
        """As in the run."""
        mixed = self.precision == "bf16-mixed"
        return torch.autocast(self.pipe.device.type, torch.bfloat16, enabled=mixed)

    @torch.no_grad()
    def forward(self, samples: int) -> None:
        """The denoising network, without gradient."""
        with self.autocast():
            predict_output(denoiser(self.pipe), *self.inputs(samples))

    @torch.no_grad()
    def decode(self, samples: int) -> None:
        """Latents to images."""
        with self.autocast():
            self.pipe.vae.decode(self.inputs(samples)[0])

    @torch.no_grad()
    def encode(self, samples: int) -> None:
        """Images to latents, which is never autocast."""
        side = image_side(self.pipe)
        self.pipe.vae.encode(torch.zeros(samples, 3, side, side, device=self.pipe.device))

    def trained(self, samples: int, method: UnlearningModule) -> None:
        """The gradient of the method's weights."""
        with self.autocast():
            output = method.output(*self.inputs(samples)).float().sum()
            torch.autograd.grad(output, method.weights, allow_unused=True)
