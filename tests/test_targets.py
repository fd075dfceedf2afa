"""What a config may call, and what it may not: nothing of it is imported to find out."""

from __future__ import annotations

import collections
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from healsg.config import targets
from healsg.config.targets import allowed, resolve, targets_in, verify_origin
from healsg.errors import ConfigError
from helpers import HANG

GOOD = [
    "healsg.data.TaskData",
    "healsg.model.TaskModel",
    "torch.optim.SGD",
    "torch.optim.AdamW",
    "torch.optim.adamw.AdamW",
    "torch.optim.Muon",
    "torch.optim.lr_scheduler.StepLR",
    "torch.nn.Linear",
    "torch.nn.modules.linear.Linear",
    "torch.nn.CrossEntropyLoss",
    "torchvision.models.resnet18",
    "torchvision.models.alexnet",
    "torchvision.models.resnet.ResNet",
    "torchvision.models.segmentation.fcn_resnet50",
    "torchvision.transforms.RandomCrop",
    "torchvision.transforms.v2.RandomCrop",
]

HOSTILE = [
    *("os.system", "posix.system", "subprocess.Popen", "subprocess.run", "builtins.eval", "builtins.exec"),
    *("builtins.open", "builtins.__import__", "importlib.import_module", "runpy.run_path", "shutil.rmtree", "eval"),
    *("pickle.loads", "pickle.Unpickler", "marshal.loads", "ctypes.CDLL", "socket.socket", "webbrowser.open"),
    *("code.InteractiveInterpreter", "pathlib.Path", "functools.partial", "operator.attrgetter", "pty.spawn"),
    # torch and hydra outside the namespaces of parts
    *("torch.load", "torch.hub.load", "torch.save", "torch.jit.load", "torch.ops.load_library", "torch.Tensor"),
    *("torch.utils.data.DataLoader", "torch.utils.cpp_extension.load", "torch.serialization.load", "torch.nn"),
    *("hydra.utils.instantiate", "hydra.utils.get_method", "omegaconf.OmegaConf.load", "numpy.load", "yaml.load"),
    # doors that lead out of a namespace of parts
    *("torch.nn.functional.torch.hub.load", "torch.optim.adam.torch.load", "torch.nn.modules.module.os.system"),
    *("torch.optim.optimizer.torch.load", "torch.nn.modules.container.OrderedDict", "torch.nn.modules.module.warnings"),
    *("torch.optim.optimizer.defaultdict", "torch.optim.lr_scheduler.Counter", "torch.optim.lr_scheduler.partial"),
    *("torch.nn.utils.parametrize.register_parametrization", "torch.nn.utils.rnn.PackedSequence"),
    *("torch.nn.parallel.DataParallel", "torch.nn.modules.linear.Tensor", "torch.nn.Module.load_state_dict"),
    *("torchvision.models.resnet.partial", "torchvision.models.get_weight", "torchvision.models.Weights"),
    *("torchvision.models._api.get_model", "torchvision.models.resnet._resnet", "torchvision.models.list_models"),
    "torchvision.models.feature_extraction.create_feature_extractor",
    *("torchvision.models.detection.faster_rcnn.misc_nn_ops", "torchvision.models.resnet.ResNet.load_state_dict"),
    *("torchvision.transforms.transforms.numbers.Number", "torchvision.transforms.transforms.Sequence"),
    *("torchvision.io.read_image", "torchvision.datasets.CIFAR10", "torchvision.ops.Conv2dNormActivation"),
    *("torch.nn.functional.relu", "torch.nn.init.normal_", "torch.optim.lr_scheduler", "torch.optim.swa_utils"),
    *("torchvision.transforms.functional.crop", "torchvision.models.detection", "healsg.data.splits.stratified_split"),
    *(
        "healsg.config.schema.hydra.utils.instantiate",
        "healsg.seeding.Draw",
        "healsg.errors.ConfigError",
        "healsg.data.Path",
    ),
    *(
        "healsg.config.targets.resolve",
        "healsg.task.Loader",
        "healsg.data.Loader",
        "healsg.data.loader.Loader",
        "healsg.data.workers.Workers",
        "healsg.data.cache.Held",
        "healsg.data.torch.load",
        "healsg.data.DataError",
        "healsg",
    ),
    # what is spelled to be read in another way
    *(
        "",
        ".",
        "..",
        "torch..nn.Linear",
        ".torch.nn.Linear",
        "torch.nn.Linear.",
        " torch.nn.Linear",
        "torch.nn.Linear ",
    ),
    *(
        "torch.nn.Linear\n",
        "torch.nn .Linear",
        "torch/nn/Linear",
        "torch.nn:Linear",
        "torch.nn.Linear()",
        "torch.nn.1x",
    ),
    *("tоrch.nn.Linear", "torch.nn.Lineаr", "ｔorch.nn.Linear", "torch.nn.\u200bLinear", "torch.nn.class"),
    *("torch.nn.__builtins__", "torch.nn.Module.__subclasses__", "__main__.Thing", "torch.nn.__init__.Linear"),
    *("torch.nnn.Linear", "torch.nn.Liner", "torch_nn.Linear", "healsg.modelss.cnn.CNN", "healsg.models.nothing.CNN"),
    *(None, 3, ["torch.nn.Linear"], {"a": 1}, b"torch.nn.Linear", True),
]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "my_task.py").write_text(
        textwrap.dedent(
            """
            import os, subprocess
            from os import system
            from torch.nn import Linear
            raise SystemExit("a check must not import me")
            Popen = subprocess.Popen
            Call = getattr(subprocess, "call")
            class MyTask: pass
            Alias = MyTask
            def build(): pass
            """
        )
    )
    (tmp_path / "my_package" / "inner").mkdir(parents=True)
    (tmp_path / "my_package" / "__init__.py").write_text("from .inner.nets import Net as Network\n")
    (tmp_path / "my_package" / "inner" / "nets.py").write_text("class Net: pass\n")
    (tmp_path / "runs").mkdir()
    return tmp_path


