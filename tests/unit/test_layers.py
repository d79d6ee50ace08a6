"""The architecture: each package imports only those before it, and no module imports itself."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

import unlearn

ROOT = Path(unlearn.__file__).parent
LAYERS = (
    "utils", "concepts", "models", "generation", "data", "methods", "weights", "config",
    "evaluation", "training", "exports", "sweeps", "reports", "api", "cli",
)  # fmt: skip
MANY = ("methods",)  # packages with a file for each of their kind
MOST_MODULES, MOST_IN_FUNCTIONS = 20, 15


class Import(NamedTuple):
    """One import of a module of this package."""

    importer: str
    imported: str
    in_function: bool

    def __str__(self) -> str:
        return f"{self.importer} imports {self.imported}"


def module_name(path: Path) -> str:
    """The dotted name of a module."""
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def type_checking(node: ast.AST) -> bool:
    """Whether it is `if TYPE_CHECKING:`, whose imports no program makes."""
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def nodes(node: ast.AST, within: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    """Every node below, and whether it is in a function."""
    for child in ast.iter_child_nodes(node):
        if not type_checking(child):
            yield child, within
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from nodes(child, within or inside)


def own_imports(name: str, tree: ast.Module) -> Iterator[Import]:
    """A module's imports of this package's modules."""
    for node, within in nodes(tree):
        found: list[str] = []
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name}: imports are absolute"
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            found = [part if part in MODULES else str(node.module) for part in inside]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "import_module":
            found = [
                ast.literal_eval(arg) for arg in node.args[:1] if isinstance(arg, ast.Constant)
            ]
        for each in found:
            if each.partition(".")[0] == "unlearn" and each != name:
                yield Import(name, each, within)


IMPORTS = [
    each
    for name, path in MODULES.items()
    for each in own_imports(name, ast.parse(path.read_text(encoding="utf-8")))
]


def layer(module: str) -> int:
    """The place of a module's package; the roof, `unlearn` itself, is the last."""
    _, _, rest = module.partition(".")
    return LAYERS.index(rest.partition(".")[0]) if rest else len(LAYERS)


def test_every_module_is_in_a_layer() -> None:
    assert {name.split(".")[1] for name in MODULES if "." in name} == {*LAYERS}
    assert len(IMPORTS) > 300  # so they were found


def test_each_package_imports_only_those_before_it() -> None:
    lazy = Import("unlearn", "unlearn.api", True)  # the public API, loaded at the first use
    for each in IMPORTS:
        if each != lazy and each.imported != "unlearn":
            assert layer(each.imported) <= layer(each.importer), each


def test_no_module_imports_the_public_api_s_package() -> None:
    """It would load what `unlearn/__init__.py` puts off; only experiments and users do."""
    assert [str(each) for each in IMPORTS if each.imported == "unlearn"] == []


def test_there_is_no_import_circle() -> None:
    graph: dict[str, set[str]] = {name: set() for name in MODULES}
    for each in IMPORTS:
        graph[each.importer].add(each.imported)
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_no_folder_has_too_many_modules() -> None:
    for folder in [ROOT, *(path for path in ROOT.rglob("*") if path.is_dir())]:
        if folder.name not in MANY:
            assert len([*folder.glob("*.py")]) <= MOST_MODULES, folder


def test_few_imports_of_own_code_stand_in_functions() -> None:
    found = [str(each) for each in IMPORTS if each.in_function]
    assert len(found) <= MOST_IN_FUNCTIONS, found


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from unlearn.cli import main", [("unlearn.cli.main", False)]),
        ("from unlearn.cli.main import run", [("unlearn.cli.main", False)]),
        ("import unlearn.api", [("unlearn.api", False)]),
        ("def f():\n    from unlearn import api", [("unlearn.api", True)]),
        ("class A:\n    def f(self):\n        import unlearn.api", [("unlearn.api", True)]),
        ("def f():\n    import_module('unlearn.api')", [("unlearn.api", True)]),
        ("try:\n    import unlearn.api\nexcept ImportError:\n    pass", [("unlearn.api", False)]),
        ("if TYPE_CHECKING:\n    import unlearn.api", []),
        ("import unlearning\nfrom torch import nn", []),
    ],
)
def test_every_form_of_import_is_seen(source: str, found: list[tuple[str, bool]]) -> None:
    seen = own_imports("unlearn.utils.checks", ast.parse(source))
    assert [(each.imported, each.in_function) for each in seen] == found
