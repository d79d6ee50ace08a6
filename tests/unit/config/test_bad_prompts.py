"""Bad prompts: packs, templates, prompts that the model cannot read, and protocols' files."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.helpers.bad_cases.prompts import CASES
from tests.helpers.bad_input import Case, name_of
from unlearn.config.compose import compose
from unlearn.config.parse import parse_config
from unlearn.exports.model_card import model_card


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_a_bad_prompt_is_refused(case: Case, refused: Callable[[Case], None]) -> None:
    refused(case)


def test_a_target_is_escaped_in_the_model_card() -> None:
    hostile = "<img src=x onerror=alert(1)>"
    config = compose(["concept.name=otter", "anchor.name=dog", "model=sd14"])
    config.concept.targets = [hostile]
    run = parse_config(config)
    card = model_card(run, run.concept, {"sets": {}})
    assert hostile not in card
    assert "&lt;img src=x onerror=alert(1)&gt; (to dog)" in card
