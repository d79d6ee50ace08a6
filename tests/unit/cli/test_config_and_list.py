"""`unlearn config` explains every key of conf/, and `unlearn list` names what there is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from unlearn.cli import config as config_command
from unlearn.cli import list as list_command
from unlearn.cli.help import group_choices_text
from unlearn.cli.reference import (
    PLUGINS,
    KeyInfo,
    describe_keys,
    find_keys,
    markdown,
    options_markdown,
)
from unlearn.concepts.concept import KINDS, AnchorConfig, ConceptConfig
from unlearn.concepts.vocabulary import load_vocabulary
from unlearn.config import concept_files
from unlearn.config.compose import compose
from unlearn.config.concept_files import concepts_by_kind
from unlearn.config.saved import flatten_keys
from unlearn.config.schema import PROMPT_SETS, PoolOptions, RunOptions, SweeperOptions
from unlearn.config.search_path import conf_dir, group_choices
from unlearn.methods.registry import METHODS

CONF = conf_dir()
PROTOCOLS = [n for n in group_choices("evaluation") if n != PROMPT_SETS and "_lite" not in n]


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What `unlearn config ARGUMENTS` prints."""
    config_command.run(list(arguments))
    return capsys.readouterr().out


def test_a_key_has_its_default_meaning_and_allowed_values(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert printed(capsys, "data.images") == "data.images = 128\n  anchor images\n" + (
        "  int; at least 2, at most 10000000\n"
    )
    assert "method.surgery = update\n" in printed(capsys, "method.surgery")
    assert printed(capsys, "steps").startswith("steps = ${recipe:steps}  (here 300)\n")
    assert printed(capsys, "method.lr").startswith("method.lr = ${recipe:lr}  (here 0.0001)\n")
    assert "(here 3e-05)" in printed(capsys, "method.lr", "method=esd")
    assert "(here" not in printed(capsys, "run_dir")  # it waits for a concept
    assert "null: 32 up to 512 x 512" in printed(capsys, "sampling_batch_size")
    out = printed(capsys, "model.pretrained")
    assert "chooses one of emoji, sd14, sd15" in out
    assert "choices" not in out


def test_a_section_is_what_the_overrides_choose(capsys: pytest.CaptureFixture[str]) -> None:
    for key in ("method", "method."):
        esd = printed(capsys, key, "method=esd")
        assert "method.name = esd\n" in esd
        assert "method.guidance_scale = " in esd
        assert "method.strength" not in esd
        assert len(esd.split("\n\n")) == len(fields(METHODS["esd"].Options)) + 2
    assert "data.images = 1000\n" in printed(capsys, "data", "data=paper")
    assert "method.recipe = doco_paper\n" in printed(capsys, "method.recipe", "experiment=paper")
    assert "_target_" in printed(capsys, "logger.wandb.mode", "logger=wandb")


def test_a_protocol_has_its_own_keys(capsys: pytest.CaptureFixture[str]) -> None:
    section = printed(capsys, "evaluation", "evaluation=spm_general")
    assert "evaluation.noise = per_call\n" in section
    assert "evaluation.judge" not in section
    word = printed(capsys, "evaluation.concepts.Dog.word", "evaluation=spm_general")
    assert word.startswith("evaluation.concepts.NAME.word = ")
    assert "evaluation.judge = null\n" in printed(capsys, "evaluation.judge")
    for overrides in ([], ["evaluation=i2p"]):
        assert printed(capsys, "out_dir", *overrides).startswith("out_dir = null\n  folder of the")


def test_without_a_key_all_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = printed(capsys).strip().split("\n\n")
    assert [block.partition(" = ")[0] for block in blocks] == [k.key for k in describe_keys()]
    assert len(blocks) > 70


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["method.lrr"], r"method\.lrr: there is no such key; did you mean .*'method\.lr'"),
        (["images"], r"images: there is no such key; did you mean 'data\.images'"),
        (["lr"], r"lr: there is no such key; did you mean 'method\.lr'"),
        (["data.images", "steps"], r"usage: unlearn config \[KEY\] \[overrides\]"),
        (["steps", "method=esdd"], r"method=esdd: no such file of conf/method; .*'esd'"),
        (["method.eta"], r"method\.eta: there is no such key"),
    ],
)
def test_what_is_no_key_is_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        config_command.run(arguments)
    assert len(str(error.value).splitlines()) == 1


