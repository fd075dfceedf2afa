"""The program ``healsg``: one command a file in ``healsg.commands``; mistakes become one line and an exit status."""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from types import TracebackType

from healsg import console, distributed
from healsg.commands.terminal.imports import collections_deferred
from healsg.errors import ConfigError, HealsgError, RunError
from healsg.paths import leave_removed_folder
from healsg.runs import redact
from healsg.training.parallel import ElsewhereError

_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG)

SECTIONS = {
    "before": {
        "check": "read every sample and try one step before training",
        "forecast": "predict time, memory and disk of a run or a sweep",
        "plan": "choose patch, batch and stages of a U-Net for your volumes",
        "pack": "write a data set as tar archives for data=shards",
        "list": "list the options of a group: data, model, method, recipe",
        "explain": "explain an option (method=fixmatch) or a key (method.ema)",
        "new": "write a template for your own data, model or method",
    },
    "train": {
        "train": "train a task, or a sweep of tasks (-m)",
        "resume": "resume a run",
        "rerun": "train a run again and compare the final states",
        "reproduce": "run a recipe for its published number",
        "verify": "prove that a task resumes bit for bit after random kills",
    },
    "use": {
        "eval": "evaluate a run, on other data too",
        "predict": "predict classes or masks of new samples",
        "export": "export the network of a run as ONNX, with a model card",
        "serve": "serve a local web page to try a run on images or volumes",
    },
    "look": {
        "runs": "list the runs: filter, sort, columns of any key",
        "show": "show the settings, results and files of a run",
        "watch": "watch runs train, from another terminal",
        "compare": "compare settings over seeds, folds and cases",
        "diff": "show the differences between two runs",
        "diverge": "find the first step at which two runs differ",
        "ledger": "show samples that a run forgot or found hard",
    },
    "tidy": {
        "archive": "pack a run into one file, or unpack one",
        "rm": "remove runs",
    },
}
"""The commands with a line each, by what they are for."""

COMPLETION = "healsg --completion bash|zsh|fish    completes commands, runs and keys by TAB"

COMMANDS = {command: line for section in SECTIONS.values() for command, line in section.items()}

ELSEWHERE = (
    *("resume", "eval", "predict", "export", "serve"),
    *("show", "runs", "compare", "diff", "watch", "ledger", "archive", "rm", "diverge"),
)
"""Commands on existing runs, which work without a valid current directory."""

ANSWERS = (
    "check",
    "forecast",
    "plan",
    "eval",
    "predict",
    "list",
    "explain",
    "show",
    "runs",
    "compare",
    "diff",
    "ledger",
    "diverge",
)
"""Commands whose only result is what they print: they fail if standard output cannot be written."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    with distributed.Command() as command:
        return command.ends(_answer(arguments))


def _answer(arguments: Sequence[str] | None) -> int:
    """Run one command and report an error of the user's in one line; returns the exit status."""
    command, *rest = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if command in ("-sc", "--shell-completion"):  # Hydra's completion script calls the program without its command
        os.environ["COMP_LINE"] = os.environ.get("COMP_LINE", "").replace(" train ", " ", 1)
        command, rest = "train", [command, *rest]
    if command in ("-h", "--help", "--version"):
        with console.lasting_streams():
            print(_version() if command == "--version" else _usage())
        return 0
    if command == "--complete":  # called by the shell, through the script that --completion prints
        from healsg.commands.terminal.completion import candidates

        print(*candidates(COMMANDS, rest), sep="\n")
        return 0
    with console.lasting_streams() as output, Mistakes("debug=true" in rest) as mistakes:
        if command == "--completion":
            from healsg.commands.terminal.completion import script

            print(script(rest))
            return 0
        if command not in COMMANDS:
            raise ConfigError(f"healsg {command}: no such command; there is {', '.join(COMMANDS)}")
        if command in ELSEWHERE:
            leave_removed_folder()
        with distributed.first_cause():
            with collections_deferred():
                module = import_module(f"healsg.commands.{command}")
            status: int = module.run(rest)
        if command in ANSWERS:
            output.check()
        return status
    return mistakes.status


