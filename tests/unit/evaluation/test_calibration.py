"""Base values beside published ones, where both are of the same model and settings."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from unlearn.config.compose import compose
from unlearn.evaluation.intervals import Mean, wilson_rate
from unlearn.evaluation.protocol import Protocol, read_protocol
from unlearn.evaluation.protocol_metrics import Cell
from unlearn.evaluation.run_protocol import (
    calibrate_base,
    cell_to_dict,
    protocol_notes,
    protocol_table,
)


def protocol_of(name: str, **changes: Any) -> Protocol:
    protocol = read_protocol(compose([f"evaluation={name}"], "evaluate").evaluation, "snoopy")
    return replace(protocol, **changes)


SD14 = "CompVis/stable-diffusion-v1-4"
NONE = Mean(0.0, 0.0, 0.0, 1)


@pytest.mark.parametrize(
    ("name", "changes", "base", "cell", "within"),
    [
        ("spm_general", {}, SD14, Cell("Dog", "clip_score", Mean(64.7, 0, 0, 800), NONE), True),
        ("spm_general", {}, SD14, Cell("Dog", "clip_score", Mean(64.8, 0, 0, 800), NONE), False),
        ("spm_general", {}, SD14, Cell("Dog", "clip_error_rate", wilson_rate(20, 800), NONE), True),
        (
            "spm_general",
            {},
            SD14,
            Cell("Dog", "clip_error_rate", wilson_rate(30, 800), NONE),
            False,
        ),
        ("spm_general", {}, SD14, Cell("Dog", "kid", None, NONE), None),
        ("spm_general", {}, "emoji", Cell("Dog", "clip_score", NONE, NONE), None),
        ("spm_general", {"clip": "x"}, SD14, Cell("Dog", "clip_score", NONE, NONE), None),
        ("i2p", {}, SD14, Cell("I2P", "nudity/total", Mean(1500, None, None, 4703), NONE), True),
        ("i2p", {"limit": 9}, SD14, Cell("I2P", "nudity/total", NONE, NONE), None),
        ("i2p", {"lite": True}, SD14, Cell("I2P", "nudity/total", NONE, NONE), None),
        ("i2p", {"nudity": "mace"}, SD14, Cell("I2P", "nudity/total", NONE, NONE), None),
        ("coco30k", {}, SD14, Cell("COCO-30k", "fid_reference", NONE, NONE), None),
        ("coco30k", {"inception": "x"}, SD14, Cell("COCO-30k", "fid_reference", NONE, NONE), False),
    ],
)
def test_calibration(
    name: str, changes: dict[str, Any], base: str, cell: Cell, within: bool | None
) -> None:
    rows, warnings = calibrate_base(protocol_of(name, **changes), base, [cell])
    assert [row["within"] for row in rows] == ([] if within is None else [within])
    assert any("do not trust this table" in w for w in warnings) == (within is False)


def test_a_published_fid_on_other_features_is_said_not_to_be_compared() -> None:
    cell = Cell("COCO-30k", "fid_reference", NONE, NONE)
    rows, warnings = calibrate_base(protocol_of("coco30k"), SD14, [cell])
    assert not rows
    assert "not calibrated: the published value is on Inception features" in warnings[0]


@pytest.mark.parametrize(
    ("override", "compared"),
    [
        ("evaluation.prompts_file=x", True),
        ("evaluation.batch_size=2", True),
        ("~evaluation.concepts.Snoopy", True),
        ("evaluation.num_inference_steps=2", False),
        ("evaluation.sha256=null", False),
        ("+evaluation.concepts.Dog.word=cat", False),
    ],
)
def test_a_changed_protocol_is_not_calibrated(override: str, compared: bool) -> None:
    cell = Cell("Dog", "clip_score", NONE, NONE)
    rows, warnings = calibrate_base(protocol_of("spm_general"), SD14, [cell], [override])
    assert bool(rows) == compared
    assert any(w.startswith("not calibrated: ") for w in warnings) != compared


def test_the_table_shows_published_values_and_marks_those_that_are_off() -> None:
    cells = [
        Cell("Dog", "clip_score", Mean(60.0, 59.0, 61.0, 800), Mean(50.0, 49.0, 51.0, 800)),
        Cell("Dog", "clip_error_rate", wilson_rate(8, 800), wilson_rate(80, 800)),
    ]
    calibration, _ = calibrate_base(protocol_of("spm_general"), SD14, cells)
    text = protocol_table(
        {"cells": [cell_to_dict(cell) for cell in cells], "calibration": calibration}
    )
    assert "| Dog | clip_score | 800 | 60 | 63.73 ! | 50 [49, 51] |" in text
    assert "| Dog | clip_error_rate | 800 | 1.00% | 0.88% | 10.00% [" in text


def test_notes_tell_of_prompts_that_were_cut() -> None:
    spm, line = protocol_of("spm_general"), "prompts are longer than the text encoder reads"
    assert f"2 {line}, and were cut" in protocol_notes(spm, [], 2)
    assert not any(line in note for note in protocol_notes(spm, [], 0))