def missing(config: Any, known: list[KeyInfo]) -> list[str]:
    """The keys of a configuration that have no description, or an empty one."""
    names = {info.key for info in known if info.meaning.strip() and info.kind}
    container = OmegaConf.to_container(config) if OmegaConf.is_config(config) else config
    found = []
    for key, _ in flatten_keys(container):
        key = re.sub(r"^(evaluation\.concepts)\.[^.]+", r"\1.NAME", key)
        parts = key.split(".")
        above = [".".join(parts[: i + 1]) for i in range(len(parts))]  # a mapping is one key
        if not names.intersection(above):
            found.append(key)
    return found


@pytest.mark.parametrize(
    "override",
    [
        "seed=0",
        *(f"method={name}" for name in group_choices("method")),
        *(f"evaluation={name}" for name in PROTOCOLS),
        *(f"model={name}" for name in ("sd14", "sd3", "sdxl")),
        *(f"experiment={name}" for name in group_choices("experiment")),
        "data=paper", "trainer=ddp", "trainer=gpu", "logger=wandb", "logger=tensorboard",
        "sweep=pareto",
    ],
)  # fmt: skip
def test_every_key_that_a_file_of_conf_sets_has_a_meaning(override: str) -> None:
    root = "evaluate" if override.removeprefix("evaluation=") in PROTOCOLS else "train"
    assert missing(compose([override], root), describe_keys([override])) == []


def yaml_files(group: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    for path in (CONF / group).rglob("*.yaml"):
        yield path, yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("group", "schema"), [("concept", ConceptConfig), ("anchor", AnchorConfig)]
)
def test_concepts_and_anchors_have_no_other_keys(group: str, schema: type) -> None:
    known = {each.name for each in fields(schema)}
    assert all(each.metadata["help"] for each in fields(schema))
    for path, content in yaml_files(group):
        assert content.keys() - {"defaults"} <= known, path


def test_recipes_set_options_and_keys_of_a_run() -> None:
    options = {each.name for method in METHODS.values() for each in fields(method.Options)}
    known = options | {each.name for each in fields(RunOptions)}
    count = 0
    for path, content in yaml_files("recipe"):
        assert content.keys() <= {"from", *KINDS}, path
        for kind in content.keys() - {"from"}:
            assert content[kind].keys() <= known, path
            count += 1
    assert count > 30


@pytest.mark.parametrize(
    ("file", "schema"), [("sweeper/unlearn", SweeperOptions), ("launcher/pool", PoolOptions)]
)
def test_the_defaults_of_sweeps_are_those_of_conf(file: str, schema: type) -> None:
    content = yaml.safe_load((CONF / "hydra" / f"{file}.yaml").read_text(encoding="utf-8"))
    assert content.pop("_target_").startswith("hydra_plugins.")
    assert {each.name: each.default for each in fields(schema)} == content
    section = f"hydra.{file.partition('/')[0]}"
    assert [k.key for k in find_keys(section, describe_keys())] == [
        f"{section}.{name}" for name in content
    ]


def test_the_page_shows_the_defaults_of_conf_and_no_emphasis() -> None:
    # the option's own default is the paper's
    assert "| `method.surgery` | `update` |" in options_markdown("doco")
    whole = markdown()
    assert "as \\_target\\_" in whole
    assert all(f"## `method={name}`" in whole for name in METHODS)


def test_the_reference_holds_every_option_of_every_method() -> None:
    page = markdown()
    for name, method in METHODS.items():
        section = page.partition(f"## `method={name}`\n")[2].partition("\n## ")[0]
        for each in fields(method.Options):
            (row,) = [x for x in section.splitlines() if x.startswith(f"| `method.{each.name}` |")]
            cells = re.split(r"(?<!\\)\|", row)[1:-1]
            assert len(cells) == 4
            assert all(cell.strip() for cell in cells), row
            assert each.metadata["help"].replace("_", r"\_").replace("*", r"\*") in row
    for key in ("steps", "log_group", "evaluation.judge", "hydra.sweeper.trials", "logger"):
        assert f"\n| `{key}` |" in page
    assert {*PLUGINS} == {"logger", "callbacks"}


