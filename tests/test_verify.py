"""``healsg verify`` proves exact resume of a user's own task or names what breaks it, as ``healsg diverge`` does."""

from __future__ import annotations

import io
import json
import os
import random
import re
import shutil
import signal
import sys
import threading
import time
import warnings
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import fake_masks
import fake_volumes
from healsg import TaskTrainer
from healsg.commands import verify
from healsg.commands.diverge import command as diverge
from healsg.commands.diverge import fingerprints, trace
from healsg.commands.diverge.command import first_tensor
from healsg.commands.launch import launching
from healsg.config.compose import Composer
from healsg.errors import ConfigError, HealsgError, RunError
from healsg.runs.folder import RunFolder
from helpers import METHODS, beside
from json_schema import mismatch, schemas

SHORT = ["model=mlp", "model.width=16", "runner.epochs=3", "data.batch_size=256", "quiet=true"]
STEPS = 15
"""The updates of that run: 1,293 samples by 256, rounded up, three times."""


MY_METHODS = """
import copy
import random

import torch

from healsg.methods.supervised import Supervised


class Outside(Supervised):
    \"\"\"A teacher in a plain list, which is in no state_dict.\"\"\"

    def setup(self, task):
        super().setup(task)
        self.held = [copy.deepcopy(task.model).requires_grad_(False)]

    def train_step(self, task, batch):
        with torch.no_grad():
            wanted = self.held[0](batch["input"])
        distance = (task.net(batch["input"]) - wanted).square().mean()
        return {"loss": super().train_step(task, batch)["loss"] + distance}

    @torch.no_grad()
    def after_update(self, task):
        for kept, new in zip(self.held[0].parameters(), task.model.parameters()):
            kept.lerp_(new, 0.1)


class Chance(Supervised):
    \"\"\"From the fifth update on, the loss is weighed by a generator that no seed reaches.\"\"\"

    def setup(self, task):
        super().setup(task)
        self.chance = random.Random()

    def train_step(self, task, batch):
        loss = super().train_step(task, batch)["loss"]
        return {"loss": loss * self.chance.uniform(0.5, 1.5) if task.runner.step_count >= 4 else loss}


class Forgetful(Supervised):
    \"\"\"Refuses to go on.\"\"\"

    def load_state_dict(self, state, *rest, **more):
        raise ValueError("what was\\nkept is gone")
"""

OUTSIDE = """\
defaults:
  - adamw
  - _self_

_target_: my_methods.Outside
"""


class Forked:
    """In the place of ``subprocess.Popen``: the same program in a fork of this process, which has torch already."""

    def __init__(self, line: list[str], stderr: Any, **options: Any) -> None:
        self.stderr, self.returncode = stderr.fileno(), None

    def communicate(self, plan: bytes, timeout: float | None) -> None:
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(self.stderr, 2)
            sys.stdin, sys.stderr = (
                io.TextIOWrapper(io.BytesIO(plan)),
                io.TextIOWrapper(io.FileIO(2, "w"), write_through=True),
            )
            os._exit(trace.main())
        self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def wait(self) -> None:
        assert self.returncode is not None


