"""A real diffusers pipeline with random weights, and judges to match, for the tests."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from experiments.emoji.tokenizer import TOKENS
from unlearn.concepts.concept import AnchorConfig, Concept, ConceptConfig, build_concept
from unlearn.concepts.vocabulary import load_vocabulary
from unlearn.evaluation.judge import Judge
from unlearn.utils.paths import EMBEDDED

SCHEDULE = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False
}  # fmt: skip
ALPHAS = DDPMScheduler(**SCHEDULE).alphas_cumprod  # ᾱ of `random_model`

if TYPE_CHECKING:
    from tests.helpers.bad_input import Case


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or writes the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNLEARN_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder: the embedded model's parts, narrow and untrained."""
    folder = tmp_path_factory.mktemp("random_model")
    torch.manual_seed(0)
    # the shipped one: training one breaks ties at random, and each session would test another model
    tokenizer = CLIPTokenizer.from_pretrained(EMBEDDED / "tokenizer")
    blocks = {"norm_num_groups": 8, "layers_per_block": 1}
    pipe = StableDiffusionPipeline(
        vae=AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            block_out_channels=(8, 8, 8),
            latent_channels=4,
            mid_block_add_attention=False,
            sample_size=64,
            **blocks,
        ),
        text_encoder=CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=TOKENS,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        ),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(
            sample_size=16,
            block_out_channels=(16, 32),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=32,
            attention_head_dim=2,
            **blocks,
        ),
        scheduler=DDPMScheduler(**SCHEDULE),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def random_judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A judge folder with random weights."""
    words = load_vocabulary()
    torch.manual_seed(0)
    shape = {"embedding_size": 8, "hidden_sizes": [8], "depths": [1], "layer_type": "basic"}
    folder = tmp_path_factory.mktemp("random_judge")
    Judge("resnet", shape, len(words.objects), len(words.styles)).save(folder)
    return folder


def make_concept(
    name: str, anchor: str | list[str], kind: str = "instance", **fields: object
) -> Concept:
    """A concept of the embedded model, from the fields of its config."""
    words = [anchor] if isinstance(anchor, str) else anchor
    config = ConceptConfig(name=name, kind=kind, **fields)  # type: ignore[arg-type]
    return build_concept(config, AnchorConfig(name="anchor", words=words), load_vocabulary())


@pytest.fixture(scope="session")
def bad_input_run(random_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the random model, for tests to copy and to spoil."""
    from tests.helpers.bad_input import make_run

    return make_run(tmp_path_factory.mktemp("finished") / "run", random_model)


@pytest.fixture
def refused(
    random_model: Path,
    bad_input_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[[Case], None]:
    """See `bad_input.assert_refused`; in a working folder that holds a finished run, `run`."""
    from tests.helpers.bad_input import assert_refused

    work = tmp_path / "work"
    shutil.copytree(bad_input_run, work / "run")
    return lambda case: assert_refused(case, work, random_model, monkeypatch, capsys)
