"""Pictures with masks in tar archives: packed, read at random, the same numbers as from files; archives of others."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import fake_masks
from healsg.cli import main
from healsg.datasets.mask_shards import MaskShards
from healsg.datasets.seg2d import Seg2D
from healsg.datasets.tar import index as tar_index
from healsg.datasets.tar.array_file import read_arrays
from healsg.errors import ConfigError, DataError
from helpers import record, train
from test_datasets_masked_pictures import write_colours
from test_shards import write_tar

SMALL = {"image_size": 16, "workers": 0}
RUN = ["model=unet", "model.width=4", "data.image_size=16", "data.val_fraction=0.3", "data.batch_size=2", "quiet=true"]
COLOURS = {"nothing": [0, 0, 0], "thing": [200, 0, 0]}


def png(array: Any) -> bytes:
    made = io.BytesIO()
    Image.fromarray(np.asarray(array, np.uint8)).save(made, "PNG")
    return made.getvalue()


def sample(number: int, label: int = 1, mask: str = "seg.png") -> dict[str, bytes]:
    """The files of a picture and its mask, as other programs pack them."""
    inside = fake_masks.boxed(number, label)
    return {f"{number}.png": png(np.stack([120 * (inside > 0)] * 3, -1)), f"{number}.{mask}": png(inside)}


def masks_of(data: Any, part: str = "train") -> list[list[int]]:
    """Inputs and masks of a part as a worker process would read them, as numbers that are quickly compared."""
    source = data.read(part)
    pickle.dumps(source.dataset)
    batch = source.fetch(torch.arange(len(source)))
    return torch.cat([batch["input"].flatten(), batch["target"].flatten()]).tolist()


def test_a_run_has_the_same_digest_from_files_and_from_archives(tmp_path: Path) -> None:
    """VOC with palettes, its 21 classes and ignored borders."""
    fake_masks.write_voc(tmp_path / "voc")
    assert main(["pack", "data=voc", "data.folder=voc", "--out", "S", "--size", "0.01"]) == 0
    digests = set()
    sides = ["data=voc", "data.folder=voc"], ["data=shards_seg", "data.folder=S", "data.workers=1"]
    for number, options in enumerate(sides):
        train(*options, *RUN, "runner.epochs=1", f"name={number}")
        digests.add(record(str(number))["digest"])
    assert len(digests) == 1
    assert main(["eval", "1", "split=test"]) == 0
    assert main(["predict", "1", "voc/VOC2012/JPEGImages", "--out", "masks"]) == 0
    assert len(list(Path("masks").glob("*.png"))) == 8
    assert main(["check", "data=shards_seg", "data.folder=S", *RUN[:-1]]) == 0
    assert main(["pack", "data=shards_seg", "data.folder=S", "--out", "again", "--size", "0.01"]) == 0
    packed = [{path.name: path.read_bytes() for path in Path(name).glob("*.tar")} for name in ("S", "again")]
    assert len(packed[0]) > 3
    assert packed[0] == packed[1]


@pytest.mark.parametrize("chosen", [{}, {"mapping": {0: 0, 1: 0}}, {"regions": {"all": [0, 1]}}])
def test_what_is_packed_is_what_the_table_has(tmp_path: Path, chosen: Mapping[str, Any]) -> None:
    """Masks of colours, a test part and groups."""
    write_colours(tmp_path / "made")
    asked = ["data.table=table.csv", f"data.colours={json.dumps(COLOURS).replace(chr(34), '')}", "data.group=place"]
    assert main(["pack", "data=seg2d", "data.folder=made", *asked, "data.val_fraction=0.3", "--out", "S"]) == 2
    assert main(["pack", "data=seg2d", "data.folder=made", *asked[:2], "--out", "S"]) == 0
    loose = Seg2D(folder="made", table="table.csv", colours=COLOURS, **SMALL, **chosen)
    packed = MaskShards("S", **SMALL, **chosen)
    assert packed.fitted() == loose.fitted()
    for part in ("train", "test"):
        assert masks_of(packed, part) == masks_of(loose, part)
        cases = [[(case.name, case.group) for case in data.read(part).about.cases] for data in (loose, packed)]
        assert cases[0] == cases[1]
        assert packed.groups("place", part).tolist() == loose.groups("place", part).tolist()
    assert packed.survey() == loose.survey()
    assert not packed.has_val
    assert packed.restored(loose.info).info == loose.info


def test_archives_of_other_programs(tmp_path: Path) -> None:
    files = {name: content for number in range(4) for name, content in sample(number, 7, "mask.png").items()}
    write_tar(tmp_path / "S/set-train.tar", files)
    write_tar(tmp_path / "S/set-val.tar", sample(9, 7, "mask.png"))
    data = MaskShards("S", mask="mask", **SMALL)
    assert data.mapping == {0: 0, 7: 1}
    assert data.info.class_names == ("0", "7")
    assert [len(data.read(part)) for part in ("train", "val")] == [4, 1]
    found = data.read("train").fetch(torch.tensor([2]))
    assert found["case"][0].name == "2"
    assert found["target"][0].unique().tolist() == [0, 1]
    assert bool(((found["input"][0, 0] > 60) == (found["target"][0] == 1)).float().mean() > 0.9)
    with pytest.raises(DataError, match=r"set-train\.tar: 0\.png, its mask: holds the label 7, and those known are"):
        MaskShards("S", mask="mask", mapping={0: 0, 1: 1}, **SMALL).read("train").sample(0)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"0.png": png(np.zeros((4, 4)))}, "0: has no mask seg, but png; data.mask says"),
        ({**sample(0), "0.seg.tif": b"x"}, "0: has seg.png and seg.tif; data.mask=seg.png says which"),
        ({**sample(0), "0.seg.png": png(np.ones((9, 9)))}, "its mask: the mask is 9 x 9, its picture 24 x 30"),
        ({**sample(0), "0.seg.png": b"no mask"}, "its mask: cannot be read as a mask"),
        ({}, "the archives of the train part hold no samples"),
    ],
)
def test_what_is_no_picture_with_a_mask_is_one_line(tmp_path: Path, files: dict[str, bytes], said: str) -> None:
    path = write_tar(tmp_path / "S/0.tar", files)
    with pytest.raises(DataError) as caught:
        MaskShards("S", mapping={0: 0, 1: 1}, **SMALL).read("train").sample(0)
    assert str(path) in str(caught.value)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_index_that_points_elsewhere_is_made_anew(tmp_path: Path) -> None:
    write_tar(tmp_path / "S/0.tar", {**sample(0), **sample(1)})
    data = MaskShards("S", mapping={0: 0, 1: 1}, **SMALL)
    index = tmp_path / "S/train.index"
    made, good = data.parts["train"], index.read_bytes()
    facts = read_arrays(index)[0]["index"]  # type: ignore[index]
    for target in (made.target + (1 << 40), made.target - (1 << 20), made.target[:, :1], made.target[:1]):
        tar_index._write(replace(made, target=target), facts, [index])
        assert index.read_bytes() != good
        assert masks_of(MaskShards("S", mapping={0: 0, 1: 1}, **SMALL)) == masks_of(data)
        assert index.read_bytes() == good


def test_what_cannot_be_packed_or_read_so_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_masks.write_cityscapes(tmp_path / "cities")
    fake_masks.write_voc(tmp_path / "voc", 4)
    assert main(["pack", "data=voc", "data.folder=voc", "--out", "S"]) == 0
    for line, said in (
        (["data=cityscapes", "data.folder=cities"], "the masks of Cityscapes are not packed; seg2d and voc"),
        (["data=shapes3d"], "the masks of Shapes3D are not packed"),
        (["data=voc", "data.folder=voc", "data.regions={a: [1]}"], "data.regions: is chosen by each run"),
        (["data=shards", "data.folder=S"], "holds pictures with masks; data=shards_seg reads them"),
    ):
        capsys.readouterr()
        assert main(["pack", *line, "--out", "new"]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
    write_tar(tmp_path / "P/0.tar", {"0.png": png(np.zeros((4, 4))), "0.cls": b"0"})
    notes = json.loads((tmp_path / "S/shards.json").read_text())
    damaged = {"labels": {"mapping": [[0, 3]]}, "colours": {"colours": [["a", [1, 2]]]}, "ignore": {"ignore": "x"}}
    for change in damaged.values():
        (tmp_path / "P/shards.json").write_text(json.dumps(notes | {"masks": notes["masks"] | change}))
        with pytest.raises(DataError, match=r"shards\.json: does not describe archives that this version knows"):
            MaskShards("P", **SMALL)
    plain = {key: value for key, value in notes.items() if key != "masks"}
    (tmp_path / "P/shards.json").write_text(json.dumps(plain | {"kind": "multiclass"}))
    with pytest.raises(ConfigError, match="holds pictures without masks; data=shards reads them"):
        MaskShards("P", **SMALL)


@pytest.mark.soak
def test_a_run_has_the_same_digest_for_any_number_of_workers(tmp_path: Path) -> None:
    fake_masks.write_voc(tmp_path / "voc", 12)
    assert main(["pack", "data=voc", "data.folder=voc", "--out", "S", "--size", "0.01"]) == 0
    digests = set()
    for option, folder in (("voc", "voc"), ("shards_seg", "S")):
        for workers in range(5):
            name = f"{option}-{workers}"
            train(f"data={option}", f"data.folder={folder}", *RUN, f"data.workers={workers}", f"name={name}")
            digests.add(record(name)["digest"])
    assert len(digests) == 1


def test_keys_that_begin_anew_in_each_archive_are_cases_of_their_own_and_an_unknown_group_is_refused(
    tmp_path: Path,
) -> None:
    for number in range(2):
        facts = json.dumps({"group": {"scene": "a", "patient": str(number)}}).encode()
        files = {f"000.{name.partition('.')[2]}": content for name, content in sample(0).items()}
        write_tar(tmp_path / f"train-{number}.tar", files | {"000.json": facts})
    data = MaskShards(folder=str(tmp_path), **SMALL)
    assert [case.name for case in data.cases("train")] == ["train-0/000", "train-1/000"]
    with pytest.raises(ConfigError, match=r"^data\.group: patiend is not one of scene, patient$"):
        MaskShards(folder=str(tmp_path), group="patiend", **SMALL).cases("train")
