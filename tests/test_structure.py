"""The house: what no file may do, and the way from the command to the training step."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
import textwrap
import traceback
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from healsg.cli import main
from healsg.runner import TaskRunner
from healsg.training.epoch import TrainEpoch
from helpers import REPOSITORY

PACKAGE = REPOSITORY / "src/healsg"
FILES = sorted(PACKAGE.rglob("*.py"))
FORBIDDEN = {
    *("eval", "exec", "__import__", "builtins.*", "os.system", "os.popen", "os.exec*", "os.spawn*", "pty.*"),
    *(
        "pickle.load",
        "pickle.loads",
        "pickle.Unpickler",
        "_pickle.*",
        "cPickle.*",
        "dill.*",
        "cloudpickle.*",
        "joblib.*",
    ),
    *("marshal.*", "shelve.*", "runpy.*", "code.*", "ctypes.*", "subprocess.getoutput", "subprocess.getstatusoutput"),
    *("yaml.load", "yaml.load_all", "yaml.full_load*", "yaml.unsafe_load*", "yaml.Loader", "yaml.CLoader"),
    *("yaml.FullLoader", "yaml.CFullLoader", "yaml.UnsafeLoader", "yaml.CUnsafeLoader"),
    *("torch.hub.load", "torch.hub.load_state_dict_from_url", "torch.jit.load", "torch.package.*", "torch.ops.*"),
    *(
        "torch.serialization.load",
        "torch.serialization.add_safe_globals",
        "torch.classes.*",
        "torch.utils.cpp_extension.*",
    ),
    *("torch.export.load", "torch.utils.model_zoo.*", "numpy.fromregex", "shutil.unpack_archive"),
}
"""What turns data into a program, by its whole name; it is not even mentioned."""

RESTRICTED = {
    ("datasets/published/files.py", "pickle.Unpickler"),
    ("torch_private.py", "torch.ops.image"),
    ("torch_private.py", "torch.ops.image.decode_jpeg"),
}
"""The base class of the unpickler that knows arrays alone, and torchvision's decoder of JPEGs, by its operator."""


def imports(tree: ast.AST) -> set[str]:
    """The modules that a file imports, except those for type checkers alone."""
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{name.name}" for name in node.names}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_function_fits_a_screen(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            size = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
            assert size <= 60, f"{node.name} has {size} lines"


def whole_names(tree: ast.AST) -> list[tuple[ast.AST, str]]:
    """Every name and dotted name of a module, as it would read without its imports' aliases."""
    aliases = {"np": "numpy"}
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            source = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            aliases |= {
                name.asname or name.name: f"{source}{name.name}" for name in node.names if name.asname or source
            }
    found = [
        (node, f"{node.module}.{one.name}")
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for one in node.names
    ]
    for node in ast.walk(tree):
        if isinstance(node, (ast.Name, ast.Attribute)):
            head, _, rest = ast.unparse(node).partition(".")
            found.append((node, aliases.get(head, head) + (f".{rest}" if rest else "")))
        elif isinstance(node, ast.Import):
            found += [(node, f"{one.name}.{one.name}") for one in node.names]  # what "module.*" forbids
    return found


