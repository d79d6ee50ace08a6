"""What `unlearn evaluate` takes: run directories, weights from elsewhere, and overrides."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from unlearn.cli import evaluate as command
from unlearn.cli.main import main
from unlearn.config.compose import compose
from unlearn.config.overrides import split_arguments
from unlearn.config.parse import parse_config
from unlearn.evaluation.jobs import parse_job
from unlearn.training.run_dir import config_text
from unlearn.weights.delta import save_unlearned


@pytest.fixture(autouse=True)
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """What `evaluate` looks at before it starts: the config of a run, and a file of weights."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(config_text(parse_config(compose(["concept=panda"]))))
    save_unlearned({}, folder / "unlearned.safetensors", {"base": "emoji"})
    return folder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], r"usage: unlearn evaluate RUN_DIR"),
        (["nowhere"], r"nowhere: there is no such file or folder"),
        (["."], r"\.: not a finished run directory, config\.yaml is missing"),
        (["run", "method=esd"], r"method=esd: run is a run directory, with a config of its own"),
        (["run", "~evaluation.judge"], r"~evaluation\.judge: run is a run directory"),
        (["run", "evaluation.seed=4"], r"evaluation\.seed=4: there is no such key; .*'first_seed'"),
        (
            ["run", "evaluation.images_per_prompt=0"],
            r"evaluation\.images_per_prompt=0: at least 1 and at most 10000 is needed",
        ),
        (["run", "evaluation=spm"], r"evaluation=spm: no such file of conf/evaluation; .*'spm_"),
        (["run", "evaluation=i2p", "evaluation.stepz=4"], r"evaluation\.stepz=4: there is no such"),
        (
            ["run", "trainer.devices=2"],
            r"trainer\.devices=2: .*allowed are .*trainer\.accelerator=",
        ),
        (["run", "trainer.accelerator=tpu"], r"trainer\.accelerator='tpu' is unknown; .*'gpu'"),
        (["run", "trainer.precision=16-mixed"], r"trainer\.precision='16-mixed': "),
        (["run", "sampling_batch_size=0"], r"sampling_batch_size=0: a whole number of at least 1"),
        (
            ["run", "sampling_batch_size=few"],
            r"sampling_batch_size=few: a whole number of at least 1",
        ),
        (
            ["run", "evaluation=i2p", "sampling_batch_size=2"],
            r"sampling_batch_size=2: .*of the four prompt sets",
        ),
        (["run", "run", "evaluation=i2p"], r"their results would lie in one folder"),
        (["run/unlearned.safetensors"], r"concept\.name is missing"),
        (
            ["run/unlearned.safetensors", "concept=panda", "evaluation.images_per_prompt=0"],
            r"evaluation\.images_per_prompt=0: at least 1 and at most 10000 is needed",
        ),
        (
            ["run/unlearned.safetensors", "concept=panda", "sampling_batch_size=0"],
            r"sampling_batch_size=0: a whole number of at least 1",
        ),
        (["run/unlearned.safetensors", "trainer.strategy=ddp"], r"=ddp: plays no part in an eval"),
    ],
)
def test_wrong_arguments_are_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        command.run(arguments)


def test_a_path_that_holds_an_equals_sign_is_a_path(run: Path) -> None:
    run.rename("concept=panda")
    arguments = ["concept=panda", "evaluation=i2p", "~evaluation.concepts.I2P", "other"]
    paths, overrides = split_arguments(arguments)
    assert (paths, overrides) == (["concept=panda", "other"], arguments[1:3])


def test_a_run_keeps_its_config_but_for_what_is_given(run: Path) -> None:
    given = ["evaluation.images_per_prompt=4", "trainer.accelerator=cpu", "sampling_batch_size=2"]
    own = parse_job(run, given)
    settings = own.config.prompt_sets
    assert (settings.images_per_prompt, settings.num_inference_steps) == (4, 20)
    assert own.config.sampling_batch_size == 2
    assert (own.config.accelerator, own.config.concept.name) == ("cpu", "panda")
    assert (own.external_weights, own.protocol) == (None, None)
    assert (own.config.weights, own.config.folder) == (run / "unlearned.safetensors", run)
    assert own.changed == given[:1]
    given = ["evaluation=spm_general", "evaluation.limit=3", "trainer.accelerator=cpu"]
    chosen = parse_job(run, given)
    assert chosen.protocol and chosen.config.evaluation is None
    assert (chosen.protocol.name, chosen.protocol.limit) == ("spm_general", 3)
    assert (chosen.protocol.seed, chosen.changed) == (2024, given[1:2])
    assert (chosen.config.accelerator, chosen.config.concept.name) == ("cpu", "panda")
    with pytest.raises(ValueError, match="the four prompt sets are needed"):
        assert chosen.config.prompt_sets


def test_a_protocol_is_drawn_in_fp32_unless_asked_otherwise(run: Path) -> None:
    config = OmegaConf.load(run / "config.yaml")
    config.trainer.precision = "bf16-mixed"
    OmegaConf.save(config, run / "config.yaml")
    assert parse_job(run, []).config.precision == "bf16-mixed"
    assert parse_job(run, ["evaluation=i2p"]).config.precision == "32-true"
    asked = parse_job(run, ["evaluation=i2p", "trainer.precision=bf16-mixed"])
    assert asked.config.precision == "bf16-mixed"


@pytest.mark.parametrize(
    ("overrides", "function", "way_on"),
    [
        ([], "evaluate", "with a lower sampling_batch_size"),
        (["evaluation=i2p"], "evaluate_published", "with a lower evaluation.batch_size"),
    ],
)
def test_memory_that_is_not_there_is_one_line_and_a_way_on(
    overrides: list[str],
    function: str,
    way_on: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(f"unlearn.evaluation.jobs.{function}", lambda *_: torch.empty(2**55))
    monkeypatch.setattr(sys, "argv", ["unlearn", "evaluate", "run", *overrides])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("unlearn: out of memory in the evaluation")
    assert way_on in line


def test_an_evaluation_without_a_name_is_the_four_prompt_sets(run: Path) -> None:
    config = OmegaConf.load(run / "config.yaml")
    del config.evaluation["name"]
    OmegaConf.save(config, run / "config.yaml")
    job = parse_job(run, [])
    assert job.protocol is None
    assert job.config.prompt_sets.name == "prompt_sets"


def test_weights_from_elsewhere_take_all_from_the_command_line(run: Path) -> None:
    (run / "unlearned.safetensors").rename("delta.bin")
    given = ["concept=snoopy", "model=sd14", "evaluation=i2p_lite"]
    job = parse_job(Path("delta.bin"), given)
    ((concept, anchor),) = job.config.sections
    assert (concept.name, anchor.name) == ("snoopy", "dog_scenes")
    assert (job.config.base.name, job.config.method) == ("CompVis/stable-diffusion-v1-4", None)
    assert job.external_weights == Path("delta.bin")
    assert job.config.folder == Path(f"runs/evaluate-{Path.cwd().name}-delta")
    assert job.protocol and (job.protocol.name, [*job.protocol.concepts]) == ("i2p_lite", ["I2P"])
    Path("pipeline").mkdir()
    Path("pipeline/model_index.json").touch()
    own = parse_job(Path("pipeline"), [*given, "out_dir=own"])
    assert (own.external_weights, own.config.folder) == (Path("pipeline"), Path("own"))
