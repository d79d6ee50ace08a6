"""Configs: every choice composes and is accepted, and what a run could not do is refused."""

from __future__ import annotations

import re
from copy import deepcopy
from dataclasses import FrozenInstanceError, asdict, fields
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from unlearn.cli.help import group_choices_text
from unlearn.config.base_model import resolve_precision
from unlearn.config.compose import compose
from unlearn.config.concept_files import embedded_concepts
from unlearn.config.jobs import check_jobs
from unlearn.config.parse import parse_config
from unlearn.config.recipes import read_recipe
from unlearn.config.run_config import ModelConfig
from unlearn.config.saved import parse_model_config, read_config
from unlearn.config.search_path import conf_dir, group_choices
from unlearn.methods.registry import METHODS, build_method
from unlearn.models.pipeline import load_pipeline
from unlearn.training.run_dir import config_text

EMBEDDED = embedded_concepts()
CHOICES = [
    (group.name, file.relative_to(group).with_suffix("").as_posix())
    for group in sorted(
        p for p in conf_dir().iterdir() if p.is_dir() and p.name not in ("hydra", "recipe")
    )
    for file in sorted(group.rglob("*.yaml"))
    if file.stem != "custom" and (group.name != "evaluation" or file.stem == "prompt_sets")
]  # the published protocols have a schema of their own


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_choice_composes_and_is_accepted(group: str, choice: str) -> None:
    overrides = [f"{group}={choice}"]
    if group == "concept":
        overrides.append("model=emoji" if choice in EMBEDDED else "model=sd14")
    elif group == "anchor":  # a name that no model is asked about
        overrides += ["concept.name=otter", "concept.related=[dog]", "model=sd14"]
        words = compose([*overrides]).anchor.words
        if words == [""]:
            overrides.append("concept.kind=style")
        elif words is not None and len(words) > 1:
            overrides.append(f"concept.targets={[f'target {i}' for i in range(len(words))]}")
    else:
        overrides.append("concept=panda" if choice != "sd14" else "concept=snoopy")
    config = parse_config(compose(overrides))
    assert config.concept.anchors
    assert OmegaConf.create(config_text(config)) == OmegaConf.create(dict(config.saved))


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("concept", ["panda", "contrast", "unsafe"])
def test_every_method_is_built_from_its_config(
    random_model: Path, method: str, concept: str
) -> None:
    config = parse_config(compose([f"concept={concept}", f"method={method}"]))
    built = build_method(load_pipeline(str(random_model)), config.method, config.options)
    settings = read_recipe(["emoji"], method)[config.trained.kind]
    options = asdict(built.options)
    for option in options.keys() & settings.keys():
        assert options[option] == settings[option]
    assert config.steps == settings.get("steps", 0)