@pytest.fixture(params=["forked", pytest.param("fresh", marks=pytest.mark.soak)])
def processes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forks of this process, and in the long counts fresh ones: those cost seconds each to import torch."""
    if request.param == "forked":
        for module in ("sklearn.datasets", "torch._dynamo"):  # what a first run imports: once here, not in each fork
            import_module(module)
        warnings.filterwarnings("ignore", ".*fork", DeprecationWarning)
        monkeypatch.setattr(launching, "subprocess", SimpleNamespace(Popen=Forked, PIPE=-1, DEVNULL=-3))


@pytest.fixture
def my_methods(tmp_path: Path) -> None:
    (tmp_path / "my_methods.py").write_text(MY_METHODS)


def test_a_shipped_task_resumes_exactly(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert verify.run([*SHORT, "name=own", "runs=1", "kills=2", "keep=true"]) == 0
    told = capfd.readouterr().out
    begins = re.search(r"exact: 3 runs agree; 2 kills \(verify_seed=0\), resumed from 2 different steps: (.*)\n", told)
    assert begins, told
    first, second = map(int, begins[1].split(", "))
    assert 0 < first < second < STEPS
    runs = {name: Path("runs") / f"verify-own-{name}" for name in ("whole", "again", "killed1")}
    records = {name: RunFolder(path).record for name, path in runs.items()}
    assert len({record["digest"] for record in records.values()}) == 1
    assert len({record["process"] for record in records.values()}) == 3
    assert [len(record.get("continued", [])) for record in records.values()] == [0, 0, 2]
    shutil.move(runs["killed1"], tmp_path / "elsewhere")
    assert diverge.run([str(runs["whole"]), str(tmp_path / "elsewhere")]) == 0
    assert "the runs are equal" in capfd.readouterr().out
    with pytest.raises(RunError, match="verify-own-whole: is there from before"):
        verify.run([*SHORT, "name=own"])


def test_the_user_s_own_saves_are_kept(processes: None, capfd: pytest.CaptureFixture[str]) -> None:
    """With ``runner.save_every`` no other save is made: the runs go on from those, and from the ends of epochs."""
    assert verify.run([*SHORT, "runner.save_every=4", "name=own", "runs=2", "kills=2", "verify_seed=1"]) == 0
    told = capfd.readouterr().out
    begins = re.search(r"exact: 4 runs agree; 4 kills \(verify_seed=1\), resumed from \d different steps: (.*)\n", told)
    assert begins, told
    assert set(map(int, begins[1].split(", "))) <= {0, 4, 5, 8, 10, 12, 15}
    assert not Path("runs").exists(), "runs that agree are removed"


def test_a_memory_outside_the_state_is_found(
    my_methods: None, processes: None, capfd: pytest.CaptureFixture[str]
) -> None:
    """The method, in a YAML of the user's own, goes on with another teacher: the next update differs."""
    Path("my_conf/method").mkdir(parents=True)
    Path("my_conf/method/outside.yaml").write_text(OUTSIDE)
    options = ["--config-dir", "my_conf", "method=outside", "model.dropout=0.1"]
    assert verify.run([*SHORT, *options, "name=own", "runs=1", "kills=1", "verify_seed=3"]) == 1
    told = capfd.readouterr().out
    found = re.search(
        r"differ first at step (\d+): (\S+) \(after a kill at step (\d+), resumed from step (\d+)\)", told
    )
    assert found, told
    step, kill, begin = (int(found[place]) for place in (1, 3, 4))
    assert (step, found[2]) == (begin + 1, "model.body.1.weight")
    assert 0 < begin <= kill <= STEPS
    assert "is not in a state_dict" in told
    assert re.search(r"^killed1 +15 +\d+ +\d+ ", told, re.MULTILINE)
    assert Path("runs/verify-own-whole/run.json").exists(), "runs that differ are kept"


def test_a_task_of_chance_is_found_before_any_kill(
    my_methods: None, processes: None, capfd: pytest.CaptureFixture[str]
) -> None:
    assert verify.run([*SHORT, "method._target_=my_methods.Chance", "name=own"]) == 1
    told = capfd.readouterr().out
    assert "runs differ first at step 5: model.body.1.weight\n" in told
    assert "the task itself is not reproducible" in told
    assert not Path("runs/verify-own-killed1").exists()


def test_a_task_that_cannot_go_on_is_found(
    my_methods: None, processes: None, capfd: pytest.CaptureFixture[str]
) -> None:
    assert verify.run([*SHORT, "method._target_=my_methods.Forgetful", "name=own", "kills=1"]) == 1
    told = capfd.readouterr().out
    assert re.search(r"killed1 cannot go on after a kill at step \d+: .*does not fit this task: what was kept", told)


