"""How much bad input the tables hold."""

from __future__ import annotations

import pytest

from tests.helpers.bad_cases import command_line, config, damaged, images, paths, prompts, weights

MESSAGES = {  # those that each kind's tables expect
    "command line": [case.message for case in command_line.CASES],
    "config": [case.message for case in config.CASES],
    "damaged": [case.message for case in damaged.CASES],
    "images": [case.message for case in images.CASES],
    "paths": [case.message for case in paths.CASES],
    "prompts": [case.message for case in prompts.CASES],
    "weights": [case.message for case in (*weights.CASES, *weights.FILES)],
}


@pytest.mark.parametrize("kind", MESSAGES)
def test_each_kind_has_its_share(kind: str) -> None:
    assert len(MESSAGES[kind]) >= 8
    assert all(len(message) >= 10 for message in MESSAGES[kind])  # so they say something


def test_there_are_many_and_they_differ() -> None:
    messages = [message for kind in MESSAGES.values() for message in kind]
    assert len(messages) >= 80
    assert len({*messages}) >= 40
