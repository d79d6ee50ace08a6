"""Stored models that are incomplete, of another kind, or need a key: what loads, what is said."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DDIMScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    SchedulerMixin,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import load_file, save_file

from tests.helpers.compvis import as_single_file
from unlearn.config.compose import compose
from unlearn.config.parse import parse_config
from unlearn.generation.sampling import sampling_scheduler
from unlearn.models.noise_schedule import KNOWN_SCHEDULERS, NoiseSchedule
from unlearn.models.pipeline import load_pipeline, pipeline_networks

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def model(random_model: Path, tmp_path: Path) -> Path:
    """A copy of the random model's folder, to be changed."""
    return Path(shutil.copytree(random_model, tmp_path / "model"))


@pytest.fixture
def single(random_model: Path, tmp_path: Path) -> Path:
    return as_single_file(load_pipeline(str(random_model)), tmp_path / "model.safetensors")


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def assert_same(first: Any, second: Any) -> None:
    others = pipeline_networks(second)
    for name, network in pipeline_networks(first).items():
        there = others[name].state_dict()
        assert all(torch.equal(w, there[n]) for n, w in network.state_dict().items())


UNKNOWN = [
    EDMDPMSolverMultistepScheduler(),
    EDMEulerScheduler(prediction_type="v_prediction"),
    FlowMatchHeunDiscreteScheduler(),
    diffusers.ScoreSdeVeScheduler(),
    diffusers.VQDiffusionScheduler(num_vec_classes=9),
    diffusers.IPNDMScheduler(),
    diffusers.CMStochasticIterativeScheduler(),
]  # fmt: skip


