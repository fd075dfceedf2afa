"""``healsg pack``: write the images of a data set as uncompressed tar archives, which ``data=shards`` reads with random
access."""

from __future__ import annotations

from typing import TYPE_CHECKING

from healsg.commands.terminal.flags import Flags
from healsg.commands.terminal.tables import show_json
from healsg.config.compose import Composer
from healsg.console import visible
from healsg.errors import ConfigError
from healsg.paths import absolute, shown

if TYPE_CHECKING:
    from healsg.datasets.tar.notes import Notes
    from healsg.datasets.tar.packing import Plan

EXAMPLES = """\
  healsg pack data=imagefolder data.folder=DIR --out SHARDS
  healsg train data=shards data.folder=SHARDS

The bytes of the files are not changed (KEY.jpg, KEY.cls, KEY.json: webdataset
reads them too). The archives also store the splits, the classes and their
order, several labels or numbers per image (csv, hf), and the groups of
data.group. Masks of seg2d and voc are packed beside their images (KEY.seg.png);
data=shards_seg reads them. data.on_error=skip reads all samples once before
packing, and leaves out those that cannot be read. The size is printed first.
The same command continues a packing that was killed."""

SIZE = 256.0
"""Default size of an archive, in MB."""


def run(arguments: list[str]) -> int:
    """``data=... --out DIR [--size MB] [--dry-run] [--json]``."""
    flags = Flags(
        "pack",
        "Write the images of a data set as uncompressed tar archives with random access. Training on them gives the "
        "same order of samples and the same results.",
        EXAMPLES,
    )
    flags.add_settings("data=... and its settings")
    flags.add_argument(
        "--out", required=True, metavar="DIR", help="the folder of the archives, which must be empty or new"
    )
    flags.add_argument(
        "--size", type=_bytes, default=str(SIZE), metavar="MB", help=f"largest size of an archive (default: {SIZE})"
    )
    flags.add_argument("--dry-run", action="store_true", help="show what would be written, without writing it")
    flags.add_json()
    flags.add_config_dir()
    args = flags.read(arguments)
    out = absolute(args.out).expanduser()
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out: {shown(out)} is no folder")
    composer = Composer(args.config_dir)
    _refuse_settings_of_runs([override.key_or_group for override in composer.parse(args.settings)])
    composed = composer.compose(args.settings)

    source = composed.values["data"].get("folder")
    if source and out.resolve().is_relative_to(absolute(str(source)).expanduser().resolve()):
        raise ConfigError(f"--out: {shown(out)} lies in data.folder, where it would be read as pictures; name another")

    from healsg.build import make
    from healsg.data.base import TaskData
    from healsg.datasets.tar.notes import NOTES
    from healsg.datasets.tar.packing import pack, plan_packing

    settings = composed.values["data"]
    if "shift" in settings:  # unused here, and it may be too large for data.image_size
        settings = {**settings, "shift": 0}
    plan = plan_packing(make(settings, "data", composed, TaskData), args.size)
    room = f"about {plan.size / 1e6:.1f} MB in {plan.archives} archives in {shown(out)}"
    detail = f"{plan.samples} pictures{_left_out(plan)}, {room}"
    if not args.json:
        print(visible(detail), flush=True)
    there = (out / NOTES).exists()
    notes = None if args.dry_run else pack(plan, out)
    if args.json:
        show_json(_answer(plan, notes, str(out)))
    elif notes is not None:
        done = "these archives are there already" if there else "written"
        option = "shards" if notes.masks is None else "shards_seg"
        print(visible(f"{done}; train with: healsg train data={option} data.folder={shown(out)}"))
    return 0


def _left_out(plan: Plan) -> str:
    """What the plan says of broken samples, in words."""
    count = sum(plan.skipped.values())
    return f" ({count} that cannot be read are left out)" if count else ""


def _bytes(megabytes: str) -> int:
    """The value of ``--size``. Raises ConfigError."""
    try:
        size = float(megabytes)
    except ValueError:
        size = 0.0
    if not 0 < size < 1e6:
        raise ConfigError(f"--size: {megabytes}; give the megabytes of an archive, such as 256")
    return max(1, round(size * 1e6))


def _refuse_settings_of_runs(keys: list[str]) -> None:
    """Raises ConfigError for settings that each run chooses anew."""
    from healsg.datasets.tar.packing import OF_RUNS

    if refused := next((key for key in keys if key.removeprefix("data.") in OF_RUNS and key.startswith("data.")), None):
        raise ConfigError(
            f"{refused}: is chosen by each run that reads the archives, which hold all samples; leave it out"
        )


def _answer(plan: Plan, notes: Notes | None, out: str) -> dict[str, object]:
    """What ``--json`` prints."""
    samples = {name: len(part.names) for name, part in plan.parts.items()}
    written = {} if notes is None else {name: [one.name for one in tars] for name, tars in notes.parts.items()}
    counted = {"samples": samples, "skipped": plan.skipped, "bytes": plan.size, "archives": plan.archives}
    return {"out": out, **counted, "written": written}
