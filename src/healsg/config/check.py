"""Checks a composed configuration against the signatures of the constructors it names, without importing them."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from healsg.config import targets
from healsg.config.names import did_you_mean
from healsg.config.signature import ANY, NONE, Kind, Parameter, constructor, ranged
from healsg.errors import ConfigError
from healsg.types import Divides, Excludes, Range, Relation, Requires, finite

_WORDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a text", "none": "null"}
_WORDS |= {"dict": "a mapping", "list": "a list", "part": "a part", "any": "a value"}
_HYDRA = {"_partial_": Kind("bool"), "_recursive_": Kind("bool")}
_HYDRA["_convert_"] = Kind("literal", values=("none", "partial", "object", "all"))
DEEPEST = 32
"""The deepest nesting that a configuration may have."""

_ASSEMBLED = ("task",)
"""Nodes whose remaining arguments are passed when the task is assembled."""

_OPTIMIZER = "method.optimizer"
"""The partial that is called with the parameters alone; callers of others may give further arguments."""

_SHARE = Range(0, 1, open_high=True)
_UNIT = Range(0, 1)
_FROM_ZERO = Range(low=0)
_FROM_ONE = Range(low=1)
_RANGES = dict.fromkeys(("lr", "weight_decay", "eps", "lambd", "lr_decay", "momentum_decay", "max_lr"), _FROM_ZERO)
_RANGES |= dict.fromkeys(("momentum", "betas", "rho"), _SHARE) | dict.fromkeys(("dampening", "alpha"), _UNIT)
_RANGES |= dict.fromkeys(("initial_accumulator_value", "eta_min", "min_lr", "gamma", "patience"), _FROM_ZERO)
_RANGES |= dict.fromkeys(("step_size", "T_max", "T_0", "max_iter", "ns_steps", "total_iters"), _FROM_ONE)
"""Ranges of arguments of torch.optim and trusted packages, whose annotations have none."""

_RELATIONS: dict[str, tuple[Relation, ...]] = {
    "nesterov": (Requires("momentum"), Excludes("dampening")),
    "fused": (Excludes("foreach"), Excludes("differentiable")),
}
"""Relations between arguments of torch.optim, for constructors that have all of them: the momentum of Muon may be 0."""


def check(
    config: Any,
    *,
    schema_target: str = "healsg.config.schema.TaskConfig",
    trusted: Sequence[str] = (),
    project: Path | Sequence[Path] | None = None,
) -> None:
    """Raise ConfigError for a wrong target, key, type or value. Nothing that the configuration names is imported.

    Args:
        config: the composed configuration, a DictConfig or plain values; interpolations are resolved.
        schema_target: the dataclass of the top level.
        trusted: packages, modules or definitions that may be called in addition to the built-in ones.
        project: the folders whose modules may be called as the user's own. A single folder is added to the current one;
            None is the current one alone.

    Raises:
        ConfigError: one line: the key, what is wrong, what would be right.
    """
    folders = [Path.cwd(), *([project] if project else [])] if isinstance(project, Path | None) else list(project)
    plain = _plain(config, resolve=True)
    items = list(entries(plain))
    nodes = [(key, value) for key, value in items if isinstance(value, dict) and "_target_" in value]
    for key, node in nodes:
        try:
            targets.allowed(node["_target_"], trusted, folders)
        except ConfigError as error:
            raise ConfigError(f"{_join(key, '_target_')}: {error}") from None
    if missing := next((key for key, value in items if value == "???"), None):
        raise ConfigError(f"{missing}: is missing; set {missing}=...")
    if large := next((key for key, value in items if huge(value)), None):
        raise ConfigError(f"{large}: is too large a number; whole numbers have 64 bits")
    top = constructor(schema_target)
    assert top is not None
    for key, value in plain.items():
        if key not in top.parameters:
            raise ConfigError(explain_unknown(str(key), plain))
        kind = top.parameters[key].kind
        is_node = isinstance(value, dict) and "_target_" in value
        _refuse(misfit(key, {} if is_node and kind.name == "dict" else value, kind))
    _refuse_missing("", top.parameters, plain, "a run")
    for key, node in nodes:
        _check_node(key, node, trusted, folders)


def _check_node(key: str, node: dict[str, Any], trusted: Sequence[str], project: Sequence[Path]) -> None:
    target = node["_target_"]
    signature = constructor(target, project)
    of_torch = target.startswith("torch.optim.")
    third_party = of_torch or target.split(".")[0] in [name.split(".")[0] for name in trusted]
    parameters = signature.parameters if signature else {}
    last = target.rpartition(".")[2]
    for name, value in node.items():
        path = _join(key, name)
        if name == "_args_":
            raise ConfigError(f"{path}: arguments without names are refused; give them by name")
        if name in _HYDRA:
            _refuse(misfit(path, value, _HYDRA[name]))
        elif name in parameters:
            parameter = parameters[name]
            _refuse(misfit(path, value, _third_party_kind(parameter, of_torch) if third_party else parameter.kind))
        elif signature and not signature.open and name != "_target_":
            near = did_you_mean(name, parameters) or f"; it takes {', '.join(parameters) or 'nothing'}"
            raise ConfigError(f"{path}: {last} takes no {name}{near}")
        else:
            _refuse(misfit(path, value, ANY))
    partial = node.get("_partial_") is True
    if not partial and key not in _ASSEMBLED:
        _refuse_missing(key, parameters, node, last)
    may_be_given_later = partial and key != _OPTIMIZER
    values = {name: node.get(name, ... if may_be_given_later else one.default) for name, one in parameters.items()}
    for name, parameter in parameters.items():
        relations = _RELATIONS.get(name, ()) if of_torch else parameter.relations
        if of_torch and any(relation.other not in parameters for relation in relations):
            continue
        for relation in relations:
            _refuse(conflict(key, name, values, relation))


def conflict(key: str, name: str, values: Mapping[str, Any], relation: Relation) -> str | None:
    """Why the value of an argument does not go with that of another one; None if it does, or if one is not known.

    Args:
        key: of the node.
        name: of the argument.
        values: of all arguments, those that are not given as their defaults; ``...`` for an unknown default.
        relation: what the argument asks of another one.
    """
    value = values[name]
    other = values.get(relation.other, ...)
    if value is ... or other is ... or not value:
        return None
    path = _join(key, name)
    other_path = _join(key, relation.other)
    if isinstance(relation, Requires) and not other:
        off = "false" if isinstance(value, bool) else "null"
        return f"{path}: {show(value)} needs {other_path}, which is {show(other)}; set that, or {path}={off}"
    if isinstance(relation, Excludes) and other:
        return f"{path}: {show(value)} and {other_path}={show(other)} exclude each other; leave one out"
    if isinstance(relation, Divides) and isinstance(value, int) and isinstance(other, int) and other % value:
        return f"{path}: {value} does not divide {other_path}={other}"
    return None


def _third_party_kind(parameter: Parameter, of_torch: bool) -> Kind:
    """The kind of a parameter of another package, with the range that is known for its name. All numbers of torch.optim
    are finite; those of a trusted package may be infinite, such as a limit that is never reached."""
    interval = _RANGES.get(parameter.name) or (Range() if of_torch else None)
    return ranged(Kind("float") if interval and parameter.kind == ANY else parameter.kind, interval)


def _refuse(line: str | None) -> None:
    if line:
        raise ConfigError(line)


def _refuse_missing(key: str, parameters: dict[str, Parameter], arguments: dict[str, Any], needed_by: str) -> None:
    for name, parameter in parameters.items():
        if not parameter.has_default and name not in arguments:
            path = _join(key, name)
            raise ConfigError(f"{path}: is missing; {needed_by} needs {describe(parameter.kind)}; set {path}=...")


def describe(kind: Kind) -> str:
    """The values that a kind accepts, in words: ``a whole number (int >= 1)``."""
    if kind.name == "literal":
        return f"{'one of' if len(kind.values) > 1 else 'the word'} {', '.join(map(str, kind.values))}"
    if kind.name == "union":
        plain = [inner for inner in kind.inner if inner.name != "part"]
        return " or ".join(map(describe, plain if plain not in ([], [NONE]) else kind.inner))
    if kind.name == "tuple":
        return f"a list of {len(kind.inner)}"
    limits = f" ({kind.name} {kind.range or ''}".rstrip() + ")"
    return _WORDS[kind.name] + limits * (kind.name in ("int", "float"))


def misfit(key: str, value: Any, kind: Kind) -> str | None:
    """Why ``key`` does not accept ``value``, as one line that starts with the key; None if it does."""
    mismatch = f"{key}: {show(value)} is not {describe(kind)}"
    if kind.name == "union":
        lines = {inner: misfit(key, value, inner) for inner in kind.inner}
        if None in lines.values():
            return None
        # A member of the right type whose line is specific, such as a range, explains more than "is not A or B".
        members = {inner: line for inner, line in lines.items() if inner.name not in ("none", "part")} or lines
        generic = [f"{key}: {show(value)} is not {describe(inner)}" for inner in members]
        return next((line for line in members.values() if line not in generic), mismatch)
    if isinstance(value, dict) and "_target_" in value:
        return None if kind.name in ("any", "part") else f"{key}: a part stands where {describe(kind)} belongs"
    if isinstance(value, (list, dict)):
        return _misfit_inside(key, value, kind) if _holds(value, kind) else mismatch
    if isinstance(value, float) and math.isnan(value):
        return f"{key}: nan is not a number that can be used" if kind.name in ("any", "part") else mismatch
    if kind.name == "part":
        if not isinstance(value, str):
            return f"{key}: {show(value)} is a plain value where a part belongs"
        return f"{key}: {show(value)} is a name where a part belongs; did you mean {key.replace('.', '/')}={value}?"
    if not _is_of(value, kind):
        return mismatch
    if kind.range is None or value in kind.range:
        return None
    return f"{key}: {show(value)} is {f'out of range: {kind.range}' if finite(value) else 'not a finite number'}"


def _holds(value: list[Any] | dict[Any, Any], kind: Kind) -> bool:
    return kind.name in (("any", "part", "dict") if isinstance(value, dict) else ("any", "part", "list", "tuple"))


def _misfit_inside(key: str, value: list[Any] | dict[Any, Any], kind: Kind) -> str | None:
    """The first misfit among the elements of a list or a mapping."""
    if kind.name == "part" and isinstance(value, dict):
        return f"{key}: has no _target_, but a part belongs here; choose one with {key.replace('.', '/')}=NAME"
    if kind.name == "tuple" and len(value) != len(kind.inner):
        return f"{key}: {show(value)} has {len(value)} elements, not {len(kind.inner)}"
    kinds = kind.inner if kind.name == "tuple" else (kind.inner or (ANY,)) * len(value)
    lines = (misfit(path, inner, kind) for (path, inner), kind in zip(_children(value, key), kinds, strict=True))
    return next(filter(None, lines), None)


def _is_of(value: Any, kind: Kind) -> bool:
    if kind.name == "literal":
        return any(type(value) is type(other) and value == other for other in kind.values)
    if kind.name == "float":
        return type(value) in (int, float)
    return kind.name == "any" or (value is None if kind.name == "none" else type(value).__name__ == kind.name)


def huge(value: Any) -> bool:
    """Whether a value is an integer of more than 64 bits."""
    return isinstance(value, int) and value.bit_length() > 63


def show(value: Any) -> str:
    """A value as a configuration writes it, such as ``null`` and ``true``."""
    return str(value).lower().replace("none", "null") if value is None or isinstance(value, bool) else repr(value)


def _plain(config: Any, resolve: bool) -> dict[str, Any]:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        plain = OmegaConf.to_container(config, resolve=resolve) if OmegaConf.is_config(config) else config
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key or 'config'}: {str(error).splitlines()[0]}") from error
    if not isinstance(plain, dict):
        raise ConfigError(f"config: {show(plain)} is no mapping of keys to values")
    return {str(key): value for key, value in plain.items()}


def _join(key: str, name: Any) -> str:
    return f"{key}.{name}" if key else str(name)


def _children(value: Any, key: str) -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        return [(_join(key, name), inner) for name, inner in value.items()]
    return [(f"{key}[{i}]", inner) for i, inner in enumerate(value)] if isinstance(value, (list, tuple)) else []


def entries(value: Any, key: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Every value of a configuration, outer ones first, with its dotted key. Raises ConfigError if too deep."""
    if depth > DEEPEST:
        raise ConfigError(f"{key[:60]}...: lies more than {DEEPEST} levels deep")
    yield key, value
    for path, inner in _children(value, key):
        yield from entries(inner, path, depth + 1)


