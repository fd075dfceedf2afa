"""``healsg check``: read every sample and take one real training step, before a run."""

from __future__ import annotations

import contextlib
import logging
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from healsg import logs
from healsg.commands.terminal import layout
from healsg.commands.terminal.flags import Flags, page_file
from healsg.commands.terminal.tables import show, show_json
from healsg.config.compose import Composer
from healsg.errors import ConfigError, DataError, one_line
from healsg.runs import redact

if TYPE_CHECKING:
    from healsg.commands.check.findings import Finding
    from healsg.commands.check.samples import Seen
    from healsg.config.schema import Composed
    from healsg.data.base import TaskData
    from healsg.data.info import DataInfo
    from healsg.data.source import Source

EXAMPLES = """\
  healsg check data=imagefolder data.folder=DIR
  healsg check data=imagefolder data.folder=DIR model=resnet method=sgd

The exit status is 1 if something would stop training, else 0."""

SCHEMA = 1
"""Version of the ``--json`` output; incremented when a key changes its meaning."""

MOST_CLASSES = 30
"""Most classes that the terminal lists."""

MOST_BAD = 50
"""Most bad samples that the terminal lists; ``--json`` has all, ``--page`` more."""


def run(arguments: list[str]) -> int:
    """``[overrides] [--json] [--page FILE] [--config-dir DIR]``."""
    flags = Flags(
        "check",
        "Read every sample once and take one training step, with the arguments of train. Lists all samples that "
        "cannot be read, classes and sizes by split, duplicates across splits, suspicious class names and groups; "
        "what is trained and saved; and the command to train.",
        EXAMPLES,
    )
    flags.add_settings()
    flags.add_argument(
        "--page", metavar="FILE", help="write an HTML page with the unreadable and some of the other samples"
    )
    flags.add_json()
    flags.add_config_dir()
    args = flags.read(arguments)
    composed = Composer(args.config_dir).compose(args.settings)
    page = page_file(args.page)
    seen, answer = checked(composed, ["--config-dir", args.config_dir] if args.config_dir else [], args.settings)
    if page:
        from healsg.commands.check.page import write_page

        write_page(page, answer, seen)
    if args.json:
        show_json(answer)
    else:
        _print(answer)
        if page:
            print(f"page: {page}")
    return 1 if answer["fatal"] else 0


def checked(composed: Composed, options: list[str], overrides: list[str]) -> tuple[dict[str, Seen], dict[str, Any]]:
    """The statistics of each split's samples, and all findings, as plain values.

    Raises ConfigError and DataError if nothing can be read, for example because a folder does not exist.
    """
    from healsg.build import make
    from healsg.commands.check.findings import Finding, findings_of
    from healsg.commands.check.fit import read_safely, tried
    from healsg.commands.check.samples import read_split
    from healsg.commands.check.volumes import volume_facts, volume_findings
    from healsg.data.base import TaskData
    from healsg.data.patches import padding
    from healsg.datasets.nifti import Volumes
    from healsg.datasets.segmentation import Segmentation

    with _messages() as messages:
        data: TaskData = make(read_safely(composed, broken=False).values["data"], "data", composed, TaskData)
        info = data.info
        sources, wrong = _splits(data, info)
        seen = {split: read_split(split, source, info) for split, source in sources.items()}
    skips, most = data.reading.on_error == "skip", data.reading.max_errors
    found = [Finding("fatal", "data", one_line(error)) for error in wrong]
    found += findings_of(seen, sources, info, skips, most)
    volumes = volume_facts(sources)
    found += volume_findings(volumes, data.preparation) if isinstance(data, Volumes) and volumes else []
    if isinstance(data, Segmentation) and data.patch is not None and "train" in sources:
        with contextlib.suppress(DataError):  # which the task meets too
            if remark := padding([sources["train"]], data.patch, read=None):
                found.append(Finding("note", "data.patch", remark))
    broken = any(one.bad for one in seen.values())
    with _messages() as later:
        facts, misfits = tried(read_safely(composed, broken), info if wrong else None)
    if not (wrong and misfits and str(wrong[0]) in misfits[0].message):
        found += misfits
    heard = dict.fromkeys(text for level, text in [*messages, *later] if level >= logging.WARNING)
    found += [Finding("warning", "log", text) for text in heard if not _is_known(text, found)]
    found.sort(key=lambda finding: ("fatal", "warning", "note").index(finding.level))
    answer = _answer(composed, [*options, *overrides], info, seen, found, facts)
    return seen, answer | ({"volumes": [one.as_json() for one in volumes]} if volumes else {})


