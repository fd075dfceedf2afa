"""The report of a run: one self-contained HTML file with its results, curves and configuration."""

from __future__ import annotations

import re
import shlex
from bisect import bisect_right
from collections.abc import Callable, Iterable
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

from healsg.console import visible
from healsg.errors import RunError
from healsg.loggers.plots import Points, figure
from healsg.loggers.report_samples import calibration, class_table, names_of, whole_number, worst
from healsg.metrics.interval import wilson
from healsg.runs import redact
from healsg.runs.folder import write_text
from healsg.runs.logger import Logger
from healsg.runs.record import row_of
from healsg.safefiles import read_bytes

LARGEST = 1 << 28
"""The most bytes of a file that a report reads, about a million lines of metrics."""

SAMPLES = "media/samples.json"
"""The file written by ``loggers.samples``."""

PARTS = ("data", "model", "method")

LEADING = ("/acc", "/dice", "/iou", "/loss")
"""Metrics that are shown first."""

MOST_NUMBERS = 8
"""The most test metrics at the beginning; all are shown below."""

MOST_ROWS = 200
"""The most rows of a table."""

MOST_PLOTS = 24

MOST_CURVES = 6
"""The most curves of a plot."""

MOST_CLASSES = 100
"""The most classes of a confusion matrix."""

MOST_LETTERS = 60
"""The length of class names from which the names above a confusion matrix are rotated."""

MOST_SHADE = 55
"""The strongest shade of a cell of a confusion matrix, in per cent, so that its number remains legible."""

STYLE = """
:root { color-scheme: light dark; --back: #fff; --text: #1f2328; --faint: #59636e; --line: #d1d9e0; --card: #f6f8fa;
  --c0: #0969da; --c1: #bc4c00; --c2: #1a7f37; --c3: #8250df; --c4: #bf3989; --c5: #57606a; }
@media (prefers-color-scheme: dark) { :root { --back: #0d1117; --text: #e6edf3; --faint: #9198a1; --line: #3d444d;
  --card: #151b23; --c0: #58a6ff; --c1: #f0883e; --c2: #3fb950; --c3: #bc8cff; --c4: #f778ba; --c5: #9198a1; } }
body { margin: 0 auto; padding: 1rem; max-width: 1000px; font: 15px/1.5 system-ui, sans-serif; background: var(--back);
  color: var(--text); }
h1 { font-size: 1.5rem; margin: .5rem 0; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; border-bottom: 1px solid var(--line); }
figure { margin: 0; padding: .75rem; background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
figcaption { font-weight: 600; overflow-wrap: anywhere; }
.plots { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 380px), 1fr)); }
.key { font-weight: 400; font-size: .85rem; color: var(--faint); margin-right: .8rem; white-space: nowrap; }
.key::before { content: "\\2501"; color: var(--c); margin-right: .35em; }
svg { width: 100%; height: auto; display: block; }
svg text { fill: var(--faint); font-size: 12px; }
svg path { fill: none; stroke: var(--c); stroke-width: 2; stroke-linejoin: round; }
svg path.thin { stroke-width: 1; opacity: .35; }
svg path.band { fill: var(--c); stroke: none; opacity: .18; }
svg circle { fill: var(--c); }
svg line { stroke: var(--line); }
svg line.best { stroke: var(--c2); stroke-dasharray: 4 3; }
.result { font-size: 1.1rem; margin: .3rem 0; overflow-wrap: anywhere; }
.result b { font-size: 1.35rem; font-variant-numeric: tabular-nums; }
.note { color: var(--faint); margin: .3rem 0; overflow-wrap: anywhere; }
.cards.wide { grid-template-columns: repeat(auto-fill, minmax(min(100%, 300px), 1fr)); }
.matrix th:first-child { text-align: left; }
.scroll { overflow: auto; max-height: 32rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td, th { padding: .2rem .8rem .2rem 0; text-align: right; white-space: nowrap; }
thead th { position: sticky; top: 0; background: var(--back); }
.facts th { text-align: left; color: var(--faint); font-weight: 400; vertical-align: top; }
.facts td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
.matrix td, .matrix th { padding: .1rem .5rem; }
.matrix th:first-child { position: sticky; left: 0; background: var(--back); z-index: 1; max-width: 40vw;
  overflow: hidden; text-overflow: ellipsis; }
.matrix thead th:first-child { z-index: 2; }
.upright thead th { vertical-align: bottom; }
.upright thead span { writing-mode: vertical-rl; transform: rotate(180deg); max-height: 10rem; overflow: hidden;
  text-overflow: ellipsis; }
tr.best { font-weight: 600; color: var(--c2); }
.cards { display: grid; gap: .5rem; grid-template-columns: repeat(auto-fill, minmax(110px, 1fr)); }
.cards figure { padding: .4rem; overflow: hidden; font-size: .8rem; overflow-wrap: anywhere; }
.cards img { display: block; max-width: 100%; margin: 0 auto .3rem; image-rendering: auto; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .75rem; overflow: auto;
  font-size: .85rem; }
"""


