"""Bad configuration: refused before any model is loaded, with the nearest valid names."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.helpers.bad_cases.config import CASES
from tests.helpers.bad_input import Case, name_of


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_bad_configuration_is_refused(case: Case, refused: Callable[[Case], None]) -> None:
    refused(case)
