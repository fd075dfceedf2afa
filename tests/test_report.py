"""report.html: whole for every run, small for long ones, and harmless whatever the names."""

from __future__ import annotations

import json
import re
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from healsg.loggers.plots import thin, ticks
from healsg.loggers.report import write_report


def epoch(number: int, **metrics: Any) -> dict[str, Any]:
    named = {name.replace("_", "/", 1): value for name, value in metrics.items()}
    return {"event": "epoch", "epoch": number, "step": 10 * number, **named, "seconds": 1.5}


def report(folder: Path, lines: list[Any], record: dict[str, Any] | None = None, config: str = "") -> str:
    text = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (folder / "metrics.jsonl").write_text("\n".join(text), encoding="utf-8")
    (folder / "run.json").write_text(json.dumps(record or {}), encoding="utf-8")
    (folder / "config.yaml").write_text(config, encoding="utf-8")
    page = write_report(folder).read_text(encoding="utf-8")
    check_whole(page)
    return page


def check_whole(page: str) -> None:
    """Every element is closed, nothing is loaded from elsewhere, and every coordinate is a number."""
    opened: list[str] = []

    class Check(HTMLParser):
        def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
            assert tag not in ("script", "img", "link", "iframe")
            assert not {"src", "href", "onload"} & {name for name, _ in attributes}
            if tag not in ("meta",):
                opened.append(tag)

        def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
            assert tag in ("path", "line")

        def handle_endtag(self, tag: str) -> None:
            assert opened.pop() == tag

    Check().feed(page)
    assert not opened
    drawn = re.findall(r' (?:d|cx|cy|x|y|x1|y1)="([^"]*)"', page)
    assert not [text for text in drawn if "nan" in text or "inf" in text]


def figures(page: str) -> dict[str, str]:
    return dict(re.findall(r"<figure><figcaption>(.*?)</figcaption>(.*?)</figure>", page))


def test_a_report_holds_the_run(tmp_path: Path) -> None:
    lines = [epoch(n, train_loss=1 / n, val_loss=1.1 / n, val_acc=n / 10, lr=0.1) for n in range(1, 6)]
    lines.insert(1, {"event": "step", "step": 15, "epoch": 2, "train/loss": 0.9})
    lines.insert(2, {"event": "step", "step": 17, "epoch": 2, "train/loss": 0.8})
    record = {
        "name": "digits",
        "status": "finished",
        "begin": "2026-01-01T10:00:00+00:00",
        "end": "2026-01-01T11:02:03+00:00",
        "best": {"epoch": 5, "val/acc": 0.5},
        "test": {"test/acc": 0.48},
        "parameters": 1234567,
        "git": {"commit": "abc", "patch": "x" * 5000},
    }
    page = report(tmp_path, lines, record, "seed: 3\n")
    for shown in ("digits", "finished", "1:02:03", "val/acc 0.5", "test/acc 0.48", "1,234,567", "abc", "seed: 3"):
        assert shown in page
    assert "xxxxx" not in page
    assert list(figures(page)) == ["loss", "acc", "lr"]
    assert figures(page)["loss"].count("<circle") == 10
    assert figures(page)["loss"].count('class="thin"') == 1
    assert re.findall(r"<tr class=best><td>(\d+)", page) == ["5"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.yaml",
        "metrics.jsonl",
        "report.html",
        "run.json",
    ]


def test_names_are_data(tmp_path: Path) -> None:
    bad = "<script>alert('x')</script>\"&"
    page = report(
        tmp_path, [{"event": "epoch", "epoch": 1, "step": 1, f"val/{bad}": 0.5, bad: 1.0}], {"name": bad, bad: bad}, bad
    )
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 6


@pytest.mark.parametrize(
    "values",
    [
        [0.5],
        [0.5] * 5,
        [0.0] * 3,
        [float("nan")] * 3,
        [0.1, float("inf"), 0.3, float("-inf")],
        [1e300, -1e300],
        [-1e-30, 1e-30],
    ],
)
def test_odd_values_do_not_break_a_plot(tmp_path: Path, values: list[float]) -> None:
    page = report(tmp_path, [epoch(n, val_acc=value) for n, value in enumerate(values, 1)])
    unseen = sum(not abs(value) < 1e100 for value in values)
    assert figures(page)["acc"].count("<circle") == len(values) - unseen
    assert ("not finite" in page) == bool(unseen)


def test_damaged_lines_are_skipped(tmp_path: Path) -> None:
    odd = ['{"event": "epo', "[1, 2]", "", "null", {"event": "epoch"}, {"event": "epoch", "epoch": "x", "step": []}]
    page = report(tmp_path, [*odd, epoch(1, val_acc=0.5), '{"event": "epoch", "epoch": 2, "val/acc": 0.'])
    assert page.count("<circle") == 1


def test_an_empty_folder_has_a_report(tmp_path: Path) -> None:
    assert tmp_path.name in write_report(tmp_path).read_text(encoding="utf-8")


def test_steps_alone_are_drawn_over_steps(tmp_path: Path) -> None:
    lines = [{"event": "step", "epoch": 1, "step": step, "train/loss": 1 / step} for step in (10, 20, 30)]
    assert ">step</text>" in figures(report(tmp_path, lines))["loss"]


def test_long_runs_are_thinned_and_quick(tmp_path: Path) -> None:
    lines = [epoch(n, train_loss=1 / n, val_loss=1 / n, val_acc=1 - 1 / n, lr=0.1) for n in range(1, 10_001)]
    lines += [{"event": "step", "epoch": 1, "step": s, "train/loss": 1.0 / s, "lr": 0.1} for s in range(1, 100_001)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    begin = time.process_time()
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert time.process_time() - begin < 20  # 2 s where nothing else runs
    check_whole(page)
    assert len(page) < 300_000
    assert page.count("<tr>") == 200 + 1


def test_thin_keeps_the_extremes() -> None:
    points = [(float(i), 0.0) for i in range(5000)]
    points[3333] = (3333.0, 9.0)
    points[4444] = (4444.0, -9.0)
    kept = thin(points, 100)
    assert len(kept) <= 100
    assert {(3333.0, 9.0), (4444.0, -9.0)} <= set(kept)
    assert kept == sorted(kept)
    assert thin(points, 5000) == points


def test_ticks_are_round() -> None:
    assert ticks(0.0, 1.0) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert ticks(0.3, 30.0, 1.0) == [10.0, 20.0, 30.0]
    assert ticks(1.0, 3.0, 1.0) == [1.0, 2.0, 3.0]
    assert ticks(-2e-7, 2e-7) == pytest.approx([-2e-7, -1e-7, 0.0, 1e-7, 2e-7])