@pytest.fixture(scope="module")
def accepted() -> None:
    """Without the overrides of a case, the run is accepted."""
    parse_config(compose(["concept=panda"]))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method.lr=fast"], r"method\.lr: Value 'fast' of type 'str' could not be converted"),
        (["method=uce", "steps=5"], r"steps=5: uce takes none, so steps=0"),
        (["method=esd", "steps=0"], r"steps=0: at least 1 is needed"),
        (["method=salun", "data.relearn_images=0"], r"data\.relearn_images=0: salun needs"),
        (
            ["method=sld", "model.guidance_scale=1"],
            r"model\.guidance_scale=1\.0: sld needs more than 1",
        ),
        (["method.accumulate_grad_batches=1.5"], r"method\.accumulate_grad_batches: Value '1.5'"),
        (["+method.momentum=0.9"], r"method\.momentum=0\.9: there is no such key"),
        (["method.name=docco"], r"method\.name='docco' is unknown; .*'doco'"),
        (["data.images=many"], r"data\.images: Value 'many'"),
        (["data.images=1"], r"data\.images=1: at least 2 and at most 10000000 is needed"),
        (["data.relearn_images=-1"], r"data\.relearn_images=-1: at least 0 and at most 10000000"),
        (["data.flip=perhaps"], r"data\.flip: Value 'perhaps' is not a valid bool"),
        (["model.guidance_scale=high"], r"model\.guidance_scale: Value 'high'"),
        (["batch_size=0"], r"batch_size=0: at least 1 and at most 1000000 is needed"),
        (["checkpoint_every=0"], r"checkpoint_every=0: at least 1 and at most 100000000 is"),
        (
            ["evaluation.images_per_prompt=0"],
            r"images_per_prompt=0: at least 1 and at most 10000 is needed",
        ),
        (["evaluation.num_inference_steps=0"], r"evaluation\.num_inference_steps=0: at least 1"),
        (["evaluation=spm_general"], r"evaluation=spm_general: a run ends with the four prompt"),
        (["steps=ten"], r"steps: Value 'ten'"),
        (
            ["steps=100"],
            r"steps=100: the first 100 \(method\.warmup_steps\) .* at least 101 is needed",
        ),
        (["method=doco_reference", "steps=101"], r"steps=101: .* at least 102 is needed"),
        (["method.recipe=doko"], r"method\.recipe='doko': there is no such file .*'doco'"),
        (
            ["method.warmup_steps=-5"],
            r"method\.warmup_steps=-5: at least 0 and at most",
        ),
        (["method.discriminator_channels=0"], r"discriminator_channels=0: at least 1 and at most"),
        (
            ["method.accumulate_grad_batches=0"],
            r"method\.accumulate_grad_batches=0: at least 1 and at most",
        ),
        (["method=salun", "method.share=2"], r"share=2\.0: .* more than 0 and at most 1 is needed"),
        (
            ["method=salun", "method.mask_batches=0"],
            r"method\.mask_batches=0: at least 1 and at most",
        ),
        (
            ["method=spm", "method.anchors=0"],
            r"method\.anchors=0: at least 1 and at most",
        ),
        (
            ["method=esd", "method.num_inference_steps=0"],
            r"num_inference_steps=0: at least 1 and at most",
        ),
        (
            ["method=sld", "method.warmup_steps=-1"],
            r"method\.warmup_steps=-1: at least 0 and at most",
        ),
        (["method=uce", "method.regularization=0"], r"regularization=0\.0: .* more than 0"),
        (["logger=csv2"], r"logger=csv2: no such file of conf/logger; .*'csv'"),
        (["+logger.csv2=x"], r"logger\.csv2=x: an entry with the path of a class as _target_"),
        (["trainer.precision=16-mixed"], r"trainer\.precision='16-mixed': .*loss scaling"),
        (["trainer.precision=64-true"], r"trainer\.precision='64-true': allowed are"),
    ],
)
@pytest.mark.usefixtures("accepted")
def test_what_a_run_could_not_do_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        parse_config(compose(["concept=panda", *overrides]))
    assert "\n" not in str(caught.value)


def test_a_logger_that_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    config = compose(["concept=panda", "logger=tensorboard"])
    parse_config(config)
    monkeypatch.setattr("unlearn.config.plugins.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"logger\.tensorboard: the extra `tensorboard` is not"):
        parse_config(config)


def test_help_lists_one_s_own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("otter", "panda"):  # one of them in the place of a shipped one
        path = tmp_path / "conf" / "concept" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"defaults: [custom, _self_]\nname: {name}\n")
    assert "otter" not in group_choices_text("train")
    monkeypatch.chdir(tmp_path)
    for command in ("train", "evaluate"):
        words = re.findall(r"\w+", group_choices_text(command))
        assert words.count("otter") == words.count("panda") == 1


@pytest.mark.parametrize("concept", ["panda", "contrast", "unsafe"])
@pytest.mark.parametrize(
    ("override", "method", "recipe"),
    [
        ("method=concept_ablation_noise", "concept_ablation", "concept_ablation_noise"),
        ("experiment=base_start", "doco", "doco_base_start"),
        ("experiment=paper", "doco", "doco_paper"),
    ],
)
def test_a_variant_has_a_recipe_and_a_run_directory_of_its_own(
    concept: str, override: str, method: str, recipe: str
) -> None:
    config = parse_config(compose([f"concept={concept}", override]))
    settings = read_recipe(["emoji"], recipe)[config.trained.kind]
    assert config.method == method
    assert config.steps == settings["steps"]
    assert config.options.lr == settings["lr"]
    assert config.folder == Path(f"runs/{concept}-{recipe}-0")


@pytest.mark.parametrize("folder", ["emoji", "sd14"])
def test_every_recipe_is_of_a_method_and_has_settings_for_every_kind(folder: str) -> None:
    names = group_choices(f"recipe/{folder}")
    variants = {"concept_ablation_noise", "doco_base_start", "doco_paper"}
    assert {*names} == {*METHODS, *variants}
    for name in names:
        assert all(read_recipe([folder], name).values())


def test_a_recipe_may_hold_a_batch_size_which_the_command_line_overrides() -> None:
    at_sd14 = ["concept=snoopy", "model=sd14"]
    sizes = {}
    for method in METHODS:
        sizes[method] = parse_config(compose([*at_sd14, f"method={method}"])).batch_size
    assert {m for m, size in sizes.items() if size == 1} == {"esd", "spm", "forget_me_not"}
    assert {*sizes.values()} == {1, 8}
    assert compose([*at_sd14, "method=esd", "batch_size=2"]).batch_size == 2
    assert compose(["concept=panda", "method=esd"]).batch_size == 8


