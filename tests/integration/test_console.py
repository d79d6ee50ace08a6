"""The console script end to end, at a smoke scale, on a random diffusers folder."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from omegaconf import OmegaConf
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from tests.helpers.console import SCRIPT, unlearn
from unlearn.config.compose import compose
from unlearn.methods.registry import METHODS
from unlearn.methods.sld import SLD
from unlearn.methods.spm import SPM
from unlearn.models.cross_attention import cross_attention_layers
from unlearn.models.pipeline import load_pipeline

RESULT = [
    "before_after.png", "budget.json", "checkpoints", "config.yaml", "environment.json",
    "images.csv", "metrics.csv", "result.json",
]  # fmt: skip


@pytest.fixture(scope="module")
def smoke(random_model: Path, random_judge: Path) -> list[str]:
    return [
        f"model.pretrained={random_model}",
        f"evaluation.judge={random_judge}",
        "steps=4",
        "method.warmup_steps=2",
        "batch_size=2",
        "data.images=4",
        "data.relearn_images=4",
        "data.num_inference_steps=2",
        "evaluation.images_per_prompt=1",
        "evaluation.num_inference_steps=2",
        "method.lr=1e-3",
        "trainer.accelerator=cpu",
        "trainer.log_every_n_steps=1",
    ]


@pytest.fixture(scope="module")
def run(smoke: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("first")
    done = unlearn("train", "concept=panda", *smoke, "run_dir=run", cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "\nunseen_target " in done.stdout
    assert max(len(line) for line in done.stdout.splitlines() if "_target " in line) <= 80
    assert done.stdout.endswith("See more: unlearn report run\n")
    assert "NaN" not in (folder / "run" / "result.json").read_text()
    assert [p.name for p in folder.iterdir()] == ["run"]
    return folder / "run"


def test_the_run_directory_holds_what_the_readme_lists(run: Path) -> None:
    assert sorted(p.name for p in run.iterdir()) == [*RESULT, "unlearned.safetensors"]
    assert OmegaConf.load(run / "config.yaml").concept.name == "panda"
    result = json.loads((run / "result.json").read_text())
    assert set(result["sets"]) == {"seen_target", "unseen_target", "related", "unrelated"}
    assert Image.open(run / "before_after.png").size[0] > 256
    rows = list(csv.DictReader((run / "metrics.csv").open()))
    assert {"loss/unlearn", "loss/relearn", "loss/discriminator", "surgery/cosine"} <= set(rows[0])


def test_only_cross_attention_keys_and_values_are_saved(run: Path, random_model: Path) -> None:
    unet = load_pipeline(str(random_model)).unet
    expected = {f"unet.{n}.weight" for n in cross_attention_layers(unet)}
    weights = load_file(run / "unlearned.safetensors")
    assert set(weights) == expected
    base = unet.state_dict()
    assert all(not torch.equal(w, base[n.removeprefix("unet.")]) for n, w in weights.items())
    with safe_open(run / "unlearned.safetensors", framework="pt") as file:
        assert set(file.metadata()) == {"base", "concept", "method", "config_sha256"}
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert {n for n in state if not n.startswith("discriminator.")} == expected


def test_the_same_seed_gives_the_same_bytes(run: Path, smoke: list[str], tmp_path: Path) -> None:
    for seed, same in ((0, True), (1, False)):
        overrides = ["concept=panda", *smoke, "run_dir=run", f"seed={seed}", "resume=false"]
        own_cache = str(tmp_path / f"cache{seed}")  # the anchor images are drawn again
        done = unlearn("train", *overrides, cwd=tmp_path, UNLEARN_CACHE=own_cache)
        assert done.returncode == 0, done.stderr[-3000:]
        files = [(r / "unlearned.safetensors").read_bytes() for r in (run, tmp_path / "run")]
        assert (files[0] == files[1]) == same


@pytest.mark.slow
def test_weights_kept_on_the_way_are_run_directories(smoke: list[str], tmp_path: Path) -> None:
    overrides = ["concept=panda", *smoke, "run_dir=run", "keep_every=2"]
    done = unlearn("train", *overrides, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    folders = [tmp_path / "run" / "steps" / step for step in ("000002", "000004")]
    early, last = (load_file(folder / "unlearned.safetensors") for folder in folders)
    end = load_file(tmp_path / "run" / "unlearned.safetensors")
    assert all(torch.equal(last[name], end[name]) for name in end)
    assert any(not torch.equal(early[name], end[name]) for name in end)
    done = unlearn("evaluate", *map(str, folders), cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    results = [(f / "result.json").read_text() for f in (*folders, tmp_path / "run")]
    assert results[1] == results[2]


@pytest.mark.slow
def test_training_images_are_the_base_model_s_wherever_a_method_starts(
    smoke: list[str], tmp_path: Path
) -> None:
    """Base images are cached by the weights that draw them: a second start draws none anew."""
    counts = []
    for start in ("base", "closed_form"):
        done = unlearn(
            "train", "concept=panda", *smoke, f"method.start={start}", f"run_dir={start}",
            cwd=tmp_path, UNLEARN_CACHE=str(tmp_path / "cache"),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        counts.append(len(list((tmp_path / "cache").rglob("*.png"))))
    evaluated = len((tmp_path / "base" / "images.csv").read_text().splitlines()) - 1
    assert counts[1] - counts[0] == evaluated  # the second run's own, and none of the base's
    assert counts[0] > 2 * evaluated
    weights = [load_file(tmp_path / s / "unlearned.safetensors") for s in ("base", "closed_form")]
    assert any(not torch.equal(w, weights[1][name]) for name, w in weights[0].items())


@pytest.mark.parametrize("method", [m for m in sorted(METHODS) if m != "doco"])
def test_every_method_goes_the_same_way(smoke: list[str], tmp_path: Path, method: str) -> None:
    config = compose([f"method={method}"])
    takes = config.method.keys()
    overrides = [o for o in smoke if not o.startswith("method.") or o[7:].split("=")[0] in takes]
    if METHODS[method].closed_form:
        overrides = [o for o in overrides if not o.startswith("steps=")]
    if "num_inference_steps" in takes:
        overrides.append("method.num_inference_steps=2")
    done = unlearn(
        "train", "concept=panda", f"method={method}", *overrides, "run_dir=run", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-3000:]
    run = tmp_path / "run"
    training = {"budget.json", "checkpoints", "metrics.csv"}
    expected = {*RESULT, "unlearned.safetensors"} - (
        training if METHODS[method].closed_form else set()
    )
    assert {p.name for p in run.iterdir()} == expected
    assert json.loads((run / "result.json").read_text())["method"] == method
    if not METHODS[method].closed_form:
        rows = list(csv.DictReader((run / "metrics.csv").open()))
        assert [row["step"] for row in rows if row["loss/unlearn"]][-1] == "3"
    if METHODS[method] in (SPM, SLD):
        exported = unlearn("export", "run", cwd=tmp_path)
        assert exported.returncode == 2
        assert "acts at inference" in exported.stderr


def test_sample_and_evaluate_a_finished_run(run: Path) -> None:
    done = unlearn("sample", str(run), "a panda", "a fox", cwd=run.parent)
    assert done.returncode == 0, done.stderr[-3000:]
    assert Image.open(run / "sample.png").size == (512, 608)
    (run / "sample.png").unlink()
    before = (run / "result.json").read_text()
    done = unlearn("evaluate", str(run), "evaluation.images_per_prompt=2", cwd=run.parent)
    assert done.returncode == 0, done.stderr[-3000:]
    after = (run / "result.json").read_text()
    once, twice = (json.loads(t)["sets"]["related"]["right"]["base"]["n"] for t in (before, after))
    assert twice == 2 * once
    assert [json.loads(t)["settings"]["images_per_prompt"] for t in (before, after)] == [1, 2]
    assert unlearn("evaluate", str(run), cwd=run.parent).returncode == 0
    assert (run / "result.json").read_text() == before


def test_a_protocol_of_one_s_own_in_conf_is_found(run: Path, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("imagenet_templates = ['a photo of a {}.', 'the {}.']")
    mine = tmp_path / "conf" / "evaluation" / "mine.yaml"
    mine.parent.mkdir(parents=True)
    mine.write_text(
        "defaults: [spm_general_lite, _self_]\nname: mine\nprompts_file: own.py\nsha256: null\n"
        "clip: emoji\nsize: 64\nnum_inference_steps: 2\nmetrics: [clip_score]\n"
    )
    done = unlearn("evaluate", str(run), "evaluation=mine", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads((run / "evaluation" / "mine.json").read_text())
    assert (result["concept"], result["method"], result["lite"]) == ("panda", "doco", True)
    assert "| Snoopy | clip_score | 4 |" in done.stdout
    assert "! a lite variant, not the published protocol" in done.stdout
    shutil.rmtree(run / "evaluation")
    offline = {"UNLEARN_CACHE": str(tmp_path), "https_proxy": "http://127.0.0.1:9"}
    refused = unlearn("evaluate", str(run), "evaluation=spm_general", cwd=tmp_path, **offline)
    assert refused.returncode == 2
    assert "clip_templates.py: cannot be fetched" in refused.stderr


@pytest.fixture
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prompts that the random model reads whole, but not with a phrase added."""
    file = tmp_path_factory.mktemp("pack") / "dog.txt"
    file.write_text(f"a photo of a dog\na dog{', on a blue background' * 5}\n")
    return file


