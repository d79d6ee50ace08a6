"""Measure distances between sets of images, on features that were computed before."""

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

SUBSETS, SUBSET_SIZE = 100, 1000  # KID's defaults, of its authors and of torchmetrics
# FID's jackknife: its blocks, and the 97.5 % quantile of Student's t with 9 degrees of freedom
JACKKNIFE_BLOCKS, JACKKNIFE_T = 10, 2.262157


class PrecomputedFeatures(nn.Identity):
    """A pass-through extractor, for a torchmetrics metric that gets features (N, D), not images."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.num_features = dim


def kid(features: Tensor, reference: Tensor) -> Mean:
    """Return the kernel inception distance of features (N, D) from a reference (M, D).

    The distance is near 0 where the sets are alike. It is torchmetrics' unbiased MMD² with the
    kernel (x·y / D + 1)³. The mean is over 100 pairs of random subsets. A subset has half the
    images of the smaller side, and 1000 at most.

    The interval is 1.96 standard errors. The spread over halves is the standard error of the whole
    (delete-half jackknife). The spread over smaller subsets is scaled to the whole. Where one side
    is larger than the other, the interval is too wide. All images count as independent. Where
    images are pairs of one prompt and noise, KID falls below 0 as the pairs come to agree.

    Source: Bińkowski et al. 2018, arXiv 1801.01401.

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
            PrecomputedFeatures(features.shape[1]), subsets=SUBSETS, subset_size=size
        )
    metric.update(reference.double(), real=True)
    metric.update(features.double(), real=False)
    with torch.random.fork_rng(devices=[]):  # torchmetrics draws subsets from the global one
        torch.default_generator.manual_seed(0)
        value, spread = (x.item() for x in metric.compute())
    # under the root: the variance of the whole, and that of a mean over only SUBSETS pairs
    half = 1.959964 * spread * math.sqrt(size / (n - size) + 1 / SUBSETS)
    return Mean(value, value - half, value + half, len(features))


def fid(features: Tensor, reference: Tensor) -> Mean:
    """Return the Fréchet inception distance of features (N, D) from a reference (M, D).

    The distance is 0 where the sets are alike. It is torchmetrics'
    |μ - μ'|² + tr(Σ + Σ' - 2 (Σ Σ')^½) in fp64.

    The interval is that of a jackknife over 10 blocks of consecutive images. A block is left out of
    both sides at the same places, since neighbours share their prompt, and pairs their noise. FID
    is biased upwards, more so with fewer images. No interval shows that bias, so compare FIDs of
    equal numbers of images.

    Source: Heusel et al. 2017, arXiv 1706.08500.

    Raises:
        ValueError: a side has fewer images than twice the dimension.
    """
    dim, n = features.shape[1], min(len(features), len(reference))
    if n < 2 * dim:
        raise ValueError(
            f"FID on {dim} dimensions needs {2 * dim} images on each side; there are "
            f"{len(features)} and {len(reference)}: use KID"
        )
    value = frechet_distance(features, reference)
    sides = [side.tensor_split(JACKKNIFE_BLOCKS) for side in (features, reference)]
    left_out = torch.tensor(
        [
            frechet_distance(*(torch.cat(side[:block] + side[block + 1 :]) for side in sides))
            for block in range(JACKKNIFE_BLOCKS)
        ]
    )
    error = math.sqrt((JACKKNIFE_BLOCKS - 1) * left_out.var(correction=0).item())
    return Mean(
        value, max(0.0, value - JACKKNIFE_T * error), value + JACKKNIFE_T * error, len(features)
    )


def frechet_distance(features: Tensor, reference: Tensor) -> float:
    """Return torchmetrics' FID of features (N, D) and (M, D), without an interval."""
    metric = FrechetInceptionDistance(PrecomputedFeatures(features.shape[1]))
    metric.update(reference.double(), real=True)
    metric.update(features.double(), real=False)
    return max(0.0, metric.compute().item())  # rounding can give a value just under 0


def image_similarity(features: Tensor, reference: Tensor) -> Tensor:
    """Return the cosine (N,) of each image's features (N, D) with its reference's features (N, D).

    The two images of a pair have the same prompt and noise; 1 is the same image.

    Raises:
        ValueError: the two sides differ in shape.
    """
    if features.shape != reference.shape:
        raise ValueError(
            f"features of shapes {tuple(features.shape)} and {tuple(reference.shape)} are no pairs"
        )
    return F.cosine_similarity(features, reference, dim=-1)


class InceptionFeatures:
    """The 2048 features of published FIDs, from torch-fidelity's port of TensorFlow's Inception v3.

    Args:
        extractor: torch-fidelity's `FeatureExtractorInceptionV3`.
        device: the device that the extractor runs on.
    """

    name = "Inception v3 (torch-fidelity)"
    dim = 2048

    def __init__(self, extractor: nn.Module, device: str = "cpu") -> None:
        self.extractor = extractor.eval().requires_grad_(False).to(device)
        self.device = device

    @classmethod
    def load(cls, weights: str, device: str = "cpu") -> InceptionFeatures:
        """Load the extractor with the weights in the file `weights`, a state dict of tensors.

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
            # torch-fidelity would run any code in a pickle, so it gets a copy with tensors alone
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
        """Return features (N, 2048) of uint8 images (N, 3, H, W), on the CPU."""
        chunks = images.split(batch_size)
        return torch.cat([self.extractor(chunk.to(self.device))[0].cpu() for chunk in chunks])
