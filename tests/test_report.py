"""report.html: whole for every run, small for long ones, and harmless whatever the names."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from healsg.loggers.plots import thin, ticks
from healsg.loggers.report import write_report
from healsg.metrics.interval import wilson
from helpers import no_hang, trainer


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
            assert tag not in ("script", "link", "iframe")
            assert not {"href", "onload", "onerror"} & {name for name, _ in attributes}
            sources = [value or "" for name, value in attributes if name == "src"]
            assert all(re.fullmatch(r"data:image/jpeg;base64,[A-Za-z0-9+/]+=*", source) for source in sources)
            if tag not in ("meta", "img", "br"):
                opened.append(tag)

        def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
            assert tag in ("path", "line")

        def handle_endtag(self, tag: str) -> None:
            assert opened.pop() == tag

    Check().feed(page)
    assert not opened
    drawn = re.findall(r' (?:d|cx|cy|x|y|x1|y1)="([^"]*)"', page)
    assert not [text for text in drawn if "nan" in text or "inf" in text]


def samples_of(folder: Path, **changed: Any) -> None:
    """What a run leaves of its samples: two classes, ten samples, of which two are mistakes."""
    kept = {
        "target": 0,
        "predicted": 1,
        "confidence": 0.9,
        "loss": 2.3,
        "name": "bilder/füchse <1>.png",
        "jpeg": "QUJD",
    }
    found = {
        "split": "test",
        "classes": ["<cat>", "dog"],
        "mistakes": [kept],
        "losses": [kept],
        "masks": [],
        "count": 10,
        "hits": 8,
        "true": [5, 5],
        "predicted": [4, 6],
        "correct": [4, 4],
        "confusion": [[4, 1], [1, 4]],
        "ece": 0.1,
        "bins": [{"count": 8, "confidence": 0.9, "accuracy": 1.0}, {"count": 2, "confidence": 0.6, "accuracy": 0.5}],
    }
    (folder / "media").mkdir(exist_ok=True)
    (folder / "media/samples.json").write_text(json.dumps(found | changed), encoding="utf-8")


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


def test_long_runs_are_thinned_and_end(tmp_path: Path) -> None:
    lines = [epoch(n, train_loss=1 / n, val_loss=1 / n, val_acc=1 - 1 / n, lr=0.1) for n in range(1, 10_001)]
    lines += [{"event": "step", "epoch": 1, "step": s, "train/loss": 1.0 / s, "lr": 0.1} for s in range(1, 100_001)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with no_hang():
        page = write_report(tmp_path).read_text(encoding="utf-8")
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


def test_the_result_stands_first_and_where_it_came_from_last(tmp_path: Path) -> None:
    samples_of(tmp_path)
    record = {"choices": {"data": "digits", "model": "cnn"}, "test": {"test/acc": 0.8}, "status": "finished"}
    record["best"] = {"monitor": "val/acc", "value": 0.9, "epoch": 2}
    page = report(tmp_path, [epoch(1, val_acc=0.7), epoch(2, val_acc=0.9)], record, "seed: 0\n")
    order = ["data digits", "best val/acc", "test/acc", ">&lt;cat&gt;</th>", "Classes", "Curves", "Calibration"]
    order += ["Most confident mistakes", "Largest losses", "How to go on", "Epochs", "Provenance", "Configuration"]
    places = [page.index(text) for text in order]
    assert places == sorted(places)
    assert "95 % interval 0.4902 to 0.9433, 10 samples" in page
    assert "dog, not &lt;cat&gt;" in page
    assert "best, epoch 2" in figures(page)["acc"]
    assert len(page) < 1_000_000


@pytest.mark.parametrize(
    "changed",
    [
        {"mistakes": [{"jpeg": '"><script>', "target": "x", "predicted": -1, "name": ["<b>"]}, 3, None]},
        {"true": [1, "2"], "bins": [{"count": "x"}, 4], "ece": "y"},
        {"classes": [1, {}], "confusion": [[1], [2, 3]], "count": -5},
        {"bins": [{"count": 1, "confidence": 7, "accuracy": 0}], "masks": "all", "losses": {"a": 1}},
    ],
)
def test_samples_of_anybody_are_data(tmp_path: Path, changed: dict[str, Any]) -> None:
    samples_of(tmp_path, **changed)
    assert "<script" not in report(tmp_path, [epoch(1, val_acc=0.5)], {"test": {"test/acc": 0.8}})


@pytest.mark.parametrize(("hits", "count", "low", "high"), [(8, 10, 0.4902, 0.9433), (0, 20, 0.0, 0.1611)])
def test_an_interval_is_wilsons(hits: int, count: int, low: float, high: float) -> None:
    assert wilson(hits, count) == pytest.approx((low, high), abs=1e-4)


def test_a_run_keeps_what_its_samples_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = trainer("data=digits", "model=mlp", "runner.epochs=1", "name=told", "quiet=true")
    result = run.train()
    found = json.loads(Path("runs/told/media/samples.json").read_text())
    assert found["split"] == "test"
    assert found["count"] == sum(found["true"]) == sum(map(sum, found["confusion"])) == 500
    assert found["hits"] / found["count"] == pytest.approx(result["test"]["test/acc"])
    confidences = [one["confidence"] for one in found["mistakes"]]
    assert confidences == sorted(confidences, reverse=True)
    assert all(one["target"] != one["predicted"] for one in found["mistakes"])
    assert found["losses"][0]["loss"] >= found["losses"][-1]["loss"] > 0
    page = Path("runs/told/report.html").read_text(encoding="utf-8")
    check_whole(page)
    assert page.count("<img") == len(found["mistakes"]) + len(found["losses"])
    assert len(page) < 1_000_000
