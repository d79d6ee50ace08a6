"""Published models without their weights: the published sizes, schedule and shapes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from unlearn.config.base_model import BaseModel
from unlearn.config.compose import compose
from unlearn.config.parse import parse_config
from unlearn.models.cross_attention import cross_attention_layers
from unlearn.models.pipeline import load_pipeline
from unlearn.models.random_weights import PUBLISHED

SD14, SD15, SD21, SDXL, SD3 = PUBLISHED
SMALL = {"random_weights": True, "width": 0.05, "image_size": 64}


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


SIZES = {  # parameters of the denoiser, the text encoders and the keys and values; image side
    SD14: (859_520_964, [123_060_480], 32, 19_169_280, 512),
    SD15: (859_520_964, [123_060_480], 32, 19_169_280, 512),
    SD21: (865_910_724, [340_387_840], 32, 25_559_040, 768),
    SDXL: (2_567_463_684, [123_060_480, 694_659_840], 140, 340_787_200, 1024),
    SD3: (2_028_328_000, [123_650_304, 694_659_840], 48, 24 * 2 * 1536**2, 1024),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_parameters_are_as_many_as_the_published_weights(name: str) -> None:
    with torch.device("meta"):
        networks = PUBLISHED[name].build_networks(1.0, None)
    unet, vae, *encoders = networks.values()
    layers = cross_attention_layers(unet)
    weights = sum(layer.weight.numel() for layer in layers.values())
    size = vae.config.sample_size
    own = (count(unet), [count(e) for e in encoders], len(layers), weights, size)
    assert own == SIZES[name]
    assert count(vae) == (83_819_683 if name == SD3 else 83_653_863)
    assert 8 * unet.config.sample_size == size


def test_the_schedule_amplifies_errors_as_stable_diffusion_s() -> None:
    """1/√ᾱ, by which x̂0 amplifies an error of ε: 1.9 at 499, 4.2 at 749, 14.65 at 999."""
    for name in (SD14, SD15, SD21, SDXL):
        scheduler = PUBLISHED[name].build_scheduler()
        amplified = scheduler.alphas_cumprod[[499, 749, 999]].rsqrt().tolist()
        assert amplified == [
            pytest.approx(1.9, abs=0.05), pytest.approx(4.2, abs=0.05),
            pytest.approx(14.65, abs=0.01),
        ]  # fmt: skip
        scheduler.set_timesteps(50)
        assert scheduler.timesteps[[0, -1]].tolist() == [981, 1]  # the offset of 1
        kind = "v_prediction" if name == SD21 else "epsilon"
        assert scheduler.config.prediction_type == kind
        if name != SDXL:
            assert scheduler.final_alpha_cumprod == scheduler.alphas_cumprod[0]


@pytest.mark.parametrize("name", [SD14, SD21, SDXL])
@pytest.mark.parametrize(("width", "image_size"), [(0.05, 64), (0.125, 128)])
def test_every_width_and_size_runs(name: str, width: float, image_size: int) -> None:
    pipe = load_pipeline(name, random_weights=True, width=width, image_size=image_size)
    pipe.set_progress_bar_config(disable=True)
    image = pipe("Snoopy on a sofa", num_inference_steps=2, output_type="pt").images
    assert image.shape == (1, 3, image_size, image_size)
    assert image.isfinite().all()
    assert pipe.tokenizer.model_max_length == 77
    channels = pipe.unet.config.block_out_channels
    assert abs(channels[0] - 320 * width) <= 5
    assert tuple(c // channels[0] for c in channels) == PUBLISHED[name].widths


def test_the_weights_are_the_same_each_time_and_cost_no_random_numbers() -> None:
    torch.manual_seed(7)
    expected = torch.rand(())
    torch.manual_seed(7)
    first = load_pipeline(SD14, **SMALL)
    assert torch.rand(()) == expected
    second = load_pipeline(SD14, **SMALL)
    for name in ("unet", "vae", "text_encoder"):
        a, b = (getattr(pipe, name).state_dict() for pipe in (first, second))
        assert all(torch.equal(a[key], b[key]) for key in a)
    assert not any(p.requires_grad for p in first.unet.parameters())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"width": 0.0}, r"model\.width=0\.0: more than 0 and at most 1"),
        ({"width": 1.5}, r"model\.width=1\.5: more than 0 and at most 1"),
        ({"image_size": 100}, r"model\.image_size=100: a multiple of 64"),
        ({"pretrained": "emoji"}, r"model\.pretrained='emoji': model\.random_weights=true needs"),
        ({"config": "a/b"}, r"model\.config='a/b': model\.random_weights=true reads no file"),
        ({"random_weights": False}, r"model\.width=0\.05, model\.image_size=64: only a model of"),
    ],
)
def test_what_cannot_be_built_is_refused(changed: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_pipeline(**{"pretrained": SD14, **SMALL, **changed})


def test_a_config_says_that_its_weights_are_random() -> None:
    overrides = ["concept=snoopy", "model=sd14"]
    assert compose(["model=sd15"]).model.pretrained == SD15
    assert compose(["model=sd21"]).model.pretrained == SD21
    assert compose(["model=sdxl"]).model.pretrained == SDXL
    assert compose(["model=sd3"]).model.pretrained == SD3
    assert parse_config(compose(overrides)).base == BaseModel(SD14)
    assert BaseModel(SD14).name == SD14
    random = [*overrides, "model.random_weights=true", "model.width=0.05", "model.image_size=64"]
    base = parse_config(compose(random)).base
    assert base == BaseModel(SD14, random_weights=True, width=0.05, image_size=64)
    assert base.name == f"random:{SD14}"
    assert base.load().unet.config.sample_size == 8
    with pytest.raises(ValueError, match=r"model\.image_size: Value 'large'"):
        parse_config(compose([*overrides, "model.image_size=large"]))
    assert parse_config(compose(["concept=panda"])).base == BaseModel("emoji")
