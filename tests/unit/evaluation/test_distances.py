"""KID and FID against their formulas written out, and what their intervals claim."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unlearn.evaluation import distances
from unlearn.evaluation.distances import InceptionFeatures, fid, image_similarity, kid
from unlearn.evaluation.protocol_metrics import scale_for_kid


def normal(n: int, dim: int, seed: int, shift: float = 0.0) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)) + shift


def mmd(x: Tensor, y: Tensor) -> float:
    """The unbiased MMD² of the kernel (x·y / D + 1)³, term by term."""
    n, m, dim = len(x), len(y), x.shape[1]
    x, y = x.double(), y.double()

    def k(a: Tensor, b: Tensor) -> float:
        return float((a @ b / dim + 1) ** 3)

    within_x = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    within_y = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return within_x + within_y - 2 * sum(k(a, b) for a in x for b in y) / (n * m)


def frechet(x: Tensor, y: Tensor) -> float:
    """The Fréchet distance of two Gaussians, by symmetric square roots in numpy."""
    a, b = (np.cov(side.double().numpy(), rowvar=False) for side in (x, y))
    values, vectors = np.linalg.eigh(a)
    root = vectors @ np.diag(np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ b @ root).clip(0)).sum()
    difference = (x.double().mean(0) - y.double().mean(0)).square().sum().item()
    return float(difference + np.trace(a) + np.trace(b) - 2 * cross)


def test_kid_is_the_unbiased_mmd() -> None:
    x, y = normal(40, 8, seed=1, shift=0.5), normal(40, 8, seed=2)
    found = kid(x, y)
    error = (found.high - found.low) / 2 / 1.96
    # a mean over 100 random halves: it strays from the whole by a tenth of the standard error
    assert found.value == pytest.approx(mmd(x, y), abs=0.3 * error)
    assert found.low > 0
    assert found.n == 40


def test_kid_of_two_points_is_exact() -> None:
    a, b = torch.tensor([1.0, 2.0, 0.0]), torch.tensor([0.5, 0.0, 1.0])
    found = kid(a.repeat(6, 1), b.repeat(9, 1))
    expected = (5 / 3 + 1) ** 3 + (1.25 / 3 + 1) ** 3 - 2 * (0.5 / 3 + 1) ** 3
    assert found == pytest.approx((expected, expected, expected, 6))


def test_kid_on_clip_features_tells_sets_of_equal_mean_apart() -> None:
    """Two modes at ±a against two at ±b: of unit features the kernel would see no difference."""
    a, b = normal(2, 512, seed=5)
    signs = torch.tensor([1.0, -1.0]).repeat(50)[:, None]
    one, other, more = (
        F.normalize(signs * mode + 0.3 * normal(100, 512, seed), dim=-1)
        for mode, seed in ((a, 6), (b, 7), (a, 8))
    )
    apart, alike = (
        kid(scale_for_kid(one), scale_for_kid(other)),
        kid(scale_for_kid(one), scale_for_kid(more)),
    )
    assert apart.low > 10 * max(alike.high, 0.01)
    assert kid(one, other).value < 1e-3 < apart.value
    torch.testing.assert_close(scale_for_kid(one).square().mean(dim=1), torch.ones(100))


def test_kid_of_pairs_that_agree_is_below_zero() -> None:
    x = normal(60, 8, seed=3)  # as the docstring warns: of sets that are not independent
    assert kid(x, x).high < 0 < kid(x, normal(60, 8, seed=4)).high


@pytest.mark.parametrize("cap", [1000, 20])
def test_kid_interval_is_the_spread_over_new_samples(
    cap: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distances, "SUBSET_SIZE", cap)  # 20: subsets far smaller than the half
    found = [kid(normal(100, 8, 2 * i, 0.3), normal(100, 8, 2 * i + 1)) for i in range(60)]
    spread = np.std([f.value for f in found])
    half = np.mean([f.high - f.low for f in found]) / 2
    assert half == pytest.approx(1.96 * spread, rel=0.35)


def test_kid_leaves_the_global_generator_alone() -> None:
    x, y = normal(20, 4, seed=1), normal(20, 4, seed=2)
    torch.manual_seed(5)
    first, drawn = kid(x, y), torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3), drawn)
    torch.rand(7)
    assert kid(x, y) == first


def test_kid_needs_four_images() -> None:
    assert kid(normal(4, 3, 1), normal(4, 3, 2)).n == 4
    with pytest.raises(ValueError, match="needs 4 images on each side; there are 9 and 3"):
        kid(normal(9, 3, 1), normal(3, 3, 2))


def test_fid_is_the_frechet_distance() -> None:
    mixed = normal(16, 16, seed=3)
    x, y = normal(200, 16, seed=1, shift=0.4) @ mixed, normal(150, 16, seed=2)
    found = fid(x, y)
    assert found.value == pytest.approx(frechet(x, y), rel=1e-6)
    assert found.low < found.value < found.high
    assert found.n == 200


def test_fid_of_scaled_and_moved_features_is_exact() -> None:
    x = normal(100, 6, seed=1)
    # the same covariance up to 2²: (2 - 1)² tr Σ, and the distance of the means
    moved = 2 * (x - x.mean(0)) + x.mean(0) + 0.5
    expected = x.double().T.cov().trace().item() + 6 * 0.25
    assert fid(moved, x).value == pytest.approx(expected, rel=1e-5)


def test_fid_interval_is_the_spread_over_new_samples() -> None:
    found = [fid(normal(100, 6, 2 * i, 0.3), normal(100, 6, 2 * i + 1)) for i in range(60)]
    spread = np.std([f.value for f in found])
    half = np.mean([f.high - f.low for f in found]) / 2
    assert half == pytest.approx(2.262 * spread, rel=0.35)


def test_fid_of_a_set_and_itself_is_nothing() -> None:
    x = normal(64, 8, seed=3)  # with this seed, rounding takes torchmetrics' just under 0
    assert fid(x, x) == pytest.approx((0, 0, 0, 64), abs=1e-6)
    assert fid(x, x).value == 0


def test_fid_refuses_fewer_images_than_twice_the_dimension() -> None:
    with pytest.raises(ValueError, match="needs 128 images on each side; there are 200 and 127"):
        fid(normal(200, 64, 1), normal(127, 64, 2))


def test_similarity_of_pairs() -> None:
    x = torch.tensor([[1.0, 0.0], [2.0, 0.0], [1.0, 1.0]])
    y = torch.tensor([[3.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
    assert image_similarity(x, y).tolist() == pytest.approx([1, 0, -1])
    with pytest.raises(ValueError, match=r"shapes \(3, 2\) and \(1, 2\) are no pairs"):
        image_similarity(x, y[:1])


class Extractor(nn.Module):
    """Stands for torch-fidelity's, which loads its weights and takes images in the same way."""

    def __init__(
        self, name: str, features_list: list[str], feature_extractor_weights_path: object
    ) -> None:
        super().__init__()
        self.layer = nn.Linear(3, int(features_list[0]))
        self.load_state_dict(torch.load(feature_extractor_weights_path, weights_only=False))

    def forward(self, images: Tensor) -> tuple[Tensor]:
        assert images.dtype == torch.uint8
        return (self.layer(images.float().mean((2, 3))),)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.FeatureExtractorInceptionV3 = Extractor  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch_fidelity", ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, module.__name__, module)


