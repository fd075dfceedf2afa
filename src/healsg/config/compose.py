"""Composer: composes ``conf/``, a user's folder and a command line to a checked configuration, without torch."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from healsg.config import check, packages, targets
from healsg.config.interpolation import check_interpolations
from healsg.config.names import did_you_mean
from healsg.config.overrides import parse, quoted
from healsg.config.schema import Composed, TaskConfig, check_init_from, verify
from healsg.config.values import has_key
from healsg.errors import ConfigError, one_line
from healsg.paths import project_folders, shown
from healsg.runs import provenance
from healsg.runs.folder import ROOT

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

    from healsg.config.hydra_loader import CheckedLoader

SEVERAL = ("logger", "model/metrics", "runner/callbacks", "recipe")
"""The groups of which several options go together. Those of another one would be mixed to a part that nobody wrote."""

MOST = 10_000
"""The largest number of jobs in a sweep."""


def conf_folder() -> Path:
    """The ``conf/`` of the package: inside it when installed, next to ``src/`` in a checkout."""
    inside = Path(__file__).parents[1] / "conf"
    return inside if inside.is_dir() else Path(__file__).parents[3] / "conf"


class Composer:
    """Composes configurations from the shipped ``conf/``, a folder ``conf/`` in the current directory, ``config_dir``,
    and the ``conf/`` of installed packages that add parts.

    Args:
        config_dir: a user's folder with groups or recipes, searched in addition.
        config_name: the primary config.
    """

    def __init__(self, config_dir: str | None = None, config_name: str = "config") -> None:
        from hydra.core.config_search_path import SearchPathQuery
        from hydra.core.global_hydra import GlobalHydra

        from healsg.config.hydra_loader import Layers, create_hydra, search_path_of, use_defaults_of_1_3

        self.name = config_name
        self.project = project_folders()
        if not self.project:
            raise ConfigError("the current directory has been removed; change to one that exists")
        search_path = search_path_of(conf_folder())
        given = [] if config_dir is None else [Path(config_dir).resolve()]
        if given and not given[0].is_dir():
            raise ConfigError(f"--config-dir: there is no folder {config_dir}")
        self.project += [folder.parent for folder in given]
        self._origins = {folder: str(shown(folder)) for folder in [*given, *_own_folders()]}
        self._origins |= _added_folders()
        for folder in self._origins:
            search_path.prepend("command-line", f"file://{folder}", SearchPathQuery(provider="schema"))
        use_defaults_of_1_3()
        GlobalHydra.instance().clear()
        self.hydra = create_hydra("healsg", search_path)
        self._loader = self.hydra.config_loader
        self.layers = Layers(cast("CheckedLoader", self._loader))
        self._groups: list[str] = []

    def origin(self, file: Path) -> str:
        """Where a file of the configuration comes from: ``healsg``, an installed package, or a folder of the user's."""
        return next((name for folder, name in self._origins.items() if file.is_relative_to(folder)), "healsg")

    def parse(self, overrides: Sequence[str]) -> list[Override]:
        """Parse overrides in Hydra's grammar. Raises ConfigError, which suggests a key for a word without ``=``."""
        for override in overrides:
            if re.fullmatch(r"[\w/@][\w./@-]*", override):
                raise ConfigError(check.explain_word(override, self.choices(), self.base([])))
        return parse(overrides, self._loader)

    def suggest(self, key: str, value: str, overrides: Sequence[str]) -> str | None:
        """The override that was probably meant by an unknown ``key`` with ``value``; None if nothing is similar.

        Args:
            key: a key that does not exist.
            value: its value, as text.
            overrides: the other overrides of the command; those that choose parts decide which keys there are.
        """
        if option := check.option_of(key, value, self.choices()):
            return option
        from omegaconf import OmegaConf

        base = self.base(overrides)
        plain: Any = OmegaConf.to_container(base, resolve=False)
        meant = key if has_key(base, key) else check.nearest(key, plain)
        current = OmegaConf.select(base, meant) if meant else None
        return meant and f"{meant}={value or check.example(current)}"

    def compose(self, overrides: Sequence[str], checked: bool = True) -> Composed:
        """Compose a configuration, resolve its interpolations and check it. Raises ConfigError of one line."""
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException

        parsed = self.parse(overrides)
        for override in parsed:
            if override.is_sweep_override():
                raise ConfigError(_needs_sweep(str(override.input_line)))
            if override.is_hydra_override() and override.get_key_element() not in ("hydra.searchpath", "hydra.mode"):
                raise ConfigError(_not_hydras(override.get_key_element()))
            group = override.key_or_group
            if isinstance(override.value(), list) and group not in SEVERAL and self.options(group):
                raise ConfigError(
                    f"{override.input_line}: {group} takes one option; a sweep (-m) takes several in turn"
                )
        config = self.unresolved(overrides)
        hydra_node = config.hydra
        chosen = hydra_node.runtime.choices.items()
        choices = {group: option for group, option in chosen if option is not None and not group.startswith("hydra")}
        hydra: Any = OmegaConf.to_container(hydra_node, resolve=False)
        del config["hydra"]
        unresolved: Any = OmegaConf.to_container(config, resolve=False)
        check_interpolations(unresolved)
        try:
            values: Any = OmegaConf.to_container(config, resolve=True)
        except (OmegaConfBaseException, RecursionError) as error:
            reason = (str(error).splitlines() or ["?"])[0]  # further lines repeat the key
            raise ConfigError(f"{getattr(error, 'full_key', None) or 'config'}: {reason}") from error
        if type(values.get("name")) is int:
            values["name"] = str(values["name"])
        composed = Composed(values, choices, hydra, list(overrides), tuple(self.project))
        for override in parsed:
            key = override.get_key_element()
            if override.is_add() and key.lstrip("+").split(".")[0] not in TaskConfig.__annotations__:
                raise ConfigError(check.explain_addition(key, config))
        if checked:
            verify(composed)
            check_init_from(composed)
        return composed

    def unresolved(self, overrides: Sequence[str]) -> Any:
        """Hydra's composition, with its own node, unresolved and unchecked. Raises ConfigError."""
        from hydra.types import RunMode
        from omegaconf import OmegaConf

        try:
            config = self.hydra.compose_config(
                self.name, self.without_null(overrides), RunMode.RUN, with_log_configuration=False, from_shell=False
            )
        except ConfigError:
            raise
        except Exception as error:  # Hydra raises all kinds of exceptions for malformed overrides
            raise self._explained(error, overrides) from error
        OmegaConf.set_struct(config, False)
        return config

    def without_null(self, overrides: Sequence[str]) -> list[str]:
        """The overrides with ``~group`` for ``group=null``, which Hydra does not accept."""
        accepted = []
        for override in self.parse(overrides):
            null = override.value() is None and not override.is_delete() and self.options(override.key_or_group)
            accepted.append(f"~{override.key_or_group}" if null else str(override.input_line))
        return accepted

    def _explained(self, error: Exception, overrides: Sequence[str]) -> ConfigError:
        """Why a composition failed, in one line: an unknown option, an unknown key, or Hydra's own message."""
        groups, values = [], []
        for override in self.parse(overrides):
            key, option = override.key_or_group, override.value()
            chooses = not isinstance(option, dict) and (self.options(key) or key in self.groups())
            if override.is_hydra_override() or not chooses:
                values.append(override)
                continue
            groups.append(override)
            for name in option if isinstance(option, list) else [option]:
                if isinstance(name, str) and name not in self.options(key):
                    return ConfigError(check.explain_option(key, name, self.options(key)))
        if found := self._explained_file(error):
            return found
        if len(groups) == len(overrides):
            return ConfigError(one_line(error))
        base = self.base(overrides)
        for override in values:
            key = override.get_key_element().lstrip("+~")
            if "/" in key:
                return ConfigError(f"{key}: no such group{did_you_mean(key.split('@')[0], self.groups())}")
            if not has_key(base, key):
                if override.is_add():
                    continue
                text = str(override.input_line).partition("=")[2]
                if meant := check.option_of(key, text, self.choices()):
                    return ConfigError(f"{key}: no such key; did you mean {meant}?")
                return ConfigError(check.explain_unknown(key, base, text))
            for name in inner_keys if isinstance(inner_keys := override.value(), dict) else ():
                if not has_key(base, inner := f"{key}.{name}"):
                    return ConfigError(check.explain_unknown(inner, base))
        return ConfigError(one_line(error))

    def _explained_file(self, error: Exception) -> ConfigError | None:
        """Why a file of options cannot be used, where its defaults list is the cause; None for any other error."""
        if isinstance(error, RecursionError):
            return ConfigError(
                "the defaults of an option lead back to the option itself; leave that line out of its YAML"
            )
        message = one_line(error)
        if match := re.match(r"In '(.+?)': Could not (?:load|find) '(.+?)'", message):
            file, (group, _, option) = match[1], match[2].rpartition("/")
            return ConfigError(
                f"{file}.yaml: its defaults name {check.explain_option(group, option, self.options(group))}"
            )
        if match := re.match(r"In '(recipe/.+?)': Could not override '(.+?)@recipe\.", message):
            way = "its first line has to be '# @package _global_'"
            return ConfigError(f"{match[1]}.yaml: would set {match[2]} of the recipe alone; {way}")
        return None

    def base(self, overrides: Sequence[str]) -> Any:
        """The configuration with those of ``overrides`` that choose options of groups, and without the others."""
        chosen = [
            str(override.input_line)
            for override in self.parse(overrides)
            if not override.is_hydra_override() and self.options(override.key_or_group)
        ]
        from hydra.errors import HydraException
        from omegaconf import OmegaConf

        from healsg.config.hydra_loader import merged

        try:  # without Hydra's own node, which is most of the work of a composition
            base: Any = OmegaConf.create(merged(self.layers.of(self.name, self.without_null(chosen))))
        except (HydraException, OSError, RecursionError):  # which a composition explains
            base = self.unresolved(chosen)
        base.pop("hydra", None)
        return base

    def choices(self) -> dict[str, list[str]]:
        """The options of each group, outer groups first."""
        groups = sorted(self.groups(), key=lambda group: group.count("/"))
        return {group: self.options(group) for group in groups if group != "data/common"}

    def options(self, group: str) -> list[str]:
        try:
            return [str(option) for option in self._loader.get_group_options(group)]
        except OSError:  # not a possible file name
            return []

    def groups(self) -> list[str]:
        """All groups, such as ``method`` and ``method/optimizer``; the folders are looked through once."""
        if not self._groups:
            self._groups = self._groups_below("")
        return self._groups

    def _groups_below(self, parent: str) -> list[str]:
        here = [f"{parent}/{name}".lstrip("/") for name in self._loader.list_groups(parent) if name != "hydra"]
        return here + [inner for group in here for inner in self._groups_below(group)]

    def sweep(self, overrides: Sequence[str]) -> list[list[str]]:
        """The jobs of a sweep, each as a list of overrides: the product of all swept values.

        A job's overrides are in the given order, with one value in place of each swept list. Raises ConfigError.
        """
        jobs: list[list[str]] = [[]]
        for given, override in zip(overrides, self.parse(overrides), strict=True):
            if not override.is_sweep_override():
                _refuse_texts(given, str(override.input_line))
                jobs = [[*job, given] for job in jobs]
                continue
            values = [f"{override.get_key_element()}={value}" for value in _swept(override)]
            if not 0 < len(jobs) * len(values) <= MOST:
                raise ConfigError(f"{override.input_line}: makes no jobs, or more than {MOST:,}; give fewer values")
            jobs = [[*job, value] for job in jobs for value in values]
        return jobs


