"""The documents: their commands compose, their examples run, their links lead somewhere, both languages agree."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import fake_data
import fake_masks
from healsg import TaskTrainer
from healsg.build import build_task
from healsg.cli import COMMANDS, main
from healsg.commands.eval.command import GROUPS
from healsg.commands.sweep.run import as_run
from healsg.commands.sweep.search import is_search, plan_search
from healsg.commands.terminal.parts import with_parts
from healsg.config.compose import Composer
from healsg.config.schema import Composed
from healsg.runs.folder import RunFolder
from healsg.sweeps.space import written
from helpers import REPOSITORY, Program, healsg

DOCUMENTS = [
    *("README.md", "README.zh.md", "CONTRIBUTING.md", "CHANGELOG.md"),
    *sorted(f"docs/{path.name}" for path in (REPOSITORY / "docs").glob("*.md")),
]
WITH_COMMANDS = ["README.md", "docs/overview.md", "docs/data.md", "docs/extending.md", "docs/runs.md"]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`((?:python train\.py|healsg train|uv run train\.py) ?[^`]*)`")
SETTINGS = ("split=", "checkpoint=")


def text_of(document: str) -> str:
    return (REPOSITORY / document).read_text()


def blocks(document: str) -> list[tuple[str, str]]:
    """The code blocks of a document: (language, content)."""
    return BLOCK.findall(text_of(document))


def commands(document: str) -> list[list[str]]:
    """Every command of a document, as words."""
    lines = [line for language, block in blocks(document) if language == "bash" for line in block.splitlines()]
    lines = [part for line in lines for part in line.split(" && ")]
    found = [shlex.split(line, comments=True) for line in [*lines, *INLINE.findall(text_of(document))]]
    return [words for words in found if words]


def arguments(words: list[str]) -> list[str] | None:
    """The settings of a command that takes those of ``train``; None for any other command."""
    if words[:2] in (["healsg", "train"], ["healsg", "verify"]):
        return words[2:]
    if words[:2] == ["healsg", "check"]:
        return words[2 : words.index("--page")] if "--page" in words else words[2:]
    if words[0] in ("python", "torchrun", "uv") and "train.py" in words:
        return words[words.index("train.py") + 1 :]
    return None


def write_examples(document: str, folder: Path) -> list[str]:
    """Write every code block that begins with the name of its file; returns the names."""
    names = []
    for _, block in blocks(document):
        if match := re.match(r"# (\S+\.(?:py|yaml))\n", block):
            path = folder / match[1]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block)
            names.append(match[1])
    return names


def composed(words: list[str]) -> list[Composed]:
    """Each job of a command line of ``train``, checked."""
    words, directory = list(words), None
    if "--config-dir" in words:
        place = words.index("--config-dir")
        directory = words[place + 1]
        del words[place : place + 2]
    flags = [word for word in words if word.startswith("-")]
    assert set(flags) <= {"-m", "--help"}
    overrides = [word for word in words if not word.startswith("-")]
    composer = Composer(directory)
    if is_search(overrides):
        plan = plan_search(composer, overrides)
        values = plan.search.propose(plan.space, 0, [], "min")
        return [as_run(one) for one in plan.composed([{key: written(key, value) for key, value in values.items()}])]
    jobs = composer.sweep(overrides)
    assert (len(jobs) > 1) == ("-m" in flags)
    return [as_run(composer.compose(job)) for job in jobs]


@pytest.fixture(scope="module")
def data_of_the_documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, pictures with masks, and the archives of both, under the names of the documents."""
    folder = tmp_path_factory.mktemp("data")
    fake_data.write_imagefolder(folder / "DIR")
    assert main(["pack", "data=imagefolder", f"data.folder='{folder}/DIR'", "--out", str(folder / "SHARDS")]) == 0
    fake_masks.write_voc(folder / "VOCdevkit")
    masks = ["data=voc", f"data.folder='{folder}/VOCdevkit'", "--out", str(folder / "VOC_SHARDS")]
    assert main(["pack", *masks]) == 0
    return folder


