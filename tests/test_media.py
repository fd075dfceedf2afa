"""Images, tables and plots of a run: ``media/`` and ``media.jsonl``, and what loggers are shown of them."""

from __future__ import annotations

import json
import re
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fake_wandb
from healsg.errors import RunError
from healsg.loggers.mask_panels import CELL
from healsg.runs import media
from healsg.runs.media import MediaLog
from helpers import train

LEVELS = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in (folder / "media.jsonl").read_text().splitlines()]


def test_what_is_logged_lies_in_media_and_each_has_a_line(tmp_path: Path) -> None:
    shown: list[Any] = []
    kept = MediaLog(tmp_path, shown.append)
    image = kept.image("val/overlay", 2, LEVELS, "the worst", step=40)
    table = kept.table("confusion", 2, ["true", "cat"], [["cat", 3], ["dog", float("nan")]])
    plot = kept.plot("recall", 2, {"cat": [(0, 1), (0.5, 0.25)]}, x="recall")
    assert lines(tmp_path) == shown == media.entries(tmp_path)
    assert [entry["kind"] for entry in shown] == ["image", "table", "plot"]
    assert {"name": "val/overlay", "epoch": 2, "step": 40, "caption": "the worst"}.items() <= shown[0].items()
    assert (np.asarray(Image.open(image)) == LEVELS).all()
    assert json.loads(table.read_text())["rows"] == [["cat", 3], ["dog", None]]
    assert json.loads(media.read(tmp_path, shown[2]))["curves"] == {"cat": [[0.0, 1.0], [0.5, 0.25]]}
    assert plot.parent == tmp_path / "media"
    assert media.file_name("a/b") != media.file_name("a-b") != media.file_name("猫")


def test_a_jpeg_stays_what_it_is_and_other_bytes_are_refused(tmp_path: Path) -> None:
    buffer = BytesIO()
    Image.fromarray(LEVELS).save(buffer, "JPEG")
    path = MediaLog(tmp_path).image("photo", 1, buffer.getvalue())
    assert path.suffix == ".jpg"
    assert path.read_bytes() == buffer.getvalue()
    for wrong in (b"GIF89a", LEVELS.astype(float), LEVELS[None]):
        with pytest.raises(ValueError, match=r"uint8|no PNG"):
            MediaLog(tmp_path).image("photo", 1, wrong)


def test_a_run_that_was_killed_and_goes_on_logs_nothing_twice(tmp_path: Path) -> None:
    first = MediaLog(tmp_path)
    for step in (10, 20, 30):
        first.image("overlay", step // 10, LEVELS, step=step)
    with (tmp_path / "media.jsonl").open("a") as file:
        file.write('{"kind": "ima')  # where a kill cut it
    resumed = MediaLog(tmp_path)
    resumed.rewind(step=20, epoch=2)
    assert [line["step"] for line in lines(tmp_path)] == [10, 20]
    for step in (20, 30):
        resumed.image("overlay", step // 10, LEVELS, "again", step=step)
    assert [(line["step"], line["caption"]) for line in lines(tmp_path)] == [(10, ""), (20, "again"), (30, "again")]
    assert len(list((tmp_path / "media").iterdir())) == 3


def test_a_foreign_media_jsonl_leads_nowhere(tmp_path: Path) -> None:
    entry = {"kind": "image", "name": "a", "file": "media/../../etc/passwd", "epoch": 1, "step": 1, "caption": ""}
    bad = [entry, entry | {"file": "/etc/passwd"}, entry | {"file": "media/.."}, entry | {"epoch": "1"}, [1], 3]
    (tmp_path / "media.jsonl").write_text("".join(json.dumps(one) + "\n" for one in bad))
    assert media.entries(tmp_path) == []
    (tmp_path / "secret").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "media").mkdir()
    (tmp_path / "media/a.png").symlink_to(tmp_path / "secret")
    with pytest.raises(RunError, match="a symbolic link"):
        media.read(tmp_path, entry | {"file": "media/a.png"})


def test_a_run_logs_its_samples_and_what_its_task_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trained = train("data=digits", "model=mlp", "runner.steps=2", "logger=tensorboard", "quiet=true", "name=run")
    folder = Path(trained["folder"])
    kinds = {(entry["kind"], entry["name"]) for entry in media.entries(folder)}
    assert {("table", "test/confusion"), ("image", "test/mistakes"), ("image", "test/predictions")} <= kinds
    (confusion,) = [entry for entry in media.entries(folder) if entry["name"] == "test/confusion"]
    rows = json.loads(media.read(folder, confusion))["rows"]
    assert sum(sum(row[1:]) for row in rows) == 500
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    assert "test/mistakes" in events.Tags()["images"]
    assert any("confusion" in tag for tag in events.Tags()["tensors"])


def test_pictures_and_tables_by_case_of_volumes_reach_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed: pip install 'healsg[wandb]'")
    monkeypatch.chdir(tmp_path)
    data = ["data=shapes3d", "data.size=16", "data.patch=[16,16,16]", "data.train=2", "data.val=1", "data.test=2"]
    settings = [*data, "model=unet", "model.width=2", "model.stages=2", "runner.steps=1", "quiet=true", "name=run"]
    folder = Path(train(*settings, "use_wandb=true", "wandb.mode=offline")["folder"])
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    found: dict[str, Any] = {}
    for line in fake_wandb.offline_history(path):
        found |= {key: value for key, value in line.items() if isinstance(value, dict) and "path" in value}
    kinds = {key: value["_type"] for key, value in found.items()}
    assert kinds == {"test/cases_table": "html-file", "test/masks_table": "html-file", "test/masks": "image-file"}
    assert "three planes" in found["test/masks"]["caption"]
    assert "maximum projections" in found["test/masks"]["caption"]
    kept = {key: path.parent / "files" / value["path"] for key, value in found.items()}
    table = kept["test/cases_table"].read_text()
    cells = re.findall(r"<tr><td>(test\d)</td><td>([0-9.]+)</td>", table)
    measured = json.loads((folder / "eval-test-best.json").read_text())["cases"]
    assert sorted(name for name, _ in cells) == ["test0", "test1"]
    assert [float(dice) for _, dice in cells] == pytest.approx(sorted(one["dice"] for one in measured.values()), 1e-4)
    with Image.open(kept["test/masks"]) as sheet:
        assert min(sheet.size) >= 6 * CELL[3]
