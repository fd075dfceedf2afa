"""``healsg train``, the same as ``python train.py``: Hydra's command line in front of a trainer."""

from __future__ import annotations

import atexit
import contextlib
import io
import signal
from argparse import Namespace
from typing import Any

from healsg import distributed
from healsg.commands.launch import processes
from healsg.commands.terminal.arguments import composed_once, folder_acquired_early, of_one_run, parse_arguments, parser
from healsg.commands.terminal.imports import collections_deferred
from healsg.commands.terminal.tables import messages_to_stderr, show_json
from healsg.commands.train.tune import tuned
from healsg.config.compose import Composer
from healsg.config.schema import Composed
from healsg.errors import ConfigError, one_line
from healsg.runs import redact
from healsg.training.interrupt import StopSignal


def run(arguments: list[str]) -> int:
    """Compose and train; or show the help, the configuration, or shell completions."""
    everything, as_json = "--help-all" in arguments, "--json" in arguments
    given = ["--help" if argument == "--help-all" else argument for argument in arguments if argument != "--json"]
    args = parse_arguments(given)
    if args.help or args.hydra_help or args.cfg or args.info or args.shell_completion:
        return _show(args, everything)

    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_DFL)  # no traceback of a Ctrl-C when all is done

    def composer() -> Composer:
        return Composer(args.config_dir, args.config_name or "config")

    overrides = [override for override in args.overrides if not override.startswith("hydra.mode=")]

    def composed_here() -> Composed:
        with collections_deferred():
            composed = composer().compose(overrides)
        return tuned(of_one_run(composed))

    if args.multirun or "hydra.mode=MULTIRUN" in args.overrides:
        from healsg.commands.sweep.run import run_sweep
        from healsg.commands.sweep.search import is_search, run_search

        if as_json:
            raise ConfigError("--json: is of one run; the jobs of a sweep: healsg runs NAME --json")
        if is_search(overrides):
            return run_search(composer, overrides)
        return run_sweep(composer, overrides)
    stop_signal = StopSignal()  # ``runner.max_time`` counts from here
    with messages_to_stderr(as_json):
        composed = composed_once(composed_here)
    if (count := processes.process_count(composed)) > 1:
        processes.check_no_json(as_json)
        return processes.become_agent(count, processes.job_of(composed, None, stop_signal.began))
    with stop_signal:
        folder = folder_acquired_early(composed)
        with collections_deferred():
            from healsg.trainer import TaskTrainer

        if folder and stop_signal.received:
            folder.abandon()
            return 128 + stop_signal.received
        with messages_to_stderr(as_json):
            result = TaskTrainer(composed).train(folder)
        return shown_result(result, as_json)


def shown_result(result: dict[str, Any], as_json: bool) -> int:
    """Print the result with ``--json``; returns the exit status."""
    if as_json and distributed.processes().rank == 0:
        show_json({"schema": 1, **result})
    return int(result["exit"])


def _show(args: Namespace, everything: bool) -> int:
    """Print the help, the configuration or completions instead of training, with secrets redacted.

    Args:
        args: as ``parse_arguments`` gives them.
        everything: whether the help is to show every setting.

    Raises:
        ConfigError: the question or an override is wrong.
    """
    composer = Composer(args.config_dir, args.config_name or "config")
    hydra = composer.hydra
    if args.shell_completion:
        try:
            hydra.shell_completion(composer.name, args.overrides)
        except ValueError as error:
            raise ConfigError(f"--shell-completion: {one_line(error)}") from error
        return 0
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        if args.hydra_help:
            hydra.hydra_help(composer.name, parser(), args)
        else:
            redact.config(composer.compose(args.overrides, checked=False).values)  # so that it knows the secrets
            overrides = composer.without_null(args.overrides)
            if args.help:
                from healsg.commands.train.help import help_lines

                print("\n".join(help_lines(composer, overrides, everything)))
            elif args.cfg:
                hydra.show_cfg(composer.name, overrides, args.cfg, args.package, args.resolve)
            else:
                hydra.show_info(args.info, composer.name, overrides)
    print(redact.text(redact.code(shown.getvalue())), end="")
    return 0