@pytest.mark.usefixtures("stand_in")
def test_inception_features_come_batch_by_batch(tmp_path: Path) -> None:
    layer = nn.Linear(3, InceptionFeatures.dim)
    torch.save({f"layer.{k}": v for k, v in layer.state_dict().items()}, tmp_path / "weights.pth")
    images = torch.randint(0, 256, (5, 3, 8, 6), dtype=torch.uint8)
    found = InceptionFeatures.load(str(tmp_path / "weights.pth")).image_features(images, 2)
    assert torch.allclose(found, layer(images.float().mean((2, 3))), atol=1e-4)
    assert not found.requires_grad


class Intruder:
    """Makes a folder when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.usefixtures("stand_in")
def test_inception_weights_run_no_code(tmp_path: Path) -> None:
    torch.save({"layer.weight": Intruder(tmp_path / "made")}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"^evaluation\.inception='.*not a readable file"):
        InceptionFeatures.load(str(tmp_path / "weights.pth"))
    assert not (tmp_path / "made").exists()


@pytest.mark.usefixtures("stand_in")
def test_inception_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    for content in ({"layer.weight": torch.ones(1)}, [1]):
        torch.save(content, path)
        with pytest.raises(ValueError, match=r"^evaluation\.inception='.*not a readable file"):
            InceptionFeatures.load(str(path))
    for raw in (b"", b"no weights"):
        path.write_bytes(raw)
        with pytest.raises(ValueError, match=r"^evaluation\.inception='.*not a readable file"):
            InceptionFeatures.load(str(path))
    with pytest.raises(ValueError, match=r"^evaluation\.inception='.*No such file"):
        InceptionFeatures.load(str(tmp_path / "nowhere.pth"))


def test_inception_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(ValueError, match=r"^evaluation\.inception='w\.pth' needs the extra `incep"):
        InceptionFeatures.load("w.pth")
