"""Configs: every choice composes and is accepted, and what a run could not do is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from unlearn.cli.help import group_choices_text
from unlearn.config.base_model import resolve_precision
from unlearn.config.compose import compose, embedded_concepts
from unlearn.config.parse import check_config
from unlearn.config.search_path import conf_dir
from unlearn.config.sections import to_container
from unlearn.methods.registry import METHODS, build_method
from unlearn.models.pipeline import load_pipeline
from unlearn.sweeps.jobs import check_jobs

EMBEDDED = embedded_concepts()
CHOICES = [
    (group.name, file.relative_to(group).with_suffix("").as_posix())
    for group in sorted(p for p in conf_dir().iterdir() if p.is_dir() and p.name != "hydra")
    for file in sorted(group.rglob("*.yaml"))
    if file.stem != "custom" and (group.name != "evaluation" or file.stem == "emoji")
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
    config = compose(overrides)
    concept = check_config(config)
    assert concept.anchors
    assert OmegaConf.to_yaml(config, resolve=True)


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("concept", ["panda", "contrast", "unsafe"])
def test_every_method_is_built_from_its_config(
    random_model: Path, method: str, concept: str
) -> None:
    config = compose([f"concept={concept}", f"method={method}"])
    check_config(config)
    built = build_method(load_pipeline(str(random_model)), **to_container(config.method))
    settings = config.model.settings[method][config.concept.kind]
    for option in config.method.keys() & settings.keys():
        assert built.hparams[option] == settings[option]


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
        (["data.images=1"], r"data\.images=1: at least 2 is needed"),
        (["data.relearn_images=-1"], r"data\.relearn_images=-1: at least 0 is needed"),
        (["data.flip=perhaps"], r"data\.flip: Value 'perhaps' is not a valid bool"),
        (["model.guidance_scale=high"], r"model\.guidance_scale: Value 'high'"),
        (["batch_size=0"], r"batch_size=0: at least 1 is needed"),
        (["checkpoint_every=0"], r"checkpoint_every=0: at least 1 is needed"),
        (
            ["evaluation.images_per_prompt=0"],
            r"evaluation\.images_per_prompt=0: at least 1 is needed",
        ),
        (["evaluation.num_inference_steps=0"], r"evaluation\.num_inference_steps=0: at least 1"),
        (["evaluation=spm_general"], r"evaluation=spm_general: a run ends with the four prompt"),
        (["steps=ten"], r"steps: Value 'ten'"),
        (
            ["steps=100"],
            r"steps=100: the first 100 \(method\.warmup_steps\) .* at least 101 is needed",
        ),
        (["method=doco_reference", "steps=101"], r"steps=101: .* at least 102 is needed"),
        (["variant=doko"], r"variant='doko' is unknown; .*'doco'"),
        (
            ["method.warmup_steps=-5"],
            r"method\.warmup_steps=-5: a finite number of at least 0 is needed",
        ),
        (["method.discriminator_channels=0"], r"discriminator_channels=0: .* more than 0 is"),
        (
            ["method.accumulate_grad_batches=0"],
            r"method\.accumulate_grad_batches=0: a finite number of more than 0",
        ),
        (["method=salun", "method.share=2"], r"share=2\.0: .* more than 0 and at most 1 is needed"),
        (["method=salun", "method.mask_batches=0"], r"method\.mask_batches=0: .* more than 0"),
        (["method=spm", "method.anchors=0"], r"method\.anchors=0: .* more than 0"),
        (["method=esd", "method.num_inference_steps=0"], r"num_inference_steps=0: .* more than 0"),
        (["method=sld", "method.warmup_steps=-1"], r"method\.warmup_steps=-1: .* at least 0"),
        (["method=uce", "method.regularization=0"], r"regularization=0\.0: .* more than 0"),
        (["logger.name=csv2"], r"logger\.name='csv2' is unknown; .*'csv'"),
        (["trainer.precision=16-mixed"], r"trainer\.precision='16-mixed': .*loss scaling"),
        (["trainer.precision=64-true"], r"trainer\.precision='64-true': allowed are"),
    ],
)
def test_what_a_run_could_not_do_is_refused(overrides: list[str], message: str) -> None:
    check_config(compose(["concept=panda"]))
    with pytest.raises(ValueError, match=message):
        check_config(compose(["concept=panda", *overrides]))


def test_a_logger_that_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    config = compose(["concept=panda", "logger=tensorboard"])
    check_config(config)
    monkeypatch.setattr("unlearn.config.parse.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"logger\.name='tensorboard': the extra `tensorboard` is"):
        check_config(config)


def test_help_lists_one_s_own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("otter", "panda"):  # one of them in the place of a shipped one
        path = tmp_path / "conf" / "concept" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert "otter" not in group_choices_text("train")
    monkeypatch.chdir(tmp_path)
    for command in ("train", "evaluate"):
        assert (
            group_choices_text(command).count("otter")
            == group_choices_text(command).count(" panda,")
            == 1
        )


@pytest.mark.parametrize("concept", ["panda", "contrast", "unsafe"])
@pytest.mark.parametrize(
    ("override", "variant", "settings"),
    [
        ("method=concept_ablation_noise", "concept_ablation_noise", "concept_ablation_noise"),
        ("experiment=base_start", "doco_base_start", "doco_base_start"),
        ("experiment=paper", "doco_paper", "doco_base_start"),
    ],
)
def test_a_variant_has_settings_and_a_run_directory_of_its_own(
    concept: str, override: str, variant: str, settings: str
) -> None:
    kind = compose([f"concept={concept}"]).concept.kind
    config = compose(
        [f"concept={concept}", override, f"model.settings.{settings}.{kind}.steps=777"]
    )
    check_config(config)
    assert config.steps == 777
    assert config.run_dir == f"runs/{concept}-{variant}-0"


def test_settings_may_hold_a_batch_size_which_the_command_line_overrides() -> None:
    at_sd14 = ["concept=snoopy", "model=sd14"]
    sizes = {}
    for method in METHODS:
        check_config(config := compose([*at_sd14, f"method={method}"]))
        sizes[method] = config.batch_size
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
    assert resolve_precision(compose(overrides)) == precision
    assert resolve_precision(compose(["concept=panda"])) == "32-true"


def test_the_checked_values_are_the_ones_that_a_run_uses() -> None:
    config = compose(["concept=panda", "steps='150'", "data.images='16'", "method.lr='1e-3'"])
    assert (config.steps, config.data.images, config.method.lr) == ("150", "16", "1e-3")
    check_config(config)
    assert (config.steps, config.data.images, config.method.lr) == (150, 16, 1e-3)
