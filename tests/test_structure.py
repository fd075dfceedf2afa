"""The house: its budgets, the direction of its imports, and the way from the command to the training step."""

from __future__ import annotations

import ast
import inspect
import io
import subprocess
import sys
import textwrap
import tokenize
import traceback
from pathlib import Path

import pytest

from conftest import REPOSITORY
from healsg.cli import main
from healsg.epoch import TrainEpoch
from healsg.runner import TaskRunner

PACKAGE = REPOSITORY / "src/healsg"
FILES = sorted(PACKAGE.rglob("*.py"))
LEAVES = {"datasets", "models", "methods", "transforms", "losses", "optimizers", "schedulers", "loggers", "commands"}
FORBIDDEN = {"eval", "exec", "__import__"}


def frame() -> list[Path]:
    return [path for path in FILES if not LEAVES & set(path.relative_to(PACKAGE).parts)]


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
def test_budgets_of_files_and_functions(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 250
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            size = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
            assert size <= 40, f"{node.name} has {size} lines"


def code_lines(path: Path) -> int:
    """The lines that hold code: no blank ones, no comments, no docstrings."""
    text = path.read_text()
    documented: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node):
            documented |= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    silent = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    tokens = [token for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.type not in silent]
    return len({line for token in tokens for line in range(token.start[0], token.end[0] + 1)} - documented)


def test_the_frame_stays_small() -> None:
    flat = sum(code_lines(path) for path in frame() if path.parent == PACKAGE)
    checks = sum(code_lines(path) for path in frame() if path.parent != PACKAGE)
    assert flat <= 2700, "the frame, in lines of code"
    assert checks <= 550, "the checks of configurations, in lines of code"


def test_the_frame_imports_no_leaf() -> None:
    for path in frame():
        for name in imports(ast.parse(path.read_text())):
            parts = name.split(".")
            assert not (parts[0] == "healsg" and len(parts) > 1 and parts[1] in LEAVES and path.name != "cli.py"), name


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_code_from_data(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            assert name not in FORBIDDEN
            assert name not in ("pickle.load", "pickle.loads", "yaml.load", "os.system")
            for keyword in node.keywords:
                value = ast.unparse(keyword.value)
                assert (keyword.arg, value) not in {("shell", "True"), ("weights_only", "False")}


def test_hydra_utils_has_one_importer() -> None:
    users = {path.name for path in FILES if any("hydra.utils" in name for name in imports(ast.parse(path.read_text())))}
    assert users == {"config.py"}


def test_training_pass_is_one_screen() -> None:
    tree = ast.parse(textwrap.dedent(inspect.getsource(TrainEpoch.run)))
    function = tree.body[0]
    statements = [node for node in ast.walk(function) if isinstance(node, ast.stmt)][1:]
    assert len(statements) - 1 <= 12, "the docstring is no statement"


def test_six_calls_from_the_command_to_the_training_step(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    step = TaskRunner.step

    def watched(self: TaskRunner, *arguments: object) -> object:
        stack = [entry for entry in traceback.extract_stack() if str(PACKAGE) in entry.filename]
        seen.append([f"{Path(entry.filename).stem}.{entry.name}" for entry in stack])
        return step(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(TaskRunner, "step", watched)
    assert main(["train", "runner=debug", "quiet=true"]) == 0
    assert seen[0] == ["cli.main", "train.run", "trainer.train", "runner.fit", "task.run_epoch", "epoch.run"]


def test_a_default_run_imports_only_what_it_uses(tmp_path: Path) -> None:
    program = (
        "import sys; from healsg.cli import main; code = main(['train', 'runner=debug', 'quiet=true'])\n"
        "print(*sorted({name.split('.')[0] for name in sys.modules})); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=True)
    loaded = set(done.stdout.split())
    assert {"torch", "sklearn", "hydra"} <= loaded
    assert not loaded & {"torchvision", "wandb", "tensorboard", "pandas", "matplotlib", "timm", "lightning"}
