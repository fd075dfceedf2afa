"""Bad pictures and masks: each kind is answered with one line that names the file."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import fake_masks
import fake_volumes
from healsg import TaskTrainer
from healsg.build import build_task
from healsg.commands.check.samples import picture_facts
from healsg.datasets.images.decoding import decode
from healsg.datasets.masks.pictures import picture_header
from healsg.errors import HealsgError

SMALL = ["runner=debug", "quiet=true", "model=unet", "model.width=4", "data.image_size=24", "data.val_fraction=0.3"]


def read_all(*overrides: str) -> None:
    """Build a task's data and read each sample, as an epoch does."""
    data = build_task(TaskTrainer.compose(*SMALL, *overrides).composed).task_data
    assert data.info.num_classes > 1
    for source in data.splits().values():
        for number in range(len(source)):
            source.fetch(torch.tensor([number]))


def put(path: Path, mask: Any, **how: Any) -> None:
    Image.fromarray(np.asarray(mask, np.uint8)).save(path, **how)


def mask_of(folder: Path, number: int = 1) -> Any:
    return np.asarray(Image.open(folder / f"masks/p{number}.png"))


def other_size(folder: Path) -> None:
    put(folder / "masks/p1.png", mask_of(folder)[:-1])


def other_label(folder: Path) -> None:
    put(folder / "masks/p1.png", np.where(mask_of(folder) > 0, 7, 0))


def truncated(folder: Path) -> None:
    path = folder / "masks/p1.png"
    path.write_bytes(path.read_bytes()[:60])


def truncated_picture(folder: Path) -> None:
    path = folder / "images/p1.jpg"
    path.write_bytes(path.read_bytes()[:600])


def unreadable(folder: Path) -> None:
    (folder / "images/p1.jpg").write_bytes(b"no picture")


def volume(folder: Path) -> None:
    (folder / "images/p1.jpg").rename(folder / "images/p1.nii.gz")


def no_mask(folder: Path) -> None:
    (folder / "masks/p1.png").unlink()


def no_picture(folder: Path) -> None:
    (folder / "images/p1.jpg").unlink()


def nothing(folder: Path) -> None:
    for path in folder.rglob("*.*"):
        path.unlink()


def no_foreground(folder: Path) -> None:
    for path in (folder / "masks").iterdir():
        put(path, mask_of(folder) * 0)


def lossy(folder: Path) -> None:
    for path in list((folder / "masks").iterdir()):
        put(path.with_suffix(".jpg"), np.asarray(Image.open(path)), quality=60)
        path.unlink()


def colours(folder: Path) -> None:
    for path in (folder / "masks").iterdir():
        put(path, np.asarray(Image.open(path))[..., None] * (200, 0, 0))
    mask = mask_of(folder) * 0
    mask[5, 5] = (9, 8, 7)
    put(folder / "masks/p1.png", mask)


NAMED = "data.classes=[nothing,thing]"
COLOURS = "data.colours={nothing: [0, 0, 0], thing: [200, 0, 0]}"

FAULTS: dict[str, tuple[Callable[[Path], None], list[str], str]] = {
    "another size": (other_size, [], r"masks/p1.png: the mask is 40 x 52, its picture 41 x 52"),
    "another label": (other_label, ["data.mapping={0: 0, 255: 1}"], r"masks/p1.png: holds the label 7"),
    "0 and 255": (lambda folder: None, [NAMED], r"masks/p\d.png: holds the label 255.*data.mapping=\{0: 0, 255: 1\}"),
    "a truncated mask": (truncated, [], r"masks/p1.png: cannot be read as a mask"),
    "a truncated picture": (truncated_picture, [], r"images/p1.jpg"),
    "an unreadable picture": (unreadable, [], r"images/p1.jpg: cannot be read as a picture"),
    "a volume": (volume, [], r"images/p1.nii.gz: is a volume"),
    "a picture without a mask": (no_mask, [], r"images/p1.jpg: has no mask of its name"),
    "a mask without a picture": (no_picture, [], r"masks/p1.png: there is no picture of its name"),
    "an empty folder": (nothing, [], r"images: there is no picture in it"),
    "no foreground": (no_foreground, [], r"masks/p0.png: no mask, neither this one, holds a foreground label"),
    "masks of JPEG": (lossy, [], r"masks/p0.jpg: .*a JPEG, whose compression changes labels"),
    "an unknown colour": (
        colours,
        [COLOURS],
        r"masks/p1.png: has colours that data.colours does not name: \[9, 8, 7\]",
    ),
    "colours without a table": (colours, [NAMED], r"masks/p\d.png: a mask of colours"),
    "a patch of three sides": (lambda folder: None, ["data.patch=[8,8,8]"], "data.patch: .* give 2 sizes"),
}


