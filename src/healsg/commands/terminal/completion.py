"""``healsg --completion SHELL``: the script by which a shell completes commands, runs, keys and flags by TAB."""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Iterable
from importlib import import_module

from healsg.console import visible
from healsg.errors import ConfigError, HealsgError
from healsg.runs.folder import ROOT
from healsg.runs.registry import Listed, listed, names

COMPOSED = ("train", "check", "forecast", "pack", "plan", "verify", "explain")
"""Commands that take keys of the configuration."""

OF_RUNS = (
    *("resume", "eval", "predict", "export", "serve", "show", "runs", "compare", "diff", "watch"),
    *("ledger", "rerun", "archive", "rm", "diverge"),
)
"""Commands that take names of runs."""

GROUPS = {"list": ("data", "model", "method", "recipe", "runner"), "new": ("data", "model", "method")}

COLUMNS = ("--sort", "--columns", "--metric", "--where", "-w")
"""Flags that take the name of a number or a column."""

SCRIPTS = {
    "bash": r"""
# eval "$(healsg --completion bash)"
_healsg() {
    local line="${COMP_LINE:0:COMP_POINT}" word cut
    local -a typed
    read -r -a typed <<< "$line"
    [[ "$line" == *[[:space:]] ]] && typed+=("")
    word="${typed[${#typed[@]}-1]}"
    cut="${word%"${word##*[=:]}"}"  # readline has split the word there, and replaces what follows
    COMPREPLY=()
    while IFS= read -r word; do
        [[ "$word" == *[!A-Za-z0-9_./=,:+~@%-]* ]] && word="$(printf %q "$word")"
        COMPREPLY+=("${word#"$cut"}")
    done < <(healsg --complete "${typed[@]:1}" 2> /dev/null)
    [[ ${#COMPREPLY[@]} -eq 1 && "${COMPREPLY[0]}" == *[=.] ]] && compopt -o nospace 2> /dev/null
    return 0
}
complete -o default -F _healsg healsg
""",
    "zsh": r"""
# eval "$(healsg --completion zsh)", after compinit
_healsg() {
    local -a found
    found=("${(@f)$(healsg --complete "${(@)words[2,CURRENT]}" 2> /dev/null)}")
    found=(${found:#})
    (( $#found )) || { _files; return }
    compadd -S '' -- ${(M)found:#*[=.]}
    compadd -- ${found:#*[=.]}
}
compdef _healsg healsg
""",
    "fish": r"""
# healsg --completion fish | source
complete -c healsg -a '(healsg --complete (commandline -opc)[2..-1] (commandline -ct) 2> /dev/null)'
""",
}


def script(shells: list[str]) -> str:
    """The script for a shell. Raises ConfigError if it is not one of those known."""
    if len(shells) != 1 or shells[0] not in SCRIPTS:
        given = " ".join(shells) or "no shell"
        raise ConfigError(f"--completion: {given} is given; there is {', '.join(SCRIPTS)}")
    return SCRIPTS[shells[0]].strip()


def candidates(commands: Iterable[str], typed: list[str]) -> list[str]:
    """The completions of the last word; none if unknown, so that the shell offers files.

    Args:
        commands: the names of all commands.
        typed: the words after ``healsg``, the last one perhaps empty.
    """
    *before, word = typed or [""]
    if not before:
        found: Iterable[str] = [*commands, "--help", "--version", "--completion"]
    elif before == ["--completion"]:
        found = list(SCRIPTS)
    else:
        found = []
        with contextlib.suppress(HealsgError, OSError):  # a completion cannot show an error
            found = _arguments(before[0], before[-1], word, typed[1:]) if before[0] in commands else []
    # A name with a control character would reach the terminal as it is.
    return sorted({one for one in found if one.startswith(word) and visible(one) == one})


def _arguments(command: str, previous: str, word: str, rest: list[str]) -> Iterable[str]:
    if previous in COLUMNS:
        return {name for run in _listed() for name in run.facts}
    if word.startswith("-"):
        return _flags(command)
    if command in GROUPS:
        return GROUPS[command]
    if command in COMPOSED:
        return _keys(rest)
    if command in OF_RUNS:
        prefix = f"{ROOT}/" if word.startswith(f"{ROOT}/") else ""
        return [f"{prefix}{name}" for name in names(ROOT)]
    return []


def _listed() -> list[Listed]:
    return listed(ROOT) if ROOT.is_dir() else []


def _shown(command: str, arguments: list[str]) -> str:
    """The output of a command."""
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
        import_module(f"healsg.commands.{command}").run(arguments)
    return shown.getvalue()


def _flags(command: str) -> list[str]:
    """The flags in a command's help."""
    return re.findall(r"(?<![\w-])--[a-z][a-z-]*", _shown(command, ["--help"]))


def _keys(rest: list[str]) -> list[str]:
    """Groups, options and keys of the configuration, as Hydra completes them.

    Args:
        rest: the words after the command; flags are none of Hydra's.
    """
    words = [word for word in rest[:-1] if not word.startswith("-")]
    os.environ["COMP_LINE"] = " ".join(["train.py", *words, rest[-1]])
    return _shown("train", ["--shell-completion", "query=bash"]).split()
