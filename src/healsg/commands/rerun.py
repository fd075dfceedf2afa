"""``healsg rerun RUN``: train a finished run again from its own files, and say whether it ends in the same state."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from healsg import distributed
from healsg.cli import say
from healsg.commands.diff import differences
from healsg.commands.launch.launching import InProcesses, Result, launch
from healsg.commands.launch.processes import process_count
from healsg.commands.terminal.flags import Flags
from healsg.commands.terminal.tables import show_json
from healsg.config.names import is_below
from healsg.config.overrides import parse
from healsg.config.schema import Composed
from healsg.console import visible
from healsg.errors import ConfigError, RunError
from healsg.paths import absolute, current_folder
from healsg.runs import provenance, redact
from healsg.runs.acquire import FREE, check_name
from healsg.runs.folder import ROOT, RunFolder, find
from healsg.runs.saved_config import load_saved, read_saved

KEPT = ("name", "fresh", "resume", "recipe", "launcher", "search")
"""Keys of FREE that a rerun sets itself, or that mean nothing for one run."""

DESCRIPTION = """\
Train a finished run again in a new folder, with the same code, configuration and seed, and check whether it ends in
the same state. Exit status: 0 the same state, 1 another state or not finished."""


def run(arguments: list[str]) -> int:
    """Train again and compare; 0 where the digests are equal, 1 where not."""
    flags = Flags("rerun", DESCRIPTION)
    flags.add_run()
    flags.add_argument(
        "overrides", nargs="*", default=[], metavar="KEY=VALUE", help="changes that cannot alter the result"
    )
    flags.add_argument("--name", help="name of the new run (default: NAME-rerun)")
    flags.add_argument("--any-commit", action="store_true", help="use the current code, whatever the run's commit was")
    flags.add_argument(
        "--patch", metavar="FILE", help="only write the run's uncommitted changes as a patch for git apply"
    )
    flags.add_json("for programs")
    args = flags.read(arguments)
    distributed.processes().require_single_process(
        "healsg rerun: starts its processes itself; call it without a launcher"
    )
    first = find(args.run)
    if args.patch is not None:
        return _write_patch(first, Path(args.patch))
    record = first.record
    if record.get("status") != "finished" or not record.get("digest"):
        raise RunError(f"{first.shown}: is not finished, so that there is no final state to compare with")
    second = _new_folder(first, args.name)
    composed = _composed(first, second, args.overrides, args.json)
    notes = [*code_notes(first, second, args.any_commit), *_history_notes(first)]
    for note in notes:
        if not args.json:
            say(visible(f"note: {note}"))
    result = _train(composed, first, second, args.json)
    return _answer(first, second, result, notes, args.json)


def _write_patch(folder: RunFolder, file: Path) -> int:
    """Write the patch of a run to a file that does not exist yet."""
    patch = folder.record.get("patch")
    if not isinstance(patch, str) or not patch:
        raise RunError(f"{folder.shown}: has no patch; record_patch=true keeps what differs from the commit")
    try:
        with file.open("x", encoding="utf-8", errors="surrogateescape", newline="") as opened:
            opened.write(patch)
    except FileExistsError:
        raise ConfigError(f"--patch: {file} exists; give another name") from None
    say(visible(f"written: {file}"))
    return 0


def _new_folder(first: RunFolder, name: str | None) -> RunFolder:
    """The folder of the rerun, which must be new. Raises ConfigError."""
    if name is not None:
        check_name(name)
        if (ROOT / name).exists():
            raise ConfigError(f"--name: {ROOT / name} exists; give another name")
        return RunFolder(ROOT / name)
    stem = f"{first.path.name}-rerun"
    names = (stem, *(f"{stem}-{number}" for number in range(2, 10**6)))
    found = next(one for one in names if not (ROOT / one).exists())
    check_name(found)
    return RunFolder(ROOT / found)


def _composed(first: RunFolder, second: RunFolder, overrides: list[str], quiet: bool) -> Composed:
    """The configuration of the rerun: that of the run, with its number of threads. Raises ConfigError."""
    for override in parse(overrides):
        key = override.key_or_group
        if not is_below(key, FREE) or is_below(key, KEPT):
            raise ConfigError(f"{key}: a rerun keeps the settings; only what cannot alter the result may be given")
    composed = load_saved(first, overrides)
    values = composed.values | {"name": second.path.name}
    choices = {
        group: option for group, option in (first.record.get("choices") or {}).items() if isinstance(option, str)
    }
    return replace(composed, values=values | {"quiet": True} if quiet else values, choices=choices)


def code_notes(first: RunFolder, second: RunFolder, any_commit: bool) -> list[str]:
    """Notes about code that may differ from that of the run.

    Args:
        first: the run.
        second: the folder of the rerun.
        any_commit: whether other code is accepted.

    Raises:
        RunError: the current code is not that of the run, or the run's code is not available; the message says what to
            do.
    """
    record = first.record
    commit = record.get("commit")
    if not commit:
        return ["the run names no commit, so that only the versions of its packages can be compared"]
    if not re.fullmatch(r"[0-9a-f]{7,64}", str(commit)):
        raise RunError(f"{first.shown / 'run.json'}: commit: is no commit")
    patch = record.get("patch")
    now = provenance.code_state(
        second.path, absolute(ROOT), current_folder(), patch=bool(patch) and redact.has_detector()
    )
    problem = _code_problem(record, now)
    if problem and not any_commit:
        raise RunError(f"{first.shown}: {problem}")
    if problem:
        return [problem.partition(";")[0]]
    if patch and (redact.HIDDEN in patch or patch.startswith("# left out")):
        return ["lines or files of its patch are hidden or left out, and were not compared"]
    if "dirty" not in record or "dirty" not in now:
        return ["whether files differ from the commit is not known"]
    return []


def _code_problem(record: dict[str, Any], now: dict[str, Any]) -> str:
    """Why the current code differs from a run's; empty if it does not."""
    commit, patch = record["commit"], record.get("patch")
    anyway = "--any-commit takes the code as it is"
    if record.get("dirty") and not patch:
        return f"was made with changes to commit {commit[:12]} that were not kept (record_patch=true does); {anyway}"
    if now.get("commit") != commit:
        here = f"here is {now['commit'][:12]}" if now.get("commit") else "here is no repository"
        return f"was made at commit {commit[:12]}, {here}; git checkout {commit}, or {anyway}"
    if patch and now.get("patch") != patch:
        how = "healsg rerun RUN --patch changes.diff && git apply changes.diff"
        return f"was made with changes to commit {commit[:12]} that are not made here; {how}, or {anyway}"
    if not patch and now.get("dirty"):
        return f"was made at commit {commit[:12]} without changes, and files differ here; git stash, or {anyway}"
    return ""


