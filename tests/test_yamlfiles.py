"""YAML files that stand for more than is written in them are refused, in bounded time and memory."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import yaml

from healsg.cli import main
from healsg.config import yamlfiles
from healsg.config.compose import Composer
from healsg.config.yamlfiles import DEEPEST, LARGEST, MOST, check_file, measure, read_yaml
from healsg.errors import ConfigError
from helpers import REPOSITORY

HEAD = "# @package _global_\nargs:\n"


def levels(first: str, level: str, count: int = 12) -> str:
    """Names that each refer to the one before."""
    lines = [f"  l0: &l0 {first}", *(f"  l{n}: &l{n} {level.replace('*', f'*l{n - 1}')}" for n in range(1, count))]
    return HEAD + "\n".join(lines) + "\n"


BOMBS = {
    "lists": levels("[x, x]", f"[{', '.join(['*'] * 10)}]"),
    "mappings": levels("{a: 1}", f"{{{', '.join(f'{key}: *' for key in 'abcdefgh')}}}"),
    "merges": levels("{a: 1}", f"{{<<: [{', '.join(['*'] * 9)}]}}"),
    "by twos": levels("x", "[*, *]", 60),
    "a chain": levels("x", "[*]", DEEPEST + 5),
    "of itself": f"{HEAD}  a: &a\n    b: *a\n",
    "of itself, deep": f"{HEAD}  a: &a [1, [2, [*a, *a]]]\n",
    "flow levels": f"{HEAD}  a: {'[' * 3000}{']' * 3000}\n",
    "block levels": HEAD + "".join(" " * (n + 1) + "a:\n" for n in range(DEEPEST + 5)),
    "levels of dashes": f"{HEAD}  a:\n    {'- ' * 400}x\n",
    "many values": f"{HEAD}  a: [{','.join('1' * MOST)}]\n",
    "large": HEAD + f"  # {'x' * 60}\n" * (LARGEST // 60),
}


def bounded(folder: Path) -> Composer:
    return Composer(str(folder))


@pytest.fixture
def conf() -> Path:
    folder = Path("mine/recipe")
    folder.mkdir(parents=True)
    return folder


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("kind", BOMBS)
def test_a_file_that_would_grow_is_refused_by_name(kind: str, conf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (conf / "bomb.yaml").write_text(BOMBS[kind])
    assert main(["train", "--config-dir=mine", "recipe=bomb", "model=mlp"]) == 2
    line = capsys.readouterr().err
    assert "mine/recipe/bomb.yaml: " in line
    assert line.count("\n") == 1
    assert main(["train", "--config-dir=mine", "recipe=bomb", "model=mlp", "--cfg", "job"]) == 2
    assert main(["train", "-m", "--config-dir=mine", "recipe=bomb", "model=mlp", "seed=0,1"]) == 2
    assert main(["train", f"hydra.searchpath=[file://{Path('mine').resolve()}]", "recipe=bomb"]) == 2
    assert not Path("runs").exists()


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("kind", ["lists", "by twos", "of itself"])
def test_the_primary_config_and_published_recipes_are_looked_at_too(
    kind: str, conf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("mine/own.yaml").write_text(f"defaults: [config, _self_]\n{BOMBS[kind].replace('args', 'recipe')}")
    assert main(["train", "--config-dir=mine", "--config-name=own"]) == 2
    assert "mine/own.yaml: " in capsys.readouterr().err
    (conf / "bomb.yaml").write_text(BOMBS[kind].replace("args", "recipe"))
    assert main(["reproduce", "bomb", "--config-dir=mine"]) == 2
    assert "mine/recipe/bomb.yaml: " in capsys.readouterr().err


def test_a_bomb_that_is_not_asked_for_disturbs_nobody(conf: Path) -> None:
    (conf / "bomb.yaml").write_text(BOMBS["lists"])
    assert bounded(Path("mine")).compose(["model=mlp"]).values["args"] == {}


def test_ordinary_anchors_aliases_and_merges_stay(conf: Path) -> None:
    (conf / "fine.yaml").write_text(
        f"{HEAD}  one: &one {{x: 1, y: [1, 2]}}\n  two: *one\n  three:\n    <<: *one\n    y: 3\n  all: [*one, *one]\n"
    )
    args = bounded(Path("mine")).compose(["recipe=fine"]).values["args"]
    one = {"x": 1, "y": [1, 2]}
    assert args == {"one": one, "two": one, "three": {"x": 1, "y": 3}, "all": [one, one]}


def test_a_fifo_is_passed_over_and_a_linked_file_is_read(conf: Path) -> None:
    import os

    os.mkfifo(conf / "pipe.yaml")
    with pytest.raises(ConfigError, match="recipe=pipe"):
        bounded(Path("mine")).compose(["recipe=pipe"])
    Path("elsewhere.yaml").write_text(f"{HEAD}  a: 1\n")
    (conf / "linked.yaml").symlink_to(Path("elsewhere.yaml").resolve())
    assert bounded(Path("mine")).compose(["recipe=linked"]).values["args"] == {"a": 1}


def written_out(value: object) -> tuple[int, int]:
    """The values and levels of what was loaded, by going over all of it."""
    if isinstance(value, dict):
        inner = [written_out(one) for pair in value.items() for one in pair]
    elif isinstance(value, list):
        inner = [written_out(one) for one in value]
    else:
        return 1, 1
    return 1 + sum(values for values, _ in inner), 1 + max((depth for _, depth in inner), default=0)


def test_what_is_counted_is_what_there_is() -> None:
    texts = [path.read_text() for path in itertools.islice(sorted((REPOSITORY / "conf").rglob("*.yaml")), 0, None, 4)]
    texts += ["a: &a [1, 2, {b: 3}]\nc: [*a, *a]\nd: *a\n", "- &x 1\n- *x\n- [*x]\n", "x", "{}", "[]"]
    for text in texts:
        if (value := yaml.safe_load(text)) is not None:
            assert measure(text.encode()) == written_out(value), text


def test_what_is_no_yaml_is_left_to_the_reader() -> None:
    for content in (b"a: [", b"\0", b"\xff\xff", b"", b"a: *b\n", b"\xfe\xff\x00a"):
        Path("x.yaml").write_bytes(content + b" # & *")
        check_file(Path("x.yaml"))


GROWING = {
    "texts": [f'  l{n}: "${{args.l{n + 1}}}${{args.l{n + 1}}}"' for n in range(40)] + ["  l40: xx"],
    "lists": [f'  l{n}: ["${{args.l{n + 1}}}", "${{args.l{n + 1}}}"]' for n in range(40)] + ["  l40: [x, x]"],
    "relative": [f'  l{n}: "${{.l{n + 1}}} and ${{.l{n + 1}}}"' for n in range(40)] + ["  l40: xx"],
    "resolvers": [f'  l{n}: "${{oc.select:args.l{n + 1}}}${{oc.select:args.l{n + 1},1}}"' for n in range(40)]
    + ["  l40: xx"],
    "computed": [f'  l{n}: "${{args.${{args.k{n + 1}}}}}${{args.${{args.k{n + 1}}}}}"' for n in range(40)]
    + ["  l40: xx", *(f"  k{n}: l{n}" for n in range(41))],
}


@pytest.mark.parametrize("kind", GROWING)
def test_interpolations_that_would_grow_are_refused_by_key(
    kind: str, conf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (conf / "bomb.yaml").write_text(HEAD + "\n".join(GROWING[kind]) + "\n")
    for more in ([], ["--cfg", "job", "--resolve"], ["--help"]):
        assert main(["train", "--config-dir=mine", "recipe=bomb", "model=mlp", *more]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: args" if kind != "computed" else "error: config")
        assert "interpolations" in line


def test_ordinary_interpolations_stay(conf: Path) -> None:
    text = '  a: x\n  which: a\n  b: "${args.a}${seed}"\n  c: "${args.${args.which}}"\n  d: ["${args.b}", "${.0}"]\n'
    (conf / "fine.yaml").write_text(HEAD + text)
    args = Composer("mine").compose(["recipe=fine", "model=mlp"]).values["args"]
    assert args == {"a": "x", "which": "a", "b": "x0", "c": "x", "d": ["x0", "x0"]}


def test_completion_and_help_of_hydra_look_at_the_files_too(
    conf: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (conf / "bomb.yaml").write_text(BOMBS["lists"])
    typed = "train.py recipe=bomb args."
    monkeypatch.setenv("COMP_LINE", typed)
    monkeypatch.setenv("COMP_POINT", str(len(typed)))
    assert main(["train", "--config-dir=mine", "--shell-completion", "query=bash"]) == 2
    assert "mine/recipe/bomb.yaml: " in capsys.readouterr().err
    place = Path("mine/hydra/hydra_help")
    place.mkdir(parents=True)
    (place / "bomb.yaml").write_text(BOMBS["lists"])
    assert main(["train", "--config-dir=mine", "--hydra-help", "hydra/hydra_help=bomb"]) == 2
    assert "mine/hydra/hydra_help/bomb.yaml: " in capsys.readouterr().err


def test_a_file_that_changed_is_read_again_and_what_was_read_is_nobodys_to_change(tmp_path: Path) -> None:
    option = tmp_path / "conf" / "model" / "own.yaml"
    option.parent.mkdir(parents=True)
    for width in (8, 16, 16):
        option.write_text(f"_target_: healsg.models.mlp.MLP\nwidth: {width}\ndepth: 1\ndropout: 0.0\n")
        composed = Composer(str(tmp_path / "conf")).compose(["model=own", "model.depth=2"])
        assert (composed.values["model"]["width"], composed.values["model"]["depth"]) == (width, 2)
        composed.values["model"]["width"] = 99


BROKEN = {
    "a key twice": (b"a: 1\na: 2\n", "wrong.yaml, line 2: is not valid YAML: found duplicate key a"),
    "a tab": (b"a:\t1\n", "wrong.yaml, line 1: is not valid YAML: found character"),
    "another encoding": (b'a: "\xe9"\n', "wrong.yaml: is not UTF-8 text (byte 4)"),
    "a control character": (b"a: \0\n", "wrong.yaml: is not valid YAML: unacceptable character"),
    "a list": (b"- 1\n", "wrong.yaml: holds list '[1]'; write lines of key: value"),
    "a number": (b"3\n", "wrong.yaml: holds int '3'; write lines of key: value"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_is_named_with_what_is_wrong(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    content, message = BROKEN[kind]
    Path("mine/data").mkdir(parents=True)
    Path("mine/data/wrong.yaml").write_bytes(content)
    for command in (["train", "--config-dir=mine", "data=wrong"], ["explain", "data=wrong", "--config-dir=mine"]):
        assert main(command) == 2
        line = capsys.readouterr().err
        assert message in line
        assert line.count("\n") == 1


def test_a_tab_does_not_hide_aliases_of_aliases() -> None:
    text = "x:\t1\na: &a [1,1,1,1,1,1,1,1]\n"
    text += "".join(f"{new}: &{new} [{','.join([f'*{old}'] * 8)}]\n" for old, new in itertools.pairwise("abcdefgh"))
    Path("tab.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"tab\.yaml, line 1: is not valid YAML"):
        read_yaml(Path("tab.yaml"))


def test_all_options_are_read_alike_with_and_without_libyaml(monkeypatch: pytest.MonkeyPatch) -> None:
    files = sorted((REPOSITORY / "conf").rglob("*.yaml"))[::8]  # libyaml takes a tenth of the time
    fast = [read_yaml(file) for file in files]
    usual = yamlfiles._loaders()[1]
    monkeypatch.setattr(yamlfiles, "_loaders", lambda: (usual, usual))
    assert fast == [read_yaml(file) for file in files]