def test_without_a_judge_a_model_is_pictured_and_not_judged(
    random_model: Path, tmp_path: Path, pack: Path
) -> None:
    overrides = [
        "concept=snoopy", "model=sd14", f"model.pretrained={random_model}", "steps=3",
        "method.warmup_steps=2", "batch_size=2", "data.images=4",
        "data.relearn_images=0",
        "data.num_inference_steps=2", "evaluation.num_inference_steps=2", "trainer.accelerator=cpu",
        "evaluation.judge=none", f"anchor.prompts={pack}", "run_dir=run",
        "concept.related=[Garfield,Pikachu]",
    ]  # fmt: skip
    done = unlearn("train", *overrides, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    too_long = unlearn("train", *overrides, "data.rescale=true", "run_dir=other", cwd=tmp_path)
    assert "the limit is 32" in too_long.stderr
    assert not (tmp_path / "other").exists()
    assert "not judged, by evaluation.judge=none" in done.stdout
    assert json.loads((tmp_path / "run" / "result.json").read_text())["sets"] == {}
    assert Image.open(tmp_path / "run" / "before_after.png").size == (1174, 1376)
    assert unlearn("export", "run", cwd=tmp_path).returncode == 0
    assert "Not judged" in (tmp_path / "run" / "export" / "README.md").read_text()


def test_a_model_of_unknown_vocabulary_is_judged_by_clip(
    random_model: Path, tmp_path: Path, pack: Path
) -> None:
    overrides = [
        "concept=snoopy", "model=sd14", f"model.pretrained={random_model}", "method=uce",
        "evaluation.images_per_prompt=1",
        "evaluation.num_inference_steps=2", "trainer.accelerator=cpu",
        f"anchor.prompts={pack}", "concept.related=[Garfield,Pikachu]", "run_dir=run",
    ]  # fmt: skip
    missing = unlearn("train", *overrides, "evaluation.clip=nowhere/at/all", cwd=tmp_path)
    assert missing.returncode == 2
    assert "evaluation.clip='nowhere/at/all'" in missing.stderr
    assert "evaluation.judge=none draws pictures alone" in missing.stderr
    assert not list(tmp_path.iterdir())
    done = unlearn("train", *overrides, "evaluation.clip=emoji", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    for row in result["sets"].values():
        nothing = {"value": None, "low": None, "high": None, "n": 0}
        assert row["broken"] == {"base": nothing, "unlearned": nothing}
    assert result["sets"]["unrelated"]["right"]["base"]["n"] == 24  # 8 objects, 3 prompts each
    assert result["judge"].startswith("Judged by CLIP (emoji), zero-shot among")
    assert result["judge"] in done.stdout
    rows = list(csv.DictReader((tmp_path / "run" / "images.csv").open()))
    assert {row["unlearned_broken"] for row in rows} == {""}
    assert {row["unlearned_right"] for row in rows} <= {"0", "1"}
    assert unlearn("export", "run", cwd=tmp_path).returncode == 0
    assert result["judge"] in (tmp_path / "run" / "export" / "README.md").read_text()


def test_help_at_every_level_is_quick_and_names_the_choices(tmp_path: Path) -> None:
    start = time.perf_counter()
    usage = subprocess.run([SCRIPT, "--help"], capture_output=True, text=True).stdout
    assert time.perf_counter() - start < 2
    for command in (
        "train",
        "evaluate",
        "sample",
        "export",
        "merge",
        "report",
        "demo",
        "sweep-report",
        "new-concept",
    ):
        assert command in usage
        assert f"usage: unlearn {command}" in unlearn(command, "--help", cwd=tmp_path).stdout
    evaluate = unlearn("evaluate", "--help", cwd=tmp_path).stdout
    for name in ("spm_general_lite", "sd14", "evaluation.prompts_file=", "out_dir=", ".bin"):
        assert name in evaluate
    choices = unlearn("train", "--help", cwd=tmp_path).stdout
    assert "spm_general" not in choices
    for name in ("van_gogh", "development/tiger", "doco_reference", "sd14", "wandb", "paper"):
        assert name in choices


def test_a_new_concept_file_is_found_and_trains(smoke: list[str], tmp_path: Path) -> None:
    assert unlearn("new-concept", "mine", cwd=tmp_path).returncode == 0
    again = unlearn("new-concept", "mine", cwd=tmp_path)
    assert "conf/concept/mine.yaml: exists already" in again.stderr
    file = tmp_path / "conf" / "concept" / "mine.yaml"
    file.write_text(file.read_text().replace("targets: null", "targets: [fox]"))
    done = unlearn("train", "concept=mine", "anchor=bear", *smoke, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "runs" / "mine-doco-0" / "unlearned.safetensors").exists()


@pytest.mark.slow
def test_a_run_is_exported_as_a_lora_and_merged(
    run: Path, smoke: list[str], tmp_path: Path
) -> None:
    done = unlearn("export", str(run), "lora.safetensors", "format=lora", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith("lora.safetensors: ranks ")
    refused = unlearn("export", str(run), "fromat=lora", cwd=tmp_path)
    assert (refused.returncode, "fromat" in refused.stderr) == (2, True)
    overrides = ["concept=rabbit", "method=uce", *(o for o in smoke if "evaluation" in o)]
    overrides += [o for o in smoke if o.startswith("model")]
    done = unlearn("train", *overrides, "run_dir=rabbit", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    done = unlearn("merge", str(run), "rabbit", "both", "scale=0.5", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["both"]
    done = unlearn("evaluate", "both", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads((tmp_path / "both" / "result.json").read_text())
    assert (result["method"], list(result["concepts"])) == ("merge", ["panda", "rabbit"])


def test_a_run_is_exported_as_a_plain_diffusers_folder(run: Path, random_model: Path) -> None:
    done = unlearn("export", str(run), cwd=run.parent)
    assert done.returncode == 0, done.stderr[-3000:]
    out = run / "export"
    plain = StableDiffusionPipeline.from_pretrained(out, use_safetensors=True)
    delta = load_file(run / "unlearned.safetensors")
    base = load_pipeline(str(random_model)).unet.state_dict()
    for name, tensor in plain.unet.state_dict().items():
        expected = delta.get(f"unet.{name}", base[name])
        assert torch.equal(tensor, expected), name
    card = (out / "README.md").read_text()
    for text in ("**panda** (instance)", "panda (to bear)", "| seen_target |", "## Limits"):
        assert text in card
    again = unlearn("export", str(run), cwd=run.parent)
    assert again.returncode == 2
    assert "is not empty" in again.stderr
