"""``healsg new data|model|method NAME``: a template for your own part: a module, its YAML and its test."""

from __future__ import annotations

import keyword
import re
import sys
from importlib.resources import files
from pathlib import Path

from healsg.commands.terminal.flags import Flags
from healsg.commands.terminal.tables import show_json
from healsg.config.compose import Composer
from healsg.config.targets import find_module
from healsg.errors import ConfigError
from healsg.paths import current_folder, project_folders
from healsg.runs.provenance import within_run

YAML = {
    "data": """\
# What the samples are, in a line: it is shown by healsg list data
_target_: {module}.{part}
noise: 0.5         # standard deviation of the noise on each pixel
batch_size: 64     # samples of one forward pass, over all processes
workers: 0         # processes that read ahead
val_fraction: 0.1  # share of the training part that is used for validation
""",
    "model": """\
# What the network is, in a line: it is shown by healsg list model
defaults:
  - metrics: null
  - _self_

_target_: {module}.{part}
width: 64    # hidden units
metrics: {{}}  # further metrics beside the usual ones, by name: model/metrics=classification
""",
    "method": """\
# How it is learned, in a line: it is shown by healsg list method
defaults:
  - optimizer: adamw
  - scheduler: cosine
  - _self_

_target_: {module}.{part}
weight: 0.1   # of the penalty on confident outputs; 0 is plain supervised learning
ema: 0.0      # decay of the moving average of the weights, which is evaluated; usually 0.99 to 0.9999
freeze: null  # frozen parameters: body, or names such as stem|stages.0|*.bias
""",
}
"""The YAML of each kind: every argument with a comment."""

TEST = '''\
"""{part} trains the same way twice, and resumes exactly after a kill. Run: pytest {test}"""

from pathlib import Path

import pytest

from healsg import TaskTrainer
from healsg.cli import main

CONF = str(Path(__file__).parent / "conf")
TASK = ({options}, "runner.steps=6", "runner.log_every=2", "quiet=true")


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of the tests lie in a folder that goes away."""
    monkeypatch.chdir(tmp_path)


def test_it_trains_the_same_way_twice() -> None:
    first, second = (TaskTrainer.compose(*TASK, f"name={{name}}", config_dir=CONF).train() for name in ("a", "b"))
    assert first["status"] == "finished"
    assert first["digest"] == second["digest"]


def test_it_goes_on_exactly_where_it_was_killed() -> None:
    """As healsg verify does it, in processes of their own: some ten seconds."""
    assert main(["verify", "--config-dir", CONF, *TASK, "runs=1", "kills=1"]) == 0
'''

OPTIONS = {
    "data": ("data={}", "model=mlp", "method=adamw"),
    "model": ("data=digits", "model={}", "method=adamw"),
    "method": ("data=digits", "model=mlp", "method={}"),
}
"""The other options that a part is tested with."""


def run(arguments: list[str]) -> int:
    """Write the three files, without overwriting any."""
    flags = Flags(
        "new",
        "Write a template for your own part into the current directory: NAME.py, conf/KIND/NAME.yaml and "
        "test_NAME.py. The test passes and the part trains at once; no file is overwritten.",
    )
    flags.add_argument("kind", choices=list(YAML), help="kind of part")
    flags.add_argument("name", metavar="NAME", help="name of the module and of the option, such as my_model")
    flags.add_json("for programs")
    args = flags.read(arguments)
    check_name(args.kind, args.name)
    written = [Path(name) for name in _write(contents(args.kind, args.name))]
    train, test = f"healsg train {args.kind}={args.name}", f"pytest {written[-1]}"
    if args.json:
        paths = [str(current_folder() / path) for path in written]
        show_json({"kind": args.kind, "name": args.name, "files": paths, "train": train, "test": test})
        return 0
    print(f"written: {', '.join(map(str, written))}\ntrain it: {train}\ntest it:  {test}")
    return 0


def check_name(kind: str, name: str) -> None:
    """Refuse a name that is no valid module name, or is taken. Raises ConfigError."""
    if not (name.isascii() and name.isidentifier()) or keyword.iskeyword(name) or name.startswith("_"):
        meant = re.sub(r"\W", "_", name, flags=re.ASCII).strip("_")
        hint = f"; write {meant}" if meant.isidentifier() and not keyword.iskeyword(meant) and meant != name else ""
        raise ConfigError(f"{name}: is no name of a Python module{hint}")
    here = project_folders()
    if not here or within_run(here[0].resolve()):
        raise ConfigError("healsg new: the current directory is a run's, or has been removed; start in a project's")
    if (taken := Path("conf", kind, f"{name}.yaml")).exists():
        raise ConfigError(f"{taken}: exists, and is not overwritten; take another name")
    if name in Composer().options(kind):
        raise ConfigError(f"{kind}={name}: is there already (healsg explain {kind}={name}); take another name")
    elsewhere = [entry for entry in sys.path if Path(entry).resolve() != here[0].resolve()]
    if name in sys.stdlib_module_names or find_module(name, elsewhere, installed=name not in _modules(here[0])):
        raise ConfigError(f"{name}: an installed module is called so, which {name}.py would hide; take another name")


def _modules(folder: Path) -> set[str]:
    """The modules and packages in a folder, by name."""
    return {entry.stem for entry in folder.iterdir()}


def contents(kind: str, name: str) -> dict[str, str]:
    """The text of each file by its path.

    Args:
        kind: ``data``, ``model`` or ``method``.
        name: of the module and of the option.
    """
    source = files("healsg.commands.starters").joinpath(f"{kind}.py").read_text(encoding="utf-8")
    stem = "".join(word[:1].upper() + word[1:] for word in name.split("_"))
    stem = re.sub(rf"{kind}$", "", stem, flags=re.IGNORECASE) or "Own"
    if {f"{stem}{kind.capitalize()}", f"{stem}Network"} & set(re.findall(r"\w+", source)):
        stem = f"Own{stem}"  # such as of the name task: TaskModel is its base class
    part = f"{stem}{kind.capitalize()}"
    module = re.sub(r"\bNew(?=Data\b|Model\b|Method\b|Network\b)", stem, source).replace("new_part", name)
    options = ", ".join(f'"{option.format(name)}"' for option in OPTIONS[kind])
    test = f"test_{name}.py"
    return {
        f"{name}.py": module,
        f"conf/{kind}/{name}.yaml": YAML[kind].format(module=name, part=part),
        test: TEST.format(part=part, test=test, options=options),
    }


def _write(texts: dict[str, str]) -> list[str]:
    """Write files that must not exist yet, all or none. Raises ConfigError."""
    if there := next((name for name in texts if Path(name).exists() or Path(name).is_symlink()), None):
        raise ConfigError(f"{there}: exists, and is not overwritten; take another name")
    for name, text in texts.items():
        try:
            Path(name).parent.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise ConfigError(f"{Path(name).parent}: is no folder, which it has to be") from None
        with Path(name).open("x", encoding="utf-8") as file:
            file.write(text)
    return list(texts)
