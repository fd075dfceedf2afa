"""``healsg resume RUN``: resume a run from its folder alone."""

from __future__ import annotations

from healsg.commands.launch import processes
from healsg.commands.terminal.arguments import composed_once, folder_acquired_early
from healsg.commands.terminal.flags import Flags
from healsg.commands.terminal.imports import collections_deferred
from healsg.commands.terminal.parts import with_parts
from healsg.commands.terminal.tables import messages_to_stderr
from healsg.commands.train.command import shown_result
from healsg.errors import ConfigError
from healsg.runs.folder import find, is_setting
from healsg.training.interrupt import StopSignal

EXAMPLES = """\
  healsg resume exp1
  healsg resume exp1 runner.epochs=60      train a finished run on

Settings that cannot alter the result may change (data.root, data.workers,
runner.save_every, ...), others are refused by their key; resume.force=true goes
on in spite of what does not fit."""


def run(arguments: list[str]) -> int:
    """``RUN [overrides]``; settings that cannot alter the result may change, and the number of epochs of a finished
    run."""
    flags = Flags(
        "resume",
        "Resume a run from its folder, wherever it was stopped or killed. It ends bit for bit in the state in which "
        "the uninterrupted run would have ended.",
        EXAMPLES,
    )
    flags.add_run()
    flags.add_settings("changes to settings")
    flags.add_json("for programs: the result as one object, at the end")
    args = flags.read(arguments)
    if is_setting(args.run):
        raise ConfigError("healsg resume RUN [key=value ...]: name a run, as a folder or a name under runs/")
    stop_signal = StopSignal()
    folder = composed_once(lambda: find(args.run))
    composed = composed_once(lambda: with_parts(folder, args.settings, ("logger",)))
    if (count := processes.process_count(composed, folder)) > 1:
        processes.check_no_json(args.json)
        return processes.become_agent(count, processes.job_of(composed, folder.path, stop_signal.began))
    with stop_signal:
        acquired = folder_acquired_early(composed, folder.path)
        with collections_deferred():
            from healsg.trainer import TaskTrainer

        if acquired and stop_signal.received:
            acquired.abandon()
            return 128 + stop_signal.received
        with messages_to_stderr(args.json):
            result = TaskTrainer(composed, folder=folder).train(acquired)
        return shown_result(result, args.json)
