"""``healsg train``, the same as ``python train.py``: Hydra's command line in front of a trainer."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Callable
from typing import TypeVar

from healsg.compose import Composer, conf_folder
from healsg.config import Composed

T = TypeVar("T")


def run(arguments: list[str]) -> int:
    """Compose and train; Hydra itself answers --help, --cfg, --info and shell completion."""
    from hydra._internal.utils import get_args_parser

    args = get_args_parser().parse_intermixed_args(arguments)
    if args.help or args.hydra_help or args.cfg or args.info or args.shell_completion:
        return _ask_hydra(arguments, args)

    def composer() -> Composer:
        return Composer(args.config_dir, args.config_name or "config")

    overrides = [override for override in args.overrides if not override.startswith("hydra.mode=")]
    if args.multirun or "hydra.mode=MULTIRUN" in args.overrides:
        from healsg.commands.sweep import run_sweep

        return run_sweep(composer, overrides)
    composed = composed_once(lambda: composer().compose(overrides))
    return train(composed)


def train(composed: Composed) -> int:
    """Train what was composed; returns the exit status."""
    from healsg.trainer import TaskTrainer

    return int(TaskTrainer(composed).train()["exit"])


def composed_once(make: Callable[[], T]) -> T:
    """Let rank 0 alone compose; with one process, torch is not imported for it."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return make()
    from healsg import distributed

    distributed.connect()
    return distributed.share(make)


def _ask_hydra(arguments: list[str], args: Namespace) -> int:
    import hydra

    if args.cfg:
        Composer(args.config_dir, args.config_name or "config").compose(args.overrides, checked=False)

    @hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name="config")
    def train(config: object) -> None:
        raise AssertionError("Hydra was asked to show, not to run")

    program, sys.argv = sys.argv, [sys.argv[0], *arguments]
    try:
        train()
    finally:
        sys.argv = program
    return 0
