"""Published protocols end to end on a random model: resumed, calibrated, and told apart."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from unlearn.config.compose import compose
from unlearn.config.overrides import split_arguments
from unlearn.config.saved import load_run_config
from unlearn.evaluation.intervals import Mean
from unlearn.evaluation.jobs import evaluate_all
from unlearn.evaluation.nudity import Detection
from unlearn.evaluation.protocol_metrics import FeatureExtractors
from unlearn.exports.formats import ExportOptions, export_as
from unlearn.generation import sampling
from unlearn.models.cross_attention import cross_attention_layers
from unlearn.models.pipeline import load_pipeline
from unlearn.weights.delta import load_unlearned, save_unlearned

TEMPLATES = "imagenet_templates = ['a photo of a {}.', 'the {}.', 'art of a {}.']\n"
SMALL = [
    "evaluation.clip=emoji", "evaluation.size=64", "evaluation.num_inference_steps=2",
    "evaluation.images_per_prompt=2", "evaluation.sha256=null", "~evaluation.concepts.Spongebob",
    "~evaluation.concepts.Pikachu", "~evaluation.concepts.Dog", "~evaluation.concepts.Legislator",
]  # fmt: skip


@pytest.fixture(autouse=True)
def own_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each test has a cache and a working folder, with the prompts, of its own."""
    monkeypatch.setenv("UNLEARN_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "templates.py").write_text(TEMPLATES)


@pytest.fixture
def make_run(random_model: Path, tmp_path: Path) -> Callable[..., Path]:
    """A finished run's directory: its config, and weights that differ from the base model's."""

    def make(name: str = "run", method: str = "uce", at_inference: str = "") -> Path:
        run = tmp_path / name
        run.mkdir()
        overrides = ["concept=panda", f"model.pretrained={random_model}", f"method={method}"]
        config = compose([*overrides, "trainer.accelerator=cpu"])
        OmegaConf.save(config, run / "config.yaml", resolve=True)
        metadata = {"base": str(random_model), "concept": "panda", "method": method}
        weights = {}
        if at_inference:
            metadata["at_inference"] = at_inference
        else:
            layers = cross_attention_layers(load_pipeline(str(random_model)).unet)
            weights = {f"{k}.weight": layer.weight.roll(1, 0) for k, layer in layers.items()}
        save_unlearned(weights, run / "unlearned.safetensors", metadata)
        return run

    return make


def evaluate(*arguments: object) -> None:
    chosen = ["evaluation=spm_general", "evaluation.prompts_file=templates.py", *SMALL]
    call(*arguments, *chosen)


def call(*arguments: object) -> None:
    """What `unlearn evaluate ARGUMENTS` does."""
    evaluate_all(*split_arguments([str(argument) for argument in arguments]))


def result_of(run: Path, name: str = "spm_general") -> Any:
    return json.loads((run / "evaluation" / f"{name}.json").read_text())


def values(result: Any, metric: str) -> dict[str, Any]:
    return {c["concept"]: c for c in result["cells"] if c["metric"] == metric}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The prompts of the calls of the pipeline, as they are drawn."""
    prompts: list[str] = []
    sample = sampling.call_pipeline

    def watched(pipe: Any, shots: Any, *args: Any, **kwargs: Any) -> Any:
        prompts.extend(shot.prompt for shot in shots)
        return sample(pipe, shots, *args, **kwargs)

    monkeypatch.setattr(sampling, "call_pipeline", watched)
    return prompts


def test_a_protocol_ends_in_a_table_and_one_result(
    make_run: Callable[..., Path], capsys: pytest.CaptureFixture[str], random_model: Path
) -> None:
    run = make_run()
    evaluate(run, f"evaluation.calibration.base={random_model}",
             "evaluation.calibration.settings.clip=emoji")  # fmt: skip
    result = result_of(run)
    assert (result["protocol"], result["lite"], result["method"]) == ("spm_general", False, "uce")
    assert (result["concept"], result["clip"]) == ("panda", "emoji")
    assert result["features"] == "emoji, of norm √D"
    assert result["settings"]["num_inference_steps"] == 2
    score = values(result, "clip_score")
    assert list(score) == ["Snoopy", "Mickey"]
    for side in ("base", "unlearned"):
        cell = score["Snoopy"][side]
        assert cell["n"] == 6  # three templates, two images each
        assert cell["low"] <= cell["value"] <= cell["high"]
    assert score["Snoopy"]["base"] != score["Snoopy"]["unlearned"]
    assert score["Snoopy"]["base"] != score["Mickey"]["base"]
    similar = values(result, "image_similarity")["Snoopy"]
    assert similar["base"] is None
    assert similar["unlearned"]["value"] < 1 - 1e-6
    out = capsys.readouterr().out
    assert f"| Snoopy | clip_score | 6 | {score['Snoopy']['base']['value']:.4g} |  |" in out
    for warning in (
        "noise comes from CPU generators",
        "not calibrated: published values are of the whole protocol, unchanged",
        "changed on the command line: evaluation.calibration.base=",
        "fid is left out: FID on 128 dimensions needs 256 images",
        "prompts_file=templates.py",
    ):
        assert any(warning in line for line in result["warnings"]), warning
        assert f"! {next(w for w in result['warnings'] if warning in w)}" in out


@pytest.mark.slow
def test_another_precision_is_drawn_and_said(
    make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, sample, mixed = make_run(), sampling.call_pipeline, []

    def watched(*args: Any, **kwargs: Any) -> Any:
        mixed.append(torch.is_autocast_enabled("cpu"))
        return sample(*args, **kwargs)

    monkeypatch.setattr(sampling, "call_pipeline", watched)
    for precision, said in (("32-true", False), ("bf16-mixed", True)):
        evaluate(run, f"trainer.precision={precision}")
        result = result_of(run)
        assert (result["settings"]["precision"], result["settings"]["device"]) == (precision, "cpu")
        assert any("trainer.precision=bf16-mixed" in w for w in result["warnings"]) == said
        assert mixed and {*mixed} == {said}
        mixed.clear()


def test_other_base_models_are_not_calibrated(make_run: Callable[..., Path]) -> None:
    run = make_run()
    evaluate(run)
    result = result_of(run)
    assert result["calibration"] == []
    expected = "not calibrated: published values are of model.pretrained=CompVis/stable-diffusion"
    assert any(expected in warning for warning in result["warnings"])
    assert not any("do not trust" in warning for warning in result["warnings"])


def test_a_lite_variant_and_a_limit_say_so(
    make_run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run()
    chosen = ["evaluation.prompts_file=templates.py", *SMALL, "evaluation.limit=2"]
    call(run, "evaluation=spm_general_lite", *chosen)
    assert "spm_general_lite (LITE: not the published protocol):" in capsys.readouterr().out
    lite = result_of(run, "spm_general_lite")
    assert lite["lite"]
    assert lite["warnings"][0] == "a lite variant, not the published protocol"
    call(run, "evaluation=spm_general", *chosen)
    assert "limited to 2 prompts a concept" in result_of(run)["warnings"][0]
    assert values(result_of(run), "clip_score")["Snoopy"]["base"]["n"] == 4


@pytest.mark.slow
def test_an_interrupted_evaluation_goes_on_where_it_stopped(
    make_run: Callable[..., Path], drawn: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, see = make_run(), FeatureExtractors.see
    seen = []

    def interrupted(self: FeatureExtractors, images: Any) -> Any:
        seen.append(len(images))
        if len(seen) == 8:  # six calls of the unlearned model, and two of the base
            raise KeyboardInterrupt
        return see(self, images)

    monkeypatch.setattr(FeatureExtractors, "see", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(run)
    assert not (run / "evaluation").exists()
    before = list(drawn)
    monkeypatch.setattr(FeatureExtractors, "see", see)
    evaluate(run)
    assert len(before) == 8
    assert drawn[8:] == before[2:6]  # the base model's remaining four
    whole = result_of(run)
    evaluate(run)
    assert len(drawn) == 12
    assert result_of(run) == whole


def test_the_base_model_is_drawn_once_for_several_runs(
    make_run: Callable[..., Path], drawn: list[str]
) -> None:
    evaluate(make_run("one"), make_run("two", "sld", at_inference=sld(1000.0)))
    assert len(drawn) == 6 + 6 + 6
    scores = [values(result_of(Path(n)), "clip_score")["Snoopy"] for n in ("one", "two")]
    assert scores[0]["base"] == scores[1]["base"]
    assert scores[0]["unlearned"] != scores[1]["unlearned"]


def sld(scale: float) -> str:
    options = {"text": "panda", "scale": scale, "warmup_steps": 0, "threshold": 0.01}
    return json.dumps({**options, "momentum_scale": 0.3, "momentum_decay": 0.4})


def test_what_acts_at_inference_is_not_taken_for_the_base_model(
    make_run: Callable[..., Path], drawn: list[str]
) -> None:
    """Two runs of the same (no) weights differ by their metadata alone."""
    evaluate(make_run("weak", "sld", sld(1.0)), make_run("strong", "sld", sld(1e5)))
    assert len(drawn) == 6 + 6 + 6
    scores = [values(result_of(Path(n)), "clip_score")["Snoopy"] for n in ("weak", "strong")]
    assert scores[0]["base"] == scores[1]["base"]
    assert len({scores[0]["base"]["value"], *(s["unlearned"]["value"] for s in scores)}) == 3


def test_weights_from_elsewhere_have_the_command_line_s_config(
    make_run: Callable[..., Path], random_model: Path
) -> None:
    weights = make_run() / "unlearned.safetensors"
    (Path("mine") / "sub").mkdir(parents=True)
    weights = weights.rename("mine/delta.safetensors")
    given = ["concept=panda", f"model.pretrained={random_model}", "trainer.accelerator=cpu"]
    evaluate(weights, *given)
    result = result_of(Path("runs/evaluate-mine-delta"))
    assert (result["method"], result["weights"]) == (None, "mine/delta.safetensors")
    evaluate(weights, *given, "out_dir=own")
    assert values(result_of(Path("own")), "kid") == values(result, "kid")


@pytest.mark.slow
def test_weights_from_elsewhere_go_through_the_four_prompt_sets_as_a_run_does(
    make_run: Callable[..., Path], random_model: Path, random_judge: Path
) -> None:
    """The run's own weights, a pickle of them, and the whole folder of a pipeline."""
    short = ["evaluation.images_per_prompt=1", "evaluation.num_inference_steps=2"]
    short += [f"evaluation.judge={random_judge}"]
    run = make_run()
    call(run, *short)
    own = json.loads((run / "result.json").read_text())
    assert own["sets"]["unrelated"]["object"]["base"]["n"] > 0
    export_as(load_run_config(run), None, ExportOptions(format="delta"))
    load_unlearned(load_pipeline(str(random_model)), run / "unlearned.safetensors").save_pretrained(
        "folder"
    )
    given = ["concept=panda", f"model.pretrained={random_model}", "trainer.accelerator=cpu"]
    for weights in (run / "delta.bin", Path("folder")):
        call(weights, *given, *short, "out_dir=other")
        result = json.loads(Path("other/result.json").read_text())
        assert (result["method"], result["weights"]) == (None, str(weights))
        assert result["sets"] == own["sets"]
        assert Path("other/images.csv").read_text() == (run / "images.csv").read_text()


def test_i2p_counts_what_the_detector_finds(
    make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Detector:
        name = "made up"
        images = 0

        def detect(self, images: Any) -> list[list[Detection]]:
            self.images += len(images)
            found = [Detection("FEET_EXPOSED", 0.5), Detection("FEET_EXPOSED", 0.9)]
            return [found if self.images <= 3 else found[:0]]  # in the unlearned model's images

    monkeypatch.setattr("unlearn.evaluation.protocol_metrics.NudeNet", Detector)
    Path("i2p.csv").write_text("prompt,sd_seed\n" + "".join(f"a panda {i},{i}\n" for i in range(3)))
    run = make_run()
    chosen = ["evaluation=i2p", "evaluation.prompts_file=i2p.csv", "evaluation.sha256=null"]
    small = ["evaluation.clip=emoji", "evaluation.size=64", "evaluation.num_inference_steps=2"]
    call(run, *chosen, *small)
    result = result_of(run, "i2p")
    after = {c["metric"]: c["unlearned"]["value"] for c in result["cells"]}
    base = {c["metric"]: c["base"]["value"] for c in result["cells"]}
    assert (after["nudity"], after["nudity/total"], after["nudity/FEET_EXPOSED"]) == (1, 3, 3)
    assert (base["nudity"], base["nudity/total"]) == (0, 0)
    assert result["detector"] == "made up"
    assert any("nudity counts as in spm, which ran nudenet" in w for w in result["warnings"])


def test_captions_are_compared_with_their_own_images_and_fid_with_a_folder(
    make_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = "".join(f"a {w},{i},64,64\n" for i, w in enumerate(("panda", "fox", "bus", "owl")))
    Path("coco.csv").write_text(f"prompt,evaluation_seed,width,height\n{rows}")
    (tmp_path / "photos").mkdir()
    for i in range(3):
        Image.new("RGB", (40 + i, 50), (60 * i, 9, 9)).save(tmp_path / "photos" / f"{i}.jpg")
    seen = []

    def fid(features: Any, reference: Any) -> Mean:
        seen.append((features, reference))
        return Mean(float(len(reference)), 0.0, 9.0, len(features))

    monkeypatch.setattr("unlearn.evaluation.protocol_metrics.fid", fid)
    run, small = make_run(), ["evaluation.num_inference_steps=2", "evaluation.batch_size=3"]
    chosen = ["evaluation=coco30k", "evaluation.prompts_file=coco.csv", "evaluation.sha256=null"]
    call(run, *chosen, *small, "evaluation.clip=emoji", "evaluation.reference=photos")
    result = result_of(run, "coco30k")
    against = values(result, "fid_reference")["COCO-30k"]
    assert (against["base"]["value"], against["unlearned"]["n"]) == (3, 4)
    assert torch.equal(seen[0][1], seen[1][1])
    assert not torch.equal(seen[0][0], seen[1][0])
    call(run, *chosen, *small, "evaluation.clip=emoji")
    left_out = "fid_reference is left out: evaluation.reference=null"
    assert any(left_out in warning for warning in result_of(run, "coco30k")["warnings"])
