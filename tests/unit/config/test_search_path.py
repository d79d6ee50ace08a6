"""Where files of conf/ are found: the package's, a folder of one's own, and a given search path."""

from __future__ import annotations

from pathlib import Path

import hydra
import pytest
from hydra.errors import MissingConfigException

from unlearn.config.compose import compose


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A conf/ in the working folder, and another folder of files."""
    for folder, related in (("conf", "lion"), ("elsewhere", "dog")):
        for name in (folder, "both"):
            path = tmp_path / folder / "concept" / f"{name}.yaml"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(
                "defaults:\n  - custom\n  - _self_\n  - override /anchor@_global_.anchor: cat\n"
                f"name: fox\nrelated: [{related}]\n"
            )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_files_of_the_working_folder_are_found(own: Path) -> None:
    assert compose(["concept=conf"]).concept.related == ["lion"]


def test_ones_own_files_count_before_a_search_path_that_is_given(own: Path) -> None:
    given = f"hydra.searchpath=['file://{own / 'elsewhere'}']"
    for name, related in (("elsewhere", "dog"), ("conf", "lion"), ("both", "lion")):
        assert compose([given, f"concept={name}"]).concept.related == [related]


def test_another_application_keeps_its_search_path(own: Path) -> None:
    with hydra.initialize_config_dir(str(own / "elsewhere"), version_base="1.3"):
        with pytest.raises(MissingConfigException):
            hydra.compose(overrides=["+concept=conf"])  # in conf/ of the working folder
        with pytest.raises(MissingConfigException):
            hydra.compose(overrides=["+concept=elephant"])  # a word
