"""The CLIP judge: its choices, its classifiers, and how it agrees with the judge trained on art."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from tests.conftest import make_concept
from unlearn.concepts.prompts import evaluation_prompts
from unlearn.config.compose import compose
from unlearn.config.parse import parse_config
from unlearn.config.run_config import RunConfig
from unlearn.evaluation.clip import ClipScorer
from unlearn.evaluation.clip_judge import ClipJudge, candidate_names, class_prompts
from unlearn.evaluation.evaluate import load_judge
from unlearn.evaluation.judge import Judge
from unlearn.generation.sampling import generate
from unlearn.models.pipeline import load_pipeline
from unlearn.utils.paths import EMBEDDED


class DrawnFeatures(ClipScorer):
    """The embedded model's CLIP, before which an image shows its first pixel's text."""

    texts: list[str]

    def image_features(self, images: Tensor, batch_size: int = 64) -> Tensor:
        return self.text_features([self.texts[i] for i in images[:, 0, 0, 0].tolist()])


def config_of(*overrides: str) -> RunConfig:
    chosen = ["concept=snoopy", "model=sd14", "evaluation.clip=emoji", *overrides]
    return parse_config(compose(chosen))


def test_an_instance_is_judged_among_its_own_objects_and_no_styles() -> None:
    objects, styles = candidate_names(config_of().concept)
    assert objects[:2] == ["Snoopy", "dog"]  # the target and its anchor
    assert set(objects[2:6]) == {"Mickey Mouse", "Garfield", "Pikachu", "Scooby-Doo"}
    assert objects[6:] == config_of().concept.unrelated
    assert styles == []


def test_a_style_is_judged_among_its_scenes_and_its_own_styles() -> None:
    concept = config_of("concept=van_gogh").concept
    objects, styles = candidate_names(concept)
    assert objects == concept.unrelated
    # its anchor is no style at all
    assert styles == ["van gogh", "monet", "cezanne", "gauguin", "picasso", ""]
    styled = make_concept("contrast", "flat", "style", related=["fluent"], unrelated=["panda"])
    assert candidate_names(styled) == (["panda"], ["contrast", "flat", "fluent"])


def test_the_texts_of_a_name() -> None:
    templates = ("a photo of a {}", "artwork in the style of {}")
    assert class_prompts("apple", templates) == [
        "a photo of an apple",
        "artwork in the style of apple",
    ]
    assert class_prompts("", templates[1:]) == ["artwork"]


def test_a_classifier_is_the_mean_of_its_prompts_features() -> None:
    judge = ClipJudge(ClipScorer.load("emoji"), ["panda", "fox"], [])
    found = judge.classifiers(["panda", "fox"], ("a drawing of a {}", "an icon of a {}"))
    model = CLIPModel.from_pretrained(EMBEDDED / "clip", dtype=torch.float32)
    tokenizer = CLIPTokenizer.from_pretrained(EMBEDDED / "clip")
    for name, vector in zip(("panda", "fox"), found, strict=True):
        each = []
        for text in (f"a drawing of a {name}", f"an icon of a {name}"):
            tokens = tokenizer(text, return_tensors="pt").input_ids
            with torch.no_grad():
                each.append(F.normalize(model.get_text_features(tokens).pooler_output[0], dim=0))
        torch.testing.assert_close(vector, F.normalize(each[0] + each[1], dim=0))


def test_an_image_shows_the_nearest_name() -> None:
    clip = ClipScorer.load("emoji")
    drawn = DrawnFeatures(clip.name, clip.model, clip.tokenizer, clip.processor)
    drawn.texts = ["a drawing of a fox", "a painting of a bus", "a picture in the style of noto"]
    images = torch.arange(3, dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 3, 8, 8)
    verdict = ClipJudge(drawn, ["bus", "fox"], ["flat", "noto", ""]).judge(images)
    assert verdict.objects[:2] == ["fox", "bus"]
    assert verdict.styles[2] == "noto"
    assert verdict.broken is None
    assert ClipJudge(drawn, ["bus", "fox"], []).judge(images).styles == ["", "", ""]


def test_the_judge_is_the_model_s_unless_one_is_named() -> None:
    def judge(*overrides: str) -> Judge | ClipJudge | None:
        config = config_of(*overrides)
        return load_judge(config, config.concept)

    by_clip = judge()
    assert isinstance(by_clip, ClipJudge)
    assert by_clip.note == (
        "Judged by CLIP (emoji), zero-shot among the concept's own 14 objects; broken images are "
        "not told apart."
    )
    assert isinstance(judge("concept=panda", "model=emoji"), Judge)
    assert isinstance(judge("concept=panda", "model=emoji", "evaluation.judge=clip"), ClipJudge)
    assert isinstance(judge(f"evaluation.judge={EMBEDDED / 'judges' / 'second_judge'}"), Judge)
    assert judge("evaluation.judge=none") is None


def test_a_clip_that_cannot_be_loaded_is_refused_with_the_way_on() -> None:
    config = config_of("evaluation.clip=nowhere/at/all")
    with pytest.raises(ValueError, match=r"evaluation\.clip='nowhere.*evaluation\.judge=none"):
        load_judge(config, config.concept)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["panda", "contrast"])
def test_the_two_judges_agree_on_what_the_embedded_model_draws(name: str) -> None:
    """When this was written, on the object of all 64 images, and on contrast's 32 styles."""
    config = config_of(f"concept={name}", "model=emoji")
    probes = evaluation_prompts(config.concept)
    probes = probes[:: len(probes) // 32][:32]
    seeds = range(5_000_000, 5_000_000 + len(probes))
    sampler = config.sampler(config.prompt_sets.num_inference_steps)
    images = generate(load_pipeline("emoji"), [p.prompt for p in probes], seeds, sampler)
    by_art = load_judge(config, config.concept).judge(images)
    with_clip = config_of(f"concept={name}", "model=emoji", "evaluation.judge=clip")
    by_clip = load_judge(with_clip, config.concept).judge(images)
    assert sum(a == b for a, b in zip(by_art.objects, by_clip.objects, strict=True)) >= 28
    if config.concept.kind == "style":
        assert sum(a == b for a, b in zip(by_art.styles, by_clip.styles, strict=True)) >= 28