@pytest.fixture
def examples(data_of_the_documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the documents' own modules and YAML files, and a package that is installed elsewhere."""
    for document in WITH_COMMANDS:
        write_examples(document, tmp_path)
    for place in data_of_the_documents.iterdir():
        (tmp_path / place.name).symlink_to(place)
    package = tmp_path.with_name(f"{tmp_path.name}-installed") / "my_package"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "parts.py").write_text((tmp_path / "my_parts.py").read_text())
    monkeypatch.setattr(sys, "path", [str(package.parent), *sys.path])
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("my_")]:
        del sys.modules[name]


@pytest.mark.parametrize("document", WITH_COMMANDS)
def test_train_commands_make_their_parts(document: str, examples: Path) -> None:
    lines = [words for command in commands(document) if (words := arguments(command)) is not None]
    assert len(lines) >= 2
    for words in lines:
        for job in composed(words):
            build_task(job)


@pytest.mark.parametrize("document", WITH_COMMANDS)
def test_commands_on_runs_name_a_run_of_the_document(document: str, tmp_path: Path) -> None:
    """Each ``resume`` and ``eval`` reads the configuration of a run that the same document starts."""
    for command in commands(document):
        words = arguments(command)
        if words is not None and "-m" not in words and any(word.startswith("name=") for word in words):
            (values,) = (job.values for job in composed(words))
            folder = tmp_path / "runs" / str(values["name"])
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "config.yaml").write_text(yaml.safe_dump(values))
        elif command[0] == "healsg" and command[1] in ("resume", "eval"):
            words = command[3 : command.index("--page")] if "--page" in command else command[3:]
            overrides = [word for word in words if not word.startswith(SETTINGS)]
            assert with_parts(RunFolder(tmp_path / "runs" / command[2]), overrides, GROUPS).values["name"] == command[2]


READING = ("predict", "list", "explain", "show", "runs", "compare", "diff", "watch", "ledger", "diverge", "rm")
"""Commands that train nothing."""