@pytest.mark.parametrize("exact", [True, False], ids=["exact", "not exact"])
def test_json_is_of_the_published_schema(
    exact: bool, my_methods: None, processes: None, capfd: pytest.CaptureFixture[str]
) -> None:
    """Where the task is not reproducible, the runs that are to be killed are never started."""
    options = ["runner.steps=5"] if exact else ["method._target_=my_methods.Chance"]
    assert verify.run([*SHORT, *options, "name=own", "runs=1", "kills=1", "--json"]) == int(not exact)
    found = json.loads(capfd.readouterr().out)
    assert found["exact"] is exact
    assert [row["run"] for row in found["runs"]] == ["whole", "again", "killed1"]
    assert mismatch(found, schemas()["verify"]) == ""


@pytest.mark.soak
@pytest.mark.parametrize("method", METHODS)
def test_every_method_resumes_exactly(method: str, capfd: pytest.CaptureFixture[str]) -> None:
    options = ["model=cnn", "runner.epochs=3", "data.batch_size=256", f"method={method}", "runs=2", "kills=3"]
    options += beside(method)
    assert verify.run([*options, f"verify_seed={METHODS.index(method)}"]) == 0
    told = capfd.readouterr().out
    assert "exact: 4 runs agree; 6 kills" in told


MASKS = ["model=unet", "model.width=2", "model.stages=2", "runner.epochs=3", "quiet=true", "data.batch_size=2"]
FOLDERS = ["data=seg2d", "data.folder=masked", "data.image_size=32", "data.patch=[16,16]", "data.val_fraction=0.2"]
SCANS = ["data=nifti", "data.folder=scans", "data.patch=[8,8,8]", "data.val_fraction=0.2"]
FEW = ["data.labels=4", "data.samples_per_epoch=8"]
DENSE = {
    "adamw": [],
    "mean_teacher": ["method.view=strong", "method.ramp=0", *FEW],
    "cps": FEW,
    "fixmatch": ["method.unlabelled_ratio=1", "method.threshold=0.5", *FEW],
}
"""Methods that learn masks, with settings under which each of their terms acts."""


def write_masks(kind: str) -> None:
    """The files of one set of masks in the current directory."""
    if kind == "nifti":
        pytest.importorskip("nibabel", reason="volumes need nibabel: an extra of healsg")
        fake_volumes.write_scans(Path("scans"), 10)
    else:
        fake_volumes.write_pictures(Path("masked"), 10)


@pytest.mark.soak
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("method", DENSE)
@pytest.mark.parametrize("kind", ["seg2d", "nifti"])
def test_every_method_of_masks_resumes_exactly(
    kind: str, method: str, workers: int, processes: None, capfd: pytest.CaptureFixture[str]
) -> None:
    write_masks(kind)
    data = FOLDERS if kind == "seg2d" else SCANS
    options = [*MASKS, *data, f"method={method}", *DENSE[method], f"data.workers={workers}", "runner.log_every=3"]
    assert verify.run([*options, "name=own", "runs=2", "kills=3", f"verify_seed={workers}"]) == 0
    # steps of milliseconds: a kill may come only after the step that the next one is planned for, the later the more
    # other work shares the machine
    assert re.search(r"exact: 4 runs agree; [1-6] kills", capfd.readouterr().out)


ENTRIES = {
    "decathlon": ["data.list=scans/list.json", "data.patch=[8,8,8]", "data.augment=nnunet"],
    "nnunet_raw": ["data.folder=raw", "data.patch=[8,8,8]", "data.cache=true"],
    "acdc": ["data.folder=acdc", "data.patch=[8,8,8]", "data.labels=3", "data.samples_per_epoch=8"],
    "left_atrium": ["data.folder=atria", "data.patch=[8,8,8]", "data.val_fraction=0", "data.samples_per_epoch=8"],
    **{name: [f"data.folder={name}", "data.image_size=32"] for name in ("voc", "cityscapes", "coco_seg")},
    **{name: ["data.train=8", "data.test=2", "data.size=16"] for name in ("shapes2d", "digits_seg")},
    **{name: ["data.train=8", "data.test=2", "data.size=16", "data.patch=[8,8,8]"] for name in ("shapes3d", "tubes3d")},
}
"""The other sets of masks, as small as can be."""


