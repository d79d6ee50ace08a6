"""The registry: names, papers, methods of other packages, and what it refuses."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from unlearn.methods.doco import DoCo
from unlearn.methods.esd import ESD, ESDOptions
from unlearn.methods.options import MethodOptions, TrainingOptions
from unlearn.methods.registry import (
    METHODS,
    build_method,
    find_method,
    method_for,
    options_of,
    register_method,
)
from unlearn.models.pipeline import load_pipeline
from unlearn.utils.options import option
from unlearn.weights.delta import load_unlearned, save_unlearned

PLUGIN = '''
from dataclasses import dataclass
from typing import ClassVar
from unlearn.methods.concept_ablation import ConceptAblation, ConceptAblationOptions
from unlearn.methods.registry import METHODS, register_method
from unlearn.utils.options import option

assert "doco" in METHODS  # a look-up while methods are loaded

@dataclass(frozen=True, kw_only=True)
class Options(ConceptAblationOptions):
    """Hold the options."""

    push: float = option(2.0, at_least=0, help="how far")

class Plain(ConceptAblation):
    """Train."""

    paper = "arXiv 1"
    Options: ClassVar = Options

@register_method("decorated", paper="arXiv 2", title="Decorated")
class Decorated(Plain):
    """Train too."""
'''


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """The registry as it is, whatever a test registers or loads."""
    len(METHODS)
    monkeypatch.setattr(METHODS, "registered", dict(METHODS.registered))
    monkeypatch.setattr(METHODS, "broken", {})


@pytest.fixture
def install(
    registry: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dict[str, str]]:
    """Entry points by name, of a package that is installed when the first look-up is made."""
    points: dict[str, str] = {}
    known = set(sys.modules)
    (tmp_path / "other_methods.py").write_text(PLUGIN)
    (tmp_path / "broken_methods.py").write_text("import no_such_module")
    info = tmp_path / "other_methods-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other-methods\nVersion: 1.0\n")

    class Points(dict[str, str]):
        def __setitem__(self, name: str, value: str) -> None:
            super().__setitem__(name, value)
            lines = [f"{key} = {own}" for key, own in self.items()]
            text = "\n".join(["[unlearn.methods]", *lines])
            (info / "entry_points.txt").write_text(text + "\n")

    points = Points()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(METHODS, "loaded", False)
    yield points
    for name in set(sys.modules) - known:
        if name in ("other_methods", "broken_methods"):
            del sys.modules[name]


def test_every_method_knows_its_name_and_its_paper() -> None:
    assert list(METHODS)[:3] == ["doco", "doco_reference", "regression"]
    for name, method in METHODS.items():
        assert (method.name, find_method(name), options_of(name)) == (name, method, method.Options)
        assert method.title
    without = {name for name, method in METHODS.items() if not method.paper}
    assert without == {"regression", "negative_prompt"}
    assert METHODS["doco"].paper == "arXiv 2405.15304"
    assert not hasattr(METHODS, "__setitem__")


def test_an_unknown_method_is_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"method\.name='docoo' is unknown; did you mean .*'doco'"):
        find_method("docoo")
    assert "docoo" not in METHODS


def test_a_class_is_registered_by_a_decorator(registry: None, random_model: Path) -> None:
    @dataclass(frozen=True, kw_only=True)
    class OwnOptions(ESDOptions):
        push: float = option(2.0, at_least=0, help="how far")

    @register_method("own", paper="arXiv 0", title="Own method")
    class Own(ESD):
        Options = OwnOptions

    assert (Own.name, Own.paper, Own.title) == ("own", "arXiv 0", "Own method")
    assert METHODS["own"] is Own
    assert (ESD.name, METHODS["esd"]) == ("esd", ESD)
    assert register_method("own")(Own) is Own  # again is no harm
    pipe = load_pipeline(str(random_model))
    assert method_for(pipe, "own") is Own
    built = build_method(pipe, "own", OwnOptions(push=3.0))
    assert (built.options.push, built.options.eta) == (3.0, 1.0)
    with pytest.raises(ValueError, match=r"method\.push=-1"):
        build_method(pipe, "own", OwnOptions(push=-1))


def test_names_that_are_taken_are_refused(registry: None) -> None:
    class Other(ESD):
        pass

    with pytest.raises(ValueError, match=r"'doco'\): the name is taken by .*doco\.DoCo"):
        register_method("doco")(Other)
    with pytest.raises(ValueError, match=r"'again'\): DoCo is the method 'doco' already"):
        register_method("again")(DoCo)
    assert (METHODS["doco"], Other.name, "again" in METHODS) == (DoCo, "esd", False)


def test_what_is_no_method_is_refused(registry: None) -> None:
    class NoOptions(ESD):
        Options = dict  # type: ignore[assignment]

    class Plain(TrainingOptions):  # no dataclass of its own: its field is none
        push: float = option(2.0, help="how far")

    class Undecorated(ESD):
        Options = Plain  # type: ignore[assignment]

    for bad in (dict, "DoCo", MethodOptions):
        with pytest.raises(TypeError, match="is no subclass of UnlearningModule"):
            register_method("bad")(bad)  # type: ignore[type-var]
    for bad in (NoOptions, Undecorated):
        with pytest.raises(TypeError, match=rf"{bad.__name__}\.Options=.* is no frozen dataclass"):
            register_method("bad")(bad)
    assert "bad" not in METHODS


def test_installed_packages_bring_methods(install: dict[str, str]) -> None:
    install["plain"] = "other_methods:Plain"
    install["decorated"] = "other_methods:Decorated"
    assert "other_methods" not in sys.modules
    plain = find_method("plain")
    assert (plain.name, plain.paper, plain.title) == ("plain", "arXiv 1", "plain")
    decorated = METHODS["decorated"]
    assert (decorated.name, decorated.paper, decorated.title) == (
        "decorated", "arXiv 2", "Decorated"
    )  # fmt: skip
    assert options_of("plain")(push=1.0).push == 1.0
    assert {"doco", "plain", "decorated"} <= set(METHODS)


def test_a_broken_package_breaks_its_own_method_alone(install: dict[str, str]) -> None:
    install["broken"] = "broken_methods:Broken"
    install["plain"] = "other_methods:Plain"
    with pytest.warns(UserWarning, match=r"'broken': .*'other-methods'.*no_such_module") as seen:
        assert find_method("doco") is DoCo
    assert len(seen) == 1
    assert find_method("plain").name == "plain"
    for _ in range(2):
        with pytest.raises(ValueError, match=r"method\.name='broken': .*'other-methods'.*no_such"):
            find_method("broken")
    assert "broken" not in METHODS
    with pytest.raises(ValueError, match="'brokem' is unknown"):
        find_method("brokem")


def test_a_broken_method_that_is_asked_for_is_an_error_and_no_warning(
    install: dict[str, str],
) -> None:
    install["broken"] = "broken_methods:Broken"
    with pytest.raises(ValueError, match=r"'broken': cannot be loaded from broken_methods:Broken"):
        find_method("broken")


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("doco", "other_methods:Plain", "the name is taken by"),
        ("other", "other_methods:Decorated", "Decorated is the method 'decorated' already"),
        ("number", "other_methods:option", "is no subclass of UnlearningModule"),
        ("nothing", "other_methods:Nothing", "AttributeError"),
    ],
)
def test_a_package_that_brings_no_method_of_that_name_is_told(
    install: dict[str, str], name: str, value: str, reason: str
) -> None:
    install[name] = value
    with pytest.warns(UserWarning, match=rf"'{name}': cannot be loaded .*{reason}"):
        assert METHODS["doco"] is DoCo


def test_a_file_of_a_broken_method_says_why(
    install: dict[str, str], random_model: Path, tmp_path: Path
) -> None:
    install["broken"] = "broken_methods:Broken"
    path = tmp_path / "unlearned.safetensors"
    save_unlearned({}, path, {"method": "broken", "at_inference": "{}"})
    with (
        pytest.warns(UserWarning, match="'broken': cannot be loaded"),
        pytest.raises(ValueError, match=r"safetensors: method\.name='broken': .*'other-methods'"),
    ):
        load_unlearned(load_pipeline(str(random_model)), path)