@pytest.fixture(scope="module")
def runs_of_the_documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small runs of the names that the documents use, and with new images."""
    folder = tmp_path_factory.mktemp("documents")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        fake_data.write_imagefolder("pictures", parts=("train", "val", "test"))
        small = ["data=imagefolder", "data.folder=pictures", "data.image_size=16", "data.workers=0"]
        small += ["data.augment=none", "data.shift=0", "model.width=4", "runner.epochs=1", "quiet=true"]
        for seed, name in enumerate(["exp1", "exp2", "fold1", "fold2", "fold3", "kept"]):
            TaskTrainer.compose(*small, "runner.ledger=true", f"seed={seed}", f"name={name}").train()
        few = ["method=fixmatch", "data.labels_per_class=2", "runner.ledger=true", "name=semi"]
        TaskTrainer.compose(*small, *few).train()
        for name in ("compare", "sweep1"):
            assert main(["train", "-m", *small, "method=sgd,adamw", "seed=0,1", f"name={name}"]) == 0
        shutil.copytree(next(Path("pictures/train").iterdir()), "new_images")
    return folder


@pytest.fixture
def beside_runs(runs_of_the_documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder, as the current directory."""
    folder = tmp_path / "beside"
    shutil.copytree(runs_of_the_documents, folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("document", ["docs/overview.md", "docs/runs.md"])
def test_commands_that_read_runs_run(document: str, beside_runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each in the order of the document, but for the removal of runs, which comes last."""
    lines = [words for words in commands(document) if words[0] == "healsg" and words[1] in READING]
    lines = [words for words in lines if "scans/" not in words]  # of a segmentation: tests/test_predict_masks.py
    assert len(lines) >= 6
    for _, command, *rest in sorted(lines, key=lambda words: words[1] == "rm"):
        once = ["--once"] if command == "watch" and "--once" not in rest else []
        status = main([command, *rest, *once])
        printed = capsys.readouterr()
        assert status == 0 or (command in ("diff", "diverge") and status == 1), (command, rest, printed.err)
        assert "error" not in printed.err
        assert printed.out or "--out" in rest


def test_recipes_of_the_documents_compose() -> None:
    lines = [words[2:] for words in commands("docs/recipes.md") if words[:2] == ["healsg", "reproduce"] and words[2:]]
    assert len(lines) >= 4
    for recipe, *rest in lines:
        options = ("seeds=", "seed=", "baseline=")
        settings = [word for word in rest if not word.startswith(options)]
        assert Composer().compose([f"recipe={recipe}", *settings]).choices["recipe"] == recipe


def test_python_of_the_documents_compiles_and_uses_runs(beside_runs: Path) -> None:
    found = [
        (document, block) for document in DOCUMENTS for language, block in blocks(document) if language == "python"
    ]
    assert len(found) >= 6
    for document, block in found:
        compile(block, document, "exec")
    (predicts,) = (block for document, block in found if document == "docs/runs.md" and ".predictor()" in block)
    names: dict[str, Any] = {}
    exec(compile(predicts, "docs/runs.md", "exec"), names)
    assert len(names["found"].classes) == len(list(Path("new_images").iterdir()))


PROOF = re.compile(r"`((?:pytest|python|healsg) [^`]+)`")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_proofs_name_tests_and_programs_that_exist(document: str) -> None:
    """``pytest FILE -k WORDS``: the files exist, and the words are in them; ``python -m benchmarks.X``: it exists."""
    for text in PROOF.findall(BLOCK.sub("", text_of(document))):
        words = shlex.split(text)
        if words[0] == "healsg":
            assert words[1] in COMMANDS, text
        elif words[0] == "pytest":
            files = [REPOSITORY / word for word in words if word.startswith("tests/")]
            chosen = words[words.index("-k") + 1] if "-k" in words else ""
            contents = "".join(file.read_text() for file in files)
            for word in set(re.findall(r"\w+", chosen)) - {"and", "or", "not"}:
                assert word in contents, text
        elif words[1] == "-m":
            modules = [folder / words[2].replace(".", "/") for folder in (REPOSITORY, REPOSITORY / "src")]
            files = [file for one in modules for file in (one.with_suffix(".py"), one / "__main__.py")]
            assert any(file.is_file() for file in files), text
        elif words[1] not in ("predict.py", "segment.py", "volumes.py"):  # of healsg export: tests/test_export.py
            assert (REPOSITORY / words[1]).is_file(), text


def test_every_command_is_one_that_is_known() -> None:
    known = ("python", "healsg", "torchrun", "uv", "pip", "pytest", "ruff", "mypy", "wandb", "tensorboard", "curl")
    for document in DOCUMENTS:
        for command in commands(document):
            assert command[0] in known
            if command[0] == "healsg":
                assert command[1] in COMMANDS


def test_a_wrong_command_would_be_noticed(examples: Path) -> None:
    from healsg.errors import ConfigError

    for words in (["data=digitz"], ["method.optimizer.learning_rate=1"], ["task._target_=my_task.YourTask"]):
        with pytest.raises(ConfigError):
            composed(words)


def test_example_of_extending_trains(tmp_path: Path, program: Program) -> None:
    names = write_examples("docs/extending.md", tmp_path)
    yamls = ["my_conf/data/rings.yaml", "my_conf/model/two_layers.yaml", "my_conf/method/own_average.yaml"]
    assert names == ["my_task.py", "my_parts.py", *yamls]
    lines = [
        command for command in commands("docs/extending.md") if "runner.epochs=2" in command and "-m" not in command
    ]
    assert len(lines) == 2
    for number, line in enumerate(lines):
        done = program(healsg(*line[1:], f"name=run{number}"))
        assert done.returncode == 0, done.stderr
        assert "epoch 2/2" in done.stdout
        assert (tmp_path / f"runs/run{number}/checkpoints/best.pt").is_file()


def test_examples_of_the_overview_run(tmp_path: Path, program: Program) -> None:
    assert write_examples("docs/overview.md", tmp_path) == ["my_network.py"]
    (line,) = (command for command in commands("docs/overview.md") if "task._target_=my_network.MyTask" in command)
    done = program(healsg(*line[1:], "runner.epochs=1"))
    assert done.returncode == 0, done.stderr
    (door,) = (
        block for language, block in blocks("docs/overview.md") if language == "python" and "TaskTrainer" in block
    )
    names: dict[str, Any] = {}
    exec(compile(door, "docs/overview.md", "exec"), names)
    assert names["result"]["status"] == "finished"


@pytest.mark.parametrize(
    ("english", "chinese"), [("README.md", "README.zh.md"), ("docs/overview.md", "docs/zh/overview.md")]
)
def test_both_languages_hold_the_same_blocks_and_tables(english: str, chinese: str) -> None:
    assert blocks(english) == blocks(chinese)
    option = re.compile(r"^\| (`.+?) \| (.+?) \|", re.MULTILINE)
    english_rows, chinese_rows = (option.findall(text_of(name).replace("](../", "](")) for name in (english, chinese))
    assert english_rows == chinese_rows
    proof = re.compile(r"^\| .* \| (`[^`]+`) \|$", re.MULTILINE)
    assert proof.findall(text_of(english)) == proof.findall(text_of(chinese))


def test_table_of_parts_is_complete() -> None:
    conf = REPOSITORY / "conf"
    bases = (conf, conf / "data/common", conf / "method/recipe", conf / "recipe")
    files = [path.relative_to(conf) for path in conf.rglob("*.yaml") if path.parent not in bases]
    rows = re.findall(r"^\| `([\w/]+)` \| (.+?) \|", text_of("docs/overview.md"), re.MULTILINE)
    told = {
        (group, option) for group, options in rows for option in re.findall(r"`(\w+)`", options) if group != "recipe"
    }
    assert told == {(str(path.parent), path.stem) for path in files}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_and_files_exist(document: str) -> None:
    text = BLOCK.sub("", text_of(document))
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
    named = re.findall(r"`((?:conf|docs|src|tests|benchmarks|\.ci)/[\w./]*|train\.py|constraints\.txt)`", text)
    places = [(REPOSITORY / document).parent / link for link in links] + [REPOSITORY / name for name in named]
    for place in places:
        assert place.exists(), place
    assert document not in ("README.md", "README.zh.md") or len(links) >= 6


def test_the_first_and_second_command() -> None:
    bash = [block for language, block in blocks("README.md") if language == "bash"]
    assert bash[:2] == ["pip install -e . && python train.py\n", 'pip install -e ".[dev]" && pytest\n']
    script = REPOSITORY / ".ci/run"
    assert bash[1].strip() in script.read_text().splitlines()
    assert script.stat().st_mode & 0o111


def test_constraints_are_exact() -> None:
    lines = text_of("constraints.txt").splitlines()
    assert len(lines) == len(set(lines)) > 20
    for line in lines:
        assert re.fullmatch(r"[a-z0-9-]+==\d[\w.]*", line), line
    names = {line.split("==")[0] for line in lines}
    direct = re.findall(r'^    "([\w-]+)', text_of("pyproject.toml").split("dependencies = [")[1], re.MULTILINE)
    assert {"torch", "hydra-core", "pytest"} <= names
    assert {name.lower() for name in direct} <= names


PRIVATE = re.compile(
    r"(?<![\w.~:/-])/(?:home|root|work|tmp|usr|opt|mnt|Users|private|var|etc)\b"
    r"|\b[A-Z]:\\|(?:index|find)-(?:url|links)|/simple\b|\bpypi\b|artifactory",
    re.IGNORECASE,
)


@pytest.mark.parametrize("document", [*DOCUMENTS, "constraints.txt", ".ci/run", "LICENSE"])
def test_no_private_places(document: str) -> None:
    assert not PRIVATE.search(text_of(document).removeprefix("#!/usr/bin/env bash\n"))


@pytest.mark.parametrize("line", ["see /home/me/x", "pip --index-url x", "https://pypi.org/simple/x", "(/tmp/a)"])
def test_private_places_would_be_noticed(line: str) -> None:
    assert PRIVATE.search(line)
