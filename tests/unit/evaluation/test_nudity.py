"""The published ways of counting, on hand-made detections, and the real detector."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unlearn.evaluation.nudity import (
    EXPOSED,
    PRESETS,
    Detection,
    NudeNet,
    count_by_class,
    flag_images,
)
from unlearn.evaluation.protocol_metrics import ImageFeatures, nudity_values
from unlearn.utils.paths import EMBEDDED

BELLY, FEET, BUTTOCKS = "BELLY_EXPOSED", "FEET_EXPOSED", "BUTTOCKS_EXPOSED"
DETECTIONS = [
    [Detection(BELLY, 0.9), Detection(BELLY, 0.7), Detection(FEET, 0.5)],
    [Detection(BELLY, 0.3), Detection("FACE_FEMALE", 0.99)],
    [Detection("BUTTOCKS_COVERED", 0.8), Detection(BUTTOCKS, 0.45), Detection(FEET, 0.2)],
    [],
]


@pytest.mark.parametrize(
    ("preset", "expected", "shown"),
    [
        ("spm", {BELLY: 2, FEET: 1, BUTTOCKS: 1}, [True, True, True, False]),
        ("mace", {BELLY: 2}, [True, False, False, False]),
        ("unlearndiffatk", {BELLY: 1, FEET: 1}, [True, False, False, False]),
    ],
)
def test_counts_of_hand_made_detections(
    preset: str, expected: dict[str, int], shown: list[bool]
) -> None:
    found = count_by_class(DETECTIONS, PRESETS[preset])
    assert found == dict.fromkeys(EXPOSED, 0) | expected
    assert flag_images(DETECTIONS, PRESETS[preset]) == shown


def test_counts_have_the_interval_of_their_mean_over_prompts() -> None:
    seen = ImageFeatures(torch.zeros(0), torch.zeros(0), DETECTIONS * 25)
    found = nudity_values(seen, "spm", [f"prompt {i}" for i in range(100)])
    total = found["nudity/total"]
    assert total.value == 25 * 4
    each = np.array([2, 1, 1, 0] * 25)  # of BELLY and FEET, of BELLY, of BUTTOCKS
    half = 1.96 * each.std() / 10 * 100
    assert total.low == pytest.approx(100 - half, rel=0.05)
    assert total.high == pytest.approx(100 + half, rel=0.05)
    assert found[f"nudity/{FEET}"].value == 25
    few = nudity_values(seen, "spm", [f"prompt {i % 4}" for i in range(100)])["nudity/total"]
    assert few.value == 100 and few.high - few.low > 3 * (total.high - total.low)


def test_nothing_seen_nothing_counted() -> None:
    for preset in PRESETS.values():
        assert count_by_class([], preset) == dict.fromkeys(EXPOSED, 0)
        assert flag_images([], preset) == []


def test_the_extra_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nudenet", None)
    with pytest.raises(ValueError, match="needs the extra `nudity`"):
        NudeNet()


def test_images_are_seen_as_the_library_sees_files(tmp_path: Path) -> None:
    nudenet = pytest.importorskip("nudenet", reason="the extra `nudity` is not installed")
    sheet = Image.open(EMBEDDED / "samples.png").convert("RGB")
    # a drawn peach, which the detector takes for the body part it stands for, in red and in blue
    peach = np.array(sheet.crop((64 * 19, 64 * 3, 64 * 20, 64 * 4)))
    tiles = [peach, peach[..., ::-1], np.full((64, 48, 3), 200, np.uint8)]
    expected = []
    for number, tile in enumerate(tiles):
        path = tmp_path / f"{number}.png"
        Image.fromarray(tile).save(path)
        boxes = nudenet.NudeDetector().detect(str(path))
        expected.append([(box["class"], pytest.approx(box["score"])) for box in boxes])
    detector = NudeNet()
    images = [torch.from_numpy(tile.copy()).permute(2, 0, 1) for tile in tiles]
    found = [detector.detect(image[None])[0] for image in images]
    assert found == expected
    assert found[0] != found[1]  # the order of the channels matters
    assert detector.detect(torch.stack(images[:2])) == found[:2]
    assert count_by_class(found, PRESETS["mace"])[BUTTOCKS] >= 1
    assert flag_images(found, PRESETS["mace"])[2] is False


def test_exposed_classes_are_the_librarys() -> None:
    library = pytest.importorskip("nudenet.nudenet", reason="the extra `nudity` is not installed")
    labels = getattr(library, "__labels")
    assert set(EXPOSED) == {label for label in labels if label.endswith("_EXPOSED")}
    assert len(EXPOSED) == 9
