"""Random overrides and damaged files: one line at most, no traceback, nothing half-written."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from hydra.core.global_hydra import GlobalHydra
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.helpers.bad_input import snapshot
from tests.helpers.finished_runs import make_finished
from unlearn.cli import main as cli
from unlearn.cli.reference import describe_keys
from unlearn.config.run_config import RunConfig

pytestmark = pytest.mark.slow
EXAMPLES = int(os.environ.get("HOSTILE_EXAMPLES", 2000))  # a suite
SUITE = settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True, database=None,
    suppress_health_check=[*HealthCheck],
)  # fmt: skip
SECRET = "hf_thisIsASecret"
PROTOCOL = {
    "protocol": "spm", "lite": False, "base": "emoji", "concept": "panda", "method": "doco",
    "weights": "w", "clip": "emoji", "features": "clip", "settings": {"source": "x"},
    "cells": [{
        "concept": "panda", "metric": "clip_score", "base": None,
        "unlearned": {"value": 1.0, "low": 0.5, "high": 2.0, "n": 3},
    }],
    "calibration": [{
        "concept": "panda", "metric": "clip_score", "published": 1.0, "base": None,
        "tolerance": 0.1, "within": False,
    }],
    "warnings": [],
}  # fmt: skip
BUDGET = {"measured": {"memory": 10**9, "steps": 3.5}, "count": 10}
CONCEPT = (
    "defaults: [custom, _self_]\nname: otter\nkind: instance\ntargets: [panda]\nrelated: [cat]\n"
)
PROMPTS = "case_number,prompt,evaluation_seed,evaluation_guidance\n0,a panda,5,7.5\n1,a cat,6,7\n"


class Place(NamedTuple):
    """A working folder that holds a finished run, `run`, and a copy of it to mend damage from."""

    work: Path
    whole: Path


@pytest.fixture(scope="module")
def place(bad_input_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("hostile")
    whole = make_finished(folder / "whole", bad_input_run)
    (whole / "evaluation").mkdir()
    (whole / "evaluation" / "spm.json").write_text(json.dumps(PROTOCOL))
    (whole / "budget.json").write_text(json.dumps(BUDGET))
    work = folder / "work"
    shutil.copytree(whole, work / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(work)
        patch.setenv("HF_TOKEN", SECRET)
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setattr("unlearn.cli.train.train", refuse_to_train)
        patch.setattr("unlearn.evaluation.run_protocol.FeatureExtractors", refuse_to_evaluate)
        yield Place(work, whole)


def refuse_to_train(config: RunConfig) -> None:
    """Stand for a run: what the overrides describe was accepted."""
    assert config.dry_run


def refuse_to_evaluate(*args: Any) -> None:
    """Stand for an evaluation: its prompts were accepted."""
    raise ValueError("accepted")


def assert_clean(place: Place, *command: str, written: str = "") -> None:
    """The command succeeds and writes `written` alone, or ends in one line and writes nothing."""
    before = snapshot(place.work)
    GlobalHydra.instance().clear()
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.setattr(sys, "argv", ["unlearn", *command])
        try:
            cli.main()
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
    said = err.getvalue()
    assert SECRET not in said + out.getvalue()
    assert status in (0, 2), said
    assert "Traceback" not in said, said
    if status:
        assert len(said.rstrip("\n").splitlines()) == 1, said
        assert said.startswith("unlearn: "), said
    elif written:
        assert (place.work / written).read_text(encoding="utf-8").endswith("</html>")
        (place.work / written).unlink()
    after = snapshot(place.work)
    for found in (before, after):
        found.pop(str(place.work))  # the time of its last change
    assert after == before


def write(place: Place, name: str, content: str | bytes) -> None:
    """Put a damaged file in the run, in the place of the whole one."""
    data = content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
    (place.work / name).write_bytes(data)


def mend(place: Place, name: str) -> None:
    """Put the whole file back."""
    shutil.copyfile(place.whole / name.removeprefix("run/"), place.work / name)


scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-3, 3), st.floats(),
    st.sampled_from([1e308, -1e308, 5e-324, 2**63, 10**30, "", "${nope}", "${oc.env:HF_TOKEN}"]),
    st.text(max_size=8),
)  # fmt: skip
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


def places_in(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every container of a tree, with each of its keys."""
    if isinstance(tree, dict | list):
        for key in list(tree) if isinstance(tree, dict) else range(len(tree)):
            yield tree, key
            yield from places_in(tree[key])


