"""The constructor is the schema: reads the signature of a class or function from its source, without importing it."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from healsg import types
from healsg.config.targets import Definition, Module, names_of, resolve, within
from healsg.errors import ConfigError

_LISTS = {"list", "List", "Sequence", "Iterable", "Collection", "set", "frozenset"}
_DICTS = {"dict", "Dict", "Mapping", "MutableMapping"}
_VALUE_CLASSES = {"Enum", "StrEnum", "IntEnum", "Flag", "TypedDict", "NamedTuple", "str", "int", "float", "dict"}
_ROOTS = {"object", "ABC", "Generic", "Protocol"}


@dataclass(frozen=True)
class Kind:
    """The values that an argument accepts.

    ``name`` is ``any``, ``part`` (an object made from a node with a ``_target_``), ``int``, ``float``, ``bool``,
    ``str``, ``none``, ``literal``, ``list``, ``tuple``, ``dict`` or ``union``. ``inner`` holds the kinds of a
    container's elements or a union's members, ``values`` the values of a literal.
    """

    name: str = "any"
    inner: tuple[Kind, ...] = ()
    values: tuple[Any, ...] = ()
    range: types.Range | None = None


ANY = Kind()
PART = Kind("part")
NONE = Kind("none")


def read_kind(node: ast.expr | None, module: Module, search: Sequence[Path] = (), depth: int = 8) -> Kind:
    """The kind of an annotation in ``module``; ``any`` if it cannot be checked.

    Args:
        node: the annotation's syntax tree; None if there is no annotation.
        module: the module of the annotation, whose names it uses.
        search: folders to look for modules in before ``sys.path``.
        depth: how many aliases, such as ``Padding = Literal[...]``, are followed.
    """
    match node:
        case ast.Constant(value=None):
            return NONE
        case ast.Constant(value=str(text)):
            try:
                return read_kind(ast.parse(text, mode="eval").body, module, search, depth)
            except SyntaxError:
                return ANY
        case ast.BinOp(op=ast.BitOr()):
            return _union([read_kind(side, module, search, depth) for side in (node.left, node.right)])
        case ast.Subscript():
            return _generic(node, module, search, depth)
        case ast.Name() | ast.Attribute():
            return _named(ast.unparse(node), module, search, depth)
    return ANY


def _union(kinds: Sequence[Kind]) -> Kind:
    flat = [inner for kind in kinds for inner in (kind.inner if kind.name == "union" else (kind,))]
    return ANY if ANY in flat else Kind("union", tuple(dict.fromkeys(flat)))


def _generic(node: ast.Subscript, module: Module, search: Sequence[Path], depth: int) -> Kind:
    head = ast.unparse(node.value).rpartition(".")[2]
    arguments = (node.slice.elts if isinstance(node.slice, ast.Tuple) else []) or [node.slice]
    if head == "Literal":
        try:
            return Kind("literal", values=tuple(ast.literal_eval(argument) for argument in arguments))
        except ValueError:
            return ANY
    if head in ("Callable", "type", "Type"):
        return PART
    inner = tuple(read_kind(argument, module, search, depth) for argument in arguments)
    if head in ("Optional", "Union"):
        return _union([*inner, NONE] if head == "Optional" else inner)
    if head in ("Annotated", "Final", "InitVar"):
        return ranged(inner[0], _read_range(arguments[1:]))
    if head in _LISTS:
        return Kind("list", inner[:1])
    if head in ("tuple", "Tuple"):
        any_length = isinstance(arguments[-1], ast.Constant) and arguments[-1].value is ...
        return Kind("list", inner[:1]) if any_length else Kind("tuple", inner)
    if head in _DICTS:
        return Kind("dict", inner[1:2])
    return _named(ast.unparse(node.value), module, search, depth)


def ranged(kind: Kind, interval: types.Range | None) -> Kind:
    """``kind`` with the range ``interval`` for all numbers in it that have none."""
    inner = tuple(ranged(one, interval) for one in kind.inner)
    return replace(kind, inner=inner, range=kind.range or (interval if kind.name in ("int", "float") else None))


def _read_range(arguments: Sequence[ast.expr]) -> types.Range | None:
    for call in arguments:
        if isinstance(call, ast.Call) and ast.unparse(call.func).rpartition(".")[2] == "Range":
            with suppress(ValueError):
                words = {word.arg: ast.literal_eval(word.value) for word in call.keywords if word.arg}
                return types.Range(*map(ast.literal_eval, call.args), **words)
    return None


def _named(name: str, module: Module, search: Sequence[Path], depth: int) -> Kind:
    last = name.rpartition(".")[2]
    if last in ("int", "float", "bool", "str"):
        return Kind(last)
    if last in ("Path", "PathLike"):
        return Kind("str")
    if last in _LISTS | _DICTS | {"tuple", "Tuple"}:
        return Kind("dict" if last in _DICTS else "list")
    if last == "Callable":
        return PART
    (first, *rest), top = name.split("."), module.name.split(".")[0]
    bound = names_of(module).bound.get(first)
    path = ".".join([bound, *rest]) if isinstance(bound, str) else f"{module.name}.{name}"
    if path.startswith("healsg.types."):
        base, interval = get_args(getattr(types, path.rpartition(".")[2], None)) or ("any", None)
        return Kind(getattr(base, "__name__", "any"), range=interval)
    if path == "torch.Tensor" or (path.startswith(("torch.nn.", "torch.optim.")) and last[0].isupper()):
        return PART
    if depth == 0 or bound is None or path.startswith("torch") or path.split(".")[0] not in ("healsg", top):
        return ANY
    try:
        definition = within(module, name.split("."), search)
    except ConfigError:
        return ANY
    if isinstance(definition.node, ast.ClassDef):
        bases = {ast.unparse(base).rpartition(".")[2] for base in definition.node.bases}
        return ANY if bases & _VALUE_CLASSES else PART
    if isinstance(definition.node, ast.expr):
        return read_kind(definition.node, definition.module, search, depth - 1)
    return ANY


class Parameter(NamedTuple):
    """An argument. ``default`` is ``...`` if there is none, or if it is not a literal; ``relations`` are what its
    annotation asks of other arguments."""

    name: str
    kind: Kind
    has_default: bool
    default: Any = ...
    relations: tuple[types.Relation, ...] = ()


class Constructor(NamedTuple):
    """The arguments of a target; ``open`` if it also accepts others, whose names its source does not show."""

    target: str
    kind: Literal["class", "function"]
    parameters: dict[str, Parameter]
    open: bool
    defined_in: str


Arguments = tuple[dict[str, Parameter], bool]
"""The arguments of a constructor, and whether it is open (see ``Constructor``)."""


def constructor(target: str, search: Sequence[Path] = ()) -> Constructor | None:
    """The arguments of ``target``, a dotted path; None if its source does not show them, as with C extensions.

    ``search`` are folders to look for modules in before ``sys.path``. Raises ConfigError if there is no such module or
    name.
    """
    definition = resolve(target, search)
    if isinstance(definition.node, ast.FunctionDef):
        arguments = _signature(definition.node, definition.module, search)
        return Constructor(target, "function", *arguments, definition.path)
    of_class = _of_class(definition, search)
    return Constructor(target, "class", *of_class, definition.path) if of_class else None


def _of_class(definition: Definition, search: Sequence[Path], depth: int = 12) -> Arguments | None:
    """The arguments of a class: those of its constructor, and those that it passes on to its base by ``**kwargs``."""
    if not isinstance(definition.node, ast.ClassDef) or depth == 0:
        return None
    methods = {item.name: item for item in definition.node.body if isinstance(item, ast.FunctionDef)}
    init = methods.get("__init__") or methods.get("__new__")
    call = _forwarding(init) if init else None
    base = None if init and not call else _of_bases(definition.node, definition.module, search, depth - 1)
    if init is None:
        is_dataclass = any("dataclass" in ast.unparse(decorator) for decorator in definition.node.decorator_list)
        if not base or not is_dataclass:
            return base
        return base[0] | _fields(definition.node, definition.module, search), base[1]
    parameters, is_open = _signature(init, definition.module, search, skip=1)
    if call is None or base is None:
        return parameters, is_open
    passed = {word.arg for word in call.keywords} | set(list(base[0])[: len(call.args)])
    return {name: inherited for name, inherited in base[0].items() if name not in passed} | parameters, base[1]


def _of_bases(node: ast.ClassDef, module: Module, search: Sequence[Path], depth: int) -> Arguments | None:
    """The arguments that a class inherits, from the first base that has any; None if a base cannot be read."""
    for base in node.bases:
        path = ast.unparse(base.value if isinstance(base, ast.Subscript) else base).split(".")
        if path[-1] not in _ROOTS:
            try:
                arguments = _of_class(within(module, path, search), search, depth)
            except ConfigError:
                return None
            if arguments != ({}, False):
                return arguments
    return {}, False


def _forwarding(init: ast.FunctionDef) -> ast.Call | None:
    """The call ``super().__init__(..., **kwargs)`` that passes a constructor's ``**kwargs`` on; None without one."""
    for call in ast.walk(init):
        if isinstance(call, ast.Call) and ast.unparse(call.func) in ("super().__init__", "super().__new__"):
            unpacked = [ast.unparse(word.value) for word in call.keywords if word.arg is None]
            if init.args.kwarg and init.args.kwarg.arg in unpacked:
                return call
    return None