def _own_folders() -> list[Path]:
    """The ``conf/`` of the current directory, unless it is the shipped one or lies in a run folder, which may come from
    anybody."""
    shipped = conf_folder().resolve()
    projects = (project.resolve() for project in project_folders())
    folders = [project / "conf" for project in projects if not provenance.within_run(project)]
    return [folder for folder in folders if folder.is_dir() and folder.resolve() != shipped]


def _added_folders() -> dict[Path, str]:
    """The ``conf/`` of each installed package that adds parts, with the package's name.

    Raises ConfigError if there is no such folder, or if one of its options already exists elsewhere.
    """
    added: dict[Path, str] = {}
    for name, package in packages.added():
        location = targets.package_folder(package)
        folder = location / "conf" if location else None
        if folder is None or not folder.is_dir():
            raise ConfigError(f"{name}: its entry point {packages.GROUP} names {package}, which has no folder conf/")
        for file in sorted(folder.rglob("*.yaml")):
            option = file.relative_to(folder)
            others = {conf_folder(): "healsg", **added}
            if other := next((owner for conf, owner in others.items() if (conf / option).exists()), None):
                taken = f"{option.with_suffix('').as_posix()} is an option of {other} already"
                raise ConfigError(f"{name}: {taken}; rename {file}, or uninstall the package")
        added[folder.resolve()] = name
    return added