def _history_notes(first: RunFolder) -> list[str]:
    """Events in the history of a run because of which an uninterrupted run may end in another state."""
    notes = []
    if first.record.get("earlier"):
        notes.append("the run was trained on after it had finished; from the beginning it may end otherwise")
    resume = read_saved(first.config).get("resume")
    if isinstance(resume, dict) and resume.get("force"):
        notes.append("the run was resumed with resume.force, so its settings may have changed")
    return notes


def _train(composed: Composed, first: RunFolder, second: RunFolder, quiet: bool) -> Result:
    """Train with the number of processes and of threads that the run had."""
    count = process_count(composed, first)
    threads = first.record.get("threads")
    runner = composed.values["runner"]
    if threads and count == 1 and runner.get("threads") is None:
        from healsg.training.device import THREADS

        if threads != THREADS:
            if not quiet:
                say(f"note: runner.threads={threads} as then, in place of {THREADS}: the number decides the last bits")
            composed = replace(composed, values=composed.values | {"runner": runner | {"threads": threads}})
    return launch(composed, second, InProcesses(count) if count > 1 else None)


def _answer(first: RunFolder, second: RunFolder, result: Result, notes: list[str], as_json: bool) -> int:
    """Report whether both ended in the same state, and other differences; returns the exit status."""
    finished = result.status == "finished"
    parts = differences(first, second)
    digests = first.record.get("digest"), second.record.get("digest")
    same = finished and digests[0] == digests[1]
    if as_json:
        detail = {name: {key: list(pair) for key, pair in part.items()} for name, part in parts.items()}
        facts = {"run": str(first.path), "rerun": str(second.path), "finished": finished, "same": same}
        show_json(facts | {"digests": list(digests), "notes": notes, "differences": detail})
        return int(not same) if finished else result.exit or 1
    if not finished:
        say(visible(f"{second.shown}: is not finished; healsg resume {second.shown}, then: {_diverge(first, second)}"))
        return result.exit or 1
    for name in ("code", "environment"):
        for key, (old, new) in parts[name].items():
            if key != "patch":
                say(visible(f"{key}: was {old}, is {new}"))
    data = [folder.record.get("data_digest") for folder in (first, second)]
    if data[0] != data[1]:
        say("data: are not those of the run")
    if same:
        say(visible(f"the same: {second.shown} ended in the state of {first.shown} (digest {str(digests[0])[:12]})"))
        return 0
    say(visible(f"different: {str(digests[0])[:12]} | {str(digests[1])[:12]}; where first: {_diverge(first, second)}"))
    return 1


def _diverge(first: RunFolder, second: RunFolder) -> str:
    return f"healsg diverge {first.shown} {second.shown}"