def test_variants_of_one_method_can_be_one_sweep() -> None:
    chosen = ("concept_ablation", "concept_ablation_noise")
    runs = check_jobs(compose(["concept=panda", f"method={name}"]) for name in chosen)
    assert [run.name for run in runs] == [f"panda-{name}-0" for name in chosen]


@pytest.mark.parametrize(("native", "precision"), [(True, "bf16-mixed"), (False, "32-true")])
def test_auto_precision_is_bf16_where_it_is_native(
    monkeypatch: pytest.MonkeyPatch, native: bool, precision: str
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    overrides = ["concept=panda", "trainer.precision=auto", "trainer.accelerator=cpu"]
    assert parse_config(compose(overrides)).precision == precision
    assert parse_config(compose(["concept=panda"])).precision == "32-true"
    assert resolve_precision("auto", "cpu") == precision


def test_the_checked_values_are_the_ones_that_a_run_uses() -> None:
    composed = compose(["concept=panda", "steps='150'", "data.images='16'", "method.lr='1e-3'"])
    assert (composed.steps, composed.data.images, composed.method.lr) == ("150", "16", "1e-3")
    config = parse_config(composed)
    assert (config.steps, config.data.images, config.options.lr) == (150, 16, 1e-3)
    assert config.saved["steps"] == 150
    assert config.saved["method"]["lr"] == 1e-3


PARSED = [
    ["concept=panda"],
    ["concept=[panda,noto]", "method=esd", "method.trained=x", "seed=3"],
    ["concept=snoopy", "model=sd14", "experiment=[paper,low_memory]", "sampling_batch_size=2"],
    ["concept=panda", "logger=wandb", "+logger.own._target_=lightning.pytorch.loggers.CSVLogger"],
]


@pytest.mark.parametrize("overrides", PARSED)
def test_parsing_leaves_the_configuration_as_it_is(overrides: list[str]) -> None:
    composed = compose(overrides)
    before = deepcopy(OmegaConf.to_container(composed))
    first = parse_config(composed)
    assert OmegaConf.to_container(composed) == before
    assert parse_config(composed) == first


@pytest.mark.parametrize("overrides", PARSED)
def test_a_saved_configuration_is_read_back_as_the_same_model(
    overrides: list[str], tmp_path: Path
) -> None:
    """Every field of `ModelConfig`, what is saved itself among them."""
    config = parse_config(compose([*overrides, f"run_dir={tmp_path}"]))
    (tmp_path / "config.yaml").write_text(config_text(config))
    again = parse_model_config(read_config(tmp_path / "config.yaml"), tmp_path)
    for field in fields(ModelConfig):
        assert getattr(again, field.name) == getattr(config, field.name), field.name
    assert again.concept == config.concept
    assert again.sampler(5) == config.sampler(5)


def test_a_run_is_frozen() -> None:
    config = parse_config(compose(["concept=panda"]))
    for part in (config, config.base, config.options, config.data, config.trainer):
        first = fields(part)[0].name
        with pytest.raises(FrozenInstanceError):
            setattr(part, first, None)
    assert config.evaluation is not None
    with pytest.raises(FrozenInstanceError):
        config.evaluation.first_seed = 0  # type: ignore[misc]
    assert config.changed(seed=7).seed == 7
    assert config.seed == 0


def test_how_a_call_treats_its_run_is_not_saved() -> None:
    plain = parse_config(compose(["concept=panda"]))
    other = parse_config(compose(["concept=panda", "resume=false", "dry_run=true"]))
    assert (other.resume, other.dry_run) == (False, True)
    assert other.saved == plain.saved
    assert not {"resume", "dry_run"} & plain.saved.keys()


@pytest.mark.parametrize(
    ("overrides", "every"),
    [
        ([], 0),
        (["logger=tensorboard"], 250),
        (["logger=wandb"], 250),
        (["logger=wandb", "log_images_every=7"], 7),
        (["logger=wandb", "log_images_every=0"], 0),
        (["log_images_every=9"], 9),
        (["+logger.own._target_=lightning.pytorch.loggers.CSVLogger"], 0),
    ],
)
def test_pictures_are_drawn_where_a_logger_shows_them(overrides: list[str], every: int) -> None:
    assert parse_config(compose(["concept=panda", *overrides])).log_images_every == every
