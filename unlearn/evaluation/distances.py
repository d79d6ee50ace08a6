"""Distances between sets of images, on features that were computed before."""

from __future__ import annotations

import io
import math
import pickle
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from unlearn.evaluation.intervals import Mean

SUBSETS, SUBSET_SIZE = 100, 1000  # of KID: the defaults of its authors and of torchmetrics
BLOCKS, T_BLOCKS = 10, 2.262157  # of FID's jackknife; the t quantile of its 9 degrees of freedom


class Features(nn.Identity):
    """The extractor of a torchmetrics metric that is given features (N, D) for images."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.num_features = dim


def kid(features: Tensor, reference: Tensor) -> Mean:
    """The kernel inception distance of features (N, D) from a reference (M, D); near 0 if alike.

    torchmetrics' unbiased MMD² with the kernel (x·y / D + 1)³ (Bińkowski 2018, arXiv 1801.01401),
    averaged over 100 pairs of random subsets, each half of the smaller side and 1000 images at
    most. The interval is 1.96 standard errors: the spread over halves is the standard error of the
    whole (delete-half jackknife), and the spread over smaller subsets is scaled to it; where one
    side is the larger, the interval is too wide. All images count as independent: where they are
    pairs of one prompt and noise, KID falls below 0 as the pairs come to agree.

    Raises:
        ValueError: a side has fewer than 4 images.
    """
    n = min(len(features), len(reference))
    if n < 4:
        raise ValueError(
            f"KID needs 4 images on each side; there are {len(features)} and {len(reference)}"
        )
    size = min(n // 2, SUBSET_SIZE)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*will save all extracted features.*")
        metric = KernelInceptionDistance(
            Features(features.shape[1]), subsets=SUBSETS, subset_size=size
        )
    metric.update(reference.double(), real=True)
    metric.update(features.double(), real=False)
    with torch.random.fork_rng(devices=[]):  # it draws subsets from the global generator
        torch.default_generator.manual_seed(0)
        value, spread = (x.item() for x in metric.compute())
    # of the mean over all subsets, and of there being only so many of them
    half = 1.959964 * spread * math.sqrt(size / (n - size) + 1 / SUBSETS)
    return Mean(value, value - half, value + half, len(features))


def fid(features: Tensor, reference: Tensor) -> Mean:
    """The Fréchet inception distance of features (N, D) from a reference (M, D); 0 if alike.

    torchmetrics' |μ - μ'|² + tr(Σ + Σ' - 2 (Σ Σ')^½) in fp64 (Heusel 2017, arXiv 1706.08500). The
    interval is that of a jackknife over 10 blocks of consecutive images, left out of both sides at
    the same places: so it knows that neighbours share their prompt, and pairs their noise. FID is
    biased upwards, the more the fewer images; no interval shows that, so compare equal numbers.

    Raises:
        ValueError: a side has fewer images than twice the dimension.
    """
    dim, n = features.shape[1], min(len(features), len(reference))
    if n < 2 * dim:
        raise ValueError(
            f"FID on {dim} dimensions needs {2 * dim} images on each side; there are "
            f"{len(features)} and {len(reference)}: use KID"
        )
    value = frechet(features, reference)
    sides = [side.tensor_split(BLOCKS) for side in (features, reference)]
    left_out = torch.tensor(
        [
            frechet(*(torch.cat(side[:block] + side[block + 1 :]) for side in sides))
            for block in range(BLOCKS)
        ]
    )
    error = math.sqrt((BLOCKS - 1) * left_out.var(correction=0).item())
    return Mean(value, max(0.0, value - T_BLOCKS * error), value + T_BLOCKS * error, len(features))


def frechet(features: Tensor, reference: Tensor) -> float:
    """torchmetrics' FID of features (N, D) and (M, D)."""
    metric = FrechetInceptionDistance(Features(features.shape[1]))
    metric.update(reference.double(), real=True)
    metric.update(features.double(), real=False)
    return max(0.0, metric.compute().item())  # rounding can leave it just under 0


def image_similarity(features: Tensor, reference: Tensor) -> Tensor:
    """The cosine (N,) of each image's features (N, D) with those of its own reference (N, D).

    The two images of a pair have the same prompt and noise; 1 is the same image.

    Raises:
        ValueError: the sides are not of one shape.
    """
    if features.shape != reference.shape:
        raise ValueError(
            f"features of shapes {tuple(features.shape)} and {tuple(reference.shape)} are no pairs"
        )
    return F.cosine_similarity(features, reference, dim=-1)


class InceptionFeatures:
    """The 2048 features of the published FIDs: torch-fidelity's port of TensorFlow's Inception v3.

    Args:
        extractor: torch-fidelity's `FeatureExtractorInceptionV3`.
        device: where it runs.
    """

    name = "Inception v3 (torch-fidelity)"
    dim = 2048

    def __init__(self, extractor: nn.Module, device: str = "cpu") -> None:
        self.extractor = extractor.eval().requires_grad_(False).to(device)
        self.device = device

    @classmethod
    def load(cls, weights: str, device: str = "cpu") -> InceptionFeatures:
        """The extractor with the weights in the file `weights`, a state dict of tensors.

        Raises:
            ValueError: the extra `inception` is not installed, or the file is missing or holds
                anything else.
        """
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError as error:
            raise ValueError(
                f"evaluation.inception={weights!r} needs the extra `inception`: "
                f"pip install 'unlearn-diffusion[inception]' ({error})"
            ) from error
        buffer = io.BytesIO()
        try:
            # torch-fidelity would run whatever a pickle says; hand it back tensors alone
            torch.save(torch.load(Path(weights), map_location="cpu", weights_only=True), buffer)
            buffer.seek(0)
            extractor = FeatureExtractorInceptionV3(
                "inception-v3-compat", [str(cls.dim)], feature_extractor_weights_path=buffer
            )
        except (OSError, EOFError, RuntimeError, TypeError, pickle.UnpicklingError) as error:
            raise ValueError(
                f"evaluation.inception={weights!r}: not a readable file of torch-fidelity's "
                f"Inception v3 weights: {error}"
            ) from error
        return cls(extractor, device)

    @torch.no_grad()
    def image_features(self, images: Tensor, batch_size: int = 64) -> Tensor:
        """Features (N, 2048) of uint8 images (N, 3, H, W), on the CPU."""
        chunks = images.split(batch_size)
        return torch.cat([self.extractor(chunk.to(self.device))[0].cpu() for chunk in chunks])
