"""A checkpoint belongs to a run, a configuration and data: what is of another is not gone on with in silence."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.utils.data import DataLoader, Subset, TensorDataset

import fake_data
from healsg import BasicTask, TaskTrainer
from healsg.cli import main
from healsg.data import fingerprint
from healsg.data.source import DatasetSource, TensorSource
from healsg.datasets.imagefolder import ImageFolder, Pictures
from healsg.errors import ConfigError, HealsgError, RunError
from healsg.methods.supervised import Supervised
from healsg.runs import checkpoint
from helpers import Cut, copies, cut_at, fork, record, train

OPTIONS = ["model=mlp", "model.width=16", "runner.epochs=3", "runner.log_every=5", "data.batch_size=256"]
OPTIONS += ["method=adamw", "runner.save_every=2", "quiet=true"]
PICTURES = ["data=imagefolder", "data.folder=own", "data.image_size=16", "data.shift=2", "data.batch_size=8"]
PICTURES += ["model=mlp", "model.width=8", "quiet=true", "runner.epochs=2", "runner.save_every=1"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of runs that every test has copies of."""
    folder = tmp_path_factory.mktemp("made")
    with contextlib.chdir(folder):
        copies(*OPTIONS, at=[10])
        train(*OPTIONS, "name=other", "seed=9")
    return folder / "runs"


@pytest.fixture
def cut(made: Path) -> Path:
    """A run that was killed in its second epoch; ``whole`` is the undisturbed one, ``other`` one of another seed."""
    shutil.copytree(made, "runs")
    return Path("runs/cut10")


def resumed(run: Path, *options: str) -> dict[str, Any]:
    return TaskTrainer.load(str(run), *options).train()


def edit(run: Path, old: str, new: str) -> None:
    text = (run / "config.yaml").read_text()
    assert text.count(old) == 1
    (run / "config.yaml").write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("batch_size: 256", "batch_size: 128", r"data\.batch_size: .*with 256, not 128"),
        ("\nseed: 0", "\nseed: 5", r"seed: .*with 0, not 5"),
        ("width: 16", "width: 8", r"model\.width: .*with 16, not 8"),
        ("epochs: 3", "epochs: 5", r"runner\.epochs: .*with 3, not 5"),
        ("name: whole", "name: other", ""),
    ],
)
def test_an_edited_configuration_is_refused_by_its_key(cut: Path, old: str, new: str, told: str) -> None:
    edit(cut, old, new)
    if not told:
        assert resumed(cut)["digest"] == record("whole")["digest"]
        return
    with pytest.raises(ConfigError, match=rf"^{told}; resume\.force=true"):
        resumed(cut)


def test_force_goes_on_with_an_edited_configuration(cut: Path) -> None:
    edit(cut, "batch_size: 256", "batch_size: 128")
    assert resumed(cut, "resume.force=true")["status"] == "finished"
    assert "data.batch_size: the checkpoint was written with 256, not 128" in (cut / "train.log").read_text()
    assert resumed(cut, "runner.epochs=4")["status"] == "finished", "from then on it belongs to the new configuration"