ROOMS = ("datasets", "models", "methods", "metrics", "transforms", "optimizers", "schedulers", "losses", "loggers")
ROOMS += ("callbacks", "task", "runner", "data", "model", "method", "launchers", "searches")
"""The modules of ours whose classes are parts, as a literal copy."""


def test_parts_lie_in_these_places_and_in_no_others() -> None:
    ours = tuple(f"healsg.{room}." for room in ROOMS)
    assert set(targets.PARTS) == {*ours, "torch.nn.", "torch.optim.", "torchvision.transforms."}
    refused = ("utils", "parallel", "cpp", "attention", "modules._functions")
    assert set(targets._NO_PARTS) == {f"torch.nn.{name}." for name in refused}
    for name in ("os", "sys", "subprocess", "pickle", "healsg", "torch", "torchvision", "builtins"):
        assert name in targets.RESERVED


@pytest.mark.parametrize("target", GOOD)
def test_parts_are_allowed(target: str) -> None:
    allowed(target)


@pytest.mark.parametrize("target", ["torch.nn.modules.batchnorm._BatchNorm", "torch.optim.lr_scheduler._LRScheduler"])
def test_a_private_class_is_no_part(target: str) -> None:
    with pytest.raises(ConfigError, match=r"^torch\.[\w.]+ is not a part; parts come from"):
        allowed(target)


@pytest.mark.parametrize("target", HOSTILE)
def test_hostile_targets_are_refused_in_one_line(target: object, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        allowed(target, [], [tmp_path])
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) > 20


def test_nothing_is_imported() -> None:
    program = textwrap.dedent(
        """
        import sys
        import healsg.config.check, healsg.errors, healsg.config.targets
        before = set(sys.modules)
        for target in sys.argv[1:]:
            try:
                healsg.config.targets.allowed(target)
            except healsg.errors.ConfigError:
                pass
        new = {name.split(".")[0] for name in set(sys.modules) - before}
        heavy = {"torch", "torchvision", "hydra", "numpy", "omegaconf"} & {name.split(".")[0] for name in sys.modules}
        print(sorted((new - set(sys.stdlib_module_names)) | heavy))
        """
    )
    words = [target for target in [*GOOD, *HOSTILE] if isinstance(target, str)]
    line = [sys.executable, "-c", program, *words]
    ran = subprocess.run(line, capture_output=True, text=True, check=True, timeout=HANG)
    assert ran.stdout.split("\n")[0] == "[]"


