"""The code of a run: the commit of the current directory's repository, and whether files differ from it.

A repository's configuration may name programs that git runs: file-system monitors, hooks, filters, external diffs, text
conversions, transports. A repository may have come with a run from somebody else. So git is not run at all if the
repository belongs to a run's folder, and otherwise everything that it could start is disabled.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

from healsg import system
from healsg.errors import ConfigError
from healsg.runs import patch as patches
from healsg.runs import redact

SECONDS = 10.0
"""The time limit of one call of git."""

LARGEST = 1 << 20
"""The most bytes of a patch."""

MOST = 1000
"""The most changed files for which git is asked for details."""

OFF = (
    *("core.fsmonitor=false", "core.hooksPath=/dev/null", "core.pager=cat", "core.untrackedCache=false"),
    *("diff.external=", "diff.ignoreSubmodules=all", "submodule.recurse=false", "protocol.allow=never"),
)
"""Settings that override those of the repository."""

_QUIET = ("--no-ext-diff", "--no-textconv", "--no-color", "--no-renames", "--ignore-submodules=all", "-O/dev/null")
"""Options of ``git diff``: it runs no programs and reads no files that the repository's configuration names."""


def code_state(run: Path, root: Path, start: Path, patch: bool = False) -> dict[str, Any]:
    """The facts about the code for ``run.json``.

    Args:
        run: the run's folder.
        root: the folder of all runs.
        start: the current directory.
        patch: whether to add, as ``patch``, the differences from the commit, without secrets.

    Returns:
        ``commit``, None if there is no repository in which git may be run; ``dirty``, whether tracked files differ from
        it, if that can be determined without a filter; ``patch`` if requested and if there are differences.
    """
    top = repository(start)
    if top is None or _belongs_to_run(top, run, root):
        return {"commit": None}
    try:
        commit = _git(top, "rev-parse", "--verify", "HEAD").decode().strip()
    except (OSError, subprocess.SubprocessError):
        return {"commit": None}
    try:
        return {"commit": commit, **_differences(top, patch)}
    except (OSError, subprocess.SubprocessError):
        return {"commit": commit}


def _differences(top: Path, patch: bool) -> dict[str, Any]:
    """``dirty`` and ``patch``, see ``code_state``. Raises OSError, SubprocessError."""
    filters = _filters(top)
    names = _git(top, *filters, "diff", *_QUIET, "--name-only", "-z", "HEAD").decode(errors="surrogateescape")
    changed = [name for name in names.split("\0") if name]
    # Without its filter, such as that of Git LFS, an unchanged file may appear as changed.
    filtered = _filtered(top, changed) if filters else set()
    certain = [name for name in changed if name not in filtered]
    facts: dict[str, Any] = {"dirty": bool(certain)} if certain or not changed else {}
    return facts | {"patch": _patch(top, filters, certain)} if patch and certain else facts


def check_detector(required: bool) -> None:
    """Raise ConfigError if ``record_patch`` is set and the package that detects secrets is not installed."""
    if required and not redact.has_detector():
        raise ConfigError("record_patch: looks for secrets by detect-secrets; pip install detect-secrets")


# --- where -----------------------------------------------------------------------------------------------------------


def repository(start: Path) -> Path | None:
    """The folder nearest above ``start``, or itself, that has a ``.git``; found without running git."""
    return next((folder for folder in (start, *start.parents) if os.path.lexists(folder / ".git")), None)


def is_run_folder(path: Path) -> bool:
    """Whether ``path`` looks like a run's folder, complete or not."""
    try:
        if not (path / "config.yaml").is_file():
            return False
        return any(os.path.lexists(path / name) for name in ("run.json", "metrics.jsonl", ".hydra"))
    except OSError:
        return False


def within_run(path: Path) -> bool:
    """Whether ``path`` is a run's folder or lies in one."""
    return any(map(is_run_folder, (path, *path.parents)))


def _belongs_to_run(top: Path, run: Path, root: Path) -> bool:
    """Whether a repository may have come with a run: its folder, or that of its data, is in a run or among runs."""
    run, root = run.resolve(), root.resolve()
    for folder in (top, *_data_folders(top)):
        folder = folder.resolve()
        if folder == run.parent or folder.is_relative_to(run) or folder.is_relative_to(root) or within_run(folder):
            return True
    return False


