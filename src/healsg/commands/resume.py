"""``healsg resume RUN``: go on with a run from its folder alone."""

from __future__ import annotations

from healsg.commands.train import claimed_early, composed_once
from healsg.config import load_saved
from healsg.errors import ConfigError
from healsg.folder import find


def run(arguments: list[str]) -> int:
    """``RUN [overrides]``; what cannot alter the result may change, and the number of epochs of a finished run."""
    if not arguments or "=" in arguments[0]:
        raise ConfigError("healsg resume RUN [key=value ...]: name a run, as a folder or a name under runs/")
    folder = composed_once(lambda: find(arguments[0]))
    composed = composed_once(lambda: load_saved(folder, arguments[1:]))
    claimed = claimed_early(composed, folder.path)
    from healsg.trainer import TaskTrainer

    trainer = TaskTrainer(composed)
    trainer.folder = folder
    return int(trainer.train(claimed)["exit"])
