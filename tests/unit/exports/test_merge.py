"""Merged runs: the arithmetic, what the folder holds, and what cannot be added."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import unlearn
from unlearn.cli import merge
from unlearn.config.compose import compose
from unlearn.config.parse import parse_config
from unlearn.evaluation.jobs import parse_job
from unlearn.exports.merge import MergeOptions, merge_runs, merge_weights
from unlearn.models.cross_attention import cross_attention_layers
from unlearn.models.pipeline import load_pipeline
from unlearn.training.run_dir import config_text
from unlearn.weights.delta import read_safetensors, save_unlearned

BASE = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([[3.0]]), "c": torch.tensor(4.0)}


def test_changes_add_up_and_a_weight_that_a_delta_lacks_is_unchanged_by_it() -> None:
    deltas = [{"a": torch.tensor([2.0, 2.0])}, {"a": torch.tensor([1.0, 5.0]), "b": BASE["b"] - 1}]
    merged = merge_weights(BASE, deltas, 0.5)
    assert merged.keys() == {"a", "b"}
    assert torch.equal(merged["a"], torch.tensor([1.5, 3.5]))
    assert torch.equal(merged["b"], torch.tensor([[2.5]]))


def test_one_delta_merges_to_itself_bit_for_bit_and_order_is_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    base = {"a": torch.randn(50, 40, generator=generator).half().float()}
    one, two = ({"a": base["a"] + 1e-3 * torch.randn(50, 40, generator=generator)} for _ in "12")
    assert torch.equal(merge_weights(base, [one])["a"], one["a"])
    assert torch.equal(merge_weights(base, [one, two])["a"], merge_weights(base, [two, one])["a"])
    half = merge_weights({"a": base["a"].half()}, [one])["a"]
    assert half.dtype == torch.half


@pytest.fixture(scope="module")
def base(random_model: Path) -> dict[str, Tensor]:
    layers = cross_attention_layers(load_pipeline(str(random_model)).unet)
    return {f"{name}.weight": layer.weight for name, layer in layers.items()}


@pytest.fixture
def runs(random_model: Path, base: dict[str, Tensor], tmp_path: Path) -> list[Path]:
    """Panda and rabbit; each adds a number of its own to every weight."""
    return [
        make_run(
            tmp_path / f"{name}-doco-0", random_model, name, {n: w + k for n, w in base.items()}
        )
        for name, k in (("panda", 0.5), ("rabbit", 0.25))
    ]


def make_run(
    folder: Path, model: Path, concept: str, weights: dict[str, Tensor], **metadata: str
) -> Path:
    folder.mkdir(parents=True)
    config = parse_config(compose([f"concept={concept}", f"model.pretrained={model}"]))
    (folder / "config.yaml").write_text(config_text(config))
    metadata = {"base": str(model), "concept": concept, "method": "doco", **metadata}
    save_unlearned(weights, folder / "unlearned.safetensors", metadata)
    return folder


def test_merged_runs_are_a_run(
    random_model: Path, runs: list[Path], base: dict[str, Tensor], tmp_path: Path
) -> None:
    out = merge_runs(runs, tmp_path / "both", MergeOptions(scale=2.0))
    assert sorted(p.name for p in out.iterdir()) == ["config.yaml", "unlearned.safetensors"]
    path = out / "unlearned.safetensors"
    loaded = unlearn.load_unlearned(load_pipeline(str(random_model)), path).unet.state_dict()
    for name, weight in base.items():
        torch.testing.assert_close(loaded[name], weight + 1.5)
    metadata = read_safetensors(path)[1]
    assert (metadata["concept"], metadata["method"]) == ("panda+rabbit", "merge")
    assert (metadata["base"], metadata["scale"]) == (str(random_model), "2.0")
    job = parse_job(out, ["evaluation.images_per_prompt=1"])  # what `unlearn evaluate` makes of it
    assert [part.name for part in job.config.concept.members] == ["panda", "rabbit"]
    assert job.config.saved["method"]["merged"] == ["panda (doco)", "rabbit (doco)"]
    later = [f"after={out}", "concept=rocket", f"model.pretrained={random_model}"]
    earlier = parse_config(compose(later)).earlier
    assert [part.concept.name for part in earlier] == ["panda", "rabbit"]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"base": "elsewhere"}, r"its base model is 'elsewhere', that of .*only changes of one"),
        ({"at_inference": "{}", "method": "spm"}, r"method\.name='spm' acts at inference"),
        ({"rows": "1"}, "made for another base model"),
        ({"concept": "panda"}, r"concept=\[panda, panda\]: forgotten twice"),
    ],
)
def test_what_cannot_be_added_is_refused(
    random_model: Path,
    runs: list[Path],
    base: dict[str, Tensor],
    tmp_path: Path,
    other: dict[str, str],
    message: str,
) -> None:
    rows, concept = int(other.pop("rows", 99)), other.pop("concept", "rabbit")
    weights = {n: w[:rows] for n, w in base.items()}
    model = Path(other.pop("base", random_model))
    runs[1] = make_run(tmp_path / "other", model, concept, weights, **other)
    with pytest.raises(ValueError, match=message):
        merge_runs(runs, tmp_path / "out", MergeOptions())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("scale", [0.0, -1.0, float("inf"), float("nan")])
def test_a_scale_that_is_none_is_refused(runs: list[Path], tmp_path: Path, scale: float) -> None:
    said = str(scale).replace("inf", ".inf")
    arguments = [*map(str, runs), str(tmp_path / "out"), f"scale={said}"]
    with pytest.raises(ValueError, match=f"scale={scale}: a finite number of more than 0"):
        merge.run(arguments)
    assert not (tmp_path / "out").exists()


def test_places_that_do_not_fit_are_refused(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a run or a file already; name a folder"):
        merge_runs(runs, runs[0], MergeOptions())
    with pytest.raises(ValueError, match="nowhere: not a finished run directory"):
        merge_runs([runs[0], tmp_path / "nowhere"], tmp_path / "out", MergeOptions())
