"""The same command gives the same run; another seed changes all that is random, and nothing else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import fake_data
import fake_masks
import fake_tables
import fake_volumes
from healsg import BasicTask, TaskTrainer
from healsg.build import build_task
from healsg.cli import main
from healsg.commands import resume
from healsg.config.values import flat
from healsg.data.loader import Loader
from healsg.runs.folder import RunFolder
from helpers import METHODS, REPOSITORY, beside, taken

NO_DOWNLOAD = ["data.download=false", "data.verify=false"]
SMALL_SET = [*NO_DOWNLOAD, "data.batch_size=32"]
SMALL_PICTURES = ["data.image_size=16", "data.shift=2", "data.batch_size=16"]

UNET = ["model=unet", "model.width=4", "data.batch_size=4"]
MASKED = [*UNET, "data.image_size=16", "data.val_fraction=0.3"]
VOLUMES = [*UNET, "data.patch=[16,16,8]", "data.val_fraction=0.3"]
DRAWN = ["data.size=16", "data.train=20", "data.test=2"]


def write_shards(root: Path, masks: bool = False) -> None:
    if masks:
        fake_masks.write_voc(root / "pictures")
    else:
        fake_data.write_imagefolder(root / "pictures")
    kind = "voc" if masks else "imagefolder"
    assert main(["pack", f"data={kind}", f"data.folder={root / 'pictures'}", "--out", str(root / "shards")]) == 0


SETS: dict[str, tuple[Callable[[Path], Any], list[str]]] = {
    "digits": (lambda root: None, ["data.batch_size=256"]),
    "cifar": (fake_data.write_cifar, [*NO_DOWNLOAD, "data.batch_size=32"]),
    "mnist": (fake_data.write_mnist, [*NO_DOWNLOAD, "data.batch_size=32", "data.flip=true"]),
    "imagefolder": (
        lambda root: fake_data.write_imagefolder(root / "pictures"),
        ["data.folder=pictures", "data.image_size=16", "data.shift=2", "data.batch_size=8"],
    ),
    "shards": (lambda root: write_shards(root), [*SMALL_PICTURES, "data.folder=shards"]),
    "shards_seg": (lambda root: write_shards(root, masks=True), [*MASKED, "data.folder=shards"]),
    "fashionmnist": (lambda root: fake_data.write_mnist(root, name="FashionMNIST"), SMALL_SET),
    "kmnist": (lambda root: fake_data.write_mnist(root, name="KMNIST"), SMALL_SET),
    "svhn": (fake_data.write_svhn, SMALL_SET),
    "stl10": (fake_data.write_stl10, SMALL_SET),
    "eurosat": (fake_data.write_eurosat, SMALL_SET),
    "flowers102": (fake_data.write_flowers102, [*NO_DOWNLOAD, *SMALL_PICTURES]),
    "pets": (fake_data.write_pets, [*NO_DOWNLOAD, *SMALL_PICTURES, "data.val_fraction=0.3"]),
    "food101": (fake_data.write_food101, [*NO_DOWNLOAD, *SMALL_PICTURES]),
    "imagenette": (fake_data.write_imagenette, [*NO_DOWNLOAD, *SMALL_PICTURES]),
    "imagenet": (fake_data.write_imagenet, ["data.classes=5", *SMALL_PICTURES]),
    "medmnist": (
        lambda root: fake_tables.write_medmnist(root, "breastmnist"),
        ["data.name=breastmnist", "data.flip=true", *SMALL_SET],
    ),
    "csv": (
        lambda root: fake_tables.write_csv(root / "table.csv", fake_tables.rows()),
        ["data.file=table.csv", "data.columns=[a,b,c]", "data.noise=0.1", "data.batch_size=32"],
    ),
    "hf": (
        lambda root: fake_tables.write_pictures_parquet(root / "parquet"),
        ["data.name=parquet", "data.image=image", *SMALL_PICTURES],
    ),
    "seg2d": (
        lambda root: fake_volumes.write_pictures(root / "masked", 12),
        [*MASKED, "data.folder=masked"],
    ),
    "voc": (lambda root: fake_masks.write_voc(root / "voc"), [*MASKED, "data.folder=voc"]),
    "cityscapes": (lambda root: fake_masks.write_cityscapes(root / "cityscapes"), [*MASKED, "data.folder=cityscapes"]),
    "coco_seg": (lambda root: fake_masks.write_coco_seg(root / "coco"), [*MASKED, "data.folder=coco"]),
    "nifti": (lambda root: fake_volumes.write_scans(root / "scans"), [*VOLUMES, "data.folder=scans"]),
    "decathlon": (lambda root: fake_volumes.write_scans(root / "scans"), [*VOLUMES, "data.list=scans/list.json"]),
    "nnunet_raw": (lambda root: fake_volumes.write_nnunet(root / "raw"), [*VOLUMES, "data.folder=raw"]),
    "acdc": (lambda root: fake_volumes.write_acdc(root / "acdc"), [*VOLUMES, "data.folder=acdc"]),
    "left_atrium": (lambda root: fake_volumes.write_left_atrium(root / "atria", 4), [*VOLUMES, "data.folder=atria"]),
    **{name: (lambda root: None, [*UNET, *DRAWN]) for name in ("shapes2d", "digits_seg")},
    **{name: (lambda root: None, [*UNET, *DRAWN, "data.patch=[8,8,8]"]) for name in ("shapes3d", "tubes3d")},
    "synthetic": (
        lambda root: None,
        ["data.shape=[1,8,8]", "data.train=150", "data.test=40", "data.shift=2", "data.batch_size=32"],
    ),
}
"""By data set what writes one, of invented samples, under ``data/``, and its settings."""

WHOLE = [name for name, (_, settings) in sorted(SETS.items()) if "model=unet" not in settings]
"""The sets whose samples are whole, of one size, and not patches that another seed draws elsewhere."""

SMALL = ["model=mlp", "model.width=16", "model.dropout=0.2", "quiet=true"]


def options(data: str = "digits", method: str = "adamw") -> list[str]:
    """The settings of a small run, its data written."""
    write, settings = SETS[data]
    if data == "left_atrium":
        pytest.importorskip("h5py", reason="its files need h5py: an extra of healsg")
    write(Path("data"))
    settings = [f"data={data}", *settings]
    small = ["quiet=true"] if "model=unet" in settings else SMALL
    return [f"method={method}", *small, *settings, *beside(method, *settings)]


def digest(*settings: str, **names: str) -> str:
    result = TaskTrainer.compose(*settings, *(f"{key}={value}" for key, value in names.items())).train()
    assert result["status"] == "finished"
    return str(result["digest"])


def test_every_data_set_can_be_written() -> None:
    """A new data set needs a line in ``SETS``, or nothing here looks at it."""
    assert set(SETS) == {path.stem for path in (REPOSITORY / "conf/data").glob("*.yaml")}


# --- the same command ----------------------------------------------------------------------------------------------

EVERY_METHOD = """
import json, sys
from healsg import TaskTrainer
methods, settings = json.loads(sys.argv[1]), json.loads(sys.argv[2])
digests = {}
for method in methods:
    trainer = TaskTrainer.compose(f"method={method}", f"name={sys.argv[3]}-{method}", *settings[method])
    digests[method] = trainer.train()["digest"]
