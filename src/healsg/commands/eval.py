"""``healsg eval RUN``: evaluate a run's best or last weights on any split, as JSON."""

from __future__ import annotations

import json

from healsg.commands.train import composed_once
from healsg.config import load_saved
from healsg.errors import ConfigError
from healsg.folder import find, write_text


def run(arguments: list[str]) -> int:
    """``RUN [split=test] [checkpoint=best|last] [overrides]``; prints and writes ``eval-<split>-<checkpoint>.json``."""
    if not arguments or "=" in arguments[0]:
        raise ConfigError("healsg eval RUN [split=test] [checkpoint=best] [key=value ...]: name a run")
    own = {"split": "test", "checkpoint": "best"}
    overrides = []
    for argument in arguments[1:]:
        key, _, value = argument.partition("=")
        if key in own:
            own[key] = value
        else:
            overrides.append(argument)
    if own["checkpoint"] not in ("best", "last"):
        raise ConfigError(f"checkpoint: {own['checkpoint']} is not one of best, last")
    folder = composed_once(lambda: find(arguments[0]))
    composed = composed_once(lambda: load_saved(folder, overrides))
    from healsg import distributed
    from healsg.trainer import TaskTrainer

    metrics = TaskTrainer(composed).evaluate(own["split"], own["checkpoint"], folder)
    if distributed.rank() == 0:
        text = json.dumps({**own, "metrics": metrics})
        write_text(folder.path / f"eval-{own['split']}-{own['checkpoint']}.json", text + "\n")
        print(text)
    return 0