def test_a_run_that_was_forced_is_of_its_new_configuration_from_the_first_moment(
    cut: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it is killed before an update is saved: it then goes on without another ``resume.force``."""
    edit(cut, "batch_size: 256", "batch_size: 128")
    with monkeypatch.context() as patch:
        patch.setattr(Supervised, "train_step", lambda *_: (_ for _ in ()).throw(Cut))
        with pytest.raises(Cut):
            resumed(cut, "resume.force=true")
    assert resumed(cut)["status"] == "finished"


def test_a_finished_run_may_grow_and_go_on_growing(cut: Path) -> None:
    longer = train(*OPTIONS, "name=whole", "runner.epochs=5", "runner.max_time=0")
    assert longer["status"] == "stopped"
    assert train(*OPTIONS, "name=whole", "runner.epochs=6")["status"] == "finished"
    assert record("whole")["id"] == record("cut10")["id"]


def test_files_of_another_run_are_refused(cut: Path) -> None:
    """Its checkpoints, its lines, or both; with force the run goes on from them."""
    other = Path("runs/other")
    for name in ("last", "best"):
        run = Path(shutil.copytree(cut, f"runs/foreign-{name}"))
        shutil.copy(other / f"checkpoints/{name}.pt", run / f"checkpoints/{name}.pt")
        with pytest.raises(RunError, match=rf"{name}\.pt: belongs to another run \(other, .*resume\.force=true"):
            resumed(run)
        if name == "last":
            shutil.copy(other / "metrics.jsonl", run / "metrics.jsonl")
        assert resumed(run, "resume.force=true")["status"] == "finished"
        assert checkpoint.load(run / "checkpoints/last.pt")["belongs"]["run"] == record("whole")["id"]
    shutil.copy(other / "metrics.jsonl", cut / "metrics.jsonl")
    with pytest.raises(RunError, match=r"metrics\.jsonl: lines were changed, or are of another run"):
        resumed(cut)


def test_the_best_weights_of_another_run_are_not_evaluated(cut: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy("runs/other/checkpoints/best.pt", "runs/whole/checkpoints/best.pt")
    assert main(["eval", "whole"]) == 1
    assert "best.pt: belongs to another run (other, " in capsys.readouterr().err


@pytest.mark.parametrize("content", [None, "[", "[]", '{"id": 3}'])
def test_a_lost_record_leaves_the_run_its_own(cut: Path, content: str | None) -> None:
    (cut / "run.json").unlink()
    if content:
        (cut / "run.json").write_text(content)
    assert resumed(cut)["digest"] == record("whole")["digest"]
    assert record("cut10")["id"] == record("whole")["id"]


@pytest.mark.parametrize("belongs", [None, 3, {}, {"run": 1}, {"config": "[", "data": "3", "run": "x"}])
def test_a_checkpoint_that_says_nothing_of_use_is_refused_in_one_line(cut: Path, belongs: Any) -> None:
    for name in ("last", "previous"):
        path = cut / f"checkpoints/{name}.pt"
        state = checkpoint.load(path)
        state.pop("format")
        checkpoint.save(path, state | {"belongs": belongs})
    with pytest.raises(RunError, match=r"last\.pt: (does not say to which run it belongs|belongs to another run)"):
        resumed(cut)
    assert resumed(cut, "resume.force=true")["status"] == "finished"


# --- data ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path: Path) -> Path:
    fake_data.write_imagefolder(tmp_path / "data/own", per_class=6, parts=("train", "val"))
    return tmp_path / "data/own"


def pictures_of(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / "train").rglob("*") if path.is_file())


def replace_some(folder: Path) -> None:
    found = pictures_of(folder)
    for path, other in zip(found[:3], found[-3:], strict=True):
        path.write_bytes(other.read_bytes())


def exchange_classes(folder: Path) -> None:
    first, second = sorted((folder / "train").iterdir())[:2]
    first.rename(folder / "aside")
    second.rename(first)
    (folder / "aside").rename(second)


CHANGES = {"replaced": replace_some, "exchanged": exchange_classes}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("parts", ["given", "drawn"])
def test_replaced_pictures_are_noticed(own: Path, change: str, parts: str) -> None:
    """Of the same names and number, also where the set comes split into parts."""
    if parts == "drawn":
        shutil.rmtree(own / "val")
    train(*PICTURES, "name=before")
    assert train(*PICTURES, "name=cut", "runner.max_time=0")["status"] == "stopped"
    CHANGES[change](own)
    train(*PICTURES, "name=after")
    assert record("before")["data_digest"] != record("after")["data_digest"]
    assert record("before")["config_digest"] == record("after")["config_digest"]
    told = r"^data: the samples are not those with which the run began \(train: .*other contents"
    named = r"; .*train/ant/.* was changed since" if change == "replaced" else ""
    with pytest.raises(ConfigError, match=told + named):
        train(*PICTURES, "name=cut")
    assert train(*PICTURES, "name=cut", "resume.force=true")["status"] == "finished"
    assert record("cut")["data_digest"] == record("after")["data_digest"]


def test_a_copied_set_is_the_same(own: Path, tmp_path: Path) -> None:
    """In another folder, with other times."""
    whole = train(*PICTURES, "name=whole")
    train(*PICTURES, "name=cut", "runner.max_time=0")
    shutil.copytree(own, tmp_path / "scratch/own", copy_function=shutil.copyfile)
    shutil.rmtree(own)
    assert train(*PICTURES, "data.root=scratch", "name=cut")["digest"] == whole["digest"]
    assert record("cut")["data_digest"] == record("whole")["data_digest"]


@pytest.mark.parametrize("key", ["in_memory", "cache"])
def test_where_samples_lie_is_no_matter_of_what_they_are(own: Path, key: str) -> None:
    whole = train(*PICTURES, "name=whole")
    train(*PICTURES, "name=cut", "runner.max_time=0")
    assert train(*PICTURES, f"data.{key}=true", "name=cut")["digest"] == whole["digest"]
    assert record("cut")["data_digest"] == record("whole")["data_digest"]


def listed(folder: Path, **options: Any) -> fingerprint.Fingerprint:
    data = ImageFolder(str(folder), root=str(folder.parent), **options)
    data.splits()
    return data.fingerprints["train"]


def test_a_large_set_is_known_by_names_sizes_times_and_a_sample(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprint, "MANY", 5)
    monkeypatch.setattr(fingerprint, "SAMPLED", 4)
    before, found = listed(own), pictures_of(own)
    assert "contents" not in before
    assert len(before["sample"]) == 4
    assert not fingerprint.differences(before, listed(own), 0.0)
    os.utime(found[1], ns=(5, 5))
    assert fingerprint.differences(before, listed(own), 0.0)[0].startswith("files written at other times; ")
    assert fingerprint.digest(before) != fingerprint.digest(listed(own))
    for number, path in enumerate(found):
        os.utime(path, ns=(number, number))
    assert not fingerprint.differences(before, listed(own), 0.0), "all times are others: a copy"
    found[0].write_bytes(found[-1].read_bytes())
    assert fingerprint.differences(before, listed(own), 0.0), "and one that was looked into is another"


def test_what_is_no_regular_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    paths = [str(tmp_path / name) for name in ("missing.png", "pipe.png")]
    assert fingerprint.of_source(DatasetSource(Pictures(paths, [0, 1], 8, 3)))["count"] == 2


def test_tensors_are_known_by_all_of_their_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    for whole in (1 << 26, 10):
        monkeypatch.setattr(fingerprint, "WHOLE_TENSOR", whole)
        input, target = torch.arange(60.0).view(20, 3), torch.arange(20) % 2
        before = fingerprint.of_source(TensorSource(input, target))
        assert fingerprint.of_source(TensorSource(input.clone(), target)) == before
        input[7, 1] += 1
        assert fingerprint.differences(before, fingerprint.of_source(TensorSource(input, target)), 0) == [
            "other contents"
        ]
        target[3] = 0
        assert fingerprint.differences(before, fingerprint.of_source(TensorSource(input, target)), 0) == [
            "other labels, other contents"
        ]


class OwnLoaders(BasicTask):
    """A task with plain loaders of its own over a file of tensors."""

    def build_dataloader(self) -> Any:
        input = torch.tensor(json.loads(Path("own.json").read_text()))
        data = TensorDataset(input, (input.sum(1) > 0).long())
        return DataLoader(Subset(data, range(24)), batch_size=8, shuffle=True), DataLoader(data, batch_size=8)

    def build_model(self) -> torch.nn.Module:
        return torch.nn.Linear(3, 2)


def test_the_data_of_loaders_of_ones_own_are_known_too() -> None:
    input = torch.randn(32, 3, generator=torch.Generator().manual_seed(0)).tolist()
    Path("own.json").write_text(json.dumps(input))
    options = ["task._target_=test_belonging.OwnLoaders", "trusted=[test_belonging]", "runner.epochs=2", "quiet=true"]
    assert train(*options, "name=cut", "runner.max_time=0")["status"] == "stopped"
    input[5][1] += 1
    Path("own.json").write_text(json.dumps(input))
    with pytest.raises(HealsgError, match=r"^data: the samples are not those with which the run began \(train: "):
        train(*options, "name=cut")


def test_another_choice_of_the_same_samples_is_other_data() -> None:
    samples = TensorDataset(torch.arange(10.0).view(10, 1), torch.zeros(10, dtype=torch.int64))

    def known(*chosen: int) -> fingerprint.Fingerprint:
        return fingerprint.of_loader(DataLoader(Subset(samples, chosen), sampler=[0, 1]))

    assert fingerprint.differences(known(1, 2), known(1, 2), 0.0) == []
    assert fingerprint.differences(known(1, 2), known(1, 3), 0.0) == ["other samples of the same files"]


def test_run_json_holds_three_digests(cut: Path) -> None:
    kept = record("whole")
    texts = [kept[key] for key in ("config_digest", "data_digest", "digest")]
    assert all(len(str(text)) == 64 for text in texts)
    assert len({*map(str, texts)}) == 3
    config = yaml.safe_load((cut / "config.yaml").read_text())
    assert config["name"] == "whole"


# --- a name ----------------------------------------------------------------------------------------------------------


class Broken(BasicTask):
    """Fails at its first step, or is killed there."""

    def run_epoch(self) -> Any:
        if self.config.args.get("killed"):
            os.kill(os.getpid(), signal.SIGKILL)
        raise ZeroDivisionError


@pytest.mark.parametrize("way", ["error", "killed"])
def test_a_run_that_made_no_update_does_not_hold_its_name(way: str) -> None:
    """Other settings simply start, exactly as in an empty folder."""
    broken = [*OPTIONS, "task._target_=test_belonging.Broken", "trusted=[test_belonging]", "name=run", "seed=3"]
    if way == "error":
        with pytest.raises(ZeroDivisionError):
            train(*broken)
    else:
        assert os.waitpid(fork(lambda: train(*broken, "+args.killed=true")), 0)[1] == signal.SIGKILL
    assert Path("runs/run/checkpoints/last.pt").exists(), "of step 0"
    first = record("run")["id"]
    options = [*OPTIONS, "model.width=8", "seed=1"]
    assert train(*options, "name=run")["digest"] == train(*options, "name=whole")["digest"]
    kept = record("run")
    assert (kept["seed"], kept["trained"], kept.get("continued")) == (1, True, None)
    assert kept["id"] != first
    with pytest.raises(RunError, match="is finished"):
        train(*options, "name=run")


def test_a_run_that_begins_anew_keeps_no_checkpoint_of_the_one_before() -> None:
    cut_at(0, *OPTIONS, "name=run", "seed=3")
    last, previous = (Path(f"runs/run/checkpoints/{name}.pt") for name in ("last", "previous"))
    shutil.copy(last, previous)
    cut_at(0, *OPTIONS, "name=run", "seed=1")
    assert checkpoint.load(last)["belongs"]["run"] == record("run")["id"]
    assert not previous.exists()


def test_a_run_that_made_updates_holds_its_name_without_a_line() -> None:
    options = [*OPTIONS, "runner.log_every=1000", "name=run"]
    train(*options, "runner.max_time=0")
    assert not Path("runs/run/metrics.jsonl").read_text()
    with pytest.raises(ConfigError, match=r"^seed: .* was started with 0, not 1"):
        train(*options, "seed=1")


def test_a_checkpoint_put_into_a_run_that_made_no_update_is_not_thrown_away(cut: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        train(*OPTIONS, "task._target_=test_belonging.Broken", "trusted=[test_belonging]", "name=run")
    last = Path(shutil.copy(cut / "checkpoints/last.pt", "runs/run/checkpoints/last.pt"))
    content = last.read_bytes()
    with pytest.raises(RunError, match=r"last\.pt: belongs to another run"):
        train(*OPTIONS, "name=run")
    assert last.read_bytes() == content
