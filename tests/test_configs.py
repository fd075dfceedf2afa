"""Every option of every group composes, passes the checks, builds and trains; its YAML says what its class takes."""

from __future__ import annotations

import importlib.util
import math
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

import fake_data
import fake_masks
import fake_tables
import fake_volumes
from healsg import TaskTrainer
from healsg.cli import main
from healsg.config.check import misfit
from healsg.config.compose import Composer, conf_folder
from healsg.config.signature import Kind, constructor
from helpers import beside

CONF = conf_folder()
TINY = ["runner=debug", "runner.steps=2", "data.batch_size=16", "quiet=true"]
FOUND = ["data.root=files", "data.download=false", "data.verify=false"]
PICTURES = ["data.image_size=32", "data.workers=0"]
UNET = ["model=unet", "model.width=4"]
DRAWN = ["data.size=16", "data.train=20", "data.test=2"]
SHAPES = ["data=shapes2d", *DRAWN]
VOLUMES = [*UNET, "data.patch=[16,16,8]", "data.val_fraction=0.3"]
SMALL: dict[str, list[str]] = {
    "runner=fast": ["runner.tune=null"],  # what it measures, the command does
    "data=cifar": FOUND,
    "data=mnist": FOUND,
    "data=imagefolder": ["data.folder=files/pictures", *PICTURES],
    "data=shards": ["data.folder=files/shards", *PICTURES],
    **{f"data={name}": FOUND for name in ("fashionmnist", "kmnist", "svhn", "stl10", "eurosat")},
    **{f"data={name}": [*FOUND, *PICTURES] for name in ("flowers102", "pets", "food101", "imagenette")},
    "data=imagenet": ["data.root=files", "data.classes=5", *PICTURES],
    "data=medmnist": FOUND,
    "data=csv": ["data.file=files/table.csv", "data.columns=[a,b,c,d]"],
    "data=hf": ["data.name=files/parquet", "data.image=image", "data.image_size=16", "data.shift=2"],
    "data=synthetic": ["data.train=64", "data.test=32"],
    "model/metrics=multilabel": ["data=synthetic", "data.kind=multilabel"],
    "model/metrics=regression": ["data=synthetic", "data.kind=regression"],
    "model=torchvision": ["data=cifar", *FOUND, "model.name=mobilenet_v3_small"],
    "model=resnet": ["model.width=4"],
    "model=resnet8x4": ["model.width_factor=1", "model.stem_width=4"],
    "model=resnet32x4": ["model.depth=8", "model.width_factor=1", "model.stem_width=4"],
    "model=wide_resnet": ["model.depth=10", "model.widen_factor=1"],
    "model=vit": ["model.depth=1", "model.width=12"],
    "model=airbench": ["data=cifar", *FOUND, "model.width=4"],
    "model=timm": ["model.name=test_resnet"],
    **{f"data={name}": [*UNET, *DRAWN] for name in ("shapes2d", "digits_seg")},
    **{f"data={name}": [*UNET, *DRAWN, "data.patch=[8,8,8]"] for name in ("shapes3d", "tubes3d")},
    "data=nifti": [*VOLUMES, "data.folder=files/scans"],
    "data=decathlon": [*VOLUMES, "data.list=files/scans/list.json"],
    "data=nnunet_raw": [*VOLUMES, "data.folder=files/raw"],
    "data=acdc": [*VOLUMES, "data.folder=files/acdc", "data.batch_size=2"],
    "data=left_atrium": [*VOLUMES, "data.folder=files/atria"],
    "data=seg2d": [*UNET, "data.folder=files/masked", "data.image_size=16", "data.val_fraction=0.3"],
    **{
        f"data={name}": [*UNET, f"data.folder=files/{name}", "data.image_size=16", "data.val_fraction=0.3"]
        for name in ("voc", "cityscapes", "coco_seg", "shards_seg")
    },
    "model=unet": [*SHAPES, "model.width=4"],
    "model=resenc_unet": [*SHAPES, "model.width=4"],
    **{f"model={name}": [*SHAPES, "model.width=4"] for name in ("resenc_unet_m", "resenc_unet_l")},
    "model=smp": ["data=shapes2d", "data.size=32", *DRAWN[1:], "model.encoder=resnet18"],
    "model=torchvision_seg": [
        *("data=seg2d", "data.folder=files/masked", "data.image_size=32", "data.val_fraction=0.3"),
        "model.name=lraspp_mobilenet_v3_large",
    ],
    "model=monai": [
        *SHAPES,
        *("+model.options.init_filters=8", "+model.options.blocks_down=[1,1]", "+model.options.blocks_up=[1]"),
    ],
    "model/metrics=segmentation": [*SHAPES, *UNET],
    "model/metrics=surfaces": [*SHAPES, *UNET],
    **{
        f"model/loss={name}": [*SHAPES, *UNET]
        for name in ("dice_ce", "cross_entropy", "dice", "focal", "tversky", "topk", "cldice")
    },
}
"""What makes an option small enough for a test, and lets it find its files."""

