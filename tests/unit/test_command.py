"""What `unlearn evaluate` takes: run directories, weights from elsewhere, and overrides."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from unlearn.config import compose
from unlearn.evaluation.command import evaluate_all, job_of, split


@pytest.fixture(autouse=True)
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """What `evaluate` looks at before it starts: the config of a run, and a file of weights."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "run"
    folder.mkdir()
    OmegaConf.save(compose(["concept=panda"]), folder / "config.yaml", resolve=True)
    (folder / "unlearned.safetensors").touch()
    return folder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], r"usage: unlearn evaluate RUN_DIR"),
        (["nowhere"], r"nowhere: there is no such file or folder"),
        (["."], r"\.: not a finished run directory, config\.yaml is missing"),
        (["run", "method=esd"], r"method=esd: run is a run directory, with a config of its own"),
        (["run", "~evaluation.judge"], r"~evaluation\.judge: run is a run directory"),
        (["run", "evaluation.seed=4"], r"evaluation\.seed=4: Key 'seed' is not in struct"),
        (["run", "evaluation.seeds=0"], r"evaluation\.seeds=0: at least 1 is needed"),
        (["run", "evaluation=spm"], r"Could not find 'evaluation/spm' .*spm_general_lite"),
        (["run", "evaluation=i2p", "evaluation.stepz=4"], r"Could not override 'evaluation"),
        (["run", "trainer.acelerator=cpu"], r"Key 'acelerator' is not in struct"),
        (["run", "run", "evaluation=i2p"], r"their results would lie in one folder"),
        (["run/unlearned.safetensors"], r"concept\.name is missing"),
        (["run/unlearned.safetensors", "concept=panda"], r"no run directory; choose a published"),
    ],
)
def test_wrong_arguments_are_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate_all(arguments)


def test_a_path_that_holds_an_equals_sign_is_a_path(run: Path) -> None:
    run.rename("concept=panda")
    arguments = ["concept=panda", "evaluation=i2p", "~evaluation.concepts.I2P", "other"]
    paths, overrides = split(arguments)
    assert (paths, overrides) == (["concept=panda", "other"], arguments[1:3])


def test_a_run_keeps_its_config_but_for_what_is_given(run: Path) -> None:
    own = job_of(run, ["evaluation.seeds=4", "trainer.accelerator=cpu"])
    assert (own.config.evaluation.seeds, own.config.evaluation.sampling_steps) == (4, 20)
    assert (own.config.trainer.accelerator, own.config.concept.name) == ("cpu", "panda")
    assert own[1:] == (Path(run) / "unlearned.safetensors", run)
    chosen = job_of(
        run, ["evaluation=spm_general", "evaluation.limit=3", "trainer.accelerator=cpu"]
    )
    assert (chosen.config.evaluation.limit, chosen.config.evaluation.seed) == (3, 2024)
    assert (chosen.config.trainer.accelerator, chosen.config.concept.name) == ("cpu", "panda")


def test_a_run_from_before_protocols_had_names_is_evaluated(run: Path) -> None:
    config = OmegaConf.load(run / "config.yaml")
    del config.evaluation["name"]
    OmegaConf.save(config, run / "config.yaml")
    assert job_of(run, []).config.evaluation.name == "emoji"


def test_weights_from_elsewhere_take_all_from_the_command_line(run: Path) -> None:
    (run / "unlearned.safetensors").rename("delta.bin")
    given = ["concept=snoopy", "model=sd14", "evaluation=i2p_lite"]
    job = job_of(Path("delta.bin"), given)
    assert (job.config.concept.name, job.config.anchor.name) == ("snoopy", "dog_scenes")
    assert job.config.model.pretrained == "CompVis/stable-diffusion-v1-4"
    assert (job.weights, job.folder) == (
        Path("delta.bin"),
        Path(f"runs/evaluate-{Path.cwd().name}-delta"),
    )
    Path("pipeline").mkdir()
    Path("pipeline/model_index.json").touch()
    assert job_of(Path("pipeline"), [*given, "out_dir=own"]).folder == Path("own")
