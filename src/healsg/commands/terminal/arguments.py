"""What commands share: Hydra's arguments, a configuration that is composed once, a folder that is acquired early."""

from __future__ import annotations

import contextlib
import platform
import sys
from argparse import ArgumentError, ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from healsg import distributed
from healsg.config.compose import Composer
from healsg.config.schema import Composed
from healsg.errors import ConfigError
from healsg.runs import acquire, redact
from healsg.runs.folder import RunFolder

T = TypeVar("T")


def parser() -> ArgumentParser:
    """Hydra's argument parser, which raises ArgumentError instead of exiting."""
    from healsg.config.hydra_loader import argument_parser

    made = argument_parser()
    made.exit_on_error = False  # an argument of argparse's constructor, which Hydra does not pass on
    return made


def parse_arguments(arguments: list[str]) -> Namespace:
    """Parse Hydra's options. Raises ConfigError for unknown and unsupported ones."""
    try:
        args, unknown = parser().parse_known_intermixed_args(arguments)
    except ArgumentError as error:
        raise ConfigError(f"{error}; --help shows what there is") from error
    if unknown:
        raise ConfigError(_no_option(unknown[0], arguments, args))
    if sum(map(bool, (args.multirun, args.cfg, args.info, args.shell_completion))) > 1:
        raise ConfigError("only one of --multirun, --cfg, --info and --shell-completion can be given")
    if args.config_path:
        raise ConfigError("--config-path: the frame's own conf/ stays; add a folder of your own with --config-dir")
    if args.experimental_rerun:
        raise ConfigError("--experimental-rerun: is not supported; resume a run by: healsg resume RUN")
    return args


def _no_option(option: str, arguments: list[str], args: Namespace) -> str:
    """The hint for ``--epochs 10``, which other programs accept: the setting that is probably meant."""
    name, _, value = option.lstrip("-").partition("=")
    after = arguments[arguments.index(option) + 1 :][:1]
    if not value and after and not after[0].startswith("-") and "=" not in after[0]:
        value = after[0]
    given = [override for override in args.overrides if "=" in override]
    meant = None
    with contextlib.suppress(ConfigError):  # of what else is wrong with the command
        meant = Composer(args.config_dir, args.config_name or "config").suggest(name.replace("-", "_"), value, given)
    hint = f"settings are given without dashes; did you mean {meant}?" if meant else "--help shows what there is"
    return f"{option}: there is no such option; {hint}"


def folder_acquired_early(composed: Composed, path: Path | None = None) -> RunFolder | None:
    """The run's folder, acquired before torch is imported, so that a conflict is reported at once; None under a
    launcher."""
    return None if distributed.processes().several else acquire.acquire_folder(composed, path)


def composed_once(make: Callable[[], T]) -> T:
    """Compose on rank 0 only; with one process, this does not import torch.

    Raises ConfigError for processes that were started with other arguments than rank 0, as on another node.
    """
    if distributed.processes().several and not distributed.connected():
        distributed.connect()
        _same_command()
    return distributed.processes().run_on_rank_zero(make)


def of_one_run(composed: Composed) -> Composed:
    """Refuse values that only a sweep accepts. Raises ConfigError."""
    for key, does in (("launcher", "runs"), ("search", "proposes")):
        if composed.values.get(key):
            raise ConfigError(f"{key}: {does} the jobs of a sweep; add -m")
    return composed


def _same_command() -> None:
    from importlib.metadata import version

    shown = [redact.override(argument) for argument in sys.argv[1:]]
    own = {"host": platform.node(), "arguments": shown, "healsg": version("healsg"), "torch": version("torch")}
    every = distributed.processes().gather(own)
    for rank, other in enumerate(every):
        for key in ("arguments", "healsg", "torch"):
            if other[key] != every[0][key]:
                one = _only(every[0][key], other[key])
                two = _only(other[key], every[0][key])
                where = f"rank {rank} on {other['host']}"
                raise ConfigError(f"{key}: {where} has {two}, rank 0 on {every[0]['host']} has {one}; start them alike")


def _only(entries: Any, other: Any) -> str:
    """The entries of a list that are not in another one, as text; all of them if there are none."""
    if isinstance(entries, str):
        return entries
    return " ".join([word for word in entries if word not in other] or entries) or "none"
