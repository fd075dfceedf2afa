"""``healsg rm RUN...``: remove runs, except live ones and folders that are not runs."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from healsg import safefiles
from healsg.commands.terminal.flags import Flags
from healsg.commands.terminal.tables import show_json
from healsg.console import visible
from healsg.errors import ConfigError, RunError
from healsg.paths import absolute
from healsg.runs.folder import RunFolder, find
from healsg.runs.registry import Listed, is_live, listed, named, root_of, short_name

TABLES = {"sweep.csv", "search.json", "search.html"}
"""Files in the folder of a sweep or search, besides its jobs."""


def run(arguments: list[str]) -> int:
    """List what would be removed, ask for confirmation on a terminal, and remove it."""
    flags = Flags("rm", "Remove runs with all files in their folders. A sweep is removed with all of its jobs.")
    flags.add_argument("runs", nargs="+", metavar="RUN", help="folders, or names below runs/")
    flags.add_argument("--yes", "-y", action="store_true", help="do not ask")
    flags.add_json("for programs: what was removed, as one object; with --yes")
    flags.add_argument("--root", help="the folder of the runs (default: runs)")
    args = flags.read(arguments)
    if args.json and not args.yes:
        raise ConfigError("--json: cannot ask for confirmation; add --yes")
    root = root_of(args.root)
    everything = listed(root) if root.is_dir() else []
    folders = list(dict.fromkeys(path for name in args.runs for path in _folders(name, everything, root)))
    held = []
    try:
        for path in folders:
            folder = RunFolder(path)
            if is_live(path, folder.record) and folder.record.get("status") == "running":
                raise RunError(f"{folder.shown}: is being trained; stop it first")
            folder.lock()  # raises if another process holds it
            held.append(folder)
        size = sum(_size(folder.path) for folder in held)
        if not args.json:
            print(*(visible(str(folder.shown)) for folder in held), sep="\n")
        if not args.yes and not _agreed(len(held), size):
            print("nothing was removed")
            return 1
        for folder in held:
            shutil.rmtree(folder.path)
            _remove_empty_sweep(folder.path.parent, root)
    finally:
        for folder in held:
            folder.unlock()
    if args.json:
        show_json({"schema": 1, "removed": [str(folder.shown) for folder in held], "bytes": size})
    else:
        print(f"removed: {_counted(len(folders))}, {size / 1e6:.1f} MB")
    return 0


def _folders(name: str, everything: list[Listed], root: Path) -> list[Path]:
    """The folders of a run, or of the jobs of a sweep. Raises RunError if there is none."""
    jobs = [one.path for one in named(everything, name, root)]
    folders = jobs or [find(short_name(name, root), root=root).path]
    for folder in folders:
        safefiles.check_run_folder(folder, writing=True)
        if not safefiles.kind_of(folder / "run.json"):  # such as conf/, where a config.yaml lies too
            raise RunError(f"{folder}: is not a run, it has no run.json; remove it by hand")
        if folder.is_symlink():
            raise RunError(f"{folder}: is a link; remove it by hand")
    return folders


def _remove_empty_sweep(path: Path, root: Path) -> None:
    """Remove the folder of a sweep or search below ``root`` whose last job has gone, with its tables."""
    if path.parent == absolute(root) and {entry.name for entry in path.iterdir()} <= TABLES:
        for name in TABLES:
            (path / name).unlink(missing_ok=True)
        path.rmdir()


def _counted(runs: int) -> str:
    return f"{runs} run{'s' * (runs != 1)}"


def _size(path: Path) -> int:
    return sum(file.lstat().st_size for file in path.rglob("*") if not file.is_dir())


def _agreed(count: int, size: int) -> bool:
    if not sys.stdin.isatty():
        raise ConfigError("healsg rm: nobody can be asked here; --yes removes without asking")
    return input(f"remove {_counted(count)}, {size / 1e6:.1f} MB? [y/N] ").strip().lower() in ("y", "yes")