@pytest.mark.soak
@pytest.mark.parametrize("entry", ENTRIES)
def test_every_set_of_masks_resumes_exactly(entry: str, processes: None, capfd: pytest.CaptureFixture[str]) -> None:
    if entry in ("decathlon", "nnunet_raw"):
        pytest.importorskip("nibabel", reason="volumes need nibabel: an extra of healsg")
        fake_volumes.write_scans(Path("scans"), 8)
        fake_volumes.write_nnunet(Path("raw"), 8)
    elif entry == "acdc":
        pytest.importorskip("nibabel", reason="volumes need nibabel: an extra of healsg")
        fake_volumes.write_acdc(Path("acdc"))
    elif entry == "left_atrium":
        pytest.importorskip("h5py", reason="its files need h5py: an extra of healsg")
        fake_volumes.write_left_atrium(Path("atria"), 4)
    elif entry in ("voc", "cityscapes", "coco_seg"):
        getattr(fake_masks, f"write_{entry}")(Path(entry))
    options = [*MASKS, f"data={entry}", *ENTRIES[entry], "data.workers=2", "runner.limit_batches=4", "name=own"]
    assert verify.run([*options, "runs=1", "kills=3"]) == 0
    assert "exact: 3 runs agree; 3 kills" in capfd.readouterr().out


