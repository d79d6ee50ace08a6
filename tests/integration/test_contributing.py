"""The recipes of CONTRIBUTING.md, carried out as they stand there in a copy of the package."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from omegaconf import OmegaConf
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"(?:^`([^`\n]+)`\n\n)?^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SMALL = [
    "batch_size=2", "data.images=4", "data.relearn_images=2", "data.num_inference_steps=2",
    "evaluation.images_per_prompt=1", "evaluation.num_inference_steps=2", "trainer.accelerator=cpu",
]  # fmt: skip
PROMPTS = "imagenet_templates = ['a photo of a {}.', 'the {}.']\n"


class Recipe(NamedTuple):
    """What a section of the page says: files, changes of files, and a command."""

    files: dict[str, str]
    changes: dict[str, str]
    command: list[str]


def recipes() -> dict[str, Recipe]:
    """The page's recipes by their titles."""
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    sections = [part.partition("\n")[::2] for part in page.split("\n## ")]
    found = {}
    for title, text in sections:
        if title.startswith("Add "):
            blocks = BLOCK.findall(text)
            (command,) = [shlex.split(body) for _, kind, body in blocks if kind == "sh"]
            files = {p: body for p, kind, body in blocks if kind in ("yaml", "python")}
            changes = {p: body for p, kind, body in blocks if kind == "diff"}
            found[title.removeprefix("Add a ")] = Recipe(files, changes, command)
    return found


def change(text: str, diff: str) -> str:
    """A file's text with each hunk of a diff applied, at the one place that it fits."""
    for hunk in re.split(r"^@@.*\n", diff, flags=re.MULTILINE):
        lines = hunk.splitlines(keepends=True)
        old, new = ("".join(x[1:] for x in lines if x[0] in signs) for signs in (" -", " +"))
        assert text.count(old) == 1, f"not at one place:\n{old}"
        text = text.replace(old, new)
    return text


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory, random_model: Path) -> Path:
    """A copy of the package and its configs, with all that the recipes say."""
    tree = tmp_path_factory.mktemp("tree")
    for name in ("unlearn", "conf", "hydra_plugins"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for recipe in recipes().values():
        for path, body in recipe.files.items():
            assert not (ROOT / path).exists(), f"{path} is a file of the package by now"
            (tree / path).parent.mkdir(exist_ok=True)
            (tree / path).write_text(body, encoding="utf-8")
        for path, diff in recipe.changes.items():
            before = (tree / path).read_text(encoding="utf-8")
            (tree / path).write_text(change(before, diff), encoding="utf-8")
    shutil.copytree(random_model, tree / "models" / "mine")
    (tree / "templates.py").write_text(PROMPTS)
    return tree


def carry_out(tree: Path, name: str, *small: str) -> None:
    """Run a recipe's command in the tree, with overrides that make it small."""
    program, *arguments = recipes()[name].command
    assert program == "unlearn"
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    command = [sys.executable, "-m", "unlearn.cli.main", *arguments, *small]
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_page_has_four_recipes() -> None:
    assert list(recipes()) == ["concept", "method", "backbone", "metric"]


@pytest.mark.slow
def test_a_concept(tree: Path, random_judge: Path) -> None:
    embedded = ("model.pretrained=models/mine", f"evaluation.judge={random_judge}")
    carry_out(tree, "concept", *SMALL, *embedded, "steps=2", "method.warmup_steps=1")
    result = json.loads((tree / "runs/fox-doco-0/result.json").read_text())
    assert (result["concept"], result["kind"]) == ("fox", "instance")


@pytest.mark.slow
def test_a_method_and_a_metric(tree: Path, random_judge: Path) -> None:
    embedded = ("model.pretrained=models/mine", f"evaluation.judge={random_judge}")
    carry_out(tree, "method", *SMALL, *embedded, "steps=2")
    run = tree / "runs/panda-tethered-0"
    weights, base = load_file(run / "unlearned.safetensors"), tree / "models/mine/unet"
    original = load_file(base / "diffusion_pytorch_model.safetensors")
    moved = [(w - original[k.removeprefix("unet.")]).abs().max() for k, w in weights.items()]
    assert moved and all(0 < m < 1e-3 for m in moved)  # Adam, two steps at 1e-4
    chosen = ["size=64", "num_inference_steps=2", "images_per_prompt=2", "sha256=null"]
    small = [f"evaluation.{key}" for key in (*chosen, "clip=emoji", "prompts_file=templates.py")]
    left_out = [f"~evaluation.concepts.{c}" for c in ("Spongebob", "Pikachu", "Dog", "Legislator")]
    carry_out(tree, "metric", *small, *left_out)
    result = json.loads((run / "evaluation/spm_general.json").read_text())
    assert [c["metric"] for c in result["cells"]] == ["clip_margin"] * 2  # Snoopy and Mickey


@pytest.mark.slow
def test_a_backbone(tree: Path) -> None:
    carry_out(tree, "backbone", *SMALL, "steps=2", "method.warmup_steps=1")
    config = OmegaConf.load(tree / "runs/panda-doco-0/config.yaml")
    assert config.model.pretrained == "models/mine"
    assert config.method.lr == 2e-5
    assert config.method.discriminator_lr == 1e-4  # of sd14