NEEDS = {
    "model=monai": "monai",
    "model=smp": "segmentation_models_pytorch",
    "logger=swanlab": "swanlab",
    "model/metrics=surfaces": "monai",
    **{f"data={name}": "nibabel" for name in ("nifti", "decathlon", "nnunet_raw", "acdc")},
    "data=left_atrium": "h5py",
}
"""Options that need a package that the tests do not bring."""

OTHER_DEFAULTS = {
    "data=digits": {"batch_size"},
    "data=imagefolder": {"workers", "folder"},
    "data=shards": {"workers", "folder"},
    "data=csv": {"file"},
    "data=hf": {"name"},
    "data=nifti": {"folder"},
    "data=decathlon": {"list"},
    "data=nnunet_raw": {"folder"},
    "data=acdc": {"folder"},
    "data=left_atrium": {"folder"},
    "data=seg2d": {"folder"},
    "data=shards_seg": {"folder"},
    "data=coco_seg": {"folder"},
    "model=resnet32x4": {"depth"},
    "model=resenc_unet_l": {"preset"},
    "method=finetune": {"optimizer", "scheduler", "decay_norms_and_biases", "layer_decay"},
}
"""Where a YAML's value is meant to differ from the constructor's default, or the constructor has none."""


def options(group: str) -> list[str]:
    """The options of a group: its files."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


BASES = {"data/common", "method/recipe", "recipe"}
"""Folders of files that others build upon, which are no options by themselves, and the recipes: test_reproduce.py."""

GROUPS = sorted({str(path.parent.relative_to(CONF)) for path in CONF.rglob("*.yaml")} - {".", *BASES})
CHOICES = [f"{group}={option}" for group in GROUPS for option in options(group)]
NODES = [path for path in sorted(CONF.rglob("*.yaml")) if "_target_" in path.read_text()]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Invented samples of all data sets, written once."""
    root = tmp_path_factory.mktemp("all") / "files"
    fake_data.write_cifar(root)
    fake_data.write_mnist(root)
    fake_data.write_imagefolder(root / "pictures", per_class=12)
    assert main(["pack", "data=imagefolder", f"data.folder='{root}/pictures'", "--out", str(root / "shards")]) == 0
    for name in ("FashionMNIST", "KMNIST"):
        fake_data.write_mnist(root, name=name)
    for write in (fake_data.write_svhn, fake_data.write_stl10, fake_data.write_eurosat, fake_data.write_flowers102):
        write(root)
    for write in (fake_data.write_pets, fake_data.write_food101, fake_data.write_imagenette, fake_data.write_imagenet):
        write(root)
    fake_tables.write_medmnist(root)
    fake_tables.write_csv(root / "table.csv", fake_tables.rows())
    fake_tables.write_pictures_parquet(root / "parquet")
    fake_volumes.write_pictures(root / "masked", 12)
    for name in ("voc", "cityscapes", "coco_seg"):
        getattr(fake_masks, f"write_{name}")(root / name)
    assert main(["pack", "data=voc", f"data.folder='{root}/voc'", "--out", str(root / "shards_seg")]) == 0
    if importlib.util.find_spec("nibabel"):
        fake_volumes.write_scans(root / "scans")
        fake_volumes.write_nnunet(root / "raw")
        fake_volumes.write_acdc(root / "acdc", (99, 28, 11))
    if importlib.util.find_spec("h5py"):
        fake_volumes.write_left_atrium(root / "atria", 4)
    return root


