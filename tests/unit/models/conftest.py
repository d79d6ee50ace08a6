"""A model on disk, for the tests of Stable Diffusion 3."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.flow import small


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("flow") / "model"
    small().save_pretrained(path)
    return path