def explain_unknown(key: str, config: Any, value: str = "") -> str:
    """The message for the override of a key that does not exist in ``config``; it suggests the nearest key.

    ``value`` is the override's value; the suggestion includes it, so that it can be copied.
    """
    plain = _plain(config, resolve=False)
    key = key.lstrip("+~").split("=")[0]
    if key.startswith("args."):
        return f"{key}: no such key; a setting of your own is added by +{key}={value or '...'}"
    if best := nearest(key, plain):
        return f"{key}: no such key; did you mean {best}{f'={value}' if value else ''}?"
    parent = key.rpartition(".")[0]
    siblings = [other for other, _ in entries(plain) if _is_key(other, key) and other.rpartition(".")[0] == parent]
    return f"{key}: no such key; there are {', '.join(siblings or list(plain))}"


def nearest(key: str, config: dict[str, Any]) -> str | None:
    """The key that was probably meant by ``key``: one with the same last name, else a similar one."""
    leaf = key.rpartition(".")[2]
    keys = [other for other, _ in entries(config) if _is_key(other, key)]
    near = [other for other in keys if other.rpartition(".")[2] == leaf]
    similar = [other for other in keys if did_you_mean(leaf, [other.rpartition(".")[2]])]
    near = near or [other for other in similar if other.split(".")[0] == key.split(".")[0]]
    near = near or difflib.get_close_matches(key, [other for other in keys if not key.startswith(f"{other}.")], 1, 0.7)
    near = near or similar
    return max(near, key=lambda other: difflib.SequenceMatcher(None, key, other).ratio()) if near else None