def train(*overrides: str) -> dict[str, Any]:
    return TaskTrainer.compose(*TINY, *overrides).train()


def test_the_groups_are_those_of_the_design() -> None:
    assert {"data", "model", "method", "method/optimizer", "method/scheduler", "runner", "logger", "task"} <= set(
        GROUPS
    )
    assert set(GROUPS) <= {group.strip("/") for group in Composer().groups()}
    assert len(CHOICES) >= 25


@pytest.mark.parametrize("choice", [choice for choice in CHOICES if choice.startswith("model/")])
def test_a_nested_option_is_in_the_configuration(choice: str) -> None:
    group, _, option = choice.partition("=")
    wanted = yaml.safe_load((CONF / group / f"{option}.yaml").read_text())
    model = Composer().compose([*SHAPES, *UNET, choice], checked=False).values["model"]
    assert wanted.items() <= model[group.partition("/")[2]].items()


@pytest.mark.parametrize("path", [path for path in NODES if path.parent.name == "model"], ids=lambda path: path.stem)
def test_a_null_does_not_remove_the_option_that_was_chosen(path: Path) -> None:
    """What stands after ``_self_`` in the defaults is merged over a file's own keys."""
    content = yaml.safe_load(path.read_text())
    defaults = [entry if isinstance(entry, str) else next(iter(entry)) for entry in content.get("defaults", [])]
    for name in defaults:
        if name in content and content[name] is None:
            assert defaults.index(name) > defaults.index("_self_")


def small(choice: str) -> list[str]:
    """The choice, with what makes it small."""
    return [choice, *SMALL.get(choice, []), *beside(choice.removeprefix("method="))]


@pytest.mark.parametrize("choice", [choice for choice in CHOICES if not choice.startswith("method=")])
def test_every_option_trains(choice: str, files: Path) -> None:
    """Methods train, stop and go on in ``test_resume.py``."""
    Path("files").symlink_to(files)
    if package := NEEDS.get(choice):
        pytest.importorskip(package, reason=f"{package} is not installed: an extra of healsg")
    group, _, option = choice.partition("=")
    chosen = group == "model" or any(part.startswith("model=") for part in small(choice))
    mlp = [] if chosen else ["model=mlp", "model.width=8"]
    trainer = TaskTrainer.compose(*TINY, *mlp, *small(choice))
    assert trainer.composed.choices[group] == option
    result = trainer.train()
    assert result["status"] == "finished"
    lines = (Path(result["folder"]) / "metrics.jsonl").read_text().splitlines()
    assert '"step": 2,' in lines[-1]
    assert result["digest"]


OPTIMIZERS, SCHEDULERS = options("method/optimizer"), options("method/scheduler")


PLACES = range(max(len(OPTIMIZERS), len(SCHEDULERS)))


@pytest.mark.soak  # each option by itself is tried above
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("method", options("method"))
def test_every_method_with_every_optimizer_and_every_schedule(method: str, place: int) -> None:
    """Each method meets each of both, and over the methods each optimizer meets each schedule."""
    content = yaml.safe_load((CONF / "method" / f"{method}.yaml").read_text())
    turn = place + options("method").index(method)
    parts = ["model=mlp", "model.width=8", f"method={method}", *beside(method)]
    if not isinstance(content.get("optimizer"), dict):  # settings of one part do not fit another
        parts.append(f"method/optimizer={OPTIMIZERS[place % len(OPTIMIZERS)]}")
    if not isinstance(content.get("scheduler"), dict):
        parts.append(f"method/scheduler={SCHEDULERS[turn % len(SCHEDULERS)]}")
    assert train(*parts)["status"] == "finished"


