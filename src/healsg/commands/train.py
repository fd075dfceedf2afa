"""``healsg train``, the same as ``python train.py``: Hydra's command line in front of a trainer."""

from __future__ import annotations

import atexit
import contextlib
import io
import signal
import sys
from argparse import Namespace

from healsg.commands.arguments import claimed_early, composed_once, parse_arguments
from healsg.config.compose import Composer, conf_folder
from healsg.runs import redact
from healsg.training.interrupt import StopSignal


def run(arguments: list[str]) -> int:
    """Compose and train; Hydra itself answers --help, --cfg, --info and shell completion."""
    args = parse_arguments(arguments)
    if args.help or args.hydra_help or args.cfg or args.info or args.shell_completion:
        return _ask_hydra(arguments, args)

    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_DFL)  # no traceback of a Ctrl-C when all is done

    def composer() -> Composer:
        return Composer(args.config_dir, args.config_name or "config")

    overrides = [override for override in args.overrides if not override.startswith("hydra.mode=")]
    if args.multirun or "hydra.mode=MULTIRUN" in args.overrides:
        from healsg.commands.sweep import run_sweep

        return run_sweep(composer, overrides)
    stop_signal = StopSignal()  # from here on the time counts
    composed = composed_once(lambda: composer().compose(overrides))
    with stop_signal:
        folder = claimed_early(composed)
        from healsg.trainer import TaskTrainer

        if folder and stop_signal.received:
            folder.abandon()
            return 128 + stop_signal.received
        return int(TaskTrainer(composed).train(folder)["exit"])


def _ask_hydra(arguments: list[str], args: Namespace) -> int:
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    if args.cfg or args.info or args.help:
        composer = Composer(args.config_dir, args.config_name or "config")
        redact.config(composer.compose(args.overrides, checked=False).values)  # so that it knows the secrets
        understood = dict(zip(args.overrides, composer.without_null(args.overrides), strict=True))
        arguments = [understood.get(argument, argument) for argument in arguments]
        GlobalHydra.instance().clear()

    @hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name="config")
    def train(config: object) -> None:
        raise AssertionError("Hydra was asked to show, not to run")

    shown = io.StringIO()
    program, sys.argv = sys.argv, [sys.argv[0], *arguments]
    try:
        with contextlib.redirect_stdout(sys.stdout if args.shell_completion else shown):
            train()
    finally:
        sys.argv = program
        print(redact.text(redact.code(shown.getvalue())), end="")
    return 0
