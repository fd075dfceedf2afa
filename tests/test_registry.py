"""``healsg runs``, ``diff``, ``watch`` and ``rm`` work on the files that runs leave, broken and foreign ones too."""

from __future__ import annotations

import io
import json
import os
import platform
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.cells import cell_len

from healsg.cli import main
from healsg.commands import watch
from healsg.commands.terminal import tables
from healsg.commands.watch import braille, overview
from healsg.errors import ConfigError
from healsg.runs import registry
from healsg.runs.folder import RunFolder
from healsg.runs.heartbeat import Heartbeat
from helpers import wait_for

Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Writes the files of a run, as one that was trained leaves them."""
    monkeypatch.chdir(tmp_path)

    def run(name: str, status: str = "finished", acc: float = 0.9, lr: float = 0.1, **facts: Any) -> Path:
        path = tmp_path / "runs" / name
        path.mkdir(parents=True)
        best = {"monitor": "val/acc", "value": acc, "epoch": 3, "step": 30, "metrics": {"val/acc": acc}}
        record: dict[str, Any] = {"status": status, "seed": 0, "begin": "2026-01-01T10:00:00+0000", "seconds": 75.0}
        record |= {"host": platform.node(), "choices": {"data": "digits", "model": "mlp", "method": "sgd"}}
        if status == "finished":
            record |= {"best": best, "test": {"test/acc": acc - 0.01}, "last": {"epoch": 5, "step": 50}}
        (path / "run.json").write_text(json.dumps(record | facts))
        config = {"seed": record["seed"], "method": {"optimizer": {"lr": lr}}, "runner": {"monitor": "auto"}}
        (path / "config.yaml").write_text(yaml.safe_dump(config))
        rows = [
            {"event": "epoch", "epoch": epoch, "step": 10 * epoch, "val/acc": acc * epoch / 5} for epoch in (1, 2, 5)
        ]
        (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return run


def as_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def names(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    return [row["name"] for row in as_json(capsys, "runs", *arguments)]


def test_runs_are_listed_filtered_and_sorted(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    make("a", acc=0.8, begin="2026-01-02T10:00:00+0000")
    make("b", acc=0.9, lr=0.01, seed=1)
    make("sweep/seed=0", acc=0.7, begin="2026-01-03T10:00:00+0000")
    make("sweep/seed=0~1", acc=0.99)  # set aside by fresh=true
    (Path("runs") / "notes").mkdir()
    assert names(capsys) == ["b", "a", "sweep/seed=0"]
    assert names(capsys, "--sort", "best") == ["b", "a", "sweep/seed=0"]
    assert names(capsys, "--sort", "val/acc:asc") == ["sweep/seed=0", "a", "b"]
    assert names(capsys, "--where", "test/acc>0.75", "-w", "seed=0") == ["a"]
    assert names(capsys, "--where", "method.optimizer.lr=0.01") == ["b"]
    assert names(capsys, "--where", "name~WEEP") == ["sweep/seed=0"]
    assert names(capsys, "--where", "status!=finished") == []
    assert names(capsys, "sweep") == ["sweep/seed=0"]
    assert names(capsys, "--limit", "1") == ["sweep/seed=0"]
    row = as_json(capsys, "runs", "b", "--columns", "method.optimizer.lr")[0]
    assert (row["best"], row["test/acc"], row["method"], row["method.optimizer.lr"]) == (0.9, 0.89, "sgd", 0.01)


def test_the_table_leaves_out_columns_that_do_not_fit(
    make: Make, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make("a" * 60)
    assert main(["runs"]) == 0
    whole = capsys.readouterr().out
    assert "a" * 60 in whole
    assert "begin" in whole
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "60")
    assert main(["runs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines[:-1])) <= 60
    assert "begin" in lines[-1]


def test_mistakes_of_runs_are_one_line(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    make("a")
    for arguments, words in (
        (["--columns", "bset"], "bset: no run has such a column or key; did you mean best?"),
        (["--where", "x"], "--where 'x': write a column"),
        (["--where", "best>high"], "'high' is no number"),
        (["--sort", "best:up"], "the direction is asc or desc"),
        (["--root", "nowhere"], "nowhere: no such folder"),
        (["--lmit", "3"], "--lmit: there is no such option; did you mean --limit?"),
    ):
        assert main(["runs", *arguments]) in (1, 2)
        assert words in capsys.readouterr().err


def test_what_is_broken_is_listed_as_unreadable(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    make("a")
    make("cut").joinpath("run.json").write_text('{"status": "fin')
    make("odd").joinpath("run.json").write_text('{"status": "finished", "best": 3}')
    found = {row["name"]: row["status"] for row in as_json(capsys, "runs")}
    assert found == {"a": "finished", "cut": "unreadable", "odd": "unreadable"}
    assert main(["watch", "--once"]) == 0
    assert "2 unreadable" in capsys.readouterr().out


def test_a_run_without_its_process_is_dead(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    live = make("live", "running")
    make("killed", "running").joinpath(".lock").write_text("process 4194303")
    RunFolder(live).lock()
    old = make("elsewhere", "running", host="another")
    for file in old.iterdir():
        os.utime(file, (0, 0))
    make("growing", "running", host="another")
    found = {row["name"]: row["status"] for row in as_json(capsys, "runs")}
    assert found == {"live": "live", "killed": "dead", "elsewhere": "dead", "growing": "live"}
    row = next(row for row in as_json(capsys, "runs") if row["name"] == "live")
    assert (row["epoch"], row["val/acc"]) == (5, 0.9), "of the last line of its metrics"


def test_the_index_spares_reading_and_is_no_truth(
    make: Make, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make("a", acc=0.8)
    assert names(capsys) == ["a"]
    monkeypatch.setattr(registry, "read_record", lambda path: pytest.fail(f"{path} was read again"))
    assert as_json(capsys, "runs")[0]["best"] == 0.8
    monkeypatch.undo()
    monkeypatch.chdir(path.parents[1])
    record = json.loads((path / "run.json").read_text())
    record["best"]["value"] = 0.5
    (path / "run.json").write_text(json.dumps(record))
    assert as_json(capsys, "runs")[0]["best"] == 0.5
    for content in ("{", '{"format": 1, "runs": {"a": 3}}', '{"format": 9}'):
        (path.parent / registry.INDEX).write_text(content)
        assert as_json(capsys, "runs")[0]["best"] == 0.5


def test_diff_shows_what_differs_by_part(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    make("a", versions={"torch": "2.14"})
    make("b", acc=0.8, lr=0.5, versions={"torch": "2.15"})
    parts = as_json(capsys, "diff", "a", "b")
    assert parts["configuration"] == {"method.optimizer.lr": [0.1, 0.5]}
    assert parts["environment"] == {"versions.torch": ["2.14", "2.15"]}
    assert parts["numbers"]["best"] == [0.9, 0.8]
    assert parts["code"] == {}
    assert main(["diff", "a", "b"]) == 0
    shown = capsys.readouterr().out
    assert "code: the same" in shown
    assert "-0.1000" in shown
    assert main(["diff", "a", "nope"]) == 1
    assert "nope: is no run" in capsys.readouterr().err


def test_rm_removes_runs_and_nothing_else(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    make("a")
    make("sweep/seed=0")
    make("sweep/seed=1")
    live = make("live", "running")
    folder = RunFolder(live)
    folder.lock()
    outside = make("outside")
    Path("runs/link").symlink_to(outside, target_is_directory=True)
    for name, words in (("live", "is being trained"), ("nope", "is no run"), ("link", "is a link")):
        assert main(["rm", "a", name, "--yes"]) == 1
        assert words in capsys.readouterr().err
    assert main(["rm", "a"]) == 2, "nobody can be asked"
    assert Path("runs/a/config.yaml").exists()
    assert main(["rm", "a", "sweep", "--yes"]) == 0
    assert sorted(path.name for path in Path("runs").iterdir()) == [".index.json", "link", "live", "outside"]


def test_with_its_last_trial_a_search_goes_too(make: Make) -> None:
    folder = make("found/0000").parent
    for name in ("sweep.csv", "search.json", "search.html"):
        (folder / name).touch()
    assert main(["rm", "found", "--yes"]) == 0
    assert not folder.exists()


def test_rm_leaves_what_only_looks_like_a_run(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    options = Path("conf")
    options.mkdir()
    (options / "config.yaml").write_text("seed: 0")
    for name in ("conf", "conf/"):
        assert main(["rm", name, "--yes"]) == 1
        assert "conf: is not a run, it has no run.json" in capsys.readouterr().err
    assert (options / "config.yaml").exists()


def test_watch_shows_the_jobs_of_a_sweep(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("sweep/seed=0", "sweep/seed=1", "alone"):
        make(name)
    assert main(["watch", "sweep", "--once"]) == 0
    shown = capsys.readouterr().out
    assert "sweep/seed=1" in shown
    assert "alone" not in shown


def test_watch_shows_what_waits_while_a_job_of_its_sweep_is_live(
    make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    live = make("s/seed=0", "running")
    make("done/seed=0")
    for job in ("s/seed=1", "s/seed=2", "done/seed=1"):
        Path("runs", job).mkdir()
    RunFolder(live).lock()
    assert main(["watch", "--once"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "1 live  2 waiting  1 finished"
    assert [line.split()[:2] for line in lines[1:3]] == [["s/seed=0", "live"], ["s/seed=1", "waiting"]]


def test_a_heartbeat_tells_others_that_a_run_lives(tmp_path: Path) -> None:
    """On another machine nothing but the time of its files is seen, which does not change within a long epoch."""
    file = tmp_path / "run.json"
    with Heartbeat(file, every=0.01):  # the file may come later
        file.write_text("{}")
        os.utime(file, (0, 0))
        wait_for(lambda: file.stat().st_mtime > 0)
    os.utime(file, (0, 0))
    time.sleep(0.05)
    assert file.stat().st_mtime == 0, "the thread has ended"


def test_a_root_is_where_names_are_looked_for(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    make("a", acc=0.5)
    make("b")
    shutil.copytree("runs/a", "other/a")
    assert main(["rm", "b", "--root", "other", "--yes"]) == 1, "it lies below runs/"
    assert "b: is no run; give a folder or a name under other/" in capsys.readouterr().err
    assert main(["watch", "a", "--root", "other", "--once"]) == 0
    assert "other/a" in capsys.readouterr().out
    assert main(["rm", "a", "--root", "other", "--yes"]) == 0
    assert "removed: 1 run," in capsys.readouterr().out
    assert Path("runs/a").exists()
    assert Path("other").exists(), "the folder of all runs stays"
    assert not Path("other/a").exists()


def test_one_hostile_run_hides_no_other(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    make("good")
    huge = 10**400
    best = {"monitor": "val/acc", "value": 0.5}
    make("begin", begin="nonsense")
    make("early", begin="0001-01-01T00:00:00+0000")
    make("list", best=best | {"metrics": ["x"]})
    make("choices", choices=["x"])
    make("seconds", seconds=huge)
    make("number", best=best | {"metrics": {"val/acc": huge}})
    make("lock", "running").joinpath(".lock").write_text(f"process {10**30}")
    rows = [(5, 1e308), (1, -1e308), (9, huge), (True, 1.0)]
    lines = [json.dumps({"event": "epoch", "epoch": epoch, "val/acc": value}) for epoch, value in rows]
    make("lines", "running").joinpath("metrics.jsonl").write_text("\n".join(lines))
    found = {row["name"]: row["status"] for row in as_json(capsys, "runs")}
    assert found["good"] == found["begin"] == found["number"] == "finished"
    assert found["list"] == found["choices"] == found["seconds"] == "unreadable"
    assert found["lock"] == found["lines"] == "dead"
    for name in found:
        for command in (["show", name], ["diff", "good", name], ["compare", "good", name], ["watch", name, "--once"]):
            assert main(command) in (0, 1, 2)
            assert "Traceback" not in capsys.readouterr().err


def test_texts_of_a_run_do_not_steer_the_terminal(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    evil = "\x1b[2Jx\rrow\ntwo\u202e\x9b"
    path = make(
        "a", evil, choices={"data": evil, "model": evil, "method": evil}, command=evil, reason=evil, device=evil
    )
    make("b", best={"monitor": evil, "value": 0.5, "metrics": {evil: 0.5}}, test={evil: 0.5})
    path.joinpath("metrics.jsonl").write_text(json.dumps({"event": "epoch", "epoch": 1, f"{evil}/acc": 0.5}))
    for command in ("runs", "show a", "show b", "diff a b", "compare a b", "compare b"):
        main(command.split())
    main(["watch", "--once"])
    main(["watch", "a", "--once", "--metric", f"{evil}/acc"])
    main(["watch", "a", "--once", "--metric", "val/acc"])
    printed = "".join(capsys.readouterr())
    assert "\\x1b[2Jx" in printed
    assert [line for line in printed.split("\n") if set("\x1b\r\u202e\x9b") & set(line)] == []


def test_secrets_of_another_s_run_are_not_shown(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    make("a")
    path = make("b")
    secret = "hunter2hunter2"
    config = yaml.safe_load((path / "config.yaml").read_text()) | {"data": {"password": secret}}
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    for command in (["diff", "a", "b"], ["runs", "--columns", "data.password"], ["show", "b"], ["compare", "a", "b"]):
        main(command)
        main([*command, "--json"])
    assert secret not in "".join(capsys.readouterr())
    assert secret not in Path("runs", registry.INDEX).read_text()


def test_watch_draws_curves_and_sorts_by_what_needs_a_look(
    make: Make, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    make("done")
    make("killed", "running")
    assert main(["watch", "--once"]) == 0
    head, first, *_ = capsys.readouterr().out.splitlines()
    assert head == "1 dead  1 finished"
    assert first.startswith("killed")
    assert "healsg resume continues it" in first
    assert main(["watch", "done", "--once", "--metric", "val/acc"]) == 0
    shown = capsys.readouterr().out
    assert "runs/done  finished  epoch 5  val/acc 0.9" in shown
    assert any("\u2800" < character <= "\u28ff" for character in shown)
    assert main(["watch", "done", "--once", "--metric", "val/dice"]) == 2
    assert "has no such number; there is val/acc" in capsys.readouterr().err


def test_a_curve_runs_from_its_first_to_its_last_point() -> None:
    rising = braille([(1, 0.0), (2, 1.0)], width=4, height=2)
    assert [len(line) for line in rising] == [4, 4]
    assert rising[0][-1] != "\u2800"
    assert rising[1][0] != "\u2800"
    assert rising[0][0] == rising[1][-1] == "\u2800"
    flat = braille([(1, 3.0)], width=3, height=1)
    assert flat[0].strip("\u2800")


def test_many_runs_fit_the_screen(make: Make) -> None:
    runs = [registry.Listed(f"run{number:04}", Path(), "finished", {}) for number in range(1000)]
    lines = overview(runs, width=80, lines=20).splitlines()
    assert len(lines) == 22
    assert max(map(len, lines)) <= 80
    assert lines[0] == "1000 finished"


def test_letters_of_two_cells_fit_the_screen_too(make: Make) -> None:
    facts = {"epoch": 12, "val/acc": 0.9, "val/loss": 0.1, "step": 3}
    runs = [registry.Listed(f"照片{'长' * number}", Path(), "finished", facts) for number in range(40)]
    runs += [registry.Listed("plain", Path(), "finished", facts)]
    for width in (40, 80, 200):
        lines = overview(runs, width=width, lines=60).splitlines()
        assert max(map(cell_len, lines)) <= width
        assert len({cell_len(line.partition("finished")[0]) for line in lines[1:]}) == 1, "the columns are straight"
        assert not any(line.endswith(("val", "val/acc", "epoch")) for line in lines), "nothing is cut within"


@pytest.mark.soak
def test_ten_thousand_runs_are_listed_within_a_second(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(10_000):
        make(f"run{number:05}", acc=number / 10_000)
    listing = ["runs", "--sort", "val/acc", "--limit", "3"]
    assert main(listing) == 0  # writes the index
    began = time.process_time()
    assert main(listing) == 0
    assert time.process_time() - began < 1.0
    assert capsys.readouterr().out.splitlines()[1].startswith("run09999")


def test_a_table_shows_what_is_needed_where_there_is_little_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    shown = io.StringIO()
    shown.isatty = lambda: True  # type: ignore[method-assign]
    tables.show(["key", "A", "B", "B - A"], [["k" * 30, "a" * 40, "b" * 40, 1.5]], shown, needed=3)
    head, row, left = shown.getvalue().splitlines()
    assert head.split() == ["key", "A", "B"]
    assert cell_len(row) <= 60
    assert row.count("…") == 3
    assert left == "left out for lack of width: B - A"


def test_watch_refuses_a_pause_of_nothing(make: Make) -> None:
    with pytest.raises(ConfigError, match=r"--every 0\.0: give seconds from 0\.1"):
        watch.run(["--every", "0"])


def test_watch_shows_the_number_that_chooses_the_best() -> None:
    rows = [{"epoch": 1, "train/loss": 2.0, "val/loss": 1.0, "val/acc": 0.5, "val/iou": 0.4, "val/dice": 0.6}]
    assert watch._usual(rows) == ["train/loss", "val/dice"]
    assert watch._usual([{"epoch": 1, "val/loss": 1.0}]) == ["val/loss"]
