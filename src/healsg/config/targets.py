"""Targets: finds the definition of a ``_target_`` in the source, without importing it, and decides whether it may be
called.

A configuration may come from somebody else. It may therefore call only parts: classes of the modules in ``PARTS``, of
installed packages that add parts (``healsg.config.packages``), of the user's project, or of packages that the user
named in ``trusted``.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import keyword
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cache
from importlib.machinery import PathFinder, SourceFileLoader
from pathlib import Path
from typing import Any, NamedTuple

from healsg.config.names import did_you_mean, is_below
from healsg.config.packages import GROUP, RESERVED, added
from healsg.errors import ConfigError

_MODULES = "datasets models methods metrics transforms optimizers schedulers losses loggers callbacks launchers "
_MODULES += "searches task runner data model method"
PARTS = (*(f"healsg.{name}." for name in _MODULES.split()), "torch.nn.", "torch.optim.", "torchvision.transforms.")
_NO_PARTS = tuple(f"torch.nn.{name}." for name in ("utils", "parallel", "cpp", "attention", "modules._functions"))
_ALLOWED = (
    "parts come from healsg, torch.nn, torch.optim, torchvision.models, torchvision.transforms, "
    f"modules in the current directory, installed packages with an entry point {GROUP}, or packages named in "
    "trusted=[...]"
)


class Module(NamedTuple):
    """A module that was found but not imported: its source file and, for a package, the folders of its submodules. It
    has neither if there is no source, as with C extensions."""

    name: str
    file: Path | None
    folders: tuple[str, ...]


class Definition(NamedTuple):
    """A definition: the module, the name in it, and its syntax tree (None if unknown)."""

    module: Module
    name: str
    node: ast.AST | None

    @property
    def path(self) -> str:
        return f"{self.module.name}.{self.name}".rstrip(".")


class _Names(NamedTuple):
    """The names of a module: for each its syntax tree or the path that it is imported from; the modules of star
    imports; and the names in ``__all__``."""

    bound: dict[str, str | ast.AST]
    stars: tuple[str, ...]
    public: frozenset[str]


def find_module(name: str, folders: Iterable[str | Path], installed: bool = False) -> Module | None:
    """Find the module ``name`` by its last part in ``folders``; with ``installed`` also through import hooks, which
    find built-in modules and editable installations."""
    spec = PathFinder.find_spec(name.rpartition(".")[2], [str(folder) for folder in folders])
    if spec is None and installed:
        with suppress(ImportError, ValueError):
            spec = importlib.util.find_spec(name)
    if not spec:
        return None
    file = Path(spec.origin) if isinstance(spec.loader, SourceFileLoader) and spec.origin else None
    return Module(name, file, tuple(((file or not spec.origin) and spec.submodule_search_locations) or ()))


def package_folder(name: str) -> Path | None:
    """The folder of an installed package, which is not imported; None if there is none."""
    top, *inner = name.split(".")
    module = find_module(top, sys.path, installed=True)
    for part in inner:
        module = find_module(f"{module.name}.{part}", module.folders) if module else None
    return Path(module.folders[0]) if module and module.folders else None


def split(path: str, search: Sequence[Path] = ()) -> tuple[Module | None, list[str]]:
    """Split ``path`` into its longest prefix that is a module, without the last part, and the remaining parts."""
    parts = path.split(".")
    module = find_module(parts[0], [*search, *sys.path], installed=True)
    for index in range(1, len(parts) - 1) if module else ():
        submodule = module and find_module(".".join(parts[: index + 1]), module.folders)
        if submodule is None:
            return module, parts[index:]
        module = submodule
    return module, parts[1:][-1:]


def resolve(path: str, search: Sequence[Path] = (), depth: int = 20) -> Definition:
    """Follow ``package.module.Name`` through re-exports to its definition. Raises ConfigError if there is none."""
    module, rest = split(path, search)
    if not module:
        raise ConfigError(f"there is no module {path.split('.')[0]}; is it spelled right, is it installed?")
    return within(module, rest, search, depth)


def within(module: Module, rest: Sequence[str], search: Sequence[Path] = (), depth: int = 20) -> Definition:
    """The definition of the dotted name ``rest`` in ``module``. Raises ConfigError if there is no such name."""
    unknown = Definition(module, ".".join(rest), None)
    if not rest or not (module.file or module.folders) or depth < 0:
        return unknown
    home, bound = _lookup(module, rest[0], search, depth)
    if isinstance(bound, str) and bound != f"{module.name}.{rest[0]}":
        return resolve(".".join([bound, *rest[1:]]), search, depth - 1)
    if isinstance(bound, (ast.Name, ast.Attribute)):
        alias = [*ast.unparse(bound).split("."), *rest[1:]]
        return within(home, alias, search, depth - 1) if _lookup(home, alias[0], search, depth)[1] else unknown
    if isinstance(bound, ast.AST):
        return unknown if rest[1:] else Definition(home, rest[0], bound)
    if submodule := find_module(f"{module.name}.{rest[0]}", module.folders):
        return within(submodule, rest[1:], search, depth - 1)
    names = names_of(module)
    if not rest[1:] and ("__getattr__" in names.bound or any(_star(star, search) is None for star in names.stars)):
        return unknown
    near = [file.stem for folder in module.folders for file in Path(folder).glob("*") if file.suffix in ("", ".py")]
    near = near if rest[1:] else [*names.bound, *near]
    raise ConfigError(f"{module.name} has no {rest[0]}{did_you_mean(rest[0], near)}")


def names_of(module: Module) -> _Names:
    """The names at the top level of ``module``; cached until the file changes."""
    return _read(module, module.file.stat().st_mtime_ns if module.file else 0)


def _lookup(module: Module, name: str, search: Sequence[Path], depth: int) -> tuple[Module, str | ast.AST | None]:
    names = names_of(module)
    if name in names.bound or depth < 0:
        return module, names.bound.get(name)
    for source in filter(None, (_star(star, search) for star in names.stars)):
        public = names_of(source).public
        visible = name in public if public else not name.startswith("_")
        if visible and (found := _lookup(source, name, search, depth - 1))[1] is not None:
            return found
    return module, None


def _star(path: str, search: Sequence[Path]) -> Module | None:
    """The module of ``from path import *``; None if its source cannot be read."""
    module, rest = split(f"{path}.*", search)
    return module if module and rest == ["*"] and (module.file or module.folders) else None


@cache
def _read(module: Module, stamp: int) -> _Names:
    try:
        tree = ast.parse(module.file.read_bytes() if module.file else b"")
    except (SyntaxError, ValueError) as error:
        raise ConfigError(f"{module.file} is not valid Python: {error}") from None
    bound, stars = dict[str, str | ast.AST](), list[str]()
    for node in _statements(tree.body):
        if isinstance(node, ast.Import):
            tops = ((alias.asname or alias.name.split(".")[0], alias) for alias in node.names)
            bound |= {top: alias.name if alias.asname else top for top, alias in tops}
        elif isinstance(node, ast.ImportFrom):
            parts = module.name.split(".")
            above = parts[: len(parts) + bool(module.folders) - node.level] if node.level else []
            source = ".".join([*above, *filter(None, [node.module])])
            stars += [source for alias in node.names if alias.name == "*"]
            bound |= {alias.asname or alias.name: f"{source}.{alias.name}" for alias in node.names if alias.name != "*"}
        elif isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            bound[node.name] = node
        elif isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            bound |= {target.id: node.value for target in targets if isinstance(target, ast.Name)}
    public = frozenset(getattr(item, "value", "") for item in getattr(bound.get("__all__"), "elts", ()))
    return _Names(bound, tuple(stars), public)


def _statements(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """All statements, also those inside ``if``, ``try`` and ``with``."""
    for node in body:
        yield node
        for field in ("body", "orelse", "finalbody") if isinstance(node, (ast.If, ast.Try, ast.With)) else ():
            yield from _statements(getattr(node, field, ()))


def targets_in(node: Any) -> Iterator[Any]:
    """Every ``_target_`` in a node of a configuration, at any depth."""
    if isinstance(node, dict) and "_target_" in node:
        yield node["_target_"]
    for inner in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from targets_in(inner)


def allowed(target: Any, trusted: Sequence[str] = (), project: Sequence[Path] = ()) -> None:
    """Raise ConfigError unless a ``_target_`` is a part of HEALSg or torch, a class of an installed package that adds
    parts, a class of a module in the ``project`` folders, or in a ``trusted`` package.

    Nothing is imported. The caller adds the key to the message.
    """
    parts = target.split(".") if isinstance(target, str) and target.isascii() else []
    if len(parts) < 2 or any(not p.isidentifier() or keyword.iskeyword(p) or p.startswith("__") for p in parts):
        raise ConfigError(f"{target!r} is not a dotted path of names; _target_ must be one, such as torch.optim.SGD")
    _refuse_shadow(parts[0], project)
    family = _family(target, trusted, project)
    if family is None:
        raise ConfigError(f"{target} is not a part; {_ALLOWED}")
    (module, rest), found = split(target, project), resolve(target, project)
    if len(rest) > 1 and not (family == "trusted" and module and not module.file):
        raise ConfigError(f"{target} is not a part: a part is one name in a module, and {rest[0]} is no module")
    home = _family(found.path, trusted, project)
    if home is None:
        raise ConfigError(f"{target} is not a part: it is {found.path}; {_ALLOWED}")
    syntax = ast.ClassDef | ast.FunctionDef if home == "builder" else ast.ClassDef
    if not (found.name if home == "trusted" else isinstance(found.node, syntax)):
        hint = f"; a part of your own is a class, or name its module in trusted=[{parts[0]}]" * (family == "project")
        raise ConfigError(f"{target} is not a class{hint}")


def verify_origin(part: Any, target: str, trusted: Sequence[str] = (), project: Sequence[Path] = ()) -> None:
    """Raise ConfigError if the origin of an imported ``part`` is not one that ``allowed`` accepts.

    A module may do something else at import than its source suggests, so the result is checked a second time.
    """
    origin = f"{getattr(part, '__module__', None)}.{getattr(part, '__qualname__', '?')}"
    family = _family(origin, trusted, project)
    if family is None or not (inspect.isclass(part) or (inspect.isfunction(part) and family in ("trusted", "builder"))):
        raise ConfigError(f"{target} is not a part: it is {origin}; {_ALLOWED}")
    file = getattr(sys.modules.get(part.__module__), "__file__", None)
    if family == "project" and not any(Path(file or "/").resolve().is_relative_to(home.resolve()) for home in project):
        raise ConfigError(f"{target}: {file} was imported, which lies outside {', '.join(map(str, project))}")


def _family(path: str, trusted: Sequence[str], project: Sequence[Path]) -> str | None:
    """Why a configuration may call a dotted path: it is ``trusted``, a ``builder`` (a function of torchvision.models),
    a ``part``, ``added`` by an installed package, or of the ``project``; None if it may not be called."""
    if is_below(path, trusted):
        return "trusted"
    if path.startswith("torchvision.models."):
        return None if "._" in path or ".feature_extraction." in path else "builder"
    if path.startswith("healsg.data.") and path.count(".") > 2 and not path.startswith("healsg.data.base."):
        # Loaders, workers and caches are not parts. A name that healsg.data re-exports is checked by its own module.
        return None
    if path.startswith(PARTS):
        return None if path.startswith(_NO_PARTS) or path.rpartition(".")[2].startswith("_") else "part"
    if is_below(path, [one.package for one in added()]):
        return "added"
    top = path.split(".")[0]
    own = None if top in RESERVED else find_module(top, project)
    return "project" if own and own.file else None


def _installed(top: str, project: Sequence[Path]) -> str | None:
    """The file of the installed module ``top``, outside the project; None if there is none."""
    folders = {folder.resolve() for folder in project}
    spec = PathFinder.find_spec(top, [entry for entry in sys.path if Path(entry).resolve() not in folders])
    return spec.origin if spec else None


def _refuse_shadow(top: str, project: Sequence[Path]) -> None:
    """Raise ConfigError if a module of the project has the name of an installed one, which it would hide."""
    own = find_module(top, project)
    if own and own.file:
        other = _installed(top, project)
        if top in sys.stdlib_module_names or (other and not (Path(other).exists() and own.file.samefile(other))):
            raise ConfigError(f"{own.file} hides the installed module {top}; rename it")