def code_from_data(source: str, file: str = "") -> list[str]:
    """What a source text does that could run what it reads."""
    tree = ast.parse(source)
    names = whole_names(tree)
    wrong = [
        name
        for _, name in names
        for one in FORBIDDEN
        if fnmatchcase(name.removeprefix("builtins."), one) or fnmatchcase(name, one)
        if not any(file.endswith(place) and name == allowed for place, allowed in RESTRICTED)
    ]
    called, calls = dict(names), [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    direct = [call.func for call in calls]
    wrong += [f"{name} under another name" for node, name in names if name == "torch.load" and node not in direct]
    for node in calls:
        name = called.get(node.func, f".{getattr(node.func, 'attr', '')}")
        last, words = name.rpartition(".")[2], {word.arg: ast.unparse(word.value) for word in node.keywords}
        if words.get("shell", "False") != "False" or words.get("allow_pickle", "False") != "False":
            wrong.append(f"{name} with shell or allow_pickle")
        if words.get("weights_only", "True") != "True" or (name == "torch.load" and "weights_only" not in words):
            wrong.append(f"{name} without weights_only=True")
        if last in ("extractall", "extract") and words.get("filter") != "'data'":
            wrong.append(f"{name} without filter='data'")
        if name == "compile" or (last == "getattr" and "'load'" in map(ast.unparse, node.args)):
            wrong.append(name)  # torch.compile is another thing, and so is an argument of that name
    return wrong


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_code_from_data(path: Path) -> None:
    assert not code_from_data(path.read_text(), str(path))


BAD = [
    *("eval('1')", "exec('1')", "compile('1', '', 'exec')", "__import__('os')", "import builtins; builtins.eval('1')"),
    *("from builtins import exec as run; run('1')", "import os; os.system('id')", "from os import popen", "run = eval"),
    *(
        "import os as o; o.popen('id')",
        "import pickle; pickle.load(f)",
        "import pickle as p; p.loads(b)",
        "import marshal",
    ),
    *(
        "from pickle import load",
        "from pickle import loads as read; read(b)",
        "import pickle; pickle.Unpickler(f).load()",
    ),
    *(
        "import pickle\nclass Own(pickle.Unpickler): pass",
        "import _pickle",
        "import shelve; shelve.open('x')",
        "import dill",
    ),
    *(
        "import torch; torch.load(f)",
        "import torch; torch.load(f, weights_only=False)",
        "from torch import load; load(f)",
    ),
    *("import torch as t; t.load(f, weights_only=safe)", "import torch; read = torch.load", "map(torch.load, files)"),
    *(
        "import torch; getattr(torch, 'load')(f)",
        "weights.get_state_dict(weights_only=False)",
        "import torch; torch.hub.load('x')",
    ),
    *(
        "import torch; torch.jit.load(f)",
        "from torch import hub; hub.load('x')",
        "from torch.hub import load",
        "from torch.jit import load",
    ),
    *("import torch; torch.serialization.add_safe_globals([A])", "import torch; torch.ops.load_library('x')"),
    *("from torch.utils import cpp_extension; cpp_extension.load('x')", "import torch.utils.cpp_extension"),
    *(
        "import yaml; yaml.load(f, Loader=yaml.SafeLoader)",
        "import yaml; yaml.unsafe_load(f)",
        "from yaml import Loader",
    ),
    *(
        "from yaml import full_load",
        "import yaml; yaml.parse(f, yaml.FullLoader)",
        "import subprocess; subprocess.run('id', shell=True)",
    ),
    *(
        "run('id', shell=flag)",
        "import subprocess; subprocess.getoutput('id')",
        "import numpy as np; np.load(f, allow_pickle=True)",
    ),
    *(
        "import tarfile; tarfile.open(f).extractall()",
        "tar.extractall(path, filter='fully_trusted')",
        "archive.extract(name)",
    ),
    *(
        "import zipfile; zipfile.ZipFile(f).extractall(path)",
        "import shutil; shutil.unpack_archive(f)",
        "import runpy",
        "import ctypes",
    ),
]
GOOD = [
    *(
        "model.eval()",
        "import re; re.compile('x')",
        "torch.compile(net)",
        "import torch; torch.load(f, weights_only=True)",
    ),
    *(
        "import yaml; yaml.safe_load(f)",
        "import yaml; yaml.parse(f, yaml.SafeLoader)",
        "import subprocess; subprocess.run(['git'])",
    ),
    *(
        "import pickle\ntry: pass\nexcept pickle.UnpicklingError: pass",
        "tar.extractall(path, filter='data')",
        "net.load_state_dict(x)",
    ),
    *(
        "import numpy as np; np.load(f)",
        "tar.extractfile(member)",
        "json.load(f)",
        "checkpoint.load(path)",
        "self.eval()",
    ),
]


@pytest.mark.parametrize("source", BAD)
def test_code_from_data_is_seen(source: str) -> None:
    assert code_from_data(source)


def test_what_only_looks_like_it_passes() -> None:
    assert not [source for source in GOOD if code_from_data(source)]
    unpickler = "import pickle\nclass Own(pickle.Unpickler): pass"
    assert not code_from_data(unpickler, "src/healsg/datasets/published/files.py")
    assert code_from_data(unpickler, "src/healsg/datasets/mnist.py")


def test_hydra_utils_has_one_importer() -> None:
    users = {path.name for path in FILES if any("hydra.utils" in name for name in imports(ast.parse(path.read_text())))}
    assert users == {"build.py"}


def test_training_pass_is_one_screen() -> None:
    tree = ast.parse(textwrap.dedent(inspect.getsource(TrainEpoch.run)))
    function = tree.body[0]
    statements = [node for node in ast.walk(function) if isinstance(node, ast.stmt)][1:]
    assert len(statements) - 1 <= 12, "the docstring is no statement"


def test_seven_calls_from_the_command_to_the_training_step(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    step = TaskRunner.step

    def watched(self: TaskRunner, *arguments: object) -> object:
        stack = [entry for entry in traceback.extract_stack() if str(PACKAGE) in entry.filename]
        seen.append([f"{Path(entry.filename).stem}.{entry.name}" for entry in stack])
        return step(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(TaskRunner, "step", watched)
    assert main(["train", "runner=debug", "quiet=true"]) == 0
    way = ["cli.main", "cli._answer", "command.run", "trainer.train", "runner.fit", "task.run_epoch", "epoch.run"]
    assert seen[0] == way


def test_a_default_run_imports_only_what_it_uses(tmp_path: Path) -> None:
    program = (
        "import sys; from healsg.cli import main; code = main(['train', 'runner=debug', 'quiet=true'])\n"
        "print(*sys.modules); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=True)
    loaded = set(done.stdout.split())
    assert {"torch", "numpy", "hydra"} <= loaded
    assert not loaded & {"torchvision", "wandb", "tensorboard", "pandas", "matplotlib", "timm", "lightning"}
    assert not loaded & {"sklearn", "scipy"}, "whose file of digits is read without them"
    assert not loaded & {"torch._dynamo", "torch._inductor", "sympy"}, "which torch's own optimizers bring"
