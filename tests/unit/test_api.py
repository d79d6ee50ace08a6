"""What `import unlearn` offers: quick to import, and a run from its training to its pictures."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import unlearn
from unlearn.models.pipeline import load_pipeline

pytestmark = pytest.mark.filterwarnings(  # Lightning's advice on runs this short
    "ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"
)
TEMPLATES = "imagenet_templates = ['a photo of a {}.', 'the {}.']\n"


@pytest.fixture(scope="module")
def overrides(
    random_model: Path, random_judge: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[str]:
    """A run of two steps on the random model."""
    return [
        "concept=panda", f"model.pretrained={random_model}", "steps=2", "method.warmup_steps=1",
        "method.discriminator_channels=8", "batch_size=2", "data.images=4",
        "data.relearn_images=2", "data.num_inference_steps=1", "evaluation.images_per_prompt=1",
        "evaluation.num_inference_steps=1", f"evaluation.judge={random_judge}",
        "trainer.accelerator=cpu", "trainer.log_every_n_steps=1",
        f"run_dir={tmp_path_factory.mktemp('api') / 'run'}",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def run(overrides: list[str]) -> unlearn.Run:
    return unlearn.train(overrides)


def test_every_public_name_is_there_and_no_other() -> None:
    assert unlearn.__all__ == sorted(unlearn.__all__)
    assert dir(unlearn) == unlearn.__all__
    for name in unlearn.__all__:
        assert getattr(unlearn, name) is not None
    assert unlearn.__version__ == version("unlearn-diffusion")
    assert "doco" in unlearn.METHODS
    with pytest.raises(AttributeError, match="module 'unlearn' has no attribute 'trian'"):
        unlearn.trian  # type: ignore[attr-defined]  # noqa: B018
    assert (Path(unlearn.__file__).parent / "py.typed").exists()


def test_the_import_loads_no_torch() -> None:
    code = (
        "import sys, unlearn\n"
        "assert unlearn.__version__ and 'train' in dir(unlearn)\n"
        "heavy = {'torch', 'diffusers', 'lightning', 'transformers', 'hydra', 'numpy'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_training_gives_a_run(run: unlearn.Run, overrides: list[str]) -> None:
    assert overrides[-1] == f"run_dir={run.folder}"
    assert run.weights == run.folder / "unlearned.safetensors"
    assert (run.config.concept.name, run.config.method) == ("panda", "doco")
    assert run.result == json.loads((run.folder / "result.json").read_text())
    assert run.table.splitlines()[0].startswith("| set | n | right |")
    assert "| unseen_target |" in run.table
    assert run.before_after.width == Image.open(run.folder / "before_after.png").width


def test_a_finished_run_is_not_made_again(
    run: unlearn.Run, overrides: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = run.weights.stat().st_mtime_ns
    assert unlearn.train(overrides).result == run.result
    assert run.weights.stat().st_mtime_ns == before
    assert "finished before, with this configuration" in capsys.readouterr().out


def test_a_run_is_loaded_from_its_directory(run: unlearn.Run, tmp_path: Path) -> None:
    for path in (run.folder, str(run.folder)):
        loaded = unlearn.load_run(path)
        assert (loaded.folder, loaded.weights) == (run.folder, run.weights)
        assert (loaded.result, loaded.table) == (run.result, run.table)
        assert loaded.config.base == run.config.base
    with pytest.raises(ValueError, match=r"not a finished run directory, config\.yaml is missing"):
        unlearn.load_run(tmp_path)


def test_the_weights_are_in_its_pipeline(run: unlearn.Run, random_model: Path) -> None:
    own = unlearn.load_run(run.folder).load_pipeline().unet.state_dict()
    base = load_pipeline(str(random_model))
    before = {name: weight.clone() for name, weight in base.unet.state_dict().items()}
    assert unlearn.load_unlearned(base, run.weights) is base
    weights = load_file(run.weights)
    assert weights
    for name, weight in base.unet.state_dict().items():
        assert torch.equal(own[name], weight)
        changed = weights.get(f"unet.{name}", before[name])
        assert torch.equal(weight, changed)
    assert any(not torch.equal(before[n.removeprefix("unet.")], w) for n, w in weights.items())


def test_a_run_is_evaluated_again_and_by_a_protocol(
    run: unlearn.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = run.result["sets"]["related"]["object"]["base"]["n"]
    result = unlearn.evaluate(run, ["evaluation.images_per_prompt=2"])
    assert result["sets"]["related"]["object"]["base"]["n"] == 2 * once > 0
    assert run.result == result
    assert unlearn.evaluate(str(run.folder))["sets"]["related"]["object"]["base"]["n"] == once
    (tmp_path / "templates.py").write_text(TEMPLATES)
    small = [
        "clip=emoji", "size=64", "num_inference_steps=1", "images_per_prompt=1", "sha256=null",
        f"prompts_file={tmp_path / 'templates.py'}",
    ]  # fmt: skip
    result = unlearn.evaluate(
        run.folder, ["evaluation=spm_general", *(f"evaluation.{key}" for key in small)]
    )
    assert result["protocol"] == "spm_general"
    assert result == json.loads((run.folder / "evaluation" / "spm_general.json").read_text())


def test_prompts_are_drawn_side_by_side(run: unlearn.Run) -> None:
    picture = unlearn.sample(run, ["a panda", "a pizza"])
    assert picture.size == (2 * 256, 24 + 2 * (24 + 256 + 12))
    with Image.open(run.folder / "sample.png") as written:
        assert written.tobytes() == picture.tobytes()
    assert unlearn.sample(run.folder, ["a panda", "a pizza"]).tobytes() == picture.tobytes()
    with pytest.raises(ValueError, match=r"does not know \['☂'\]"):
        unlearn.sample(run, ["a ☂"])


def test_a_dry_run_has_no_run_to_return(overrides: list[str], tmp_path: Path) -> None:
    planned = [*overrides[:-1], f"run_dir={tmp_path / 'planned'}", "dry_run=true"]
    with pytest.raises(ValueError, match=r"dry_run=true: .*`unlearn train` prints the plan"):
        unlearn.train(planned)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["concept=pnada"], r"concept=pnada: no such file of conf/concept; .*'panda'"),
        (["concept=panda", "method.lr=-1"], r"method\.lr=-1\.0: a finite number of at least 0"),
        (["concept=panda", "seed=0,1"], r"seed"),
        ([], r"concept\.name is missing"),
    ],
)
def test_bad_overrides_are_value_errors_of_one_line(given: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        unlearn.train(given)
    assert len(str(error.value).splitlines()) == 1
