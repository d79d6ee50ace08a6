"""The Python of the README, the pages and the model cards, run as it stands."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from PIL import Image

from tests.helpers.bad_input import write_config
from tests.helpers.finished_runs import make_finished
from tests.helpers.flow import small
from unlearn.config.saved import load_run_config
from unlearn.exports.folder import export_run
from unlearn.generation.sampling import Sampler, generate
from unlearn.models.cross_attention import cross_attention_layers
from unlearn.models.pipeline import load_pipeline
from unlearn.utils.paths import EMBEDDED
from unlearn.weights.delta import save_unlearned

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "docs/getting-started/first-run.md", "docs/guides/export.md",
         "docs/reference/python-api.md", "docs/guides/evaluation.md")  # fmt: skip
ELSEWHERE = {  # by page: the test that runs its Python
    "docs/guides/own-method.md": "tests/unit/methods/test_plugin.py",
    "docs/reference/base-models.md": "below, on a small Stable Diffusion 3",
}


def python_blocks(path: Path) -> list[str]:
    """The Python blocks of a Markdown file."""
    return re.findall(r"^```python\n(.*?)^```", path.read_text(encoding="utf-8"), re.M | re.S)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working folder with the shipped model and a finished run of it, as the pages have them."""
    folder = tmp_path_factory.mktemp("pages")
    (folder / "unlearn" / "assets").mkdir(parents=True)
    (folder / "unlearn" / "assets" / "emoji").symlink_to(EMBEDDED)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        trained, run = folder / "trained", folder / "runs" / "panda-doco-0"
        trained.mkdir()
        write_config(trained, "concept=panda", "run_dir=runs/panda-doco-0")
        layers = cross_attention_layers(load_pipeline("emoji").unet)
        weights = {f"{name}.weight": 0.9 * layer.weight for name, layer in layers.items()}
        save_unlearned(weights, trained / "unlearned.safetensors", {"base": "emoji"})
        make_finished(run, trained)
        yield folder


def test_every_page_with_python_is_run_somewhere() -> None:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    found = {str(path.relative_to(ROOT)) for path in pages if python_blocks(path)}
    assert found == {*PAGES, *ELSEWHERE}


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_the_python_of_a_page_runs_as_it_stands(
    page: str, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unlearn.evaluation.evaluate.generate", generate_quickly)
    for block in python_blocks(ROOT / page):
        names: dict[str, Any] = {}
        exec(block, names)
        if "image" in names:
            assert_drawn(names["image"])
        if "run" in names:
            assert names["run"].weights == Path("runs/panda-doco-0/unlearned.safetensors")


@pytest.mark.slow
def test_stable_diffusion_3_is_saved_as_its_page_says(tmp_path: Path) -> None:
    small(t5=True).save_pretrained(tmp_path / "whole")
    (block,) = python_blocks(ROOT / "docs" / "reference" / "base-models.md")
    exec(block, {"source": str(tmp_path / "whole"), "folder": str(tmp_path / "less")})
    assert json.loads((tmp_path / "less" / "model_index.json").read_text())["text_encoder_3"] == [
        None, None
    ]  # fmt: skip


@pytest.mark.slow
def test_a_model_card_s_python_draws(work: Path, tmp_path: Path) -> None:
    out = export_run(load_run_config(work / "runs" / "panda-doco-0"), tmp_path / "out")
    (block,) = python_blocks(out / "README.md")
    names: dict[str, Any] = {}
    exec(block.replace("PATH_OF_THIS_FOLDER", str(out)), names)
    assert_drawn(names["pipe"]("a panda", num_inference_steps=2).images[0])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16, torch.float16])
def test_the_shipped_model_draws_in_plain_diffusers(dtype: torch.dtype | None) -> None:
    given = {} if dtype is None else {"dtype": dtype}
    pipe = StableDiffusionPipeline.from_pretrained(str(EMBEDDED), **given)
    assert {pipe.unet.dtype, pipe.vae.dtype, pipe.text_encoder.dtype} == {dtype or torch.float32}
    assert_drawn(pipe("a panda", num_inference_steps=2).images[0])
    assert isinstance(DiffusionPipeline.from_pretrained(str(EMBEDDED)), StableDiffusionPipeline)


def generate_quickly(pipe: Any, prompts: Any, seeds: Any, sampler: Sampler, **options: Any) -> Any:
    """Draw an evaluation's hundreds of images in one step each."""
    return generate(pipe, prompts, seeds, replace(sampler, num_inference_steps=1), **options)


def assert_drawn(image: Image.Image) -> None:
    """The picture has the model's size, and is not of one colour."""
    assert image.size == (64, 64)
    assert len(image.getcolors(64 * 64) or []) > 1