@pytest.mark.parametrize("scheduler", UNKNOWN, ids=lambda s: type(s).__name__)
def test_a_scheduler_that_is_not_known_is_refused_by_name(
    model: Path, scheduler: SchedulerMixin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the schedule, by the sampler, and by loading, before the weights are read."""
    name = type(scheduler).__name__
    for refuse in (NoiseSchedule.from_scheduler, lambda s: sampling_scheduler(s, None)):
        with pytest.raises(ValueError, match=f"{name}.*known are .*DDIMScheduler.*FlowMatchEuler"):
            refuse(scheduler)
    scheduler.save_pretrained(model / "scheduler")
    edit(model / "model_index.json", lambda c: c.update(scheduler=["diffusers", name]))
    monkeypatch.setattr(StableDiffusionPipeline, "from_pretrained", None)
    with pytest.raises(ValueError, match=f"scheduler_config.json: .*{name}.*known are .*DDIM"):
        load_pipeline(str(model))


@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # of diffusers, in numpy
@pytest.mark.parametrize("name", KNOWN_SCHEDULERS)
def test_every_known_scheduler_gives_a_schedule(name: str) -> None:
    kind = getattr(diffusers, name)
    try:
        scheduler = kind()
    except ImportError:  # of an extra of diffusers
        pytest.skip(f"{name} needs a package that is not installed")
    schedule = NoiseSchedule.from_scheduler(scheduler)
    assert len(schedule) == 1000
    assert (schedule.sigma.diff() > 0).all()
    assert ((schedule.signal >= 0) & (schedule.signal <= 1)).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timestep_type": "continuous"}, "EulerDiscreteScheduler with timestep_type=continuous"),
        ({"use_flow_sigmas": True}, "DPMSolverMultistepScheduler with use_flow_sigmas=True"),
        ({"prediction_type": "sample"}, "prediction_type='sample'; known are epsilon, v_pred"),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr=true: the last timestep"),
    ],
)
def test_options_that_replace_a_known_scheduler_s_noise_are_refused(
    options: dict[str, Any], message: str
) -> None:
    flow = "use_flow_sigmas" in options
    kind = diffusers.DPMSolverMultistepScheduler if flow else EulerDiscreteScheduler
    with pytest.raises(ValueError, match=message):
        NoiseSchedule.from_scheduler(kind(**options))


@pytest.mark.parametrize("marks", [("v_pred",), ("v_pred", "ztsnr"), ("ztsnr",), ("metadata",)])
def test_a_single_file_marked_as_v_prediction_is_taken_as_such(
    random_model: Path, single: Path, marks: tuple[str, ...]
) -> None:
    weights = load_file(single)
    plain = load_pipeline(str(single), config=str(random_model))
    metadata = {"modelspec.prediction_type": "v"} if "metadata" in marks else {}
    empty = {mark: torch.tensor([]) for mark in marks if mark != "metadata"}
    save_file({**weights, **empty}, single, metadata)
    pipe = load_pipeline(str(single), config=str(random_model))
    assert_same(pipe, plain)
    assert plain.scheduler.config.prediction_type == "epsilon"
    assert pipe.scheduler.config.prediction_type == "v_prediction"
    last = NoiseSchedule.from_scheduler(pipe.scheduler).signal[-1]
    assert (last < 1e-3) == ("ztsnr" in marks)
    drawn = sampling_scheduler(pipe.scheduler, None)
    assert drawn.config.prediction_type == "v_prediction"
    assert drawn.config.rescale_betas_zero_snr == ("ztsnr" in marks)


@pytest.mark.parametrize("mark", ["edm_mean", "edm_vpred.sigma_max"])
def test_a_single_file_of_unknown_noise_is_refused(
    random_model: Path, single: Path, mark: str
) -> None:
    """Playground 2.5 and CosXL as single files."""
    save_file({**load_file(single), mark: torch.ones(1)}, single)
    with pytest.raises(ValueError, match=f"its tensor '{mark}' marks noise as of EDM"):
        load_pipeline(str(single), config=str(random_model))


def test_a_marked_checkpoint_is_read_too(random_model: Path, single: Path) -> None:
    path = single.with_suffix(".ckpt")
    torch.save({"state_dict": {**load_file(single), "v_pred": torch.tensor([])}}, path)
    pipe = load_pipeline(str(path), config=str(random_model))
    assert pipe.scheduler.config.prediction_type == "v_prediction"


def test_the_prediction_type_is_a_key(random_model: Path, single: Path) -> None:
    pipe = load_pipeline(str(random_model), prediction_type="v_prediction")
    assert NoiseSchedule.from_scheduler(pipe.scheduler).prediction_type == "v_prediction"
    assert pipe.scheduler.config.beta_end == 0.012
    save_file({**load_file(single), "v_pred": torch.tensor([])}, single)
    pipe = load_pipeline(str(single), config=str(random_model), prediction_type="epsilon")
    assert NoiseSchedule.from_scheduler(pipe.scheduler).prediction_type == "epsilon"
    sd3 = "stabilityai/stable-diffusion-3-medium-diffusers"
    with pytest.raises(ValueError, match=r"model.prediction_type='epsilon': the base model is a"):
        load_pipeline(
            sd3, random_weights=True, width=0.05, image_size=64, prediction_type="epsilon"
        )
    with pytest.raises(ValueError, match=r"model.prediction_type='v' is unknown; .*v_prediction"):
        parse_config(compose(["concept=panda", "model=sd14", "model.prediction_type=v"]))


@pytest.mark.parametrize(
    "missing",
    [
        "model.diffusion_model.out.2.bias",
        "first_stage_model.decoder.conv_in.weight",
        "cond_stage_model.transformer.text_model.final_layer_norm.bias",
    ],
)
def test_a_single_file_that_lacks_a_weight_is_refused(
    random_model: Path, single: Path, missing: str
) -> None:
    weights = load_file(single)
    del weights[missing]
    save_file(weights, single)
    with pytest.raises(ValueError, match=r"^model\.pretrained='.*: (its \w+ lacks|cannot be load)"):
        load_pipeline(str(single), config=str(random_model))


@pytest.mark.parametrize(
    ("file", "name"),
    [
        (UNET, "conv_out.bias"),
        ("vae/diffusion_pytorch_model.safetensors", "decoder.conv_in.weight"),
        ("text_encoder/model.safetensors", "final_layer_norm.bias"),
    ],
)
def test_a_folder_that_lacks_a_weight_is_refused(model: Path, file: str, name: str) -> None:
    """Diffusers and transformers would draw it at random."""
    weights = load_file(model / file)
    name = next(n for n in weights if n.endswith(name))
    del weights[name]
    save_file(weights, model / file, {"format": "pt"})
    with pytest.raises(ValueError, match=rf"its {file.partition('/')[0]} lacks the weight .*"):
        load_pipeline(str(model))


def to_variant(model: Path, variant: str) -> None:
    for path in list(model.glob("*/*.safetensors")):
        path.rename(path.with_suffix(f".{variant}.safetensors"))


@pytest.mark.parametrize("variant", ["fp16", "non_ema"])
def test_a_folder_of_one_variant_says_which(model: Path, random_model: Path, variant: str) -> None:
    to_variant(model, variant)
    with pytest.raises(ValueError, match=f"variant {variant}, .*set model.variant={variant}"):
        load_pipeline(str(model))
    with pytest.raises(ValueError, match=f"variant {variant}, not bf16; set model.variant"):
        load_pipeline(str(model), variant="bf16")
    assert_same(load_pipeline(str(model), variant=variant), load_pipeline(str(random_model)))


def test_a_folder_of_pickles_says_how_to_convert(model: Path, random_model: Path) -> None:
    for path in list(model.glob("*/*.safetensors")):
        torch.save(load_file(path), path.with_suffix(".bin"))
        path.unlink()
    (model / "text_encoder" / "model.bin").rename(model / "text_encoder" / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"holds a pickle alone\. .*then take converted") as e:
        load_pipeline(str(model))
    code = str(e.value).partition('python -c "')[2].partition('"')[0]
    to = model.parent / "converted"
    exec(code.replace("'converted'", repr(str(to))))  # what the message says to run
    assert_same(load_pipeline(str(to)), load_pipeline(str(random_model)))


def test_a_folder_without_weights_is_refused(model: Path) -> None:
    (model / UNET).unlink()
    with pytest.raises(ValueError, match=r"unet: holds no \.safetensors file of weights"):
        load_pipeline(str(model))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unet": []}, r"unet=\[\]: a library and a class are needed"),
        ({"unet": ["diffusers"]}, "a library and a class are needed"),
        ({"vae": [1, 2]}, "a library and a class are needed"),
        ({"text_encoder": ["transformers", "A", "B"]}, "a library and a class are needed"),
        ({"tokenizer": []}, "a library and a class are needed"),
        ({"unet": "UNet2DConditionModel"}, "a library and a class are needed"),
        ({"unet": None}, "a library and a class are needed"),
        ({"unet": {}}, "a library and a class are needed"),
        ({"unet": [None, None]}, "UNet2DConditionModel is needed"),
        ({"unet": ["diffusers", "UNet3DConditionModel"]}, "UNet2DConditionModel is needed"),
        ({"vae": ["diffusers", "AutoencoderTiny"]}, "AutoencoderKL is needed"),
        ({"scheduler": ["diffusers", "NoSuch"]}, "a scheduler 'NoSuch', whose noise"),
        ({"scheduler": []}, "a library and a class are needed"),
        ({"scheduler": 3}, "a scheduler '3'"),
        ({"text_encoder": ["transformers", "NoSuchModel"]}, "cannot be loaded"),
        ({"_class_name": []}, r"a \[\]; allowed are"),
    ],
)
def test_a_model_index_that_names_other_parts_is_refused(
    model: Path, changes: dict[str, Any], message: str
) -> None:
    edit(model / "model_index.json", lambda c: c.update(changes))
    with pytest.raises(ValueError, match=rf"^model\.pretrained='[^\n]*: [^\n]*{message}[^\n]*$"):
        load_pipeline(str(model))


@pytest.mark.parametrize("content", ["", "{", "[]", "[1]", '"x"', "[" * 5000, "\xff", "{}"])
def test_a_damaged_scheduler_is_refused(model: Path, content: str) -> None:
    path = model / "scheduler" / "scheduler_config.json"
    path.write_bytes(content.encode("latin-1"))
    if content == "{}":  # the defaults of its class
        load_pipeline(str(model))
        return
    with pytest.raises(ValueError, match=r"^model\.pretrained='[^\n]*scheduler_config.json: "):
        load_pipeline(str(model))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("in_channels", 9, "takes 9 channels, and its VAE gives 4; models that take an image"),
        ("in_channels", 7, "takes 7 channels"),
        ("cross_attention_dim", 24, "text states of width 24, its text encoder gives 32"),
    ],
)
def test_a_unet_that_does_not_take_what_the_other_parts_give_is_refused(
    model: Path, key: str, value: int, message: str
) -> None:
    config = UNet2DConditionModel.load_config(model / "unet")
    UNet2DConditionModel.from_config({**config, key: value}).save_pretrained(model / "unet")
    with pytest.raises(ValueError, match=message):
        load_pipeline(str(model))


def other_vae(random_model: Path) -> AutoencoderKL:
    vae = AutoencoderKL.from_pretrained(random_model / "vae")
    with torch.no_grad():
        for weight in vae.parameters():
            weight.mul_(1.5)
    return vae


@pytest.mark.parametrize("kind", ["folder", "pipeline", "file"])
def test_another_vae_takes_the_place_of_the_model_s(
    random_model: Path, model: Path, tmp_path: Path, kind: str
) -> None:
    vae = other_vae(random_model)
    place = {"folder": tmp_path / "vae", "pipeline": model, "file": tmp_path / "v.safetensors"}[
        kind
    ]
    if kind == "file":
        pipe = load_pipeline(str(random_model))
        pipe.register_modules(vae=vae)
        weights = load_file(as_single_file(pipe, place))
        begin = "first_stage_model."
        save_file({n: w for n, w in weights.items() if n.startswith(begin)}, place)
    else:
        vae.save_pretrained(model / "vae" if kind == "pipeline" else place)
    own, pipe = load_pipeline(str(random_model)), load_pipeline(str(random_model), vae=str(place))
    assert all(torch.equal(w, vae.state_dict()[n]) for n, w in pipe.vae.state_dict().items())
    assert all(torch.equal(w, pipe.unet.state_dict()[n]) for n, w in own.unet.state_dict().items())
    assert not pipe.vae.training
    assert not any(w.requires_grad for w in pipe.vae.parameters())


def test_a_vae_that_does_not_fit_is_refused(random_model: Path, tmp_path: Path) -> None:
    base, place = str(random_model), tmp_path / "vae"
    config = AutoencoderKL.load_config(random_model / "vae")

    def refused(message: str, name: Path = place) -> None:
        with pytest.raises(ValueError, match=rf"^model\.vae='{name}': [^\n]*{message}[^\n]*$"):
            load_pipeline(base, vae=str(name))

    refused("cannot be loaded", Path("no/such"))
    AutoencoderKL.from_config({**config, "latent_channels": 16}).save_pretrained(place)
    refused("its latent_channels is 16, the base model's VAE has 4")
    shallow = {"block_out_channels": [8, 8], "down_block_types": ["DownEncoderBlock2D"] * 2}
    shallow["up_block_types"] = ["UpDecoderBlock2D"] * 2
    AutoencoderKL.from_config({**config, **shallow}).save_pretrained(place)
    refused("its down_block_types is")
    AutoencoderTiny().save_pretrained(place)
    refused("it is a AutoencoderTiny")
    vae = other_vae(random_model)
    vae.save_pretrained(place, safe_serialization=False)
    for path in place.glob("*.safetensors"):
        path.unlink()
    refused("cannot be loaded")
    vae.save_pretrained(place)
    file = place / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    del weights["decoder.conv_in.bias"]
    save_file(weights, file)
    refused("it lacks the weight decoder.conv_in.bias")
    file.write_bytes(b"no")
    refused("cannot be loaded")
    pickled = tmp_path / "vae.pt"
    torch.save(vae.state_dict(), pickled)
    refused(r"a single file of a VAE ends in \.safetensors", pickled)


@pytest.mark.parametrize("option", [{"vae": "x"}, {"variant": "fp16"}])
def test_options_of_files_do_not_go_with_random_weights(option: dict[str, Any]) -> None:
    (key,) = option
    with pytest.raises(ValueError, match=f"model.{key}='.*': model.random_weights=true reads no"):
        load_pipeline("CompVis/stable-diffusion-v1-4", random_weights=True, **option)


def test_a_single_file_has_no_variant(single: Path) -> None:
    with pytest.raises(ValueError, match=r"model.variant='fp16': .*is a single file"):
        load_pipeline(str(single), variant="fp16")


def test_the_keys_reach_the_base_model() -> None:
    chosen = ["variant=fp16", "prediction_type=v_prediction", "vae=a/b"]
    overrides = ["concept=snoopy", "model=sd14", *(f"model.{o}" for o in chosen)]
    base = parse_config(compose([*overrides, "evaluation.judge=none"])).base
    assert (base.variant, base.prediction_type, base.vae) == ("fp16", "v_prediction", "a/b")


def test_a_model_of_v_prediction_in_a_folder_is_read_as_its_scheduler_says(model: Path) -> None:
    scheduler = DDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True)
    scheduler.save_pretrained(model / "scheduler")
    edit(model / "model_index.json", lambda c: c.update(scheduler=["diffusers", "DDIMScheduler"]))
    schedule = NoiseSchedule.from_scheduler(load_pipeline(str(model)).scheduler)
    assert schedule.prediction_type == "v_prediction"
    assert schedule.signal[-1] == 0
