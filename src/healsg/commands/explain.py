"""``healsg explain``: the documentation of an option (method=fixmatch) or a key (method.ema), from YAML files and
sources."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Sequence
from typing import Any

from healsg.commands.terminal import layout
from healsg.commands.terminal.flags import Flags
from healsg.config import check
from healsg.config.catalogue import Argument, Catalogue, Option
from healsg.config.compose import Composer
from healsg.errors import ConfigError

EXAMPLES = """\
  healsg explain method=fixmatch                  an option: what it is, its
                                                  paper, all its settings
  healsg explain method.ema                       a key: what it does, what it
                                                  takes, its default
  healsg explain method.optimizer.lr method=sgd   a key of other parts"""


def run(arguments: list[str]) -> int:
    """``GROUP=OPTION | KEY [overrides] [--config-dir DIR] [--json]``."""
    flags = Flags("explain", "Explain an option or a key: its meaning, allowed values and default.", EXAMPLES)
    flags.add_argument("asked", metavar="GROUP=OPTION|KEY", help="such as method=fixmatch or method.ema")
    flags.add_settings("options to choose first, as in healsg train")
    flags.add_json()
    flags.add_config_dir()
    args = flags.read(arguments)
    catalogue = Catalogue(Composer(args.config_dir))
    found = explained(catalogue, args.asked, args.settings)
    if args.json:
        print(json.dumps(as_json(found), ensure_ascii=False, indent=1, default=str))
    elif isinstance(found, Option):
        print("\n".join(option_lines(found, catalogue)))
    else:
        print("\n".join(key_lines(found, catalogue)))
    return 0


def explained(catalogue: Catalogue, query: str, overrides: Sequence[str] = ()) -> Option | Argument:
    """The requested option or key. Raises ConfigError with the nearest names if it does not exist."""
    group, _, name = query.partition("=")
    if name and (group in catalogue.choices or "/" in group or "." not in group):
        return catalogue.option(group, name)
    if name:
        return explained(catalogue, group, overrides)  # key=value: the key is meant
    homes = [group for group, names in catalogue.choices.items() if query in names]
    if len(homes) == 1 and query not in catalogue.choices:
        return catalogue.option(homes[0], query)
    if homes and query not in catalogue.choices:
        raise ConfigError(f"{query}: is an option of several groups; {' or '.join(f'{g}={query}' for g in homes)}?")
    if query in catalogue.choices and "." not in query:
        raise ConfigError(f"{query}: is a group of options; healsg list {query} shows them")
    return _key(catalogue, query, overrides)


def _key(catalogue: Catalogue, key: str, overrides: Sequence[str]) -> Argument:
    settings = catalogue.settings(overrides, key)
    keys = {argument.key: argument for argument in settings}
    if key in keys:
        return keys[key]
    last = [candidate for candidate in keys if candidate.rpartition(".")[2] == key]
    if len(last) == 1:
        return keys[last[0]]
    if holders := catalogue.holders(key):
        group, _, name = holders[0].partition("=")
        return next(argument for argument in catalogue.option(group, name).arguments if argument.key == key)
    every = list(dict.fromkeys([*keys, *catalogue.neighbours(key)]))
    near = last or _similar(key, every) or difflib.get_close_matches(key, every, 3, 0.6)
    below = [candidate for candidate in keys if candidate.startswith(f"{key}.")]
    if below:
        raise ConfigError(f"{key}: holds {', '.join(below[:12])}; which one?")
    hint = f"did you mean {' or '.join(near[:3])}?" if near else "healsg train --help-all shows what there is"
    raise ConfigError(f"{key}: no such option or key; {hint}")


def _similar(key: str, keys: Sequence[str]) -> list[str]:
    """The keys whose last name is nearly that of ``key``, those with the same beginning first."""
    parent, _, leaf = key.rpartition(".")
    close = difflib.get_close_matches(leaf, {place.rpartition(".")[2] for place in keys}, 3, 0.7)
    found = [place for name in close for place in keys if place.rpartition(".")[2] == name]
    return sorted(found, key=lambda place: place.rpartition(".")[0] != parent)


def as_json(entry: Option | Argument) -> dict[str, Any]:
    """The ``--json`` output: the facts of a key, or the description of an option with all its keys."""
    if isinstance(entry, Argument):
        required = entry.value == "???"
        default = None if required else entry.value
        facts = {"key": entry.key, "default": default, "required": required}
        return {**facts, "type": entry.kind, "comment": entry.comment, "group": entry.group}
    return {
        "group": entry.group,
        "name": entry.name,
        "summary": entry.summary,
        "details": list(entry.details),
        "description": entry.description,
        "papers": list(entry.papers),
        "target": entry.target,
        "file": str(entry.file),
        "parts": entry.parts,
        "arguments": [as_json(argument) for argument in entry.arguments],
    }


def setting(argument: Argument, named: int = 0) -> tuple[str, str]:
    """A key with its default, and its comment with the values that it takes.

    Args:
        argument: the key.
        named: characters of the key that are left out, since a heading has them.
    """
    value = "..." if argument.value == "???" else shown(argument.value)
    required = ["required"] * (argument.value == "???")
    extra = ", ".join([*required, *filter(None, [argument.kind])])
    return f"{argument.key[named:]}={value}", f"{argument.comment} [{extra}]" if extra else argument.comment


def shown(value: Any) -> str:
    """A value as it is written on a command line."""
    if isinstance(value, list):
        return f"[{', '.join(map(shown, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{name}: {shown(inner)}' for name, inner in value.items())}}}"
    if isinstance(value, str):
        return value if value and value == value.strip() else repr(value)
    return check.show(value)


def option_lines(option: Option, catalogue: Catalogue) -> list[str]:
    """The description of an option, for a terminal."""
    lines = [f"{option.group}={option.name}", "", *layout.prose(option.summary)]
    if option.group == "recipe":
        lines += layout.rows(_fields(option.details))
    else:
        lines += layout.prose(" ".join(option.details))
    if option.description:
        lines += ["", *layout.prose(option.description)]
    facts = [("paper", paper) for paper in option.papers if option.group != "recipe"]
    facts += [("class", option.target)] * bool(option.target)
    facts.append(("file", str(option.file)))
    lines += ["", *layout.rows(facts, indent=0)]
    own = [argument for argument in option.arguments if argument.group not in (*option.parts, "recipe")]
    if own:
        lines += ["", "Settings", *layout.rows([setting(argument) for argument in own])]
    for group, name in option.parts.items():
        inner = [setting(argument) for argument in option.arguments if argument.group == group]
        others = [other for other in catalogue.choices.get(group, ()) if other != name]
        also = f" (or {', '.join(others)})" if others else ""
        lines += ["", *layout.prose(f"{group}={name}{also}"), *layout.rows(inner)]
    return lines


def _fields(details: Sequence[str]) -> list[tuple[str, str]]:
    """The named fields of a recipe's comment; a line that is indented further continues the one before."""
    found: list[tuple[str, str]] = []
    for line in details:
        if named := re.match(r" {0,4}(\w+):\s+(.*)", line):
            found.append((named[1], named[2]))
        elif found and line.startswith("   "):
            found[-1] = (found[-1][0], f"{found[-1][1]} {line.strip()}")
        else:
            found.append(("", line.strip()))
    return found


def key_lines(argument: Argument, catalogue: Catalogue) -> list[str]:
    """The description of a key, for a terminal."""
    required = argument.value == "???"
    facts = [("default", "none: it must be given" if required else shown(argument.value))]
    facts += [("takes", argument.kind)] * bool(argument.kind)
    if argument.group:
        holders = [option.partition("=")[2] for option in catalogue.holders(argument.key)]
        facts.append(("of", f"{argument.group}; set in {', '.join(holders)}" if holders else argument.group))
    example = f"{argument.key}={'...' if required else shown(argument.value)}"
    facts.append(("set", f"healsg train {example}" if " " not in example else f"healsg train '{example}'"))
    return [argument.key, "", *layout.prose(argument.comment), "", *layout.rows(facts, indent=0)]