print(json.dumps(digests))
"""


def fresh_process(name: str, settings: list[str], methods: list[str] = METHODS, **variables: str) -> dict[str, str]:
    """Train each of ``methods`` in one new process; their digests."""
    each = {method: [*taken(method, *settings), *beside(method)] for method in methods}
    line = [sys.executable, "-c", EVERY_METHOD, json.dumps(methods), json.dumps(each), name]
    environment = {"OMP_NUM_THREADS": "1"} | variables
    done = subprocess.run(line, capture_output=True, text=True, env=os.environ | environment, check=False)
    assert done.returncode == 0, done.stderr
    digests: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return digests


def same_in_fresh_processes(settings: list[str], times: int, methods: list[str] = METHODS) -> None:
    """Also with another order of sets, which each process draws for itself."""
    runs = [fresh_process(f"run{time}", settings, methods, PYTHONHASHSEED=str(time + 1)) for time in range(times)]
    assert all(run == runs[0] for run in runs)
    assert len(set(runs[0].values())) > 1, "other methods, other digests"


KINDS_OF_METHOD = ["adamw", "coteaching", "crd", "dino", "elr", "flexmatch", "mean_teacher", "moco", "mixmatch", "sam"]
"""Methods that between them have two networks, a teacher, streams, queues, memory by sample, and a step of two passes;
all methods are run with ``-m soak``."""


def test_methods_of_every_kind_twice_in_fresh_processes() -> None:
    small = ["data.batch_size=256", "runner.epochs=1", "runner.limit_batches=3", *SMALL]
    same_in_fresh_processes(small, 2, KINDS_OF_METHOD)


@pytest.mark.soak
def test_every_method_ten_times_in_fresh_processes() -> None:
    same_in_fresh_processes(["model=cnn", "runner.epochs=3", "method.label_smoothing=0.1", "quiet=true"], 10)


def test_threads_are_recorded_and_kept() -> None:
    """A run begun on one thread goes on with one where there would be two; its bits are those of one."""
    settings = ["model=cnn", "model.width=8", "data.batch_size=128", "runner.steps=2", "quiet=true"]
    program = (
        "import sys; from healsg import TaskTrainer\n"
        "for line in sys.argv[1:]: TaskTrainer.compose(*line.split()).train()"
    )
    jobs = {
        "1": [["name=whole"], ["name=cut", "runner.max_time=0"]],
        "2": [["name=two"], ["name=cut"]],
    }
    for threads, runs in jobs.items():
        lines = [" ".join([*settings, *run]) for run in runs]
        subprocess.run(
            [sys.executable, "-c", program, *lines], env=os.environ | {"OMP_NUM_THREADS": threads}, check=True
        )
    records = {name: RunFolder(Path("runs") / name).record for name in ("whole", "cut", "two")}
    assert {name: record["threads"] for name, record in records.items()} == {"whole": 1, "cut": 1, "two": 2}
    assert len(records["cut"]["continued"]) == 1
    assert records["cut"]["digest"] == records["whole"]["digest"]


def test_a_run_goes_on_in_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = [*options("mnist"), "runner.epochs=2"]
    whole = digest(*settings, name="whole")
    stopped = TaskTrainer.compose(*settings, "name=cut", "runner.max_time=0").train()
    assert stopped["status"] == "stopped"
    (tmp_path / "there").mkdir()
    shutil.move("data", "there/store")
    shutil.move("runs/cut", "there/moved")
    monkeypatch.chdir("there")
    assert resume.run(["moved", "runner.max_time=null", "data.root=store"]) == 0
    assert RunFolder(Path("moved")).record["digest"] == whole
    assert digest(*settings, "data.root=store", name="anew") == whole


KINDS_OF_DATA = ["csv", "digits", "flowers102", "hf", "imagefolder", "mnist", "nifti", "seg2d", "shards"]
"""Sets that between them lie in memory, tables, folders, files named in a list, an archive, volumes, and pictures with
masks; all sets are run with ``-m soak``."""


@pytest.mark.parametrize("data", KINDS_OF_DATA)
def test_workers_and_prefetch_change_nothing(data: str) -> None:
    settings = [*options(data), "runner.epochs=2"]
    plain = digest(*settings, "data.workers=0", name="plain")
    assert digest(*settings, "data.workers=2", "data.prefetch=1", name="workers") == plain


@pytest.mark.soak
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("data", sorted(SETS))
def test_any_number_of_workers_every_data_set_and_method(data: str, method: str) -> None:
    settings = [*options(data, method), "runner.epochs=2"]
    seen = {
        digest(*settings, f"data.workers={workers}", f"data.prefetch={prefetch}", name=f"run{workers}-{prefetch}")
        for workers in (0, 1, 2, 4)
        for prefetch in (1, 2, 4)
    }
    assert len(seen) == 1


# --- another seed --------------------------------------------------------------------------------------------------


def built(seed: int, settings: list[str]) -> BasicTask:
    """A task as it stands before its first step."""
    task = build_task(TaskTrainer.compose(*settings, f"seed={seed}").composed)
    task.build()
    return task


def epoch_of(task: BasicTask, split: str, epoch: int = 0) -> dict[str, torch.Tensor]:
    """All that a split deals in an epoch, in its order."""
    loader = task.loaders[split]
    assert isinstance(loader, Loader)
    batches = [batch for batch, _ in loader.batches(epoch)]
    return {key: torch.cat([batch[key] for batch in batches]) for key in ("input", "target", "index")}


@pytest.fixture(params=WHOLE)
def pair(request: pytest.FixtureRequest) -> tuple[BasicTask, BasicTask]:
    """The same task with two seeds, on every data set of whole samples."""
    settings = [*options(request.param), "data.workers=0"]
    return built(0, settings), built(1, settings)


def test_another_seed_deals_another_order_and_other_views_and_splits_and_validates_the_same(
    pair: tuple[BasicTask, BasicTask],
) -> None:
    one, other = (epoch_of(task, "train") for task in pair)
    count = len(one["index"])
    assert not torch.equal(one["index"], other["index"])
    assert (one["index"] == other["index"]).float().mean() < 0.2
    assert sorted(one["index"].tolist()) == sorted(other["index"].tolist()) == list(range(count))
    places = [dealt["index"].argsort() for dealt in (one, other)]
    assert torch.equal(one["target"][places[0]], other["target"][places[1]])
    alike = (one["input"][places[0]] == other["input"][places[1]]).flatten(1).all(1).float().mean()
    assert alike < 0.5, "the same samples are shifted and flipped otherwise"
    assert list(pair[0].loaders) == list(pair[1].loaders)
    for split in [name for name in pair[0].loaders if name != "train"]:
        one, other = (epoch_of(task, split) for task in pair)
        assert all(torch.equal(one[key], other[key]) for key in one), split
    loaders = [task.loaders["train"] for task in pair]
    stored = [loader.sources["labelled"] for loader in loaders if isinstance(loader, Loader)]
    kept = [source.fetch(torch.arange(len(source))) for source in stored]
    assert torch.equal(kept[0]["target"], kept[1]["target"])
    assert torch.equal(kept[0]["input"], kept[1]["input"]), "the training part is the same samples"


@pytest.mark.parametrize("model", ["mlp", "cnn", "resnet"])
def test_another_seed_begins_with_other_weights(model: str) -> None:
    one, other = (built(seed, ["data=digits", f"model={model}"]).model for seed in (0, 1))
    drawn = 0
    for first, second in zip(one.modules(), other.modules(), strict=True):
        if isinstance(first, (torch.nn.Conv2d, torch.nn.Linear)):
            assert isinstance(second, type(first))
            assert (first.weight != second.weight).float().mean() > 0.99
            drawn += 1
    assert drawn >= 2
    for (name, first), second in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        if torch.equal(first, second):
            assert len(first.unique()) == 1, f"{name} is drawn, and the same with both seeds"


def test_another_seed_drops_other_units() -> None:
    one, other = (built(seed, options()) for seed in (0, 1))
    other.model.load_state_dict(one.model.state_dict())
    batch = torch.randn(64, *one.task_data.info.input_shape, generator=torch.Generator().manual_seed(0))

    def outputs(task: BasicTask) -> torch.Tensor:
        next(task.runner.train_batches(task))  # which seeds what the step draws from
        task.runner.position.batch = 0
        with torch.no_grad():
            return task.net.train()(batch)

    dropped = [outputs(task) for task in (one, other, one)]
    assert torch.equal(dropped[0], dropped[2])
    assert (dropped[0] != dropped[1]).any(1).float().mean() > 0.9
    with torch.no_grad():
        assert torch.equal(one.net.eval()(batch), other.net.eval()(batch))


@pytest.mark.parametrize("method", KINDS_OF_METHOD)
def test_another_seed_keeps_length_and_schedule(method: str) -> None:
    rates = []
    for seed in (0, 1):
        task = built(seed, [*options(method=method), "runner.epochs=3"])
        runner = task.runner
        passed = [(runner.total_steps, runner.max_epoch, runner.steps_per_epoch, task.interval)]
        for step in range(1, runner.total_steps + 1):
            task.optimizer.step()
            if task.scheduler is not None and (task.interval == "update" or step % runner.steps_per_epoch == 0):
                task.scheduler.step()
            passed += [tuple(group["lr"] for group in task.optimizer.param_groups)]
        rates.append(passed)
    assert rates[0] == rates[1]
    still = type(task.task_method.scheduler).__name__ == "Constant"
    assert (len(set(rates[0][1:])) == 1) == still, "the schedule moves"


def test_another_seed_is_one_key_of_the_record() -> None:
    settings = [*options(), "runner.epochs=1"]
    for seed in (0, 1):
        digest(*settings, f"seed={seed}", name=f"seed{seed}")
    folders = [RunFolder(Path(f"runs/seed{seed}")) for seed in (0, 1)]
    configs = [dict(flat(yaml.safe_load(folder.config.read_text()))) for folder in folders]
    assert {key for key in configs[0] if configs[0][key] != configs[1][key]} == {"name", "seed"}
    ours = {"seed", "command", "begin", "end", "process", "seconds", "usage"}
    of_chance = {"best", "last", "test", "digest", "id", "config_digest"}
    records = [folder.record for folder in folders]
    assert records[0].keys() == records[1].keys()
    assert {key for key in records[0] if records[0][key] != records[1][key]} - ours == of_chance
    lines = [[json.loads(line) for line in folder.metrics.read_text().splitlines()] for folder in folders]
    for one, other in zip(*lines, strict=True):
        assert {key: one[key] for key in ("event", "epoch", "step")} == {
            k: other[k] for k in ("event", "epoch", "step")
        }
        assert one.get("lr") == other.get("lr")
        assert one.get("train/loss") is None or one["train/loss"] != other["train/loss"]
