"""Hydra's loader of configuration files, with each file looked at before it is loaded.

The folders of ``--config-dir`` and ``hydra.searchpath`` may hold files of anybody's; which of them are loaded only
Hydra finds out, from the defaults lists. So the check stands where Hydra opens a file.
"""

from __future__ import annotations

from pathlib import Path

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra._internal.hydra import Hydra
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigResult

from healsg.config.yamlfiles import check_file


class CheckedRepository(ConfigRepository):
    """The configuration files on the search path. Loading one that would grow beyond bounds raises ConfigError."""

    def load_config(self, config_path: str) -> ConfigResult | None:
        source = self._find_object_source(config_path, ObjectType.CONFIG)
        if source is not None and source.scheme() == "file":  # Hydra's plugins are classes of their own making
            check_file(Path(source.path, source._normalize_file_name(config_path)))
        return super().load_config(config_path)


def create_hydra(name: str, search_path: ConfigSearchPath) -> Hydra:
    """As ``Hydra.create_main_hydra2``, with a repository that checks its files."""
    loader = ConfigLoaderImpl(config_search_path=search_path)
    loader.repository = CheckedRepository(config_search_path=search_path)
    hydra = Hydra(task_name=name, config_loader=loader)
    GlobalHydra.instance().initialize(hydra)
    return hydra
