"""Pages as a browser shows them: in a wide window and on a phone, by day and by night, without the network; and what a
user does on the page of ``healsg serve``."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fake_volumes
from browser import PROGRAM, Browser, Page, browsing
from healsg import TaskTrainer
from healsg.commands.sweep.search_page import write_page
from healsg.loggers.report import write_report
from healsg.loggers.thumbnails import thumbnail
from healsg.sweeps.proposals import Trial
from healsg.sweeps.space import Choice, Interval

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="there is no Chromium on this machine")

WIDE, PHONE = 1280, 390
LARGEST = 1_000_000


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browsing(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def shows_well(page: Page) -> None:
    """Nothing is asked of the network, nothing complained of, and it reads well in four ways."""
    for width in (WIDE, PHONE):
        for dark in (False, True):
            page.look(width, dark)
            assert page.faults() == [], f"{width} pixels wide, {'dark' if dark else 'light'}"
    assert page.complaints() == []
    assert page.requests() == []


def jpeg(seed: int) -> str:
    import base64

    levels = np.random.default_rng(seed).integers(0, 256, (12, 16, 3)).astype(np.uint8)
    return base64.b64encode(thumbnail(levels)).decode()


def made_run(folder: Path) -> Path:
    """What a run leaves that a report is made of, with long names and 30 classes."""
    names = [f"class number {number} füchse" for number in range(30)]
    true = [20] * 30
    confusion = (np.eye(30, dtype=int) * 15 + np.roll(np.eye(30, dtype=int), 1, 1) * 5).tolist()
    epochs = [
        {
            **{"event": "epoch", "epoch": number, "step": 10 * number, "lr": 1e-3 / number, "seconds": 1.5},
            **{"train/loss": 2 / number, "val/loss": 2.2 / number, "val/acc": 1 - 0.7 / number, "train/acc": 0.9},
        }
        for number in range(1, 31)
    ]
    (folder / "media").mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in epochs))
    record = {
        "status": "finished",
        "name": "a-run-with-a-name-that-is-as-long-as-names-of-sweeps-are,method.optimizer.lr=0.001,seed=12",
        "command": "healsg train data=imagefolder data.folder=/a/very/long/path/" + "x" * 90,
        "best": {"monitor": "val/acc", "value": 0.93, "epoch": 12},
        "test": {"test/acc": 0.75, "test/loss": 0.7, "test/confusion": confusion},
        "choices": {"data": "imagefolder", "model": "cnn", "method": "adamw"},
        "parameters": 123456,
        "digest": "0f" * 32,
    }
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "config.yaml").write_text("data:\n  folder: " + "y" * 200 + "\n")
    cards = [
        {
            **{"target": 0, "predicted": 1, "confidence": 0.97, "loss": 3.1, "jpeg": jpeg(number)},
            "name": f"pictures/class number {number}/{'IMG' * 12}_{number:04}.jpg",
        }
        for number in range(12)
    ]
    found = {
        **{"split": "test", "classes": names, "mistakes": cards, "losses": cards, "masks": [], "count": 600},
        **{"hits": 450, "true": true, "predicted": true, "correct": [15] * 30, "confusion": confusion, "ece": 0.1},
        "bins": [{"count": 50 * n, "confidence": 0.1 * n, "accuracy": 0.09 * n} for n in range(1, 10)],
    }
    (folder / "media/samples.json").write_text(json.dumps(found))
    return write_report(folder)


def test_a_report_reads_well_by_day_by_night_and_on_a_phone(browser: Browser, tmp_path: Path) -> None:
    report = made_run(tmp_path / "run")
    assert report.stat().st_size < LARGEST
    page = Page(browser, report.as_uri())
    shows_well(page)
    assert page.ask("document.scripts.length + document.styleSheets.length") == 1, "one style, no script"
    assert page.ask("document.images.length") == 24
    page.close()


def test_the_page_of_a_search_reads_well(browser: Browser, tmp_path: Path) -> None:
    space = {"method.optimizer.lr": Interval(1e-4, 1e-1, log=True), "model": Choice(("mlp", "<cnn>"))}
    trials = [
        Trial(
            n, {"method.optimizer.lr": 10 ** (-4 + n / 4), "model": ("mlp", "<cnn>")[n % 2]}, "finished", 0.9 - n / 20
        )
        for n in range(12)
    ]
    trials.append(Trial(12, {"method.optimizer.lr": 0.1, "model": "mlp"}, "failed"))
    write_page(tmp_path / "search.html", "rates", trials, space, "max", "healsg train model=mlp " + "x" * 200)
    page = Page(browser, (tmp_path / "search.html").as_uri())
    shows_well(page)
    titles = "[...document.querySelectorAll('figcaption')].map(one => one.textContent)"
    assert page.ask(titles) == ["best so far", "method.optimizer.lr", "model"]
    assert page.ask("document.querySelectorAll('tbody tr').length") == 13
    assert page.ask("document.querySelector('tr.best th').textContent") == "0"
    page.close()


# --- pages of the commands, of real runs -----------------------------------------------------------------------------


def pictures(folder: Path, classes: tuple[str, ...] = ("füchse", "hasen", "igel")) -> None:
    for number, name in enumerate(classes):
        for place in range(14):
            draw = np.random.default_rng(100 * number + place)
            levels = draw.integers(0, 60, (40, 48, 3)) + np.eye(3, dtype=int)[number % 3] * 150
            (folder / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(levels.astype(np.uint8)).save(folder / name / f"Bild {place}.png")
    (folder / classes[0] / "broken.jpg").write_bytes(b"no picture")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with two runs on pictures and one on masks."""
    from healsg.cli import main

    folder = tmp_path_factory.mktemp("place")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        pictures(folder / "pictures")
        given = ["data=imagefolder", "data.folder=pictures", "data.image_size=32", "data.on_error=skip", "quiet=true"]
        given += ["model=cnn", "model.width=4", "runner.epochs=2", "data.test_fraction=0.3", "-m", "seed=0,1"]
        assert main(["train", *given, "method=adamw,sgd", "name=both"]) == 0
        masks = ["data=shapes2d", "model=unet", "model.width=4", "model.stages=2", "runner=debug", "quiet=true"]
        assert main(["train", *masks, "name=masks"]) == 0
        yield folder


