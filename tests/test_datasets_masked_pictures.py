"""Pictures with masks: VOC, Cityscapes and COCO in their published forms, colours, patterns, tables."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import fake_masks
from healsg import TaskTrainer
from healsg.build import build_task
from healsg.data.fingerprint import differences, of_source
from healsg.datasets.masks.outlines import filled, run_lengths, runs_filled
from healsg.errors import HealsgError

SMALL = ["runner=debug", "model=unet", "model.width=4", "data.image_size=24"]


def data_of(*overrides: str) -> Any:
    """The ``TaskData`` of a task, whose samples are not read yet."""
    return build_task(TaskTrainer.compose(*SMALL, *overrides).composed).task_data


def sample(data: Any, part: str, number: int) -> tuple[Any, Any]:
    """A picture and its mask, as arrays, read as a worker process would."""
    source = data.read(part)
    pickle.dumps(source.dataset)
    batch = source.fetch(torch.tensor([number]))
    return batch["input"][0].numpy(), batch["target"][0].numpy()


def centre(mask: Any) -> Any:
    """The middle 24 columns of 30."""
    return np.asarray(mask)[:, 3:27]


def test_voc_has_its_classes_and_its_borders_do_not_count(tmp_path: Path) -> None:
    data = data_of("data=voc", f"data.folder={fake_masks.write_voc(tmp_path)}")
    assert (data.info.num_classes, data.info.class_names[:2], data.info.ignore) == (
        21,
        ("background", "aeroplane"),
        255,
    )
    assert [len(data.read(part)) for part in ("train", "test")] == [6, 2]
    for number in range(3):
        _, mask = sample(data, "train", number)
        np.testing.assert_array_equal(mask, centre(fake_masks.boxed(number, 1 + number, border=255)))


def test_cityscapes_are_seen_as_train_ids(tmp_path: Path) -> None:
    data = data_of("data=cityscapes", f"data.folder={fake_masks.write_cityscapes(tmp_path)}")
    assert (data.info.num_classes, data.info.class_names[13]) == (19, "car")
    _, mask = sample(data, "train", 1)
    np.testing.assert_array_equal(mask, centre(fake_masks.boxed(1, 13, outside=0, border=255)))
    assert {case.group for case in data.read("train").about.cases} == {"aachen", "bremen"}
    assert len(data.read("test")) == 2
    assert data.info.preprocessing["labels"][:3] == [7, 8, 11]


def test_coco_outlines_become_masks(tmp_path: Path) -> None:
    folder = fake_masks.write_coco_seg(tmp_path)
    data = data_of("data=coco_seg", f"data.folder={folder}", "data.ignore=255")
    assert data.info.class_names == ("background", "car", "dog")
    assert data.info.preprocessing["labels"] == [0, 3, 18]
    for number in range(2):
        wanted = fake_masks.boxed(number, 1)
        row, column, *_ = fake_masks.box(number)
        wanted[row + 2 : row + 7, column + 2 : column + 7] = 2 if number % 2 == 0 else 255  # a crowd counts nowhere
        wanted[row + 4, column + 4] = 1
        np.testing.assert_array_equal(sample(data, "train", number)[1], centre(wanted))


def test_outlines_follow_pixel_centres_and_the_published_letters() -> None:
    triangle = filled([0, 0, 6, 0, 0, 6], 6, 6)
    rows, columns = np.mgrid[:6, :6]
    np.testing.assert_array_equal(triangle, rows + columns + 1 < 6)
    halves = [filled(part, 7, 9) for part in ([0, 0, 9, 0, 0, 7], [9, 0, 9, 7, 0, 7])]
    assert (halves[0] ^ halves[1]).all(), "two triangles of one diagonal share no pixel and leave none"
    assert filled([-5, -5, 20, -5, 20, 20, -5, 20], 4, 5).all()
    mask = np.random.default_rng(0).integers(0, 2, (7, 5))
    np.testing.assert_array_equal(runs_filled(fake_masks.runs_of(mask), 7, 5), mask == 1)
    letters = {"61X13mN000`0": [6, 1, 40, 4, 5, 4, 5, 4, 21]}  # a picture of 9 x 10 in cocoapi's own tests
    for text, counts in letters.items():
        assert run_lengths(text) == counts
    for broken in ("6~", "o", "6\x01"):
        with pytest.raises(ValueError, match="run lengths"):
            run_lengths(broken)


def spoiled_coco(folder: Path, how: str) -> None:
    path = folder / "annotations/instances_train2017.json"
    content = json.loads(path.read_text())
    first = content["annotations"][0]
    if how == "category":
        first["category_id"] = 99
    elif how == "picture":
        content["images"][0]["file_name"] = "gone.jpg"
    elif how == "outside":
        content["images"][0]["file_name"] = "../train2017/000000000000.jpg"
    elif how == "runs":
        content["annotations"][1]["segmentation"]["counts"][0] += 1
    else:
        first["segmentation"] = [[1, 2, 3, 4]]
    path.write_text(json.dumps(content) if how != "json" else "{")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("category", "names a category"),
        ("picture", "there is no picture"),
        ("outside", "leads out of the folder"),
        ("runs", "run lengths of 721 pixels"),
        ("corners", "a polygon of 2 corners"),
        ("json", "is no list of COCO annotations"),
    ],
)
def test_faulty_annotations_are_named(how: str, message: str, tmp_path: Path) -> None:
    folder = fake_masks.write_coco_seg(tmp_path)
    spoiled_coco(folder, how)
    with pytest.raises(HealsgError, match=message) as caught:
        sample(data_of("data=coco_seg", f"data.folder={folder}"), "train", 0)
    assert "instances_train2017.json" in str(caught.value)
    assert "\n" not in str(caught.value)


RED, BLUE = (200, 0, 0), (0, 0, 200)


def write_colours(folder: Path, colours: tuple[Any, ...] = ((0, 0, 0), RED)) -> Path:
    """Pictures and masks of colours in folders of two places, with a table of them."""
    rows = ["image,mask,split,group"]
    for number in range(6):
        place = folder / f"place{number % 2}"
        for name in ("rgb", "ann"):
            (place / name).mkdir(parents=True, exist_ok=True)
        mask = fake_masks.boxed(number, 1)
        fake_masks.picture(number, mask).save(place / "rgb" / f"{number}.jpg")
        Image.fromarray(np.asarray(colours, np.uint8)[mask]).save(place / "ann" / f"{number}_mask.png")
        own = f"place{number % 2}"
        rows.append(f"{own}/rgb/{number}.jpg,{own}/ann/{number}_mask.png,{'test' if number > 3 else ''},{own}")
    (folder / "table.csv").write_text("\n".join(rows) + "\n")
    return folder


def test_masks_of_colours_by_patterns_and_by_a_table(tmp_path: Path) -> None:
    folder = f"data.folder={write_colours(tmp_path / 'made')}"
    colours = "data.colours={nothing: [0, 0, 0], thing: [200, 0, 0]}"
    patterns = ["data.images='*/rgb/*.jpg'", "data.masks='*/ann/*_mask.png'"]
    data = data_of("data=seg2d", folder, colours, *patterns)
    assert data.info.class_names == ("nothing", "thing")
    assert len(data.read("train")) == 6
    np.testing.assert_array_equal(sample(data, "train", 1)[1], centre(fake_masks.boxed(2, 1)))
    data = data_of("data=seg2d", folder, colours, "data.table=table.csv")
    assert [len(data.read(part)) for part in ("train", "test")] == [4, 2]
    assert {case.group for case in data.read("train").about.cases} == {"place0", "place1"}
    with pytest.raises(HealsgError, match=r"a mask of colours, \[0, 0, 0\] \(600\), \[200, 0, 0\] \(120\)"):
        sample(data_of("data=seg2d", folder, *patterns), "train", 0)
    other = data_of("data=seg2d", folder, "data.colours={nothing: [0, 0, 0], thing: [0, 0, 200]}", *patterns)
    with pytest.raises(HealsgError, match="does not name: "):
        sample(other, "train", 0)
    next((tmp_path / "made/place0/ann").iterdir()).unlink()
    with pytest.raises(HealsgError, match="has no mask"):
        data_of("data=seg2d", folder, colours, *patterns).read("train")


def test_colours_come_back_in_predictions(tmp_path: Path) -> None:
    from healsg.datasets.new_samples.segmenter import write_mask_picture

    labels = fake_masks.boxed(0, 1)
    write_mask_picture(tmp_path / "mask.png", labels, [list(BLUE), list(RED)])
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "mask.png")), np.array([BLUE, RED])[labels])


def test_masks_that_were_exchanged_are_others_data(tmp_path: Path) -> None:
    """Both are labelled samples, so that a run on other masks does not go on as the same one."""
    folder = fake_masks.write_voc(tmp_path)

    def fingerprint() -> Any:
        return of_source(data_of("data=voc", f"data.folder={folder}").read("train"))

    before = fingerprint()
    assert differences(before, fingerprint(), 0.0) == []
    masks = sorted((folder / "VOC2012/SegmentationClass").iterdir())[:2]
    first, second = (mask.read_bytes() for mask in masks)
    masks[0].write_bytes(second)
    masks[1].write_bytes(first)
    (text,) = differences(before, fingerprint(), 0.0)
    assert "other contents" in text


def test_a_mask_that_changed_is_another_cache(tmp_path: Path) -> None:
    folder = fake_masks.write_voc(tmp_path)
    data = data_of("data=voc", f"data.folder={folder}", f"data.root={tmp_path}", "data.cache=true")
    for _ in range(2):
        data.stored("train")
    assert len(list((tmp_path / "cache").iterdir())) == 1
    os.utime(min((folder / "VOC2012/SegmentationClass").iterdir()), ns=(1, 1))
    data.stored("train")
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_pictures_of_one_name_in_several_folders_are_cases_of_their_own(tmp_path: Path) -> None:
    for patient in ("p1", "p2", "p3"):
        for kind, value in (("rgb", 90), ("label", 1)):
            folder = tmp_path / patient / kind
            folder.mkdir(parents=True)
            for number in range(2):
                Image.fromarray(np.full((30, 30), value * number, np.uint8)).save(folder / f"{number:03}.png")
    data = data_of("data=seg2d", f"data.folder={tmp_path}", "data.images='*/rgb/*.png'", "data.masks='*/label/*.png'")
    names = [case.name for case in data.read("train").about.cases]
    assert names == ["p1/rgb/000", "p1/rgb/001", "p2/rgb/000", "p2/rgb/001", "p3/rgb/000", "p3/rgb/001"]


@pytest.mark.parametrize(
    ("sides", "orientation", "sound"), [((30, 20), 6, True), ((20, 30), 6, False), ((20, 30), 3, False)]
)
def test_a_mask_lies_over_its_picture_as_it_is_seen_or_is_refused(
    sides: tuple[int, int], orientation: int, sound: bool, tmp_path: Path
) -> None:
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    exif = Image.Exif()
    exif[0x112] = orientation
    Image.new("RGB", (30, 20)).save(tmp_path / "images/a.jpg", exif=exif)
    mask = np.zeros(sides, np.uint8)
    mask[0] = 1
    Image.fromarray(mask).save(tmp_path / "labels/a.png")
    data = data_of("data=seg2d", f"data.folder={tmp_path}")
    if sound:
        assert data.read("train").dataset[0][1].shape == (24, 24)
    else:
        with pytest.raises(HealsgError, match="EXIF orientation"):
            data.read("train").dataset[0]


def test_two_pictures_of_one_name_are_refused_and_not_one_of_them_left_out(tmp_path: Path) -> None:
    for name in ("images/a.png", "images/a.jpg", "labels/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.eye(30, dtype=np.uint8)).save(tmp_path / name)
    with pytest.raises(HealsgError, match=r"a\.png: a\.jpg has the same name"):
        data_of("data=seg2d", f"data.folder={tmp_path}").read("train")