@pytest.mark.parametrize(
    "target",
    ["my_task.MyTask", "my_task.Alias", "my_task.Linear", "my_package.Network", "my_package.inner.nets.Net"],
)
def test_the_projects_own_classes_are_allowed(project: Path, target: str) -> None:
    allowed(target, [], [project])
    with pytest.raises(ConfigError, match=r"is not a part; parts come from healsg, torch\.nn"):
        allowed(target)


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("my_task.system", "it is os.system"),
        ("my_task.Popen", "it is subprocess.Popen"),
        ("my_task.os.system", "os is no module"),
        ("my_task.Call", r"is not a class; .* trusted=\[my_task\]"),
        ("my_task.build", r"is not a class; .* trusted=\[my_task\]"),
        ("my_task.MyTask.mro", "MyTask is no module"),
        ("my_task.MyTusk", "my_task has no MyTusk; did you mean MyTask?"),
        ("my_package.inner.net.Net", r"my_package.inner has no net; did you mean nets\?"),
        ("my_package.inner.nets", "is not a class"),
        ("my_tusk.MyTask", "is not a part"),
        ("runs.Thing", "is not a part"),
    ],
)
def test_what_the_project_must_not_give(project: Path, target: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        allowed(target, [], [project])


def test_trusted_packages_may_give_functions_and_nothing_beyond_themselves(project: Path) -> None:
    for target in ("my_task.MyTask", "my_task.build", "my_task.Call"):
        allowed(target, ["my_task"], [project])
    for target in ("my_task.system", "my_task.os.system", "my_task_too.Thing", "my_package.Network"):
        with pytest.raises(ConfigError):
            allowed(target, ["my_task"])
    allowed("torch.utils.data.DataLoader", ["torch.utils.data"])


@pytest.mark.parametrize("name", ["os.py", "torch/__init__.py", "json.py", "healsg/__init__.py", "yaml.py", "time.py"])
def test_a_module_that_hides_an_installed_one_is_refused(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    (file.parent / "nn.py").write_text("class Linear: pass\n")
    file.write_text("class Linear: pass\n")
    top = name.split("/")[0].removesuffix(".py")
    for target in (f"{top}.Linear", f"{top}.nn.Linear"):
        with pytest.raises(ConfigError, match=f"hides the installed module {top}; rename it"):
            allowed(target, [], [tmp_path])


def test_a_folder_that_only_has_the_name_of_a_package_hides_nothing(tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    allowed("torch.nn.Linear", [], [tmp_path])
    assert resolve("torch.nn.Linear", [tmp_path]).path == "torch.nn.modules.linear.Linear"


def test_a_module_that_is_not_python_is_answered(tmp_path: Path) -> None:
    (tmp_path / "my_broken.py").write_text("class Net(:\n")
    with pytest.raises(ConfigError, match=r"my_broken\.py is not valid Python: .*line 1\)$"):
        allowed("my_broken.Net", [], [tmp_path])


def test_imports_in_a_circle_end(tmp_path: Path) -> None:
    (tmp_path / "my_first.py").write_text("from my_second import Net\nSelf = Self\n")
    (tmp_path / "my_second.py").write_text("from my_first import Net\nfrom my_first import *\n")
    for target in ("my_first.Net", "my_second.Net", "my_first.Self", "my_second.Self"):
        with pytest.raises(ConfigError, match="is not a class"):
            allowed(target, [], [tmp_path])


def test_the_origin_of_what_was_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    for name in ("my_origin", "my_elsewhere"):
        (tmp_path / f"{name}.py").write_text("class Net: pass\ndef build(): pass\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, name, raising=False)
    import my_origin  # type: ignore[import-not-found]

    verify_origin(torch.nn.Linear, "torch.nn.Linear")
    verify_origin(torch.optim.Muon, "torch.optim.Muon")
    verify_origin(my_origin.Net, "my_origin.Net", [], [tmp_path])
    verify_origin(my_origin.build, "my_origin.build", ["my_origin"])
    for part in (
        os.system,
        torch.load,
        collections.OrderedDict,
        torch.nn.functional.relu,
        my_origin.build,
        my_origin,
        3,
    ):
        with pytest.raises(ConfigError, match="is not a part"):
            verify_origin(part, "torch.nn.Linear", [], [tmp_path])
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "my_origin.py").write_text("class Net: pass\n")
    with pytest.raises(ConfigError, match="lies outside"):
        verify_origin(my_origin.Net, "my_origin.Net", [], [tmp_path / "other"])


def test_every_target_of_a_node_is_found() -> None:
    node = {"_target_": "a.A", "x": [{"_target_": "b.B"}, 3], "y": {"z": {"_target_": None}}}
    assert list(targets_in(node)) == ["a.A", "b.B", None]
