"""What `unlearn export` writes, loaded into the embedded model by plain diffusers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor

import unlearn
from tests.helpers.ranked_runs import RESULT
from tests.helpers.weights import draw
from unlearn.config.compose import compose
from unlearn.config.parse import parse_config
from unlearn.config.saved import load_run_config
from unlearn.config.sections import parse_section
from unlearn.exports.formats import ExportOptions, export_as
from unlearn.models.cross_attention import cross_attention_layers
from unlearn.models.pipeline import load_pipeline
from unlearn.training.run_dir import config_text
from unlearn.utils.paths import EMBEDDED
from unlearn.weights.delta import save_unlearned
from unlearn.weights.importing import load_weights
from unlearn.weights.lora import factorise_change, lora_factors

ERROR = 0.05
LORAS = ("lora", "kohya")


def plain(folder: Path = EMBEDDED, dtype: torch.dtype = torch.float32) -> StableDiffusionPipeline:
    """Loaded by diffusers alone; the embedded model is stored in half precision."""
    return StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, torch_dtype=dtype)


def make_run(folder: Path, weights: dict[str, Tensor], **metadata: str) -> Path:
    """A finished run on the embedded model, as far as exporting reads it."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(config_text(parse_config(compose(["concept=panda"]))))
    (folder / "result.json").write_text(json.dumps(RESULT))
    (folder / "before_after.png").touch()
    metadata = {"base": "emoji", "concept": "panda", "method": "doco", **metadata}
    save_unlearned(weights, folder / "unlearned.safetensors", metadata)
    return folder


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """Keys and values with singular values that fall at another pace in each layer; one stays."""
    layers, changed = cross_attention_layers(load_pipeline("emoji").unet), {}
    generator = torch.Generator().manual_seed(0)
    for number, (name, layer) in enumerate(layers.items()):
        noise = torch.randn(layer.weight.shape, generator=generator)
        left, values, right = torch.linalg.svd(noise, full_matrices=False)
        falling = torch.exp(-torch.arange(len(values)) / (1 + number % 4))
        changed[f"{name}.weight"] = layer.weight + 0.3 * (number > 0) * (left * falling) @ right
    return changed


@pytest.fixture(scope="module")
def run(weights: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("formats") / "run", weights)


def exported(run: Path, out: Path, **options: str | float | bool) -> Path:
    told = export_as(load_run_config(run), out, parse_section(options, "", ExportOptions))
    assert told.startswith(str(out))
    return out


def test_the_whole_folder_and_delta_bin_hold_the_weights_exactly(
    run: Path, weights: dict[str, Tensor], tmp_path: Path
) -> None:
    expected = draw(unlearn.load_unlearned(plain(), run / "unlearned.safetensors"))
    # no dtype is asked for: the folder is stored in that of the unlearned weights
    folder = StableDiffusionPipeline.from_pretrained(exported(run, tmp_path / "folder"))
    assert torch.equal(draw(folder), expected)
    delta = torch.load(exported(run, tmp_path / "delta.bin", format="delta"), weights_only=True)
    assert list(delta) == ["unet"]
    assert delta["unet"].keys() == weights.keys()
    patched = plain()
    assert not patched.unet.load_state_dict(delta["unet"], strict=False).unexpected_keys
    assert torch.equal(draw(patched), expected)
    assert torch.equal(draw(load_weights(plain(), tmp_path / "delta.bin")), expected)