def _is_known(text: str, findings: list[Finding]) -> bool:
    """Whether a log line only repeats a finding: a skipped sample, or equal names."""
    quoted = set(re.findall(r"'[^']+'", text))
    known = {name for finding in findings for name in re.findall(r"'[^']+'", finding.message)}
    return text.startswith("left out") or bool(quoted and quoted <= known)


def _splits(data: TaskData, info: DataInfo) -> tuple[dict[str, Source], list[DataError]]:
    """The samples of each split. If the data set refuses training because a class is empty, the existing samples are
    returned together with the reason; without any samples, the error is raised."""
    try:
        return _named(data, data.splits()), []
    except DataError as error:
        try:
            restored = data.restored(info)
            return _named(restored, restored.splits()), [error]
        except (DataError, ConfigError):
            raise error from None


def _named(data: TaskData, parts: Mapping[str, Source]) -> dict[str, Source]:
    """Each sample once: a test part that also serves for validation counts as ``test``."""
    return {split: source for split, source in parts.items() if not (split == "val" and data.val_is_test)}


@contextlib.contextmanager
def _messages() -> Iterator[list[tuple[int, str]]]:
    """The log messages of the data set and the task within the context: (level, text)."""
    messages: list[tuple[int, str]] = []

    class Collecting(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append((record.levelno, redact.text(record.getMessage())))

    with logs.handled_by([Collecting()], logging.INFO):
        yield messages


# --- the report ------------------------------------------------------------------------------------------------------


def _answer(
    composed: Composed,
    arguments: list[str],
    info: DataInfo,
    seen: Mapping[str, Seen],
    found: list[Finding],
    facts: dict[str, Any],
) -> dict[str, Any]:
    from healsg.commands.check.findings import duplicate_groups
    from healsg.data.source import line

    bad = [
        {"split": one.split, "sample": line(one.name), "reason": one.reason}
        for each in seen.values()
        for one in each.bad
    ]
    shown = [redact.override(argument) for argument in arguments]
    return {
        "schema": SCHEMA,
        "fatal": any(finding.level == "fatal" for finding in found),
        "parts": {group: composed.choices.get(group) for group in ("data", "model", "method")},
        "kind": info.kind,
        "input_shape": list(info.input_shape),
        "classes": info.names,
        "splits": {split: _split(one, info) for split, one in seen.items()},
        "pictures": _pictures(seen),
        "bad": bad,
        "findings": [finding.as_json() for finding in found],
        "duplicates": duplicate_groups(seen),
        "task": facts,
        "command": " ".join(["healsg train", *map(shlex.quote, shown)]),
    }


def _split(one: Seen, info: DataInfo) -> dict[str, Any]:
    names = list(info.class_names)
    labels = info.labels if info.dense else range(info.num_classes)
    counts: dict[str, Any] = {}
    if one.targets:
        ordered = [*labels, *sorted(label for label in one.targets if label not in set(labels))]
        named = len(names) == len(labels)
        for index, label in enumerate(ordered):
            name = names[index] if named and index < len(names) else "ignored" if label == info.ignore else str(label)
            counts[name] = one.targets[label]
    facts: dict[str, Any] = {"samples": one.count, "unreadable": len(one.bad)}
    if info.dense:
        total = sum(one.targets.values()) or 1
        facts |= {"pixels": {name: round(count / total, 6) for name, count in counts.items()}}
        return facts | {"empty_masks": len(one.empty_masks)}
    if one.targets_range is not None:
        facts["targets"] = list(one.targets_range)
    return facts | {"classes": counts} | ({"missing": one.missing} if one.missing else {})


def _pictures(seen: Mapping[str, Seen]) -> dict[str, Any]:
    """Sizes, modes, bit depths, formats and orientations of all splits; or the shapes of samples that are not image
    files."""

    def summed(name: str) -> Counter[Any]:
        return sum((getattr(one, name) for one in seen.values()), Counter())

    sizes = summed("sizes")
    if not sizes:
        return {"shapes": {"x".join(map(str, shape)): count for shape, count in summed("shapes").most_common(10)}}
    sides = list(sizes)
    return {
        "sizes": {f"{height}x{width}": count for (height, width), count in sizes.most_common(10)},
        "different_sizes": len(sizes),
        "height": [min(height for height, _ in sides), max(height for height, _ in sides)],
        "width": [min(width for _, width in sides), max(width for _, width in sides)],
        "modes": dict(summed("modes").most_common()),
        "bits": {str(bits): count for bits, count in summed("bits").most_common()},
        "formats": dict(summed("formats").most_common()),
        "orientations": {str(value): count for value, count in sorted(summed("orientations").items())},
    }


def _print(answer: dict[str, Any]) -> None:
    parts = " ".join(f"{group}={name}" for group, name in answer["parts"].items() if name)
    shape = "x".join(map(str, answer["input_shape"]))
    print(f"{parts}: {answer['kind']}, {len(answer['classes'])} outputs, inputs of {shape}\n")
    splits: dict[str, dict[str, Any]] = answer["splits"]
    rows = [[split, one["samples"], one["unreadable"]] for split, one in splits.items()]
    show(["split", "samples", "unreadable"], rows)
    key = "pixels" if answer["kind"] == "segmentation" else "classes"
    counted = list(next(iter(splits.values())).get(key) or {})
    if 0 < len(counted) <= MOST_CLASSES:
        print()
        body = [[name, *(one.get(key, {}).get(name, 0) for one in splits.values())] for name in counted]
        show(["share of pixels" if key == "pixels" else "class", *splits], body)
    elif counted:
        counts = [count for one in splits.values() for count in one[key].values()]
        print(f"\n{len(counted)} classes, {min(counts)} to {max(counts)} of each in a split (--json has all)")
    print()
    lines = list(_picture_lines(answer["pictures"]))
    if "volumes" in answer:
        from healsg.commands.check.volumes import summary

        lines = list(summary(answer["volumes"]))
    print("\n".join(layout.rows(lines, indent=0)))
    if answer["bad"]:
        print("\nUnreadable")
        listed = [(one["sample"], one["reason"]) for one in answer["bad"][:MOST_BAD]]
        print("\n".join(layout.rows(listed)))
        if len(answer["bad"]) > MOST_BAD:
            print(f"  and {len(answer['bad']) - MOST_BAD} more: --json lists all")
    if answer["findings"]:
        print("\nFindings")
        listed = [(one["level"], f"{one['subject']}: {one['message']}") for one in answer["findings"]]
        print("\n".join(layout.rows(listed)))
    if answer["task"]:
        print("\nTask")
        print("\n".join(layout.rows(list(_task_lines(answer["task"])))))
    verdict = "something would stop training (fatal, above); when it is mended" if answer["fatal"] else "train with"
    print(f"\n{verdict}: {answer['command']}")


def _picture_lines(pictures: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if "shapes" in pictures:
        yield "shapes", ", ".join(f"{shape} ({count})" for shape, count in pictures["shapes"].items())
        return
    few = pictures["different_sizes"] <= 5
    sizes = ", ".join(f"{size} ({count})" for size, count in pictures["sizes"].items())
    (low, high), (narrow, wide) = pictures["height"], pictures["width"]
    range_text = f"{pictures['different_sizes']} different, {low} to {high} high, {narrow} to {wide} wide"
    yield "sizes", sizes if few else range_text
    for key in ("modes", "bits", "formats", "orientations"):
        yield key, ", ".join(f"{value} ({count})" for value, count in pictures[key].items())


def _task_lines(task: dict[str, Any]) -> Iterator[tuple[str, str]]:
    frozen = len(task["frozen"])
    yield (
        "parameters",
        f"{task['parameters']:,}, of which {task['trained']:,} are trained"
        + (f" ({frozen} tensors are frozen)" if frozen else ""),
    )
    yield "learning", f"{task['optimizer']}, {task['criterion']}, {task['epochs']} epochs, {task['updates']} updates"
    if "step" in task:
        numbers = ", ".join(f"{name} {value:.4g}" for name, value in task["step"].items() if name != "samples")
        yield "first step", f"{numbers} on {task['step'].get('samples', 0)} samples ({task['device']})"
    if "saved" in task:
        yield "saved", ", ".join(f"{name} {size / 1e6:.2f} MB" for name, size in task["saved"].items())
    left = task["left_out"]
    listed = [f"{left['samples']} samples an epoch (data.drop_last)"] * bool(left["samples"]) + list(left["metrics"])
    yield "left out", "; ".join(listed) or "nothing"
