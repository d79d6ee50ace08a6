"""Models from files and the Hub: what loads gives the same numbers, what does not says why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

from tests.helpers.compvis import as_single_file
from unlearn.models.pipeline import load_pipeline, pipeline_networks


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


def test_a_single_file_is_the_pipeline_that_it_was_made_of(
    random_model: Path, tmp_path: Path
) -> None:
    pipe = load_pipeline(str(random_model))
    path = as_single_file(pipe, tmp_path / "model.safetensors")
    loaded = load_pipeline(str(path), config=str(random_model))
    for name, network in pipeline_networks(pipe).items():
        own, other = network.state_dict(), pipeline_networks(loaded)[name].state_dict()
        assert own.keys() == other.keys()
        assert all(torch.equal(own[key], other[key]) for key in own)
    assert loaded.tokenizer.get_vocab() == pipe.tokenizer.get_vocab()
    assert loaded.scheduler.config.beta_end == pipe.scheduler.config.beta_end


def test_a_single_file_without_its_configuration_says_which_one_to_download(
    random_model: Path, tmp_path: Path
) -> None:
    path = as_single_file(load_pipeline(str(random_model)), tmp_path / "model.safetensors")
    message = r"model\.safetensors': stable-diffusion-v1-5/\S+ is neither a folder nor downloaded"
    with pytest.raises(ValueError, match=message):
        load_pipeline(str(path))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("CompVis/stable-diffusion-v1-4", r"run `hf download CompVis/stable-diffusion-v1-4`"),
        ("no/such/folder", r"there is no folder or file no/such/folder"),
    ],
)
def test_what_is_not_there_says_what_to_do(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=rf"model\.pretrained='{name}': .*{message}"):
        load_pipeline(name)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (GatedRepoError, r"accept its licence at https://huggingface\.co/a/b, then run `hf auth"),
        (RepositoryNotFoundError, r"no such model on the Hub; a private one needs `hf auth login`"),
    ],
)
def test_refusals_of_the_hub_say_what_to_do(
    error: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    response = httpx.Response(403, request=httpx.Request("GET", "https://huggingface.co/a/b"))

    def refuse(source: str, name: str) -> None:
        raise error("no", response=response)

    monkeypatch.setattr("unlearn.models.loading.hf_hub_download", refuse)
    with pytest.raises(ValueError, match=message):
        load_pipeline("a/b")


def test_broken_and_other_models_are_refused(random_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no model_index\.json in that folder"):
        load_pipeline(str(tmp_path))
    (tmp_path / "model.bin").touch()
    with pytest.raises(ValueError, match=r"a single file ends in"):
        load_pipeline(str(tmp_path / "model.bin"))
    (tmp_path / "model.safetensors").write_bytes(b"not one")
    with pytest.raises(ValueError, match=r"model\.safetensors': cannot be loaded"):
        load_pipeline(str(tmp_path / "model.safetensors"))
    with pytest.raises(ValueError, match=r"model\.config='a/b': .* is no single file"):
        load_pipeline(str(random_model), config="a/b")
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    with pytest.raises(ValueError, match=r"a FluxPipeline; allowed are \['StableDiffusionPipe"):
        load_pipeline(str(tmp_path))
