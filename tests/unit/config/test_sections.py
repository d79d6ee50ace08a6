"""Sections: plain values in, a checked object of a dataclass out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from omegaconf import OmegaConf

from unlearn.config.sections import check_keys, parse_section, to_container
from unlearn.utils.options import option


@dataclass(frozen=True, kw_only=True)
class Options:
    seed: int = option(help="must be given", at_least=0)
    rate: float = option(0.5, help="a rate", above=0)
    kind: str = option("near", help="a kind", choices=("near", "far"))
    limit: int | None = option(None, help="null: no limit", at_least=1)
    names: list[str] = option([], help="names")


@pytest.mark.parametrize(
    ("given", "parsed"),
    [
        ({"seed": 1}, Options(seed=1)),
        ({"seed": "1", "rate": "1e-3"}, Options(seed=1, rate=1e-3)),
        ({"seed": 1, "rate": 2}, Options(seed=1, rate=2.0)),
        ({"seed": 1, "limit": None}, Options(seed=1, limit=None)),
        ({"seed": 1, "limit": 3, "names": ["a"]}, Options(seed=1, limit=3, names=["a"])),
        ({"seed": "${rate}", "rate": 3}, Options(seed=3, rate=3.0)),
    ],
)
def test_a_section_becomes_an_object(given: dict[str, Any], parsed: Options) -> None:
    section = OmegaConf.create(given)
    before = OmegaConf.to_container(section)
    assert parse_section(section, "own", Options) == parsed
    assert parse_section(to_container(section), "own", Options) == parsed
    assert type(parse_section(section, "own", Options).rate) is float
    assert OmegaConf.to_container(section) == before


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, r"^own\.seed is missing: a value must be given$"),
        ({"seed": None}, r"^own\.seed: .*None"),
        ({"seed": "x"}, r"^own\.seed: Value 'x' of type 'str' could not be converted to Integer$"),
        ({"seed": 1.5}, r"^own\.seed: Value '1\.5' of type 'float' could not be converted to Int"),
        ({"seed": -1}, r"^own\.seed=-1: at least 0 is needed$"),
        ({"seed": 1, "rate": 0}, r"^own\.rate=0\.0: a finite number of more than 0 is needed$"),
        ({"seed": 1, "kind": "neer"}, r"^own\.kind='neer' is unknown; .*'near'"),
        ({"seed": "${nowhere}"}, r"^seed: Interpolation key 'nowhere' not found$"),
        ({"seed": 1, "sede": 2}, r"^own\.sede=2: there is no such key; .*'seed'"),
        (
            {"seed": 1, "names": "a"},
            r"^own\.names=a: .* is not a ListConfig, list or tuple",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        parse_section(OmegaConf.create(given), "own", Options)
    assert "\n" not in str(caught.value)


def test_a_section_without_a_name_is_the_top() -> None:
    with pytest.raises(ValueError, match=r"^sede=2: there is no such key; .*'seed'"):
        parse_section({"seed": 1, "sede": 2}, "", Options)


def test_every_key_must_be_known_and_be_there() -> None:
    check_keys({"a": 1, "anchor": 2}, ["a", "anchor"])
    check_keys({"a": 1, "concepts": []}, ["a", "anchor"])  # of several, in the anchor's place
    with pytest.raises(ValueError, match=r"^anchr=2: there is no such key; .*'anchor'"):
        check_keys({"a": 1, "anchr": 2}, ["a", "anchor"])
    with pytest.raises(ValueError, match=r"^a is missing: conf/train\.yaml has it$"):
        check_keys({"anchor": 2}, ["a", "anchor"])