def _data_folders(top: Path) -> list[Path]:
    """The data folders of a repository: ``.git``, or the folders that a file of that name refers to (work trees)."""
    data, folders = top / ".git", [top / ".git"]
    for name in ("", "commondir"):
        file = data / name if name else data
        if not file.is_file():
            continue
        with file.open("rb") as opened:
            content = opened.read(4096).decode(errors="surrogateescape").removeprefix("gitdir:").strip()
        data = file.parent / content
        folders.append(data)
    return folders


# --- git, without the programs that it could start -------------------------------------------------------------------


def _environment() -> dict[str, str]:
    kept = ("GIT_CEILING_DIRECTORIES", "GIT_DISCOVERY_ACROSS_FILESYSTEM")
    variables = {name: value for name, value in os.environ.items() if not name.startswith("GIT_") or name in kept}
    variables |= {"GIT_CONFIG_NOSYSTEM": "1", "GIT_TERMINAL_PROMPT": "0", "GIT_OPTIONAL_LOCKS": "0", "GIT_PAGER": "cat"}
    # A partial clone must not fetch missing objects from an address in its configuration.
    return variables | {"GIT_ALLOW_PROTOCOL": "", "GIT_NO_LAZY_FETCH": "1", "GIT_ATTR_NOSYSTEM": "1", "LC_ALL": "C"}


def _git(top: Path, *words: str, accept: tuple[int, ...] = (0,)) -> bytes:
    """The output of git, at most one byte more than LARGEST. Raises OSError, SubprocessError."""
    disabled = [word for setting in OFF for word in ("-c", setting)]
    line = ["git", "--no-pager", "--no-optional-locks", *disabled, *words]
    null = subprocess.DEVNULL
    with subprocess.Popen(
        line, stdin=null, stdout=subprocess.PIPE, stderr=null, cwd=top, env=_environment()
    ) as process:
        assert process.stdout is not None
        with system.killed_after(process, SECONDS):
            output: bytes = process.stdout.read(LARGEST + 1)
            if len(output) > LARGEST:
                process.kill()
            status = process.wait()
    if status not in accept and len(output) <= LARGEST:
        raise subprocess.CalledProcessError(status, line[0])
    return output


def _filters(top: Path) -> list[str]:
    """Options that disable every configured filter: git would run them to compare files."""
    listed = _git(top, "config", "--null", "--name-only", "--get-regexp", r"^filter\..*", accept=(0, 1)).decode()
    names = dict.fromkeys(key.rpartition(".")[0] for key in listed.split("\0") if key)
    if any("=" in name for name in names):  # "-c" takes the text before the first "=" as the key
        raise subprocess.SubprocessError("a filter that cannot be switched off")
    keys = [f"{name}.{key}" for name in names for key in ("clean=", "smudge=", "process=", "required=false")]
    return [word for key in keys for word in ("-c", key)]


def _filtered(top: Path, names: list[str]) -> set[str]:
    """The files among ``names`` that are stored through a filter; of more than ``MOST`` files all are returned."""
    if not names or len(names) > MOST:
        return set(names)
    fields = _git(top, "check-attr", "-z", "filter", "--", *names).decode(errors="surrogateescape").split("\0")
    values = zip(fields[::3], fields[2::3], strict=False)
    return {name for name, value in values if value not in ("unspecified", "unset")}


# --- the patch -------------------------------------------------------------------------------------------------------


def _patch(top: Path, filters: list[str], changed: list[str]) -> str:
    """The differences from the commit, without secrets."""
    left_out = [name for name in changed if patches.is_key_file(name)]
    rest = [name for name in changed if name not in set(left_out)]
    head = f"# left out, since files of such names hold secrets: {', '.join(left_out)}\n" if left_out else ""
    if not rest:
        return head
    if len(rest) > MOST:
        return f"{head}# left out, since more than {MOST} files differ\n"
    pathspecs = [f":(top,literal){name}" for name in rest]
    patch = _git(top, *filters, "diff", *_QUIET, "HEAD", "--", *pathspecs)
    if len(patch) > LARGEST:
        return f"{head}# left out, since it is longer than 1 MiB\n"
    return head + patches.without_secrets(patch.decode(errors="replace"))