def whole(path: Path) -> dict[str, Any]:
    """A YAML together with those of its own group, or of a folder in it, that it builds upon."""
    content: dict[str, Any] = yaml.safe_load(path.read_text())
    own = content.get("defaults", [])
    names = [entry.removesuffix("@_here_") for entry in own if isinstance(entry, str) and entry != "_self_"]
    below = [whole(path.parent / f"{name}.yaml") for name in names]
    merged = {name: value for part in (*below, content) for name, value in part.items()}
    return merged | {"defaults": [entry for part in (*below, content) for entry in part.get("defaults", [])]}


def nodes_of(path: Path) -> list[dict[str, Any]]:
    """The constructor calls that a YAML writes down."""
    content = whole(path)
    inner = [value for value in content.values() if isinstance(value, dict)]
    return [node for node in (content, *inner) if "_target_" in node]


@pytest.mark.parametrize("path", NODES, ids=[str(path.relative_to(CONF)) for path in NODES])
def test_every_argument_stands_in_the_yaml(path: Path) -> None:
    choice = f"{path.parent.relative_to(CONF)}={path.stem}"
    elsewhere = {name for entry in whole(path)["defaults"] if isinstance(entry, dict) for name in entry}
    for node in nodes_of(path):
        made = constructor(node["_target_"])
        assert made is not None
        if choice == "task=default" or not node["_target_"].startswith("healsg."):
            assert set(node) - {"_target_", "_partial_", "defaults"} <= set(made.parameters)
            continue
        first = {"params"} if node.get("_partial_") else set()
        written = set(node) - {"_target_", "_partial_", "defaults"}
        assert written == set(made.parameters) - first - (elsewhere - written)
        for name, parameter in made.parameters.items():
            if name in node and name not in OTHER_DEFAULTS.get(choice, set()):
                default = list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default
                value = node[name]
                if str(value).startswith("${"):  # a key of config.yaml
                    value = OmegaConf.select(OmegaConf.load(CONF / "config.yaml"), value[2:-1])
                collection = default is None and isinstance(value, (dict, list))
                assert collection or value == default, f"{choice}: {name} is {value}, the constructor says {default}"


INFINITE: list[Any] = [math.inf, -math.inf, *([math.inf] * length for length in (1, 2, 3))]


@pytest.mark.parametrize("path", NODES, ids=[str(path.relative_to(CONF)) for path in NODES])
def test_no_number_of_a_part_may_be_infinite(path: Path) -> None:
    for node in nodes_of(path):
        made = constructor(node["_target_"])
        assert made is not None
        for name, parameter in made.parameters.items():
            if _takes_numbers(parameter.kind):
                assert all(misfit(name, value, parameter.kind) for value in INFINITE), f"{node['_target_']}: {name}"


def _takes_numbers(kind: Kind) -> bool:
    return kind.name == "float" or (kind.name in ("list", "tuple", "union") and any(map(_takes_numbers, kind.inner)))


@pytest.mark.parametrize(
    "path",
    [path for path in sorted(CONF.rglob("*.yaml")) if "recipe" not in path.parts],
    ids=lambda path: str(path.relative_to(CONF)),
)
def test_every_setting_has_a_comment(path: Path) -> None:
    text = path.read_text().partition("\nhydra:\n")[0]
    nested = {line.split(":")[0] for line in text.splitlines() if re.match(r"\w+:$", line)}
    groups = {str(group.relative_to(CONF)).split("/")[0] for group in CONF.iterdir() if group.is_dir()}
    for line in text.splitlines():
        setting = re.match(r"\s*(\w+):\s*(\S.*)$", line)
        if setting and setting[1] not in nested | groups | {"_target_", "_partial_"}:
            assert re.search(r"\s# ?\S", setting[2]), f"{path}: {line}"
