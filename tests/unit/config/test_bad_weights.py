"""Bad weights: damaged, lying, hostile, or of another model. Nothing of the pipeline changes."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import unlearn
from tests.helpers.bad_cases.weights import CASES, FILES, Bad, code_in_parts, trap
from tests.helpers.bad_input import Case, name_of, snapshot
from tests.helpers.weights import base_of, state_of


@pytest.mark.parametrize("bad", FILES, ids=lambda bad: bad.name)
def test_bad_weights_are_refused_and_change_nothing(
    bad: Bad, random_model: Path, tmp_path: Path
) -> None:
    pipe, state = base_of(random_model)
    path = tmp_path / "unlearned.safetensors"
    bad.write(path)
    before = snapshot(tmp_path)
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: .*{bad.message}"):
        unlearn.load_unlearned(pipe, path)
    assert snapshot(tmp_path) == before
    after = state_of(pipe)
    assert all(torch.equal(tensor, state[name]) for name, tensor in after.items())


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_a_command_refuses_bad_weights(case: Case, refused: Callable[[Case], None]) -> None:
    refused(case)  # nothing is written: so no trap has sprung either


def test_the_traps_are_traps(tmp_path: Path) -> None:
    trap(tmp_path)
    torch.load(tmp_path / "d.bin", weights_only=False)
    assert (tmp_path / "trap").is_dir()
    os.rmdir(tmp_path / "trap")
    code_in_parts(tmp_path)
    exec((tmp_path / "model" / "unet" / "own_code.py").read_text())
    assert (tmp_path / "trap").is_dir()


def test_no_pickle_is_read_but_as_plain_tensors() -> None:
    """Every torch.load of the package says weights_only=True, and nothing else unpickles."""
    package = Path(unlearn.__file__).parent
    loads = 0
    for path in [*package.rglob("*.py"), *(package.parent / "experiments").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            assert called not in ("pickle.load", "pickle.loads", "yaml.load", "eval", "exec"), path
            if called == "torch.load":
                keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
                assert keywords.get("weights_only") == "True", f"{path}:{node.lineno}"
                loads += 1
    assert loads >= 3
