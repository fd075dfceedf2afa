"""Hydra's loader of configuration files, with a check of each file before it is loaded.

Files in the folders of ``--config-dir`` and ``hydra.searchpath`` may come from anybody, and only Hydra knows, from the
defaults lists, which of them are loaded. So the check takes place where Hydra opens a file. Hydra has no public names
for this: everything that is used of ``hydra._internal`` is imported here.
"""

from __future__ import annotations

import copy
import os
import re
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import hydra
from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra._internal.config_repository import CachingConfigRepository, ConfigRepository
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.defaults_list import create_defaults_list
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException
from hydra.plugins.config_source import ConfigResult
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from healsg.config.yamlfiles import parse, read_text, read_yaml

Stamp = tuple[Path, int, int, int]
"""A file with its inode, time and size, by which a change is noticed."""

_read: dict[tuple[str, Stamp], ConfigResult | None] = {}
"""What this process has read, by provider and file."""


_CHANGING = object()
"""In the place of a stamp, and equal to none."""

_RESOLVER = re.compile(r"\$\{[^{}]*:")
"""An interpolation that calls a resolver, such as ``${oc.env:DATA}``."""


class _ChosenOptions(NamedTuple):
    """The composition of chosen options, before the overrides of values.

    Args:
        config: the configuration.
        files: ``CheckedRepository.looked_up`` of it.
    """

    config: DictConfig
    files: dict[str, object]


_chosen: dict[tuple[Any, ...], _ChosenOptions] = {}
"""The compositions of this process, by search path, primary config and chosen options."""


class FileSource(FileConfigSource):
    """A folder of the search path: as Hydra reads it, in a fifth of the time."""

    def load_config(self, config_path: str) -> ConfigResult:
        file = Path(self.path, self._normalize_file_name(config_path))
        text = read_text(file)
        header = self._get_header_dict(text[:512])
        config = OmegaConf.create(parse(file, text))
        return ConfigResult(config=config, path=self.full_path(), provider=self.provider, header=header)

    def is_group(self, config_path: str) -> bool:
        """Without Hydra's ``realpath``, which asks for each folder on the way whether it is a link."""
        return Path(self.path, config_path).is_dir()

    def is_config(self, config_path: str) -> bool:
        return Path(self.path, self._normalize_file_name(config_path)).is_file()


class CheckedRepository(ConfigRepository):
    """The configuration files on the search path. Raises ConfigError for one that would expand beyond the limits."""

    def __init__(self, config_search_path: ConfigSearchPath) -> None:
        super().__init__(config_search_path=config_search_path)
        self.looked_up: dict[str, object] = {}
        """By ``group/option`` the stamp of the file that was looked up, here or in a copy; None where there is no file,
        and ``_CHANGING`` where its defaults list depends on more than the files."""

    def initialize_sources(self, config_search_path: ConfigSearchPath) -> None:
        super().initialize_sources(config_search_path)
        self.sources = [
            FileSource(source.provider, source.path) if source.scheme() == "file" else source for source in self.sources
        ]

    def __deepcopy__(self, memo: dict[int, Any]) -> CheckedRepository:
        """Hydra copies the repository for each composition, in order to give the copy other sources."""
        return copy.copy(self)

    def load_config(self, config_path: str) -> ConfigResult | None:
        """A copy of the cached content of a file: reading YAML is a third of a composition, and a process may compose
        many times, e.g. for the trials of a search."""
        stamp = self.stamp(config_path)
        self.looked_up[config_path] = stamp
        source = self._find_object_source(config_path, ObjectType.CONFIG)
        if source is None or stamp is None:
            return super().load_config(config_path)
        key = (source.provider, stamp)
        if key not in _read:
            _read[key] = super().load_config(config_path)
        result = copy.deepcopy(_read[key])
        if result is not None and any(map(_RESOLVER.search, map(repr, result.defaults_list or ()))):
            self.looked_up[config_path] = _CHANGING
        return result

    def stamp(self, config_path: str) -> Stamp | None:
        """The stamp of the file that ``group/option`` is read from; None where there is no file."""
        file = self.file_of(config_path)
        if file is None:
            return None
        status = file.stat()
        return file, status.st_ino, status.st_mtime_ns, status.st_size

    def file_of(self, config_path: str) -> Path | None:
        """The file that ``group/option`` is read from; None for Hydra's own options."""
        source = self._find_object_source(config_path, ObjectType.CONFIG)
        if source is None or source.scheme() != "file":  # the options of Hydra's plugins are classes and not files
            return None
        return Path(source.path, source._normalize_file_name(config_path))