def _not_hydras(key: str) -> str:
    """The message for a setting of Hydra that HEALSg does not use; it names our own setting."""
    ours = {"hydra/launcher": "launcher=local launcher.workers=4", "hydra/sweeper": "search=tpe search.trials=24"}
    name = key.replace(".", "/")
    if group := next((group for group in ours if name.startswith(group)), None):
        return f"{key}: Hydra's own are not used here; write {ours[group]}"
    return f"{key}: is not read here; a run's folder is runs/<name>, set name=..."


def _needs_sweep(override: str) -> str:
    """The message for an override with several values in a command without ``-m``."""
    key, _, value = override.partition("=")
    line = f"{override}: several values are the jobs of a sweep, for which add -m"
    if re.match(r"\w+\(", value):
        return line
    as_list, as_text = (shlex.quote(f"{key}={written}") for written in (f"[{value}]", f'"{value}"'))
    return f"{line}; a list is written {as_list}, a text {as_text}"


def _refuse_texts(override: str, parsed: str) -> None:
    """In a sweep, raise ConfigError for a value with commas that Hydra parsed as a single text, unless it names a file
    or a run."""
    value = override.partition("=")[2]
    if override == parsed or "," not in value or Path(value).exists() or (ROOT / value).exists():
        return
    each = ",".join(quoted(f"={part}")[1:] for part in value.split(","))
    several = shlex.quote(f"{override.partition('=')[0]}={each}")
    raise ConfigError(f"{override}: is it one text or several? Write {shlex.quote(parsed)}, or {several}")


def _swept(override: Override) -> list[str]:
    """The values of a swept override as text, at most ``MOST + 1`` of them. Raises ConfigError."""
    from hydra.core.override_parser.types import RangeSweep
    from hydra.errors import HydraException

    if not override.is_discrete_sweep():
        raise ConfigError(
            f"{override.input_line}: an interval is no list of values; give them, or search it: search=tpe"
        )
    try:
        if isinstance(given := override.value(), RangeSweep):
            size: Any = (given.stop or 0) - (given.start or 0)
            if not size / given.step <= MOST:
                return [""] * (MOST + 1)
        return list(islice(override.sweep_string_iterator(), MOST + 1))
    except (HydraException, ArithmeticError, ValueError) as error:
        raise ConfigError(f"{override.input_line}: is no list of values ({one_line(error)})") from error