def _is_key(other: str, key: str) -> bool:
    """Whether an override can set ``other``, and it is neither ``key`` nor below it."""
    return bool(other) and "[" not in other and f"{other}.".find(f"{key}.") != 0


def option_of(key: str, value: str, groups: Mapping[str, Sequence[str]]) -> str | None:
    """``group=option`` if ``key``, such as ``optimizer`` or ``method.optimizer``, names a group that has the option
    ``value`` or a similar one; else None."""
    path = key.replace(".", "/")
    for group, options in groups.items():
        if group == path or group.endswith(f"/{path}"):
            similar = [value] if value in options else difflib.get_close_matches(value, options, 1, 0.6)
            if similar:
                return f"{group}={similar[0]}"
    return None


def example(current: Any) -> str:
    """A value to show after ``key=`` in a suggestion; ``current`` is the key's current value."""
    return show(not current) if isinstance(current, bool) else "..."


def explain_word(word: str, groups: Mapping[str, Sequence[str]], config: Any) -> str:
    """The message for a word without ``=``, such as ``cifar``; it suggests the group or key that was probably meant."""
    meant = [f"{group}={word}" for group, options in groups.items() if word in options]
    if not meant:
        keys = [(key, value) for key, value in entries(_plain(config, resolve=False)) if _is_key(key, "")]
        meant = [f"{key}={example(value)}" for key, value in keys if word in (key, key.rpartition(".")[2])]
    if not meant:
        group_of = {option: group for group, options in reversed([*groups.items()]) for option in options}
        meant = [f"{group_of[option]}={option}" for option in difflib.get_close_matches(word, group_of, 1, 0.6)]
    hint = f"; did you mean {' or '.join(meant[:3])}?" if meant else "; --help shows what there is"
    return f"{word}: is not of the form key=value{hint}"


def explain_option(group: str, option: str, options: Sequence[str]) -> str:
    """The message for an option that a group does not have; it lists the existing ones."""
    near = did_you_mean(option, options)
    return f"{group}={option}: no such option{near or ';'} {group} is one of {', '.join(options) or 'nothing'}"


def explain_addition(key: str, config: Any) -> str:
    """The message for ``+key=value`` where nothing reads the key; it suggests the nearest key and the node ``args``."""
    key = key.lstrip("+~").split("=")[0]
    line = explain_unknown(key, config).split("; there are")[0].replace("no such key", "nothing reads it")
    return f"{line} (settings of your own go under args: +args.{key.rpartition('.')[2]}=...)"