def test_a_file_that_is_there_is_replaced_only_if_told_to_and_never_the_run_s_own(
    run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "delta.bin"
    out.write_text("mine")
    with pytest.raises(ValueError, match=r"delta\.bin: name a file that does not exist yet"):
        exported(run, out, format="delta")
    assert out.read_text() == "mine"
    exported(run, out, format="delta", overwrite=True)
    assert torch.load(out, weights_only=True)["unet"]
    own = run / "unlearned.safetensors"
    before = own.read_bytes()
    with pytest.raises(ValueError, match="replaces one that is not the run's own"):
        exported(run, own, format="lora", overwrite=True)
    with pytest.raises(ValueError, match=r"/dev/null: name a file"):
        exported(run, Path("/dev/null"), format="delta", overwrite=True)
    assert own.read_bytes() == before


def rank_needed(change: Tensor, error: float) -> int:
    """By trying each rank in turn."""
    left, values, right = np.linalg.svd(change.double().numpy(), full_matrices=False)
    for rank in range(len(values) + 1):
        off = (left[:, :rank] * values[:rank]) @ right[:rank] - change.double().numpy()
        if np.linalg.norm(off) <= error * np.linalg.norm(change.double().numpy()):
            return rank
    raise AssertionError


@pytest.mark.parametrize("kind", LORAS)
def test_diffusers_loads_a_lora_within_its_error_and_of_the_least_ranks(
    run: Path, weights: dict[str, Tensor], tmp_path: Path, kind: str
) -> None:
    path = exported(run, tmp_path / "out.safetensors", format=kind, error=ERROR)
    base, pipe = plain().unet.state_dict(), plain()
    pipe.load_lora_weights(path)
    ranks = {
        n: len(w) for n, w in pipe.unet.named_parameters() if n.endswith("lora_A.default_0.weight")
    }
    drawn = draw(pipe)
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    fused = pipe.unet.state_dict()
    assert fused.keys() == base.keys()
    for name, weight in fused.items():
        if name not in weights or torch.equal(weights[name], base[name]):
            assert torch.equal(weight, base[name]), name
            continue
        change, layer = weights[name] - base[name], name.removesuffix(".weight")
        assert ranks.pop(f"{layer}.lora_A.default_0.weight") == rank_needed(change, ERROR)
        off = (weight - weights[name]).norm() / change.norm()
        assert off <= ERROR + 1e-4
    assert not ranks
    torch.testing.assert_close(drawn, draw(pipe), atol=1e-3, rtol=0)
    merged = load_weights(plain(), path).unet.state_dict()
    for name in weights:
        torch.testing.assert_close(merged[name], fused[name], atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", LORAS)
def test_a_lora_draws_what_the_weights_draw(run: Path, tmp_path: Path, kind: str) -> None:
    base = draw(plain())
    expected = draw(unlearn.load_unlearned(plain(), run / "unlearned.safetensors"))
    off = []
    for error in (0.3, 1e-3):
        path = exported(run, tmp_path / f"{error}.safetensors", format=kind, error=error)
        pipe = plain()
        pipe.load_lora_weights(path)
        off.append((draw(pipe) - expected).norm() / (base - expected).norm())
    assert off[1] < 0.01 < off[0] < 1


@pytest.mark.parametrize("kind", LORAS)
def test_a_half_precision_pipeline_takes_a_lora(
    run: Path, weights: dict[str, Tensor], tmp_path: Path, kind: str
) -> None:
    path = exported(run, tmp_path / "out.safetensors", format=kind, error=ERROR)
    pipe = plain(dtype=torch.float16)
    base = pipe.unet.state_dict()
    base = {name: base[name].clone() for name in weights}
    pipe.load_lora_weights(path)
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    fused = pipe.unet.state_dict()
    for name in weights:
        assert fused[name].dtype == torch.float16
        change = weights[name] - base[name].float()
        rounding = 2**-11 * weights[name].norm() + 2**-9 * change.norm()
        assert (fused[name] - weights[name]).norm() <= ERROR * change.norm() + rounding


def test_a_reader_without_the_metadata_takes_the_factors_in_full(run: Path, tmp_path: Path) -> None:
    path = exported(run, tmp_path / "out.safetensors", format="lora", error=ERROR)
    pipe = plain()
    pipe.load_lora_weights(path)
    expected = draw(pipe)
    save_file(load_file(path), tmp_path / "bare.safetensors")
    pipe = plain()
    pipe.load_lora_weights(tmp_path / "bare.safetensors")
    torch.testing.assert_close(draw(pipe), expected, atol=1e-6, rtol=0)
    config = json.loads(exported_metadata(path)["lora_adapter_metadata"])
    assert config["unet.rank_pattern"]  # the ranks do differ
    assert exported_metadata(path)["concept"] == "panda"


def exported_metadata(path: Path) -> dict[str, str]:
    raw = path.read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    return header["__metadata__"]


def test_a_kohya_file_of_rank_1_alone_is_read_as_a_lora(tmp_path: Path) -> None:
    layers = cross_attention_layers(load_pipeline("emoji").unet)
    weights = {
        f"{n}.weight": a.weight + 0.1 * torch.outer(*map(torch.ones, a.weight.shape))
        for n, a in layers.items()
    }
    run = make_run(tmp_path / "run", weights)
    pipe = load_weights(plain(), exported(run, tmp_path / "o.safetensors", format="kohya"))
    for name, weight in weights.items():
        torch.testing.assert_close(pipe.unet.state_dict()[name], weight, atol=1e-5, rtol=0)


def test_factors_of_an_exact_rank_and_of_nothing() -> None:
    change = torch.randn(7, 3) @ torch.randn(3, 5)
    down, up = factorise_change(change, 1e-5)
    assert (down.shape, up.shape) == ((3, 5), (7, 3))
    torch.testing.assert_close(up @ down, change)
    assert factorise_change(torch.zeros(4, 6), 0.5)[0].shape == (0, 6)


def test_the_error_bounds_the_part_left_out() -> None:
    change = torch.diag(torch.tensor([4.0, 2.0, 1.0]))  # rank 1 leaves √5 of √21, rank 2 leaves 1
    for error, rank in ((0.21, 3), (0.22, 2), (0.487, 2), (0.489, 1)):
        assert len(factorise_change(change, error)[0]) == rank


@pytest.mark.parametrize(
    ("name", "shape"), [("conv_in.weight", (4, 2, 3, 3)), ("proj_out.bias", (4,))]
)
def test_what_is_no_matrix_is_refused_by_a_lora_alone(name: str, shape: tuple[int, ...]) -> None:
    base = {"unet.to_k.weight": torch.zeros(2, 2), f"unet.{name}": torch.zeros(shape)}
    changed = {**base, "unet.to_k.weight": torch.eye(2)}
    assert lora_factors(base, changed, 0.1).keys() == {
        "unet.to_k.lora_A.weight", "unet.to_k.lora_B.weight"
    }  # fmt: skip
    changed[f"unet.{name}"] = torch.ones(shape)
    with pytest.raises(ValueError, match=f"unet.{name} has changed and is no linear layer"):
        lora_factors(base, changed, 0.1)
    with pytest.raises(ValueError, match="a LoRA would hold nothing"):
        lora_factors(base, base, 0.1)


@pytest.mark.parametrize(
    ("out", "options", "message"),
    [
        ("o", {"format": "loar"}, "format='loar' is unknown; did you mean 'lora'"),
        ("o.safetensors", {"format": "lora", "error": 0.0}, "error=0.0: .*at least 1e-05"),
        ("o.safetensors", {"format": "kohya", "error": 1.0}, "error=1.0: at least 1e-05"),
        ("o.safetensors", {"format": "lora", "error": float("nan")}, "error=nan: .*at least 1e-05"),
        ("o.bin", {"format": "delta", "error": 0.1}, "error=0.1: format=delta has no error"),
        ("o", {"error": 0.1}, "error=0.1: format=folder has no error"),
        ("o.bin", {"format": "lora"}, r"o.bin: name a file .* ends in .safetensors"),
        ("run", {"format": "delta"}, r"run: name a file .* ends in .bin"),
    ],
)
def test_bad_options_are_refused(
    weights: dict[str, Tensor],
    tmp_path: Path,
    out: str,
    options: dict[str, str | float],
    message: str,
) -> None:
    run = make_run(tmp_path / "run", weights)
    with pytest.raises(ValueError, match=message):
        exported(run, tmp_path / out, **options)
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("kind", ["folder", "delta", *LORAS])
def test_what_acts_at_inference_is_refused(
    weights: dict[str, Tensor], tmp_path: Path, kind: str
) -> None:
    run = make_run(tmp_path / "run", weights, method="spm", at_inference='{"targets": ["panda"]}')
    out = tmp_path / {"folder": "o", "delta": "o.bin"}.get(kind, "o.safetensors")
    with pytest.raises(ValueError, match=r"method\.name='spm' acts at inference"):
        exported(run, out, format=kind)
    assert not out.exists()


def test_another_base_is_refused(weights: dict[str, Tensor], tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", {n: w[:, :7] for n, w in weights.items()})
    with pytest.raises(ValueError, match="made for another base model"):
        exported(run, tmp_path / "o.safetensors", format="lora")
