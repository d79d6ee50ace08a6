"""Options: a default, bounds and a meaning, each said once and kept to."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import pytest

from unlearn.utils.options import (
    REQUIRED,
    allowed_values,
    check_options,
    default_of,
    option,
)


@dataclass(frozen=True, kw_only=True)
class Options:
    rate: float = option(0.5, help="a rate", above=0, at_most=1)
    count: int = option(3, help="a count", at_least=2)
    kind: str = option("near", help="a kind", choices=("near", "far"))
    limit: int | None = option(None, help="null: no limit", at_least=1, at_most=9)
    names: list[str] = option(["a"], help="names")
    flag: bool = option(False, help="a flag", at_least=1)
    seed: int = option(help="must be given", at_least=0, at_most=2**32 - 1)


GOOD = Options(seed=0)
BY_NAME = {each.name: each for each in fields(Options)}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rate": 0.0}, r"^method\.rate=0\.0: a finite number of more than 0 and at most 1 is n"),
        ({"rate": 1.5}, r"^method\.rate=1\.5: a finite number of more than 0 and at most 1 is n"),
        ({"rate": float("nan")}, r"^method\.rate=nan: a finite number of more than 0"),
        ({"rate": float("inf")}, r"^method\.rate=inf: a finite number of more than 0"),
        ({"count": 1}, r"^method\.count=1: at least 2 is needed$"),
        ({"kind": "neer"}, r"^method\.kind='neer' is unknown; did you mean 'near'"),
        ({"limit": 0}, r"^method\.limit=0: at least 1 and at most 9 is needed$"),
        ({"limit": 10}, r"^method\.limit=10: at least 1 and at most 9 is needed$"),
        ({"seed": -1}, r"^method\.seed=-1: at least 0 and at most 4294967295 is needed$"),
    ],
)
def test_a_value_out_of_its_bounds_is_refused(changed: dict[str, Any], message: str) -> None:
    check_options(GOOD, "method")
    with pytest.raises(ValueError, match=message):
        check_options(replace(GOOD, **changed), "method")


@pytest.mark.parametrize(
    "changed",
    [{"rate": 1.0}, {"rate": 1}, {"count": 2}, {"kind": "far"}, {"limit": 1}, {"limit": 9}],
)
def test_a_value_at_its_bound_is_taken(changed: dict[str, Any]) -> None:
    check_options(replace(GOOD, **changed))


def test_none_is_always_allowed_and_a_flag_is_no_number() -> None:
    check_options(replace(GOOD, limit=None, kind=None, rate=None, flag=False))


def test_without_a_section_the_key_is_the_name_alone() -> None:
    with pytest.raises(ValueError, match=r"^count=0: at least 2 is needed$"):
        check_options(replace(GOOD, count=0))


def test_the_bounds_are_said_in_words() -> None:
    said = {name: allowed_values(each) for name, each in BY_NAME.items()}
    assert said == {
        "rate": "more than 0, at most 1",
        "count": "at least 2",
        "kind": "near, far",
        "limit": "at least 1, at most 9",
        "names": "",
        "flag": "at least 1",
        "seed": "at least 0, at most 4294967295",
    }
    assert [each.metadata["help"] for each in fields(Options)][:2] == ["a rate", "a count"]


def test_an_option_without_a_default_must_be_given() -> None:
    assert default_of(BY_NAME["seed"]) == REQUIRED == "???"
    assert default_of(BY_NAME["limit"]) is None
    assert default_of(BY_NAME["rate"]) == 0.5


def test_a_list_is_each_object_s_own() -> None:
    one, other = Options(seed=0), Options(seed=0)
    assert one.names == other.names == default_of(BY_NAME["names"]) == ["a"]
    one.names.append("b")
    assert other.names == Options(seed=0).names == ["a"]
