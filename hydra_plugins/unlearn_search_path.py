"""Let Hydra find the files of the user's own conf/ before those of the package."""

from __future__ import annotations

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

from unlearn.config.search_path import conf_dir, user_conf_dir


class OwnFilesFirst(SearchPathPlugin):
    """The plugin that puts `conf/` of the working folder first."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Put the user's own conf/ first, unless it has a root of that name, as conf/train.yaml."""
        own = user_conf_dir()
        if own and not any((own / root.name).exists() for root in conf_dir().glob("*.yaml")):
            search_path.prepend("unlearn-own", f"file://{own}")