def _signature(node: ast.FunctionDef, module: Module, search: Sequence[Path], skip: int = 0) -> Arguments:
    ordered = [*node.args.posonlyargs, *node.args.args]
    defaults = [None] * (len(ordered) - len(node.args.defaults)) + node.args.defaults
    pairs = [*zip(ordered, defaults, strict=True), *zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)]
    pairs = pairs[max(skip, len(node.args.posonlyargs)) :]
    parameters = [_parameter(arg.arg, arg.annotation, default, module, search) for arg, default in pairs]
    return {parameter.name: parameter for parameter in parameters}, node.args.kwarg is not None


def _parameter(
    name: str, annotation: ast.expr | None, default: ast.expr | None, module: Module, search: Sequence[Path]
) -> Parameter:
    kind = read_kind(annotation, module, search)
    value: Any = ...
    with suppress(ValueError):
        value = ast.literal_eval(default) if default else ...
    kind = _union([kind, NONE]) if value is None else kind
    return Parameter(name, kind, default is not None, value, tuple(_read_relations(annotation)))


_RELATIONS: dict[str, type[types.Relation]] = {kind.__name__: kind for kind in get_args(types.Relation)}


def _read_relations(annotation: ast.expr | None) -> Iterator[types.Relation]:
    """The relations in ``Annotated[..., Requires("momentum")]``, by the name of their class."""
    for call in ast.walk(annotation) if annotation else ():
        if isinstance(call, ast.Call) and (kind := _RELATIONS.get(ast.unparse(call.func).rpartition(".")[2])):
            with suppress(ValueError, TypeError):
                named = {word.arg: ast.literal_eval(word.value) for word in call.keywords if word.arg}
                yield kind(*map(ast.literal_eval, call.args), **named)


def _fields(node: ast.ClassDef, module: Module, search: Sequence[Path]) -> dict[str, Parameter]:
    """The fields of a dataclass that are arguments of its constructor."""
    parameters = {}
    for item in node.body:
        if not isinstance(item, ast.AnnAssign) or not isinstance(item.target, ast.Name):
            continue
        default, words = item.value, dict[str | None, ast.expr]()
        if isinstance(default, ast.Call) and ast.unparse(default.func).rpartition(".")[2] == "field":
            words = {word.arg: word.value for word in default.keywords}
            default = words.get("default") or words.get("default_factory")
        excluded = "init" in words and ast.unparse(words["init"]) == "False"
        if not excluded and not any(word in ast.unparse(item.annotation) for word in ("ClassVar", "KW_ONLY")):
            parameters[item.target.id] = _parameter(item.target.id, item.annotation, default, module, search)
    return parameters
