"""Writes the pages of the catalogue, ``docs/catalogue/*.md``, from the YAML files and the docstrings of the parts.

python docs/catalogue.py            write them
python docs/catalogue.py --check    status 1 where one of them is not current
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from healsg.config.catalogue import Argument, Catalogue, Option
from healsg.config.compose import Composer

HERE = Path(__file__).parent / "catalogue"

TITLES = {
    "data": ("Data", "What each option of `data` is, with its own settings."),
    "model": ("Models", "Networks, with the loss and the metrics that belong to them."),
    "method": ("Methods", "How a network learns: one training step, the optimizer, the schedule."),
    "other": ("Everything else", "Optimizers, schedules, losses, metrics, runners, loggers, launchers, searches."),
}

SHARED = {
    "data": "Settings that most options share, such as `data.batch_size`, `data.workers` or `data.fold`, are in "
    "[data](../data.md) and in `healsg explain data=NAME`.",
    "model": "`model.metrics` and `model/metrics=NAME` add metrics under any of them.",
    "method": "Settings of every method (`method.ema`, `method.swa`, `method.freeze`, ...) are in `healsg explain "
    "method=NAME`; what each gains is measured in [methods](../methods.md).",
    "other": "Complete runs are in [recipes](../recipes.md).",
}


def pages(catalogue: Catalogue) -> dict[str, str]:
    """The content of each page, by the name of its file."""
    groups: dict[str, list[str]] = {name: [] for name in TITLES}
    for group in catalogue.choices:
        if group != "recipe":
            groups[group if group in TITLES else "other"].append(group)
    made = {}
    for name, inside in groups.items():
        title, lead = TITLES[name]
        lines = ["<!-- written by docs/catalogue.py -->", f"# {title}", "", f"{lead} {SHARED[name]}", ""]
        for group in inside:
            lines += [f"## {group}", ""] if name == "other" else []
            for option in catalogue.choices[group]:
                lines += entry(catalogue, catalogue.option(group, option), "###" if name == "other" else "##")
        made[f"{name}.md"] = "\n".join(lines).rstrip() + "\n"
    return made


def entry(catalogue: Catalogue, option: Option, level: str) -> Iterator[str]:
    """The lines of one option."""
    yield from (f"{level} `{option.group}={option.name}`", "", plain(option.summary), "")
    for more in (*option.details, *option.description.split("\n\n")):
        if more and more not in option.summary:
            yield from (plain(more), "")
    papers = [paper for paper in option.papers if paper not in option.summary]
    facts = [f"paper: {'; '.join(papers)}"] if papers else []
    facts += [f"class: `{option.target}`"] if option.target else []
    facts += [f"with `{group}={name}`" for group, name in option.parts.items()]
    if facts:
        yield from ("; ".join(facts), "")
    own = list(own_arguments(catalogue, option))
    if own:
        yield from ("| setting | default | takes | what it is |", "|---|---|---|---|")
        yield from (row(argument) for argument in own)
        yield ""


def own_arguments(catalogue: Catalogue, option: Option) -> Iterator[Argument]:
    """The settings that stand in the option's own file."""
    place = option.group.replace("/", ".")
    own = catalogue.composer.layers.content(f"{option.group}/{option.name}")
    for argument in option.arguments:
        name = argument.key.removeprefix(f"{place}.")
        if argument.group == option.group and name.partition(".")[0] in own:
            yield argument


def row(argument: Argument) -> str:
    """A line of a table."""
    cells = (f"`{argument.key}`", f"`{written(argument.value)}`", argument.kind, argument.comment)
    return f"| {' | '.join(plain(cell).replace('|', '&#124;') for cell in cells)} |"


def written(value: Any) -> str:
    """A value as it is typed on a command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if value == "???":
        return "must be given"
    return str(value)


def plain(text: str) -> str:
    """Text in which Markdown takes no angle bracket for a tag; in code it stands as it is."""
    if "`" in text:
        return text
    return text.replace("<", "&lt;").replace("*", "\\*")


def main(arguments: list[str]) -> int:
    """Write the pages, or compare them."""
    made = pages(Catalogue(Composer()))
    if arguments == ["--check"]:
        stale = [name for name, text in made.items() if not is_current(HERE / name, text)]
        for name in stale:
            print(f"docs/catalogue/{name}: not current; python docs/catalogue.py writes it")
        return int(bool(stale))
    HERE.mkdir(exist_ok=True)
    for name, text in made.items():
        (HERE / name).write_text(text)
    return 0


def is_current(path: Path, text: str) -> bool:
    """Whether a page holds this text."""
    return path.is_file() and path.read_text() == text


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
