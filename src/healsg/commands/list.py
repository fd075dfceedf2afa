"""``healsg list GROUP``: the options of a group, each with a one-line description."""

from __future__ import annotations

import json
from typing import Any

from healsg.commands.terminal import layout
from healsg.commands.terminal.flags import Flags
from healsg.config.catalogue import Catalogue
from healsg.config.compose import Composer


def run(arguments: list[str]) -> int:
    """``[GROUP] [--config-dir DIR] [--json]``."""
    flags = Flags(
        "list",
        "List the options of a group (data, model, method, method/optimizer, recipe, ...) with one line each; without "
        "a group, the groups. * marks the default. Details of an option: healsg explain method=NAME",
    )
    flags.add_argument("group", nargs="?", metavar="GROUP", help="such as method")
    flags.add_json(
        "for programs: a list of objects with group, name, summary, default, file and origin: healsg, the installed "
        "package that adds it, or your own folder"
    )
    flags.add_config_dir()
    args = flags.read(arguments)
    catalogue = Catalogue(Composer(args.config_dir))
    usual = catalogue.usual()
    groups = [args.group] if args.group else list(catalogue.choices)
    found = [_described(group, catalogue, usual) for group in groups]
    if args.json:
        print(json.dumps([option for options in found for option in options], ensure_ascii=False, indent=1))
    elif args.group:
        print("\n".join(layout.rows([(_marked(option), _description(option)) for option in found[0]])))
    else:
        lines = [(group, _names(options)) for group, options in zip(groups, found, strict=True)]
        print("\n".join(layout.rows(lines)))
        print("\nhealsg list GROUP says what they are; healsg explain GROUP=OPTION shows what can be set")
    return 0


def _described(group: str, catalogue: Catalogue, usual: dict[str, str]) -> list[dict[str, Any]]:
    described = []
    for name, (summary, file) in catalogue.summaries(group).items():
        option = {"group": group, "name": name, "summary": summary, "default": usual.get(group) == name}
        described.append(option | {"file": str(file), "origin": catalogue.composer.origin(file)})
    return described


def _description(option: dict[str, Any]) -> str:
    """The description of an option in the table: its summary, and its package if that is not healsg."""
    whose = "" if option["origin"] == "healsg" else f" (of {option['origin']})"
    return f"{option['summary']}{whose}"


def _marked(option: dict[str, Any]) -> str:
    return f"{'*' if option['default'] else ' '} {option['name']}"


def _names(options: list[dict[str, Any]]) -> str:
    shown = ", ".join(f"{option['name']}{'*' * option['default']}" for option in options)
    return shown if len(shown) < 400 else f"{len(options)} options, such as {options[0]['name']}"
