"""Damaged and hostile files: refused in one line that names the file; nothing is written."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.helpers.bad_cases.damaged import CASES
from tests.helpers.bad_input import Case, name_of


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{name_of(case)} {case.message[:40]}")
def test_a_damaged_file_is_refused(case: Case, refused: Callable[[Case], None]) -> None:
    refused(case)
