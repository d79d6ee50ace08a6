"""The page of `unlearn report`, read back as HTML: what it shows, escapes and refuses."""

from __future__ import annotations

import base64
import io
import json
import platform
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image, ImageChops
from safetensors.torch import load_file

from tests.helpers.bad_input import Case, name_of
from tests.helpers.finished_runs import HOSTILE, make_finished
from unlearn.evaluation.pictures import tile_box
from unlearn.reports.page import ReportOptions, mask_secrets, report_runs


class Page(HTMLParser):
    """The tags, the attributes by tag, and the text of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.attributes: list[tuple[str, str, str]] = []
        self.tags: list[str] = []
        self.text = ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data

    def of(self, tag: str, name: str) -> list[str]:
        """An attribute's values, in the page's order."""
        return [value for t, n, value in self.attributes if (t, n) == (tag, name)]


@pytest.fixture(scope="session")
def finished(bad_input_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_finished(tmp_path_factory.mktemp("report") / "panda", bad_input_run)


@pytest.fixture
def page_of(tmp_path: Path) -> Callable[..., Page]:
    def write(*runs: Path) -> Page:
        out = tmp_path / "page.html"
        assert report_runs([str(run) for run in runs], ReportOptions(out=str(out))) == out
        return Page(out)

    return write


def picture_in(uri: str) -> Image.Image:
    kind, _, data = uri.partition(",")
    assert kind == "data:image/webp;base64"
    return Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")


def test_the_page_shows_what_the_files_hold(finished: Path, page_of: Callable[..., Page]) -> None:
    page = page_of(finished)
    result = json.loads((finished / "result.json").read_text())
    unseen = result["sets"]["unseen_target"]["right"]["unlearned"]
    assert (unseen["value"], unseen["n"] > 20) == (0, True)
    assert f"[0%, {unseen['high']:.0%}]" in page.text
    kept = result["sets"]["related"]["retention"]["unlearned"]
    assert f"{kept['value']:.0%} of the related and 100% of the unrelated" in page.text
    assert "Forgotten; too few images to decide" in page.text
    assert "the judge is less sure" in page.text
    assert page.of("svg", "aria-label") == ["loss/unlearn", "surgery/cosine"]
    for fact in (platform.python_version(), version("torch"), version("unlearn-diffusion")):
        assert fact in page.text
    loading = re.search(r"import unlearn\n\npipe = .*\n", page.text)
    assert loading and str(finished) in loading[0]
    names: dict[str, Any] = {}
    exec(loading[0], names)  # what a reader of the page would copy
    found = names["pipe"].unet.state_dict()
    weights = load_file(finished / "unlearned.safetensors")
    assert all(torch.equal(found[n.removeprefix("unet.")], w) for n, w in weights.items())
    assert "discriminator_lr: 0.0002" in page.text
    assert "Not recorded" not in page.text


def test_the_gallery_holds_the_pictured_prompts_and_their_pixels(
    finished: Path, page_of: Callable[..., Page]
) -> None:
    page = page_of(finished)
    uris, names = page.of("img", "src"), page.of("img", "alt")
    assert len(uris) == 2 * 8 * 4  # both sides of eight prompts of each set
    assert names[:2] == ["base: panda", "unlearned: panda"]
    assert "panda seed 7" in page.text
    with Image.open(finished / "before_after.png") as picture:
        for number, part, side, column in ((0, "seen_target", 0, 0), (63, "unrelated", 1, 7)):
            tile = picture.crop(tile_box(picture.width, part, side, column))
            assert ImageChops.difference(picture_in(uris[number]), tile).getbbox() is None


def test_nothing_is_fetched(finished: Path, page_of: Callable[..., Page]) -> None:
    page = page_of(finished)
    places = [v for _, n, v in page.attributes if n in ("src", "href", "srcset", "action", "data")]
    assert all(place.startswith(("data:", "#")) for place in places)
    assert not {"iframe", "object", "embed", "base", "form"} & {*page.tags}
    assert not re.search(r"@import|url\(", page.source)
    assert page.of("meta", "content")[3].startswith("default-src 'none'; img-src data:;")


def test_hostile_text_stays_text(
    bad_input_run: Path, finished: Path, tmp_path: Path, page_of: Callable[..., Page]
) -> None:
    run = make_finished(tmp_path / "<b>run", bad_input_run, prompt=HOSTILE, name=HOSTILE)
    facts = json.loads((run / "environment.json").read_text())
    (run / "environment.json").write_text(json.dumps(facts | {HOSTILE: HOSTILE}))
    text = (run / "metrics.csv").read_text()
    quoted = HOSTILE.replace('"', '""')
    (run / "metrics.csv").write_text(text.replace("loss/unlearn", f'"{quoted}"', 1))
    page = page_of(run, finished)
    assert [page.tags.count(tag) for tag in ("script", "style", "img")] == [1, 1, 2 * 64]
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert "x" not in page.of("img", "src")
    assert "<b>run" in page.text
    assert f"{HOSTILE} 0" in page.text
    assert f"base: {HOSTILE} 0" in page.of("img", "alt")
    assert HOSTILE in page.of("svg", "aria-label")


def test_several_runs_stand_side_by_side(
    bad_input_run: Path, finished: Path, tmp_path: Path, page_of: Callable[..., Page]
) -> None:
    other = make_finished(tmp_path / "other", bad_input_run)
    config = OmegaConf.load(other / "config.yaml")
    OmegaConf.save(OmegaConf.merge(config, {"steps": 77}), other / "config.yaml")
    (other / "metrics.csv").unlink()
    page = page_of(finished, other)
    assert "2 runs of unlearning" in page.text
    assert page.of("img", "alt")[:3] == ["base: panda", "panda: panda", "other: panda"]
    assert len(page.of("img", "src")) == 3 * 8 * 4  # the base model's image once
    differs = page.text.partition("What differs")[2].partition("the whole configuration")[0]
    assert re.sub(r"\s", "", differs) == "keypandaothersteps30077panda:"
    assert page.of("svg", "aria-label") == ["loss/unlearn", "surgery/cosine"]


def test_the_last_evaluation_s_settings_are_shown_in_the_place_of_the_config_s(
    bad_input_run: Path, tmp_path: Path, page_of: Callable[..., Page]
) -> None:
    runs = [make_finished(tmp_path / name, bad_input_run) for name in ("one", "two")]
    for run, images in zip(runs, (1, 4), strict=True):
        result = json.loads((run / "result.json").read_text())
        settings = {"images_per_prompt": images, "judge": None, "precision": "32-true"}
        (run / "result.json").write_text(json.dumps(result | {"settings": settings}))
    page = page_of(*runs)
    assert "two, evaluated with: images_per_prompt=4, precision=32-true" in page.text
    differs = page.text.partition("What differs")[2].partition("the whole configuration")[0]
    assert re.sub(r"\s", "", differs) == "keyonetwoevaluation.images_per_prompt14one:"


def test_without_a_judge_the_page_shows_images_alone(
    bad_input_run: Path, tmp_path: Path, page_of: Callable[..., Page]
) -> None:
    run = make_finished(tmp_path / "run", bad_input_run, judged=False)
    page = page_of(run)
    assert "Not judged" in page.text
    assert "Wilson" not in page.text
    assert len(page.of("img", "src")) == 64
    (run / "images.csv").unlink()  # as an earlier version left it
    page = page_of(run)
    assert "kept no list of its prompts" in page.text
    (uri,) = page.of("img", "src")
    with Image.open(run / "before_after.png") as picture:
        assert ImageChops.difference(picture_in(uri), picture).getbbox() is None


def test_explicit_images_are_blurred_and_only_they(
    bad_input_run: Path, finished: Path, tmp_path: Path, page_of: Callable[..., Page]
) -> None:
    run = make_finished(tmp_path / "run", bad_input_run, kind="unsafe")
    page = page_of(run)
    assert page.of("label", "class") == ["veil"] * 64
    assert page.tags.count("input") == 64
    assert "veil" not in page_of(finished).of("label", "class")


def test_secrets_are_not_shown(
    bad_input_run: Path,
    tmp_path: Path,
    page_of: Callable[..., Page],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_verySecretIndeed")
    run = make_finished(tmp_path / "run", bad_input_run, prompt="hf_verySecretIndeed")
    config = OmegaConf.load(run / "config.yaml")
    OmegaConf.save(OmegaConf.merge(config, {"logger": {"api_key": "f00d"}}), run / "config.yaml")
    page = page_of(run)
    assert "$HF_TOKEN 0" in page.text
    assert not re.search("verySecret|f00d", page.source)
    assert mask_secrets({"a_token": {"x": [1, None]}, "detach_first_token": False, "lr": 2}) == {
        "a_token": {"x": ["(hidden)", None]}, "detach_first_token": False, "lr": 2
    }  # fmt: skip


def damaged(name: str, content: str) -> Callable[[Path], None]:
    """A run that is finished but for one file."""

    def write(work: Path) -> None:
        for file in ("result.json", "before_after.png"):
            (work / "run" / file).write_text("{}")
        (work / "run" / name).write_text(content)

    return write


RUN = ["report", "run"]
CASES = [
    Case(["report"], r"usage: unlearn report RUN_DIR\.\.\."),
    Case(["report", "nowhere"], r"nowhere: not a finished run .*, config.yaml is missing"),
    Case(RUN, r"run: not a finished run .*, result.json is missing; `unlearn evaluate run`"),
    Case([*RUN, "./run"], r"run, \./run: one of them is named twice"),
    Case([*RUN, "out=no/page.html"], r"out=no/page\.html: a file is needed, in a folder that is"),
    Case([*RUN, "out=run"], r"out=run: a file is needed"),
    Case([*RUN, "to=page.html"], r"to=page\.html: there is no such key; did you mean .*'out'"),
    Case(RUN, r"run/before_after\.png: damaged \(ValueError", damaged("result.json", "{}")),
    Case(RUN, r"run/config\.yaml: not a run's", damaged("config.yaml", "[1]")),
]


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_bad_input_is_refused(refused: Callable[[Case], None], case: Case) -> None:
    refused(case)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("result.json", "{"),
        ("result.json", '{"sets": {"seen": {}}}'),
        ("metrics.csv", "step,loss\nx,1\n"),
        ("environment.json", "[1]"),
        ("budget.json", "{}"),
        ("images.csv", "set\nseen_target\n"),
        ("evaluation/spm.json", "none"),
    ],
)
def test_a_damaged_file_is_named(finished: Path, tmp_path: Path, name: str, content: str) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (run / name).parent.mkdir(exist_ok=True)
    (run / name).write_text(content)
    with pytest.raises(ValueError, match=f"{re.escape(str(run / name))}: damaged"):
        report_runs([str(run)], ReportOptions(out=str(tmp_path / "page.html")))
    assert not (tmp_path / "page.html").exists()