@pytest.mark.soak
def test_the_pages_of_check_compare_and_eval_read_well(
    browser: Browser, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from healsg.cli import main

    monkeypatch.chdir(place)
    runs = sorted(str(path.parent) for path in Path("runs/both").glob("*/run.json"))
    assert (
        main(["check", "data=imagefolder", "data.folder=pictures", "data.image_size=32", "--page", "check.html"]) == 1
    )
    assert main(["compare", "both", "--page", "compare.html"]) == 0
    assert main(["eval", runs[0], "--page", "eval.html"]) == 0
    assert main(["eval", "masks", "--page", "masks.html"]) == 0
    pages = [Path(name) for name in ("check.html", "compare.html", "eval.html", "masks.html")]
    for path in [*pages, Path(runs[0], "report.html"), Path("runs/masks/report.html")]:
        assert path.stat().st_size < LARGEST
        page = Page(browser, path.resolve().as_uri())
        shows_well(page)
        page.close()


@pytest.fixture
def served(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Serve a run in a thread: a function from its name to its address."""
    uvicorn = pytest.importorskip("uvicorn", reason="healsg[serve] is not installed")
    pytest.importorskip("starlette", reason="healsg[serve] is not installed")
    pytest.importorskip("python_multipart", reason="healsg[serve] is not installed")
    from healsg.commands.serve import listen
    from healsg.serving.app import application

    monkeypatch.chdir(place)
    running: list[tuple[Any, threading.Thread, Any]] = []

    def serve(run: str) -> str:
        predictor = TaskTrainer.load(run).predictor()
        app = application(predictor, run, "best", ["127.0.0.1"])
        socket = listen("127.0.0.1", 0)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
        thread = threading.Thread(target=lambda: server.run(sockets=[socket]))
        thread.start()
        running.append((server, thread, socket))
        return f"http://127.0.0.1:{socket.getsockname()[1]}/"

    yield serve
    for server, thread, socket in running:
        server.should_exit = True
        thread.join()
        socket.close()


ROWS = """
[...document.querySelectorAll('#classes li')].map(row => [...row.querySelectorAll('span')].map(one => one.textContent))
""".strip()
ERROR = "document.getElementById('error').textContent"


@pytest.mark.soak
def test_a_picture_is_chosen_or_dropped_and_its_classes_are_shown(browser: Browser, place: Path, served: Any) -> None:
    run = sorted(str(path.parent) for path in Path("runs/both").glob("*/run.json"))[0]
    address = served(run)
    page = Page(browser, address)
    page.look(WIDE, False)
    page.wait_for("document.getElementById('about').textContent.includes('3 classes')")
    page.choose("#file", [place / "pictures/hasen/Bild 3.png"])
    page.wait_for(f"{ROWS}.length === 3")
    shares = [float(share.removesuffix(" %")) for _, share in page.ask(ROWS)]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(100, abs=0.2)
    assert {name for name, _ in page.ask(ROWS)} == {"füchse", "hasen", "igel"}
    assert page.ask("document.getElementById('shown').naturalWidth") == 48
    assert page.complaints() == []
    for width in (WIDE, PHONE):
        for dark in (False, True):
            page.look(width, dark)
            assert page.faults() == []

    dropped = """
      (async () => {
        const canvas = document.createElement('canvas'), data = new DataTransfer();
        canvas.getContext('2d').fillRect(0, 0, 30, 30);
        const drawn = await new Promise(done => canvas.toBlob(done));
        data.items.add(new File([drawn], 'dropped.png', {type: 'image/png'}));
        document.getElementById('classes').replaceChildren();
        document.getElementById('drop').dispatchEvent(new DragEvent('drop', {dataTransfer: data, bubbles: true}));
      })()
    """
    page.ask(dropped)
    page.wait_for(f"{ROWS}.length === 3")
    assert all(url.startswith(address) for url in page.requests())
    page.close()


@pytest.mark.soak
def test_a_mask_lies_over_its_picture(browser: Browser, place: Path, served: Any, tmp_path: Path) -> None:
    levels = np.random.default_rng(0).integers(0, 256, (50, 70, 3)).astype(np.uint8)
    Image.fromarray(levels).save(tmp_path / "scan.png")
    page = Page(browser, served("masks"))
    page.choose("#file", [tmp_path / "scan.png"])
    page.wait_for(f"{ROWS}.length > 1 && document.getElementById('mask').complete")
    assert sum(float(share.removesuffix(" %")) for _, share in page.ask(ROWS)) == pytest.approx(100, abs=0.3)
    places = "['shown', 'mask'].map(id => JSON.stringify(document.getElementById(id).getBoundingClientRect()))"
    for width in (WIDE, PHONE):
        for dark in (False, True):
            page.look(width, dark)
            assert page.faults() == []
            picture, mask = page.ask(places)
            assert picture == mask, "the mask lies exactly over the picture"
    assert page.ask("document.getElementById('mask').naturalWidth") == 70
    assert page.complaints() == []
    page.close()


@pytest.mark.soak
def test_a_volume_is_chosen_shown_in_planes_and_its_mask_saved(
    browser: Browser, place: Path, served: Any, tmp_path: Path
) -> None:
    pytest.importorskip("nibabel", reason="nibabel is not installed: pip install 'healsg[seg]'")
    scans = fake_volumes.write_scans(tmp_path / "scans", 3)
    data = ["data=nifti", f"data.folder={scans}", "data.patch=[8,8,8]", "data.val_fraction=0.34", "data.workers=0"]
    small = ["model=unet", "model.width=4", "model.stages=2", "runner=debug", "runner.steps=4", "quiet=true"]
    TaskTrainer.compose(*data, *small, "name=volumes").train()
    page = Page(browser, served("volumes"))
    page.choose("#file", [scans / "images/case1.nii.gz"])
    page.wait_for(f"{ROWS}.length === 3 && document.getElementById('shown').naturalWidth === 768")
    assert sum(float(share.removesuffix(" %")) for _, share in page.ask(ROWS)) == pytest.approx(100, abs=0.3)
    link = "document.getElementById('saved')"
    assert page.ask(f"{link}.textContent") == "Save case1_seg.nii.gz"
    size = page.ask(f"fetch({link}.href).then(answer => answer.blob()).then(blob => blob.size)")
    assert size > 100
    for width in (WIDE, PHONE):
        for dark in (False, True):
            page.look(width, dark)
            assert page.faults() == []
    (tmp_path / "half.nii.gz").write_bytes((scans / "images/case1.nii.gz").read_bytes()[:900])
    page.choose("#file", [tmp_path / "half.nii.gz"])
    page.wait_for(f"{ERROR}.includes('cut short or damaged')")
    assert page.ask(f"[{link}, document.getElementById('shown')].every(one => one.hidden)"), "nothing of another volume"
    assert page.complaints() == [] or all("422" in one for one in page.complaints())
    page.close()


@pytest.mark.soak
def test_a_bad_upload_is_told_in_one_clear_line(browser: Browser, place: Path, served: Any, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 60, 3)).astype(np.uint8)).save(buffer, "PNG")
    bad = {
        "notes.png": (b"milk, sugar\n", "this is no picture of a known kind"),
        "empty.jpg": (b"", "nothing was sent"),
        "half.png": (buffer.getvalue()[:80], "the picture cannot be read"),
        "large.bin": (b"x" * (21 << 20), "more than 20 MiB"),
    }
    run = sorted(str(path.parent) for path in Path("runs/both").glob("*/run.json"))[0]
    page = Page(browser, served(run))
    for dark in (False, True):
        page.look(PHONE, dark)
        for name, (content, told) in bad.items():
            (tmp_path / name).write_bytes(content)
            page.choose("#file", [tmp_path / name])
            page.wait_for(f"{ERROR}.includes({json.dumps(told)})")
            assert page.ask(f"{ROWS}.length") == 0, "no classes of another picture are left"
            assert page.faults() == []
    page.choose("#file", [place / "pictures/igel/Bild 0.png"])
    page.wait_for(f"{ROWS}.length === 3")
    assert page.ask(ERROR) == ""
    page.close()
