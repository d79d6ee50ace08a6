"""Let Hydra find the user's own conf/, those of installed packages, and the vocabulary's words."""

from __future__ import annotations

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

from unlearn.config.search_path import conf_dir, extend_search_path
from unlearn.config.vocabulary_words import VocabularySource

__all__ = ["ConfFolders", "VocabularySource"]  # Hydra registers the plugins of this module


class ConfFolders(SearchPathPlugin):
    """The plugin that extends the search path of this package's conf/ alone."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Extend the search path, unless it is that of another Hydra application."""
        folders = [str(part.path).removeprefix("file://") for part in search_path.get_path()]
        if str(conf_dir()) in folders:
            extend_search_path(search_path)