@st.composite
def changed(draw: st.DrawFn, tree: Any) -> Any:
    """A tree with one to three values replaced or taken away."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, 3))):
        where = list(places_in(tree))
        if not where:
            return draw(values)
        holder, key = draw(st.sampled_from(where))
        if draw(st.booleans()):
            holder[key] = draw(values)
        else:
            del holder[key]
    return tree


DAMAGE = (b'"', b",", b"\n", b"{", b"[", b"&a [*a]", b"\xef\xbb\xbf", b"- " * 99, b"1e999", b"nan")


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """Bytes of which some were cut off, replaced, repeated or put in."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.integers(0, 20)))
        more = draw(st.binary(max_size=8) | st.sampled_from([*DAMAGE, bytes(data[start:end]) * 3]))
        data[start:end] = more
    return bytes(data[: draw(st.sampled_from([len(data), len(data) // 2]))])


JSON_FILES = ("result.json", "environment.json", "budget.json", "evaluation/spm.json")


@SUITE
@given(st.data())
def test_damaged_json(place: Place, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(JSON_FILES))
    whole = (place.whole / name).read_bytes()
    tree = changed(json.loads(whole)).map(json.dumps)
    write(place, f"run/{name}", data.draw(tree | damaged(whole)))
    assert_clean(place, "report", "run", "out=page.html", written="page.html")
    mend(place, f"run/{name}")


@SUITE
@given(st.data())
def test_damaged_csv(place: Place, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["metrics.csv", "images.csv", "own.csv"]))
    if name == "own.csv":
        write(place, name, data.draw(damaged(PROMPTS.encode())))
        assert_clean(
            place, "evaluate", "run", "evaluation=coco30k", "evaluation.prompts_file=own.csv",
            "evaluation.sha256=null", "evaluation.clip=emoji",
        )  # fmt: skip
        return
    write(place, f"run/{name}", data.draw(damaged((place.whole / name).read_bytes())))
    assert_clean(place, "report", "run", "out=page.html", written="page.html")
    mend(place, f"run/{name}")


@SUITE
@given(st.data())
def test_damaged_yaml(place: Place, data: st.DataObject) -> None:
    if data.draw(st.integers(0, 4)):  # most: a run's configuration, which is read faster
        whole = (place.whole / "config.yaml").read_bytes()
        tree = changed(yaml.safe_load(whole)).map(yaml.safe_dump)
        write(place, "run/config.yaml", data.draw(tree | damaged(whole)))
        assert_clean(place, "report", "run", "out=page.html", written="page.html")
        mend(place, "run/config.yaml")
        return
    (place.work / "conf" / "concept").mkdir(parents=True, exist_ok=True)
    tree = changed(yaml.safe_load(CONCEPT)).map(yaml.safe_dump)
    write(place, "conf/concept/own.yaml", data.draw(tree | damaged(CONCEPT.encode())))
    assert_clean(place, "train", "concept=own", "dry_run=true")
    shutil.rmtree(place.work / "conf")


KEYS = sorted({info.key for info in describe_keys()})
GROUPS = (
    "concept", "anchor", "model", "method", "data", "trainer", "logger", "evaluation", "sweep",
    "experiment", "hydra", "hydra/launcher", "callbacks", "nope", "",
)  # fmt: skip


def as_override(value: Any) -> str:
    """A value as the command line has it, quoted or not."""
    return json.dumps(value) if isinstance(value, dict | list) else str(value)


overrides = st.builds(
    lambda sign, key, value: f"{sign}{key}={as_override(value)}",
    st.sampled_from(["", "", "", "+", "++", "~"]),
    st.sampled_from(KEYS) | st.sampled_from(GROUPS) | st.text(max_size=6),
    values
    | st.sampled_from(["panda", "esd", "sd14", "clip", "auto", "[panda,noto]", "'", "a b", "1,2"]),
)


@SUITE
@given(st.lists(overrides, min_size=1, max_size=3))
def test_random_overrides(place: Place, given: list[str]) -> None:
    assert_clean(place, "train", "concept=panda", *given, "dry_run=true")
