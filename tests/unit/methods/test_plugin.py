"""The guide's method of another package: installed, listed, explained, trained and evaluated."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.helpers.console import SCRIPT
from unlearn.utils.paths import EMBEDDED

GUIDE = Path(__file__).parents[3] / "docs" / "guides" / "own-method.md"
BLOCK = re.compile(r"^`([^`\n]+)`\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILES = dict(BLOCK.findall(GUIDE.read_text(encoding="utf-8"))) | {
    "tethered/__init__.py": "",
    "tethered/conf/evaluation/tethered_general.yaml": """
defaults: [spm_general, _self_]
name: tethered_general
source: a protocol of the package's own
""",
}
EACH = """
import json, sys
from unlearn.cli.main import main
for arguments in json.loads(sys.argv[1]):
    sys.argv[1:] = arguments
    try:
        main()
    except SystemExit as end:
        print("status", end.code)
    print("=====", flush=True)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that pip installed the package into, from a folder of its own."""
    for name in ("pip", "setuptools"):
        if find_spec(name) is None:  # as in an environment that uv made
            pytest.skip(f"{name} is not installed")
    source, target = (tmp_path_factory.mktemp(name) for name in ("source", "target"))
    for name, text in FILES.items():
        path = source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.lstrip("\n"), encoding="utf-8")
    call([
        sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
        "--no-deps", "--no-build-isolation", "--target", str(target), str(source),
    ])  # fmt: skip
    return target


def call(command: list[str], cwd: Path | None = None, path: Path | None = None) -> str:
    """What a process prints, which must end well; it sees the packages in `path`."""
    paths = [str(path)] if path else []
    paths += os.environ.get("PYTHONPATH", "").split(os.pathsep)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def train(*overrides: str) -> list[str]:
    """The arguments that train the method on the panda."""
    return ["train", "concept=panda", "method=tethered", "trainer.accelerator=cpu", *overrides]


def moves(run: Path, base: Path) -> list[float]:
    """How far each weight has moved from the base model's at most."""
    original = load_file(base / "unet" / "diffusion_pytorch_model.safetensors")
    weights = load_file(run / "unlearned.safetensors")
    pairs = ((weight, original[name.removeprefix("unet.")]) for name, weight in weights.items())
    return [float((weight - base.float()).abs().max()) for weight, base in pairs]


def test_the_guide_names_every_command_that_is_run_here() -> None:
    text = GUIDE.read_text(encoding="utf-8")
    (block,) = re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert block.splitlines() == [
        "pip install .",
        "unlearn list methods",
        "unlearn config method method=tethered",
        "unlearn train concept=panda method=tethered",
    ]


def test_the_commands_know_it(
    installed: Path, tmp_path: Path, random_model: Path, random_judge: Path
) -> None:
    """One process for all of them, since each would import torch anew."""
    commands = [
        ["list", "methods"],
        ["list", "protocols"],
        ["config", "method", "method=tethered"],
        train("method.tether=-1"),
        train("method.tehter=1"),
        train(
            f"model.pretrained={random_model}", "steps=2", "batch_size=2", "data.images=4",
            "data.relearn_images=2", "data.num_inference_steps=1",
            "evaluation.images_per_prompt=1", "evaluation.num_inference_steps=1",
            f"evaluation.judge={random_judge}",
        ),
    ]  # fmt: skip
    printed = call([sys.executable, "-c", EACH, json.dumps(commands)], tmp_path, installed)
    methods, protocols, section, bad_value, bad_key, trained, errors = printed.split("=====\n")
    assert "tethered          Tethered regression (a note of 2026)\n" in methods
    assert "doco              DoCo (arXiv 2405.15304)\n" in methods
    assert "tethered_general" in protocols
    assert "a protocol of the package's own\n" in protocols
    assert section.startswith("method.name = tethered\n")
    assert "method.tether = 0.02\n  how strongly the base weights pull back\n" in section
    assert (bad_value, bad_key) == ("status 2\n", "status 2\n")
    assert "unlearn: method.tether=-1.0: a finite number of at least 0 is needed\n" in errors
    assert "unlearn: method.tehter=1: there is no such key; did you mean 'tether'?" in errors
    assert "status" not in trained
    run = tmp_path / "runs" / "panda-tethered-0"
    moved = moves(run, random_model)
    assert moved and all(0 < m < 1e-3 for m in moved)  # Adam, two steps at 2e-4
    assert "\n  tether: 0.02\n" in (run / "config.yaml").read_text()
    assert json.loads((run / "result.json").read_text())["method"] == "tethered"


def test_the_help_lists_it(installed: Path, tmp_path: Path) -> None:
    for path, listed in ((installed, True), (None, False)):
        printed = call([str(SCRIPT), "train", "--help"], tmp_path, path)
        methods = printed.partition("\n  method ")[2].partition("\n  model ")[0]
        assert ("doco, " in methods, "tethered" in methods) == (True, listed)


@pytest.mark.slow
def test_it_forgets_on_the_embedded_model(installed: Path, tmp_path: Path) -> None:
    """By the console script itself."""
    small = ("data.images=16", "data.relearn_images=0", "trainer.log_every_n_steps=1")
    unjudged = ("evaluation.judge=none", "evaluation.num_inference_steps=2")
    call([str(SCRIPT), *train(*small, *unjudged)], tmp_path, installed)
    run = tmp_path / "runs" / "panda-tethered-0"
    assert all(0 < m < 0.02 for m in moves(run, EMBEDDED))  # 60 steps at 2e-4
    with (run / "metrics.csv").open(encoding="utf-8") as file:
        losses = [float(row["loss/unlearn"]) for row in csv.DictReader(file)]
    assert sum(losses[-20:]) < 0.8 * sum(losses[:20])