def test_a_child_s_mistake_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(HealsgError, match=r"^runner\.device: 'cuda:9' asks for GPU 9, .*usable$") as caught:
        verify.run([*SHORT, "runner.device=cuda:9", "name=own"])
    assert caught.value.status == 2
    assert capfd.readouterr().err == ""
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["kills=0"], "kills=0: kills is a whole number, from 1 on"),
        (["runs=many"], "runs=many: runs is a whole number"),
        (["keep=1"], "keep=1: keep is true or false"),
        (["-m", "seed=1,2"], "takes the settings of one run"),
        (["runer.epochs=2"], "runer.epochs: no such key; did you mean runner.epochs"),
        (["name=a/b"], "no name of a folder"),
    ],
)
def test_mistakes_start_nothing(arguments: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        verify.run([*SHORT, *arguments])
    assert not Path("runs").exists()


def test_ctrl_c_ends_all(capfd: pytest.CaptureFixture[str]) -> None:
    folder, children = RunFolder(Path("runs/verify-own-whole")), list[int]()

    def interrupt() -> None:
        while not (folder.path / diverge.TRACE).exists():
            time.sleep(0.05)
        children.append(folder.record["process"])
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    assert verify.run([*SHORT, "runner.epochs=100000", "name=own"]) == 130
    assert capfd.readouterr().err == "stopped by SIGINT: nothing is verified\n"
    assert not Path("runs").exists()
    with pytest.raises(ProcessLookupError):
        os.kill(children[0], 0)


def test_kills_are_spread_over_the_run() -> None:
    seen = set()
    for seed in range(300):
        plans = verify.moments(random.Random(seed), 30, 3, own_saves=False)
        assert [(plan["kill"] - 1) // 10 for plan in plans] == [0, 1, 2]
        assert all(max(1, plan["kill"] - 2) <= plan["save"] <= plan["kill"] for plan in plans)
        assert [plan["settle"] for plan in plans] == [True, False, True]
        assert all((plan["share"] == 0) == (plan["kill"] == 30) for plan in plans)
        seen |= {plan["kill"] for plan in plans}
    assert seen == set(range(1, 31))
    assert [plan["kill"] for plan in verify.moments(random.Random(0), 2, 5, own_saves=False)] == [1, 2]
    assert {plan["save"] for plan in verify.moments(random.Random(0), 30, 5, own_saves=True)} == {None}


# --- the trace -----------------------------------------------------------------------------------------------------


def test_a_traced_run_is_the_same_run() -> None:
    options = [*SHORT, "method=sgd", "runner.accumulate=2"]
    plain = TaskTrainer.compose(*options, "name=plain").train()
    plan: dict[str, Any] = dict.fromkeys(("save", "settle", "kill", "share", "until"))
    plan |= {"parent": os.getppid()}
    composed = Composer().compose([*options, "name=traced"])
    assert trace.TracedTrainer(composed, plan | {"until": 4}).train()["status"] == "stopped"
    assert trace.TracedTrainer(composed, plan).train()["digest"] == plain["digest"]
    rows = [row for _, row in diverge.entries(Path("runs/traced") / diverge.TRACE)]
    assert [row.get("step", "begin") for row in rows] == ["begin", 1, 2, 3, 4, "begin", *range(1, 10)]
    names = rows[1]["names"]
    assert {"model.body.1.weight", "optimizer.state.0.momentum_buffer", "runner.meter.sums.loss"} <= set(names)
    sections = [name.split(".")[0] for name in names]
    assert sections == sorted(sections, key=fingerprints.SECTIONS.index)
    orphaned = Composer().compose([*options, "name=orphan"])
    orphan = trace.TracedTrainer(orphaned, plan | {"parent": -1}).train()
    assert (orphan["status"], orphan["exit"]) == ("stopped", 1)


def test_a_fingerprint_knows_values_types_and_shapes() -> None:
    base = torch.arange(6.0)
    values = [base, base + 1e-6, base.double(), base.view(2, 3), base.bool(), base.bfloat16(), base + 1j, 6, 6.0, None]
    marks = [fingerprints.fingerprint(value) for value in values]
    assert len({mark for mark, _ in marks}) == len(values)
    assert marks[0] == fingerprints.fingerprint(torch.arange(12.0)[:6].clone().requires_grad_())
    assert [size for _, size in marks[-3:]] == [6, 6.0, None]
    assert marks[0][1] == pytest.approx(55**0.5, abs=1e-4)
    assert fingerprints.fingerprint(torch.empty(0))[1] == 0


def write(path: Path, *rows: dict[str, object] | str) -> Path:
    path.write_text("".join(row if isinstance(row, str) else f"\n{json.dumps(row)}\n" for row in rows))
    return path


def row(step: int, *marks: str, **more: object) -> dict[str, object]:
    return {"step": step, **more, "hash": list(marks), "size": [1.0, None, 0.5][: len(marks)]}


def test_the_first_tensor_of_two_traces(tmp_path: Path) -> None:
    names = {"names": ["model.weight", "scheduler.count"]}
    more = {"names": ["model.weight", "optimizer.state.0.exp_avg", "scheduler.count"]}
    whole = write(
        tmp_path / "a", {"begin": 0}, row(1, "a", "b", **names), row(2, "c", "d", "e", **more), row(3, "f", "g", "h")
    )
    killed = [{"begin": 0}, row(1, "a", "b", **names), row(2, "c", "d", "e", **more), '\n{"step":3,"ha', {"begin": 1}]
    same = write(tmp_path / "b", *killed, row(2, "c", "d", "e", **more), row(3, "f", "g", "h"))
    assert first_tensor(whole, same) is None
    other = write(tmp_path / "c", *killed, row(2, "c", "d", "e", **more), row(3, "f", "x", "y"), row(4, "z", "z", "z"))
    found = first_tensor(whole, other)
    assert str(found) == "at step 3: optimizer.state.0.exp_avg (after a kill at step 2, resumed from step 1)"
    assert found is not None
    assert found.detail == "2 of 3 differ (optimizer 1, scheduler 1)"
    lacking = write(tmp_path / "d", {"begin": 0}, row(1, "a", "b", **names), row(2, "c", "e", **names))
    found = first_tensor(whole, lacking)
    assert found is not None
    assert (found.step, found.name, found.kill) == (2, "optimizer.state.0.exp_avg", None)
    assert first_tensor(whole, tmp_path / "none") is None


# --- diverge -------------------------------------------------------------------------------------------------------


def test_diverge_names_what_differs(processes: None, capfd: pytest.CaptureFixture[str]) -> None:
    for seed in (0, 1):
        TaskTrainer.compose(*SHORT, f"seed={seed}", f"name=seed{seed}", f"data.root=place{seed}").train()
    assert diverge.run(["seed0", "seed1", "replay=true"]) == 1
    told = capfd.readouterr().out.splitlines()
    assert told[:2] == ["settings    seed: 0 | 1", f"{'':12}data.root: place0 | place1 (cannot alter the result)"]
    assert told[2] == "run.json    same"
    losses = [json.loads(Path(f"runs/seed{seed}/metrics.jsonl").read_text().splitlines()[0]) for seed in (0, 1)]
    wanted = f"train/loss {losses[0]['train/loss']} | {losses[1]['train/loss']}, val/loss "
    assert told[3].startswith(f"metrics     line 1: epoch, epoch 1, step 5: {wanted}")
    weights = [RunFolder(Path(f"runs/seed{seed}")).last_state()["model"]["body.1.weight"] for seed in (0, 1)]  # type: ignore[index]
    gap = (weights[0].double() - weights[1].double()).abs().max().item()
    assert told[4].startswith(f"checkpoint  step 15: model.body.1.weight: differs by up to {gap:.3g}; ")
    assert told[5:9] == [
        "trace       not both have one",
        "the runs differ",
        "replaying runs/seed0 to step 5",
        "replaying runs/seed1 to step 5",
    ]
    assert told[9].startswith("the replays differ first at step 1: model.body.1.weight; size ")


def test_diverge_of_shorter_and_altered_runs(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    TaskTrainer.compose(*SHORT, "name=long").train()
    TaskTrainer.compose(*SHORT, "name=short", "runner.max_time=0").train()
    assert diverge.run(["long", "short"]) == 1
    told = capfd.readouterr().out
    assert "line 1: epoch, epoch 1, step 5: only in runs/long" in told
    assert "checkpoint  step 15 | 1: model.body.1.weight" in told
    shutil.copytree("runs/long", "runs/altered")
    record = json.loads(Path("runs/altered/run.json").read_text())
    record |= {"host": "elsewhere", "threads": 64, "versions": record["versions"] | {"torch": "9.9"}}
    Path("runs/altered/run.json").write_text(json.dumps(record))
    assert diverge.run(["long", "altered"]) == 0, "where a run was made is no difference of the run"
    told = capfd.readouterr().out
    assert re.search(
        r"run\.json    versions\.torch: \S+ \| 9\.9\n +threads: \d+ \| 64\n +host: \S+ \| elsewhere\n", told
    )
    text = Path("runs/long/metrics.jsonl").read_text()
    Path("runs/altered/metrics.jsonl").write_text(re.sub(r'"val/acc": [\d.]+', '"val/acc": 0.5', text))
    assert verify._difference(RunFolder(Path("runs/long")), RunFolder(Path("runs/altered"))).startswith(
        "runs differ first in metrics.jsonl, line 1: epoch, epoch 1, step 5: val/acc 0."
    )


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ([], ConfigError, "the following arguments are required: RUN"),
        (["one", "replay=true"], ConfigError, "name two runs"),
        (["one", "two"], RunError, "one: is no run"),
        (["one", "two", "seed=1"], ConfigError, "seed=1: only a replay takes settings"),
    ],
)
def test_diverge_s_mistakes(arguments: list[str], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=re.escape(words)):
        diverge.run(arguments)