class Report(Logger):
    """Writes ``report.html`` when a run has ended, however it ended."""

    grace = 20.0

    def __init__(self) -> None:
        self.folder: Path | None = None
        """The run's folder, once the run has started."""

    def start(self, folder: Path, record: dict[str, Any]) -> None:
        self.folder = folder

    def finish(self, status: str) -> None:
        if self.folder is not None:
            write_report(self.folder, status)


def write_report(folder: Path, status: str | None = None) -> Path:
    """Write ``report.html`` of the run in ``folder``, from its ``metrics.jsonl``, ``run.json``, ``config.yaml`` and
    ``media/samples.json``: the result first, then classes, curves and single samples, and finally its provenance.

    ``status`` is how the run ended, if ``run.json`` does not say so yet. Missing or damaged files are left out. Returns
    the path of the report; raises OSError if it cannot be written.
    """
    lines = list(read_lines(folder / "metrics.jsonl"))
    epochs = [line for line in lines if line.get("event") == "epoch" and _is_number(line.get("epoch"))]
    record = next(iter(read_lines(folder / "run.json", single=True)), {})
    record = record | ({"status": status} if status else {})
    name = str(record.get("name") or folder.resolve().name)
    config = _text(folder / "config.yaml")
    best = record.get("best")
    best_epoch = best.get("epoch") if isinstance(best, dict) else None
    samples = next(iter(read_lines(folder / SAMPLES, single=True)), {})
    matrices = list(_matrices(record.get("test"), names_of(samples)))
    if not matrices and samples.get("confusion"):
        matrices = list(_matrices({f"{samples.get('split')}/confusion": samples["confusion"]}, names_of(samples)))
    sections = [
        f"<h1>{escape(name)}</h1>",
        result(record, samples, config),
        *matrices,
        class_table(samples),
        f'<h2>Curves</h2><div class="plots">{"".join(_plots(lines, epochs, best_epoch))}</div>' if lines else "",
        calibration(samples),
        *worst(samples),
        _ways_on(folder, name, record),
        f"<h2>Epochs</h2>{_table(epochs, best_epoch)}" if epochs else "",
        f"<h2>Provenance</h2>{_facts(record)}" if record else "",
        f"<h2>Configuration</h2><pre>{escape(config)}</pre>" if config else "",
    ]
    path = folder / "report.html"
    write_html(path, escape(name), sections)
    return path


def write_html(path: Path, title: str, sections: Iterable[str]) -> None:
    """Write a page in one file, in the style of the report; ``title`` and ``sections`` are HTML."""
    page = (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}</style></head><body>{''.join(sections)}</body></html>\n"
    )
    write_text(path, page)


def text_of(value: Any) -> str:
    """A value as HTML text, on one line and without secrets."""
    return escape(redact.text(visible(str(value))))


