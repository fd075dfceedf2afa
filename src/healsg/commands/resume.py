"""``healsg resume RUN``: go on with a run from its folder alone."""

from __future__ import annotations

from healsg.commands import processes
from healsg.commands.arguments import composed_once, folder_acquired_early
from healsg.commands.tables import spoken_to_stderr
from healsg.commands.train import shown_result
from healsg.errors import ConfigError
from healsg.runs.folder import find, is_run
from healsg.runs.saved_config import load_saved
from healsg.training.interrupt import StopSignal

USAGE = """\
usage: healsg resume RUN [key=value ...] [--json]

Goes on with a run from its folder alone, wherever it was stopped or killed, and
ends where the uninterrupted run would have ended, bit for bit. RUN is a folder
or a name below runs/.

  healsg resume exp1
  healsg resume exp1 runner.epochs=60      train a finished run on

Settings that cannot alter the result may change (data.root, data.workers,
runner.save_every, ...), others are refused by their key; resume.force=true goes
on in spite of what does not fit.

  --json   for programs: what was reached, as one object, at the end"""


def run(arguments: list[str]) -> int:
    """``RUN [overrides]``; what cannot alter the result may change, and the number of epochs of a finished run."""
    as_json = "--json" in arguments
    arguments = [argument for argument in arguments if argument != "--json"]
    if arguments[:1] in (["-h"], ["--help"]):
        print(USAGE)
        return 0
    if not arguments or ("=" in arguments[0] and not is_run(arguments[0])):
        raise ConfigError("healsg resume RUN [key=value ...]: name a run, as a folder or a name under runs/")
    stop_signal = StopSignal()
    folder = composed_once(lambda: find(arguments[0]))
    composed = composed_once(lambda: load_saved(folder, arguments[1:]))
    if (count := processes.wanted(composed, folder)) > 1:
        processes.check_no_json(as_json)
        return processes.become_agent(count, processes.job_of(composed, folder.path, stop_signal.began))
    with stop_signal:
        acquired = folder_acquired_early(composed, folder.path)
        from healsg.trainer import TaskTrainer

        if acquired and stop_signal.received:
            acquired.abandon()
            return 128 + stop_signal.received
        with spoken_to_stderr(as_json):
            result = TaskTrainer(composed, folder=folder).train(acquired)
        return shown_result(result, as_json)
