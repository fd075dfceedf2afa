"""``run.json`` may hold anything: it is told in one line by file and field, or it changes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from healsg.cli import main
from healsg.errors import RunError
from healsg.loggers.report import write_report
from healsg.runs.folder import RunFolder
from healsg.runs.record import DEEPEST, FIELDS, LARGEST

SETTINGS = ["model=mlp", "model.width=8", "runner.steps=4", "data.batch_size=256", "quiet=true", "name=run"]

VALUES: list[Any] = [
    *(None, True, "x", "", -3, 0, 5, 10**6, 10**30, 0.5, -1.5, float("nan"), float("inf"), [], [5], [None], ["x"]),
    *([{}], {}, {"a": [1]}, {"monitor": 5}, {"monitor": "val/acc"}, {"monitor": "val/acc", "value": "x"}),
    {"monitor": "val/acc", "value": [1]},
]


def wrong(key: str) -> list[Any]:
    return [value for value in VALUES if value is not None and not FIELDS[key][0](value)]


@pytest.fixture
def folder() -> RunFolder:
    path = Path("runs/run")
    path.mkdir(parents=True)
    return RunFolder(path)


@pytest.mark.parametrize("key", FIELDS)
def test_a_field_of_another_type_is_named_with_its_file(key: str, folder: RunFolder) -> None:
    assert len(wrong(key)) > 8
    for value in VALUES:
        folder.record_file.write_text(json.dumps({"name": "x", key: value}))
        if value in wrong(key) or value != value:
            with pytest.raises(RunError, match=rf"runs/run/run\.json: {key}: .* is not .*; correct it, or remove"):
                folder.record  # noqa: B018
        else:
            assert folder.record == {"name": "x", key: value}


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("seconds", ["x", None, -1]),
        ("threads", ["many", -3, 10**6, 0, True]),
        ("continued", [5, "x", [5]]),
        ("samples", ["x", 5]),
        ("earlier", [7, {"a": 1}]),
        ("status", [5, ["finished"]]),
        ("processes", ["two", 0]),
        ("best", ["x", {"value": 1}]),
        ("test", ["x"]),
    ],
)
def test_a_run_goes_on_or_says_which_field_is_wrong(
    key: str, values: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *SETTINGS, "runner.max_time=0"]) == 0
    record = RunFolder(Path("runs/run")).record
    for value in values:
        Path("runs/run/run.json").write_text(json.dumps(record | {key: value}))
        for command in (["resume", "run"], ["train", *SETTINGS]):
            if value is None:
                continue
            before = Path("runs/run/run.json").read_text()
            assert main(command) == 1
            line = capsys.readouterr().err
            assert line.startswith(f"error: runs/run/run.json: {key}: ")
            assert line.count("\n") == 1
            assert Path("runs/run/run.json").read_text() == before
    Path("runs/run/run.json").write_text(json.dumps(dict.fromkeys(record)))
    assert main(["resume", "run", "runner.max_time=null"]) == 0, "a field that is null is one that is absent"
    assert json.loads(Path("runs/run/run.json").read_text())["status"] == "finished"


def test_a_run_goes_on_without_its_record() -> None:
    assert main(["train", *SETTINGS, "runner.max_time=0"]) == 0
    Path("runs/run/run.json").unlink()
    assert main(["resume", "run", "runner.max_time=null"]) == 0


def test_what_is_no_record_at_all_is_none(folder: RunFolder) -> None:
    for text in ("", "[]", "5", '"x"', "{", "[" * 100_000, "9" * 10_000, "\0", "null"):
        folder.record_file.write_text(text)
        assert folder.record == {}
    folder.record_file.write_bytes(b"\xff\xfe{")
    assert folder.record == {}


def test_a_record_is_bounded_in_size_and_depth(folder: RunFolder) -> None:
    folder.record_file.write_text("{" + '"a": {' * DEEPEST + "}" * DEEPEST + "}")
    with pytest.raises(RunError, match=r"run\.json: is nested more than"):
        folder.record  # noqa: B018
    with folder.record_file.open("wb") as file:
        file.truncate(200 << 30)
    with pytest.raises(RunError, match=rf"run\.json: is larger than {LARGEST} bytes"):
        folder.record  # noqa: B018


def test_a_report_of_odd_records_is_written(folder: RunFolder) -> None:
    (folder.path / "metrics.jsonl").write_text('{"event": "epoch", "epoch": 1, "step": 1, "val/acc": 0.5}\n')
    for key in (*FIELDS, "begin", "end", "name", "commit", "patch", "device", "parameters", "reason"):
        for value in VALUES:
            folder.record_file.write_text(json.dumps({key: value}))
            assert "<html" in write_report(folder.path).read_text()


def test_more_threads_than_a_machine_has_are_refused_in_a_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *SETTINGS, "runner.threads=1000000"]) == 2
    assert "runner.threads: 1000000 is out of range" in capsys.readouterr().err