def result(record: dict[str, Any], samples: dict[str, Any], config: str) -> str:
    """What was trained on which data, and the results."""
    chosen = record.get("choices")
    known = chosen if isinstance(chosen, dict) else {}
    options = {role: known.get(role) or _target(role, config) for role in PARTS}
    parts = [f"{role} {escape(str(option))}" for role, option in options.items() if option]
    shown = [f'<p class="note">{", ".join(parts)}</p>' if parts else ""]
    best = record.get("best")
    if isinstance(best, dict) and isinstance(best.get("monitor"), str) and _is_number(best.get("value")):
        epoch = f" in epoch {best['epoch']:g}" if _is_number(best.get("epoch")) else ""
        shown.append(f'<p class="result">best {escape(best["monitor"])} <b>{best["value"]:.4f}</b>{epoch}</p>')
    split = samples.get("split")
    totals: list[Any] = [samples.get(key) for key in ("count", "hits")]
    count, hits = totals if all(map(whole_number, totals)) else [0, 0]
    counted = count > 0 and hits <= count
    test = record.get("test")
    numbers = {key: value for key, value in (test if isinstance(test, dict) else {}).items() if _is_number(value)}
    if counted and f"{split}/acc" not in numbers:
        numbers |= {f"{split}/acc": hits / count}
    for key in sorted(numbers, key=lambda key: (not key.endswith(LEADING), key))[:MOST_NUMBERS]:
        interval = ""
        if counted and key == f"{split}/acc" and abs(numbers[key] - hits / count) < 1e-6:
            low, high = wilson(hits, count)
            interval = f" (95 % interval {low:.4f} to {high:.4f}, {count:,} samples)"
        shown.append(f'<p class="result">{escape(key)} <b>{numbers[key]:.4f}</b>{interval}</p>')
    status, reason = record.get("status"), record.get("reason")
    if status and status != "finished":
        shown.append(f'<p class="note">{_show(status)}{": " + _show(reason) if reason else ""}</p>')
    return "".join(shown)


def _target(role: str, config: str) -> str:
    """The class of a part, read from ``config.yaml`` as text, since the file is untrusted."""
    found = re.search(rf"^{role}:\n(?:  .*\n)*?  _target_: [\w.]*?(\w+)$", config, re.MULTILINE)
    return found[1] if found else ""


def _ways_on(folder: Path, name: str, record: dict[str, Any]) -> str:
    """The commands to use or resume the run."""
    if not record:
        return ""
    run = shlex.quote(name if folder.resolve().parent.name == "runs" else str(folder))
    ways = [f"healsg predict {run} PATH... --out predictions.csv", f"healsg eval {run} split=test"]
    ways.append(f"healsg export {run} --to onnx --out DIR")
    finished = record.get("status") == "finished"
    ways.append(f"healsg resume {run} runner.epochs=N  # train on" if finished else f"healsg resume {run}")
    return f"<h2>How to go on</h2><pre>{escape(chr(10).join(ways))}</pre>"


def _text(path: Path) -> str:
    try:
        return read_bytes(path, LARGEST).decode(encoding="utf-8", errors="replace")
    except (OSError, RunError):
        return ""


def read_lines(path: Path, single: bool = False) -> Iterable[dict[str, Any]]:
    """The JSON objects of a file, one per line, or a ``single`` one; damaged ones are skipped."""
    text = _text(path)
    for part in [text] if single else text.split("\n"):
        row = row_of(part)
        if row is not None:
            yield row


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _show(value: Any) -> str:
    """A value of ``run.json`` as escaped text; long values, such as a patch, are left out."""
    if isinstance(value, dict):
        value = {key: part for key, part in value.items() if not _is_matrix(part)}
        return ", ".join(f"{escape(str(key))} {shown}" for key, part in value.items() if (shown := _show(part)))
    if isinstance(value, list):
        sentences = all(isinstance(part, str) and " " in part for part in value)
        return ("; " if sentences else " ").join(_show(part) for part in value)
    text = f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)
    return escape(text) if len(text) <= 1000 else ""


def _is_matrix(value: Any) -> bool:
    """Whether a value is a square matrix of numbers, such as a confusion matrix."""
    rows = value if isinstance(value, list) and value else [None]
    return all(isinstance(row, list) and len(row) == len(rows) and all(map(_is_number, row)) for row in rows)


