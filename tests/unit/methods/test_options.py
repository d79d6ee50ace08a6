"""Options of methods: what each allows, and that OmegaConf can hold them."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, ValidationError

from tests.helpers.methods import make_method
from unlearn.methods.options import MethodOptions, TrainingOptions, batches_per_step
from unlearn.methods.registry import METHODS, options_of
from unlearn.models.pipeline import load_pipeline
from unlearn.utils.options import check_options, default_of

OPTIONS = [(name, each) for name in METHODS for each in fields(options_of(name))]
NAMES = [f"{name}.{each.name}" for name, each in OPTIONS]


@pytest.mark.parametrize(("method", "each"), OPTIONS, ids=NAMES)
def test_every_option_has_a_line_of_help_and_refuses_what_it_does_not_allow(
    method: str, each: Any
) -> None:
    about, options = each.metadata, options_of(method)()
    assert about["help"] and "\n" not in about["help"]
    assert about["help"][0].lower() == about["help"][0] or not about["help"][0].isascii()
    check_options(options, "method")
    bad: list[Any] = []
    if about["choices"]:
        assert default_of(each) in about["choices"]
        bad = ["nonsense"]
    elif not isinstance(getattr(options, each.name), bool):
        least, above = about["at_least"], about["above"]
        assert (least is None) != (above is None)
        bad = [float("nan"), float("inf"), -1, above if least is None else least - 1]
        bad += [] if about["at_most"] is None else [about["at_most"] + 0.1]
    for value in bad:
        with pytest.raises(ValueError, match=rf"^method\.{each.name}="):
            check_options(replace(options, **{each.name: value}), "method")


@pytest.mark.parametrize("method", METHODS)
def test_a_configuration_can_hold_them(method: str) -> None:
    options = options_of(method)
    config = OmegaConf.structured(options)
    assert list(config) == [each.name for each in fields(options)]
    assert OmegaConf.to_object(config) == options()
    with pytest.raises(ConfigKeyError):
        OmegaConf.merge(config, {"nonsense": 1})
    for each in fields(options):
        if not isinstance(default_of(each), str):
            with pytest.raises(ValidationError):
                OmegaConf.merge(config, {each.name: "nonsense"})


@pytest.mark.parametrize("method", METHODS)
def test_unknown_ones_and_changes_are_refused(method: str) -> None:
    options = options_of(method)
    with pytest.raises(TypeError, match="nonsense"):
        options(nonsense=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        options("positional")  # type: ignore[call-arg]
    for each in fields(options):
        with pytest.raises(FrozenInstanceError):
            setattr(options(), each.name, default_of(each))


def test_every_trained_method_accumulates_and_no_other_does() -> None:
    for name, method in METHODS.items():
        assert issubclass(options_of(name), TrainingOptions) != method.closed_form
    assert batches_per_step(TrainingOptions(accumulate_grad_batches=3)) == 3
    assert batches_per_step(MethodOptions()) == 1


def test_a_method_refuses_bad_options_and_those_of_another(random_model: Path) -> None:
    pipe = load_pipeline(str(random_model))
    with pytest.raises(ValueError, match=r"method\.accumulate_grad_batches=0: at least 1 and"):
        make_method(pipe, "esd", accumulate_grad_batches=0)
    with pytest.raises(AssertionError, match="ESDOptions"):
        METHODS["esd"](pipe.unet, None, options_of("uce")())  # type: ignore[arg-type]
