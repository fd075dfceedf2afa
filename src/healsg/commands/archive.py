"""``healsg archive RUN --out FILE`` packs a run into one file, ``--unpack FILE --to DIR`` unpacks it."""

from __future__ import annotations

from pathlib import Path

from healsg.commands.terminal.flags import Flags
from healsg.commands.terminal.tables import show_json
from healsg.console import visible
from healsg.errors import ConfigError, RunError
from healsg.paths import absolute, shown
from healsg.runs import packed
from healsg.runs.folder import ROOT, find
from healsg.runs.registry import is_live

DESCRIPTION = """\
Write a run as one file: its configuration, run.json (with the patch, if one was recorded), metrics, checkpoints,
media, log and report, with checksums and without links and secrets. Unpacked anywhere, it is a run that can be
evaluated, used for predictions, resumed and rerun (healsg rerun)."""


def run(arguments: list[str]) -> int:
    """Pack a run, or unpack one."""
    flags = Flags("archive", DESCRIPTION)
    flags.add_argument("run", nargs="?", metavar="RUN", help="a folder, or a name below runs/")
    flags.add_argument("--out", metavar="FILE", help="the archive (default: NAME.tar.gz)")
    flags.add_argument("--unpack", metavar="FILE", help="the archive to unpack")
    flags.add_argument("--to", metavar="DIR", help="the folder in which its folder NAME is created (default: runs)")
    flags.add_json("for programs")
    args = flags.read(arguments)
    if (args.run is None) == (args.unpack is None):
        raise ConfigError("healsg archive: name a run, or a file by --unpack FILE")
    if args.unpack is not None:
        if args.out is not None:
            raise ConfigError("--out: is of an archive that is written; --to DIR says where one is unpacked")
        return _unpack(Path(args.unpack), Path(args.to or ROOT), args.json)
    if args.to is not None:
        raise ConfigError("--to: is of --unpack; --out FILE says where an archive is written")
    return _pack(args.run, args.out, args.json)


def _pack(run: str, out: str | None, as_json: bool) -> int:
    """Write the archive of a run that no process is training."""
    folder = find(run)
    if is_live(folder.path, folder.record) and folder.record.get("status") == "running":
        raise RunError(f"{folder.shown}: is being trained; archive it when it has ended")
    file = absolute(out or f"{folder.path.name}.tar.gz")
    if not file.name.endswith((".tar.gz", ".tgz")):
        raise ConfigError(f"--out: {out} is no name of such a file; write {out}.tar.gz")
    if file.exists():
        raise ConfigError(f"--out: {shown(file)} exists; give another name")
    if not file.parent.is_dir():
        raise ConfigError(f"--out: there is no folder {shown(file.parent)}")
    made = packed.pack(folder, file)
    if as_json:
        facts = {"run": str(folder.path), "archive": str(file), "files": made.files, "bytes": file.stat().st_size}
        show_json(facts | {"redacted": list(made.redacted)})
        return 0
    for name in made.redacted:
        print(visible(f"{name}: a secret was found in it, and is hidden in the archive"))
    print(visible(f"written: {shown(file)}, {made.files} files, {file.stat().st_size / 1e6:.1f} MB"))
    return 0


def _unpack(file: Path, to: Path, as_json: bool) -> int:
    """Unpack a run from an archive."""
    if not file.exists():
        raise ConfigError(f"--unpack: there is no file {file}")
    made = packed.unpack(absolute(file).resolve(), absolute(to))  # the archive itself may be a symbolic link
    if as_json:
        show_json({"archive": str(file), "run": str(made.path), "files": made.files, "bytes": made.size})
        return 0
    print(visible(f"unpacked: {shown(made.path)}, {made.files} files, {made.size / 1e6:.1f} MB"))
    return 0
