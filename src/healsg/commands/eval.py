"""``healsg eval RUN``: evaluate a run's best or last weights on any split, as JSON."""

from __future__ import annotations

import difflib
import json

from healsg.commands.arguments import composed_once
from healsg.errors import ConfigError
from healsg.runs.folder import find, finite, is_run, write_text
from healsg.runs.saved_config import load_saved

USAGE = "healsg eval RUN [split=test] [checkpoint=best] [key=value ...]"


def run(arguments: list[str]) -> int:
    """``RUN [split=test] [checkpoint=best|last] [overrides]``; prints and writes ``eval-<split>-<checkpoint>.json``."""
    if arguments[:1] in (["-h"], ["--help"]):
        print(f"usage: {USAGE}")
        return 0
    if not arguments or ("=" in arguments[0] and not is_run(arguments[0])):
        raise ConfigError(f"{USAGE}: name a run, as a folder or a name under runs/")
    own = {"split": "test", "checkpoint": "best"}
    overrides = []
    for argument in arguments[1:]:
        key, _, value = argument.partition("=")
        if key in own:
            own[key] = value
        elif near := difflib.get_close_matches(key, own, 1, 0.75):
            raise ConfigError(f"{key}: no such key; did you mean {near[0]}?")
        else:
            overrides.append(argument)
    if own["checkpoint"] not in ("best", "last"):
        raise ConfigError(f"checkpoint: {own['checkpoint']} is not one of best, last")
    folder = composed_once(lambda: find(arguments[0]))
    composed = composed_once(lambda: load_saved(folder, overrides))
    from healsg import distributed
    from healsg.trainer import TaskTrainer

    found = TaskTrainer(composed).evaluation(own["split"], own["checkpoint"], folder)
    if distributed.rank() == 0:
        cases = {"cases": found.cases} if found.cases else {}
        text = json.dumps(finite({**own, "metrics": found.numbers, **cases}))
        write_text(folder.path / f"eval-{own['split']}-{own['checkpoint']}.json", text + "\n")
        print(text)
    return 0