def _matrices(test: Any, names: list[str]) -> Iterable[str]:
    """A table for each matrix of the test metrics: true classes as rows, predicted ones as columns, shaded by share."""
    for name, rows in test.items() if isinstance(test, dict) else ():
        if not _is_matrix(rows) or len(rows) > MOST_CLASSES:
            continue
        named = names if len(names) == len(rows) else [str(label) for label in range(len(rows))]
        head = "".join(f'<th title="{escape(label)}"><span>{escape(label)}</span></th>' for label in named)
        body = ""
        for label, row in zip(named, rows, strict=True):
            shares = [MOST_SHADE * count / (sum(row) or 1) for count in row]
            cells = zip(row, shares, strict=True)
            shades = "color-mix(in srgb, var(--c0) {:.0f}%, transparent)"
            text = "".join(f'<td style="background: {shades.format(share)}">{_show(n)}</td>' for n, share in cells)
            body += f"<tr><th>{escape(label)}</th>{text}</tr>"
        table = f"<table><thead><tr><th>true / predicted</th>{head}</tr></thead><tbody>{body}</tbody></table>"
        upright = " upright" if sum(map(len, named)) > MOST_LETTERS else ""
        yield f'<h2>{escape(str(name))}</h2><div class="scroll matrix{upright}">{table}</div>'


def _facts(record: dict[str, Any]) -> str:
    """The results and the environment, as a table of names and values."""
    order = ["status", "reason", "best", "test", "duration", "begin", "end", "command", "seed", "parameters", "device"]
    shown = {"duration": _duration(record.get("begin"), record.get("end")), **record}
    if _is_number(record.get("parameters")):
        shown["parameters"] = f"{record['parameters']:,}"
    names = [name for name in order if name in shown] + [name for name in shown if name not in order]
    rows = [(name, _show(shown[name])) for name in names if name != "name"]
    cells = "".join(f"<tr><th>{escape(name)}</th><td>{text}</td></tr>" for name, text in rows if text)
    return f'<table class="facts">{cells}</table>'


def _duration(begin: Any, end: Any) -> str:
    """``1:02:03`` between two times, in ISO 8601 or in seconds."""
    try:
        first, last = (t if _is_number(t) else datetime.fromisoformat(t).timestamp() for t in (begin, end))
    except (TypeError, ValueError):
        return ""
    minutes, seconds = divmod(round(last - first), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"


def _table(epochs: list[dict[str, Any]], best: Any) -> str:
    """The last epochs, the latest first; the best is marked."""
    rows = epochs[-MOST_ROWS:][::-1]
    names = list(dict.fromkeys(key for row in rows for key in row if key not in ("event", "epoch", "step", "best")))
    head = "".join(f"<th>{escape(name)}</th>" for name in ["epoch", *names])
    body = ""
    for row in rows:
        cells = "".join(f"<td>{_show(row.get(name))}</td>" for name in ["epoch", *names])
        body += f"<tr{' class=best' if row['epoch'] == best else ''}>{cells}</tr>"
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _plots(lines: list[dict[str, Any]], epochs: list[dict[str, Any]], best: Any) -> Iterable[str]:
    """A figure for each family of metrics: ``train/loss`` and ``val/loss`` together, the learning rates together. The
    best epoch is marked."""
    clock = _clock(epochs)
    families: dict[str, dict[str, dict[str, Points]]] = {}
    for line in lines:
        kind = line.get("event")
        where: Any = line.get(str(kind))
        if kind not in ("epoch", "step") or not _is_number(where):
            continue
        x = float(where) if kind == "epoch" else clock(where)
        for key, value in line.items():
            if _is_number(value) and key not in ("epoch", "step", "seconds"):
                head, _, rest = key.partition("/")
                family = families.setdefault(rest if head in ("train", "val") and rest else head, {})
                family.setdefault(key, {"epoch": [], "step": []})[kind].append((x, value))
    for title in sorted(families, key=lambda title: title == "lr")[:MOST_PLOTS]:
        curves = families[title]
        marked = float(best) if epochs and _is_number(best) else None
        yield figure(title, dict(list(curves.items())[:MOST_CURVES]), "epoch" if epochs else "step", marked)


def _clock(epochs: list[dict[str, Any]]) -> Callable[[float], float]:
    """A function from a step to its position in epochs, interpolated linearly; the step itself without epochs."""
    known = [(0.0, 0.0)] + [(float(e["step"]), float(e["epoch"])) for e in epochs if _is_number(e.get("step"))]
    steps = [step for step, _ in known]

    def position(step: float) -> float:
        if len(known) == 1:
            return step
        after = min(max(1, bisect_right(steps, step)), len(known) - 1)
        (s0, e0), (s1, e1) = known[after - 1], known[after]
        return e0 + (e1 - e0) * (step - s0) / ((s1 - s0) or 1)

    return position