def finish(work: Callable[[], int], debug: bool) -> int:
    """Run ``work`` in a process that another one has started, with the error handling of ``main``.

    Args:
        work: returns the exit status.
        debug: whether an error is printed with its traceback.
    """
    with distributed.Command() as command:
        with console.lasting_streams(), Mistakes(debug) as mistakes, distributed.first_cause():
            return command.ends(work())
        return command.ends(mistakes.status)


class Mistakes:
    """A context manager around a command: it reports an error raised inside and sets the exit status, ``status``.

    Args:
        debug: whether an error is printed with its traceback.
    """

    def __init__(self, debug: bool) -> None:
        self.debug = debug
        self.status = 0

    def __enter__(self) -> Mistakes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if isinstance(error, KeyboardInterrupt):
            self.status = 130
        elif isinstance(error, Exception):
            self.status = self._report(error)
        return isinstance(error, (Exception, KeyboardInterrupt))

    def _report(self, error: Exception) -> int:
        if mistake := as_mistake(error):
            return report(mistake, self.debug)
        print(redact.trace(error), end="", file=sys.stderr)
        distributed.reports()  # waits until rank 0 has reported it as well
        distributed.reported()
        return 1


def as_mistake(error: Exception) -> HealsgError | None:
    """An error that the user can fix, as a ``HealsgError`` with a one-line message; None for any other error.

    Those are our own errors, a configuration key that a task reads and that is not set, and a file that cannot be
    written, e.g. because the disk is full.
    """
    if _is_of_omegaconf(error) and (key := getattr(error, "full_key", None)):
        return RunError(f"{key}: the task reads it, and it is not set; give it: +{key}=...")
    if isinstance(error, OSError) and error.errno in _UNWRITABLE:
        unwritable = RunError(f"{error.filename or 'a file'}: cannot be written ({error.strerror})")
        unwritable.__cause__ = error
        return unwritable
    return error if isinstance(error, HealsgError) else None


def _is_of_omegaconf(error: Exception) -> bool:
    """Whether omegaconf raised the error; it is not imported for this, since it then cannot have raised it."""
    if "omegaconf.errors" not in sys.modules:
        return False
    from omegaconf.errors import OmegaConfBaseException

    return isinstance(error, OmegaConfBaseException)


def report(error: HealsgError, debug: bool = False) -> int:
    """Print an error to standard error, with its traceback if requested; returns the exit status.

    Only one of several processes prints it. Before they have joined a process group, ranks other than 0 wait a second:
    the launcher ends all processes when rank 0 ends, so these ranks print only an error that rank 0 does not have.
    """
    if distributed.processes().rank > 0 and not distributed.connected():
        time.sleep(1.0)
    if distributed.reports() and not isinstance(error, ElsewhereError):
        if debug or os.environ.get("HYDRA_FULL_ERROR") == "1":
            print(redact.trace(error), end="", file=sys.stderr)
        lines = (console.visible(line) for line in redact.text(str(error)).split("\n"))
        print("error: " + "\n".join(lines), file=sys.stderr, flush=True)
    distributed.reported()
    return error.status


def say(line: str) -> None:
    """Print a line, with several processes on rank 0 only."""
    if os.environ.get("RANK", "0") == "0":
        print(line, flush=True)


def _usage() -> str:
    lines = ["usage: healsg COMMAND ..."]
    for section, commands in SECTIONS.items():
        lines += ["", section, *(f"  healsg {command:9}  {line}" for command, line in commands.items())]
    return "\n".join([*lines, "", "healsg COMMAND --help    all about a command", COMPLETION])


def _version() -> str:
    from importlib.metadata import version

    return f"healsg {version('healsg')}"