class CheckedLoader(ConfigLoaderImpl):
    """Hydra's loader over a ``CheckedRepository``."""

    repository: CheckedRepository

    def __init__(self, config_search_path: ConfigSearchPath) -> None:
        super().__init__(config_search_path=config_search_path)
        self.repository = CheckedRepository(config_search_path=config_search_path)

    def load_configuration(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        """Hydra's composition, the larger part of which depends on the chosen options alone and is done once for them.

        The overrides of values are applied to a copy, which takes a tenth of the time; a search or a sweep composes for
        each of its jobs. A composition is done again if one of its files has changed, and as a whole if the search path
        is extended by ``hydra.searchpath``.
        """
        parsed = OverridesParser.create().parse_overrides(overrides)
        special = any(override.is_sweep_override() or override.is_hydra_override() for override in parsed)
        primary = None if config_name is None else self.repository.load_config(config_name)
        extended = primary is not None and OmegaConf.select(primary.config, "hydra.searchpath") is not None
        if special or extended or run_mode is not RunMode.RUN:
            return super().load_configuration(config_name, overrides, run_mode, from_shell, validate_sweep_overrides)
        choices = list[Override]()
        values = list[Override]()
        for override in parsed:
            (values if self._sets_value(override) else choices).append(override)
        config = self._with_options(config_name, _lines(choices))
        try:
            self._apply_overrides_to_config(values, config)
        except OmegaConfBaseException as error:  # as Hydra does
            raise ConfigCompositionException() from error
        dirname = config.hydra.job.config.override_dirname
        name = get_overrides_dirname(
            parsed, kv_sep=dirname.kv_sep, item_sep=dirname.item_sep, exclude_keys=dirname.exclude_keys
        )
        OmegaConf.update(config, "hydra.overrides.task", _lines(parsed), merge=False)
        OmegaConf.update(config, "hydra.runtime.cwd", os.getcwd())  # noqa: PTH109 - as Hydra does
        OmegaConf.update(config, "hydra.job.override_dirname", name)
        return config

    def _sets_value(self, override: Override) -> bool:
        """Whether an override sets a value, and does not choose an option; Hydra asks the same."""
        return isinstance(override.value(), dict) or not self.repository.group_exists(override.key_or_group)

    def _with_options(self, config_name: str | None, chosen: list[str]) -> DictConfig:
        """The composition of the options that were chosen by overrides; a copy, if its files have not changed."""
        repository = self.repository
        search_path = tuple((source.provider, source.path) for source in repository.sources)
        key = (search_path, config_name, *chosen)
        known = _chosen.get(key)
        if known is None or any(repository.stamp(path) != stamp for path, stamp in known.files.items()):
            repository.looked_up.clear()
            config = super().load_configuration(config_name, chosen, RunMode.RUN, from_shell=False)
            if config.hydra.job.env_copy:  # the environment may be another one next time
                return config
            known = _chosen[key] = _ChosenOptions(config, dict(repository.looked_up))
        return copy.deepcopy(known.config)

    def get_group_options(
        self,
        group_name: str,
        results_filter: ObjectType | None = ObjectType.CONFIG,
        config_name: str | None = None,
        overrides: list[str] | None = None,
    ) -> list[str]:
        """Without a configuration or overrides, which might extend the search path, this asks the repository directly:
        Hydra copies it for each call, which takes most of the time of ``healsg explain``."""
        if config_name is None and not overrides:
            return self.repository.get_group_options(group_name, results_filter)
        return super().get_group_options(group_name, results_filter, config_name, overrides)


def _lines(overrides: Sequence[Override]) -> list[str]:
    """The overrides as they were written."""
    return [str(override.input_line) for override in overrides]


def use_defaults_of_1_3() -> None:
    """Make Hydra 1.3 behave as with ``version_base="1.3"``; 1.4 always does, and warns if it is set."""
    if hydra.__version__.startswith("1.3."):
        version.setbase("1.3")


def search_path_of(folder: Path) -> ConfigSearchPath:
    """Hydra's search path that begins with a folder of configuration files."""
    return create_config_search_path(str(folder))


def argument_parser() -> ArgumentParser:
    """The parser of Hydra's own options."""
    return get_args_parser()


def create_hydra(name: str, search_path: ConfigSearchPath) -> Hydra:
    """Like ``Hydra.create_main_hydra2``, with a repository that checks its files."""
    instance = Hydra(task_name=name, config_loader=CheckedLoader(search_path))
    GlobalHydra.instance().initialize(instance)
    return instance


class Layer(NamedTuple):
    """One file of a composition.

    Args:
        package: where in the configuration its content is placed, such as ``method.optimizer``; empty at the top.
        path: its group and option, such as ``method/optimizer/adamw``.
        file: its path.
        content: its keys and values, without its defaults list.
    """

    package: str
    path: str
    file: Path
    content: dict[str, Any]


class Layers:
    """The files that configurations are composed of; each is read once.

    Args:
        loader: that of a ``Composer``.
    """

    def __init__(self, loader: CheckedLoader) -> None:
        self._repository = CachingConfigRepository(loader.repository)
        self._files = loader.repository
        self._parser = OverridesParser.create(config_loader=loader)
        self._contents: dict[str, dict[str, Any]] = {}

    def of(self, name: str, overrides: Sequence[str] = ()) -> list[Layer]:
        """The layers of a primary config, such as ``config`` or ``method/fixmatch``; later ones override earlier ones.

        Args:
            name: the primary config.
            overrides: those that choose options.
        """
        parsed = self._parser.parse_overrides(list(overrides))
        result = create_defaults_list(self._repository, name, parsed, prepend_hydra=False, skip_missing=False)
        layers = []
        for default in result.defaults:
            path = default.config_path
            file = self.file_of(path) if path else None
            if path and file:
                layers.append(Layer(default.package or "", path, file, self.content(path)))
        return layers

    def file_of(self, path: str) -> Path | None:
        """The file of ``group/option``; None if there is none."""
        return self._files.file_of(path)

    def content(self, path: str) -> dict[str, Any]:
        """The keys and values of ``group/option``, without its defaults list."""
        if path not in self._contents:
            file = self.file_of(path)
            content = {} if file is None else read_yaml(file)
            self._contents[path] = {name: value for name, value in content.items() if name != "defaults"}
        return self._contents[path]


def merged(layers: Sequence[Layer]) -> dict[str, Any]:
    """The values of a composition, without its overrides: what later files say takes the place of what earlier ones
    say."""
    values: dict[str, Any] = {}
    for layer in layers:
        node = values
        for name in filter(None, layer.package.split(".")):
            inner = node.get(name)
            node[name] = inner if isinstance(inner, dict) else {}
            node = node[name]
        _merge(node, layer.content)
    return values


def _merge(into: dict[str, Any], content: dict[str, Any]) -> None:
    for name, value in content.items():
        if isinstance(value, dict) and isinstance(into.get(name), dict):
            _merge(into[name], value)
        elif isinstance(value, dict):
            into[name] = {}
            _merge(into[name], value)
        else:
            into[name] = value