def listed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What `unlearn list ARGUMENTS` prints."""
    list_command.run(list(arguments))
    return capsys.readouterr().out


def test_methods_are_listed_with_their_papers(capsys: pytest.CaptureFixture[str]) -> None:
    lines = listed(capsys, "methods").splitlines()
    assert [line.split()[0] for line in lines] == list(METHODS)
    assert lines[0] == "doco              DoCo (arXiv 2405.15304)"
    assert lines[-2].endswith("Negative prompt")  # no paper, no parentheses
    assert "esd               ESD (arXiv 2303.07345)" in lines


def test_models_and_protocols_are_listed_with_their_sources(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = listed(capsys, "models").splitlines()
    assert [line.split()[0] for line in lines] == group_choices("model")
    assert "sd14   CompVis/stable-diffusion-v1-4" in lines
    lines = listed(capsys, "protocols").splitlines()
    assert [line.split()[0] for line in lines] == group_choices("evaluation")
    assert all(re.search(r"arXiv|how a run ends", line) for line in lines)
    lite = [line for line in lines if line.split()[0].endswith("_lite")]
    assert lite and all(line.endswith(", a small variant") for line in lite)


def test_the_words_of_the_embedded_model_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    text = listed(capsys, "words")
    words = [w for line in text.replace("\n  ", " ").splitlines()
             for w in line.partition(": ")[2].split(", ")]  # fmt: skip
    known = load_vocabulary()
    assert sorted(words) == sorted([*known.objects, *known.styles, *known.backgrounds])
    assert max(map(len, text.splitlines())) <= 80


def test_concepts_are_listed_by_model_and_kind(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    own = tmp_path / "conf" / "concept"
    own.mkdir(parents=True)
    (own / "mine.yaml").write_text("defaults: [van_gogh, _self_]\nname: mine\n")
    (own / "circle.yaml").write_text("defaults: [circle]\n")
    (own / "broken.yaml").write_text("[")
    monkeypatch.chdir(tmp_path)
    names = [
        "custom", "panda", "contrast", "snoopy", "van_gogh", "nudity", "development/tiger", "mine",
        "circle", "broken",
    ]  # fmt: skip
    monkeypatch.setattr(concept_files, "group_choices", lambda group: names)
    text = group_choices_text("evaluate")
    assert "  concept     Stable Diffusion, instance: snoopy\n" in text
    assert f"{' ' * 14}embedded model, style: contrast\n" in text
    assert listed(capsys, "concepts").splitlines() == [
        "Stable Diffusion, instance: snoopy",
        "Stable Diffusion, style: van_gogh, mine",
        "Stable Diffusion, unsafe: nudity",
        "cannot be read: circle, broken",
        "embedded model, instance: panda, development/tiger",
        "embedded model, style: contrast",
    ]


def test_files_of_concepts_say_what_composing_them_says() -> None:
    for group, names in concepts_by_kind().items():
        for name in names[:3]:
            config = compose([f"concept={name}"])
            model = "Stable Diffusion" if config.anchor.prompts else "embedded model"
            assert group == f"{model}, {config.concept.kind}"


def test_all_lists_are_printed_under_their_names(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in list_command.LISTS:
        monkeypatch.setitem(list_command.LISTS, name, lambda name=name: [f"one of {name}"])
    expected = [f"{name}:\none of {name}\n" for name in list_command.LISTS]
    assert listed(capsys) == "\n".join([*expected, ""])
    assert listed(capsys, "models") == "one of models\n"
    with pytest.raises(ValueError, match=r"unlearn list='model' is unknown; .*'models'"):
        list_command.run(["model"])
    with pytest.raises(ValueError, match=r"usage: unlearn list \[concepts\|methods"):
        list_command.run(["models", "words"])
