"""The demo's images beside those of plain pipelines, its page, and what it refuses."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.helpers.bad_input import Case, name_of
from unlearn.cli.demo import example_prompts, make_draw, unknown_note, word_list
from unlearn.concepts.vocabulary import load_vocabulary
from unlearn.config.saved import load_run_config
from unlearn.evaluation.judge import Verdict
from unlearn.generation.sampling import Sampler, generate
from unlearn.models.pipeline import load_pipeline
from unlearn.weights.delta import load_unlearned


def test_it_draws_what_the_pipelines_draw_one_by_one(
    bad_input_run: Path, random_model: Path
) -> None:
    config = load_run_config(bad_input_run)
    seen = Verdict(["panda", "bear"], ["flat", ""], torch.tensor([False, True]))
    judge = SimpleNamespace(judge=lambda images: seen)
    draw = make_draw(config, judge)
    pipe = load_pipeline(str(random_model))
    sampler = Sampler(2, config.guidance_scale, batch_size=1)
    expected = [generate(pipe, ["a panda"], [5], sampler)]
    load_unlearned(pipe, config.weights)
    expected.append(generate(pipe, ["a panda"], [5], sampler))
    assert not expected[0].equal(expected[1])
    for _ in range(2):  # the same again: one image leaves nothing for the next
        pictures = draw("a panda", [5], 2)
        for (image, _), tensor in zip(pictures, expected, strict=True):
            assert np.array_equal(np.asarray(image), tensor[0].permute(1, 2, 0).numpy())
        assert [caption for _, caption in pictures] == [
            "base, seed 5; the judge sees panda, flat",
            "unlearned, seed 5; the judge sees a broken image",
        ]
    with pytest.raises(ValueError, match=r"does not know \['☂'\]"):
        draw("a ☂", [5], 2)
    with pytest.raises(ValueError, match="the limit is 32"):
        draw("a photo of a panda " * 9, [5], 2)
    several = make_draw(config, None)("a panda", [5, 6], 2)
    captions = [f"{side}, seed {seed}" for seed in (5, 6) for side in ("base", "unlearned")]
    assert [caption for _, caption in several] == captions
    assert np.array_equal(np.asarray(several[1][0]), np.asarray(pictures[1][0]))


def test_examples_are_of_every_set_and_unknown_words_are_said(bad_input_run: Path) -> None:
    config, words = load_run_config(bad_input_run), load_vocabulary()
    examples = example_prompts(config.concept)
    assert [*examples] == ["seen target", "unseen target", "related", "unrelated"]
    for prompts in examples.values():
        assert 1 <= len({*prompts}) == len(prompts) <= 4
        assert [unknown_note(prompt, words) for prompt in prompts] == [""] * len(prompts)
    assert unknown_note("A Panda, on a skyscraper of zebras", words) == (
        "The model was trained on no text with skyscraper, zebras: it can only guess."
    )
    assert unknown_note("a skyscraper", None) == ""
    assert "\n- styles: " in word_list(words)


def test_it_says_that_gradio_is_missing_before_a_model_is_loaded(
    refused: Callable[[Case], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    refused(Case(["demo", "run"], "demo: .*gradio.*; it needs the extra `demo`"))


CASES = [
    Case(["demo"], r"usage: unlearn demo RUN_DIR"),
    Case(["demo", "run", "other"], r"usage: unlearn demo RUN_DIR"),
    Case(["demo", "nowhere"], r"nowhere: not a finished run directory, config.yaml is missing"),
    Case(["demo", "run", "port=high"], r"port: Value 'high' of type 'str'"),
    Case(["demo", "run", "port=70000"], r"port=70000: at least 0 and at most 65535 is needed"),
    Case(["demo", "run", "host=no.such.invalid"], r"host=no\.such\.invalid: no such host"),
    Case(["demo", "run", "host=" + "a" * 70 + ".invalid"], r"host=a+\.invalid: no such host"),
    Case(["demo", "run", "prot=80"], r"prot=80: there is no such key; did you mean .*'port'"),
]


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_bad_input_is_refused(refused: Callable[[Case], None], case: Case) -> None:
    refused(case)
