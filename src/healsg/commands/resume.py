"""``healsg resume RUN``: go on with a run from its folder alone."""

from __future__ import annotations

from healsg.commands import processes
from healsg.commands.arguments import composed_once, folder_acquired_early
from healsg.errors import ConfigError
from healsg.runs.folder import find, is_run
from healsg.runs.saved_config import load_saved
from healsg.training.interrupt import StopSignal


def run(arguments: list[str]) -> int:
    """``RUN [overrides]``; what cannot alter the result may change, and the number of epochs of a finished run."""
    if arguments[:1] in (["-h"], ["--help"]):
        print("usage: healsg resume RUN [key=value ...]")
        return 0
    if not arguments or ("=" in arguments[0] and not is_run(arguments[0])):
        raise ConfigError("healsg resume RUN [key=value ...]: name a run, as a folder or a name under runs/")
    stop_signal = StopSignal()
    folder = composed_once(lambda: find(arguments[0]))
    composed = composed_once(lambda: load_saved(folder, arguments[1:]))
    if (count := processes.wanted(composed, folder)) > 1:
        return processes.become_agent(count, processes.job_of(composed, folder.path, stop_signal.began))
    with stop_signal:
        acquired = folder_acquired_early(composed, folder.path)
        from healsg.trainer import TaskTrainer

        if acquired and stop_signal.received:
            acquired.abandon()
            return 128 + stop_signal.received
        return int(TaskTrainer(composed, folder=folder).train(acquired)["exit"])