@pytest.mark.parametrize("how", FAULTS)
def test_a_bad_picture_or_mask_is_one_line_with_its_file(how: str, tmp_path: Path) -> None:
    spoil, overrides, words = FAULTS[how]
    foreground = 1 if how in ("colours without a table", "an unknown colour") else 255
    folder = fake_volumes.write_pictures(tmp_path / "pictures", 4, foreground)
    spoil(folder)
    with pytest.raises(HealsgError, match=words) as caught:
        read_all("data=seg2d", f"data.folder={folder}", *overrides)
    assert "\n" not in str(caught.value)


def test_a_patch_may_be_larger_than_a_picture(tmp_path: Path) -> None:
    folder = fake_volumes.write_pictures(tmp_path / "pictures", 4)
    read_all("data=seg2d", f"data.folder={folder}", "data.patch=[64,64]", "data.val_fraction=0.3")


def test_a_patient_in_two_parts_is_refused_where_groups_are_kept_together(tmp_path: Path) -> None:
    folder = fake_volumes.write_pictures(tmp_path / "pictures", 4)
    rows = [
        f"images/p{number}.jpg,masks/p{number}.png,{'test' if number == 3 else ''},A{number // 2}"
        for number in range(4)
    ]
    (folder / "table.csv").write_text("\n".join(["image,mask,split,group", *rows]) + "\n")
    table = ["data=seg2d", f"data.folder={folder}", "data.table=table.csv"]
    read_all(*table)
    with pytest.raises(HealsgError, match=r"p3.jpg: patient A1 is in train \(p2.jpg\) and in test") as caught:
        read_all(*table, "data.group=patient")
    assert "\n" not in str(caught.value)


def voc_label(folder: Path) -> str:
    path = folder / "VOC2012/SegmentationClass/2007_000001.png"
    mask = np.asarray(Image.open(path)).copy()
    mask[8:16, 8:16] = 33
    put(path, mask)
    return r"2007_000001.png: holds the label 33"


def voc_missing(folder: Path) -> str:
    (folder / "VOC2012/SegmentationClass/2007_000001.png").unlink()
    return r"2007_000001.png: there is no such file"


def city_size(folder: Path) -> str:
    path = next((folder / "gtFine/train/aachen").glob("*.png"))
    put(path, np.asarray(Image.open(path))[:-1])
    return rf"{path.name}: the mask is 23 x 30, its picture 24 x 30"


def city_missing(folder: Path) -> str:
    path = next((folder / "gtFine/train/aachen").glob("*.png"))
    path.unlink()
    return r"aachen_\d+_000019\w*.png"


def coco_picture(folder: Path) -> str:
    path = folder / "train2017/000000000000.jpg"
    path.write_bytes(b"no picture")
    return r"000000000000.jpg: cannot be read as a picture"


def coco_size(folder: Path) -> str:
    path = folder / "annotations/instances_train2017.json"
    content = json.loads(path.read_text())
    content["images"][0]["height"] += 1
    path.write_text(json.dumps(content))
    return r"000000000000.jpg.*25 x 30"


@pytest.mark.parametrize("spoil", [voc_label, voc_missing, city_size, city_missing, coco_picture, coco_size])
def test_bad_files_of_published_forms_are_named(spoil: Callable[[Path], str], tmp_path: Path) -> None:
    name = {"voc": "voc", "city": "cityscapes", "coco": "coco_seg"}[spoil.__name__.partition("_")[0]]
    write: Any = getattr(fake_masks, f"write_{name}")
    folder = write(tmp_path / name)
    words = spoil(folder)
    with pytest.raises(HealsgError, match=words) as caught:
        read_all(f"data={name}", f"data.folder={folder}")
    assert "\n" not in str(caught.value)


def test_a_large_picture_below_the_limit_is_read_without_a_warning_of_pillow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "large.png"
    Image.new("L", (10, 9), 7).save(file)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    with pytest.warns(Image.DecompressionBombWarning), Image.open(file):
        pass
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode(str(file), 9, 1).unique().tolist() == [7]
        assert picture_header(file) == ((9, 10), 1)
        assert picture_facts(str(file)) is not None
