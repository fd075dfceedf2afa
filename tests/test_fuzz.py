"""Fuzzed command lines: each is answered within seconds, by one line or by a run that has no unknown key."""

from __future__ import annotations

import dataclasses
import inspect
import json
import random
import signal
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.utils import get_object

from healsg.cli import main
from healsg.commands.launch import processes
from healsg.config.compose import Composer
from healsg.config.schema import Composed, TaskConfig
from healsg.config.values import flat
from healsg.errors import ConfigError, RunError
from healsg.loggers.wandb import Wandb
from healsg.runs import acquire
from healsg.runs.folder import RunFolder
from healsg.runs.saved_config import load_saved
from healsg.trainer import TaskTrainer
from helpers import REPOSITORY

LIMIT = 60.0
"""Seconds in which every command line must be answered."""

CONF = REPOSITORY / "conf"
OPTIONS = {
    group: sorted(path.stem for path in (CONF / group).glob("*.yaml"))
    for group in sorted({str(path.parent.relative_to(CONF)) for path in CONF.rglob("*.yaml")} - {"."})
}
EXOTIC = (
    *("nan", ".nan", "inf", "-inf", ".inf", "1e999", "-0.0", "0x10", "0b1", "1_000", "9" * 400, "1e-400", "-1", "1.5"),
    *(
        "true",
        "false",
        "null",
        "None",
        "True",
        "NULL",
        "yes",
        "''",
        '""',
        "' '",
        "' x '",
        "~",
        "=",
        "==",
        "===",
        "-",
        ".",
    ),
    *(
        "[]",
        "{}",
        "[[]]",
        "[,]",
        "[1,",
        "1]",
        "{a",
        "a:1}",
        "{a:1}",
        "{a:{b:{c:1}}}",
        "[1,[2,[3,{a:4}]]]",
        "{1:2,null:3}",
    ),
    *(
        "{_target_:os.system}",
        "{_target_:torch.nn.Linear}",
        "{_target_:null}",
        "[{_target_:builtins.eval}]",
        "os.system",
    ),
    *(
        "${seed}",
        "${",
        "$",
        "$${seed}",
        "\\${seed}",
        "${nothing}",
        "${oc.env:NOTHING}",
        "${oc.env:NOTHING,3}",
        "${now:%Y}",
    ),
    *(
        "${hydra:runtime.cwd}",
        "${name}",
        "${data}",
        "${method.optimizer}",
        "${oc.decode:1}",
        "${oc.create:{a:1}}",
        "???",
    ),
    *(
        "${${seed}}",
        "${seed}${seed}",
        "${.seed}",
        "${..seed}",
        "${seed:1}",
        "${oc.dict.keys:data}",
        "${oc.select:data}",
    ),
    *("'", '"', "\\", "\\'", "it's", '"a', "a'b", "`id`", "$(id)", ";id", "|id", "&", "<", ">", "*", "?", "%s", "%00"),
    *(
        "ü",
        "数据",
        "🙂",
        "\u202e",
        "\u200b",
        "\ufeff",
        "ｎｕｌｌ",
        "\x00",
        "\x1b[31m",
        "\t",
        "\n",
        "a\nb",
        "\r",
        "\x7f",
        "\ud800",
    ),
    *(
        "a/b",
        "/",
        "//",
        "../..",
        "/dev/null",
        "/dev/stdin",
        "/etc/passwd",
        "C:\\x",
        "pkg://os",
        "file:///etc",
        "a@b",
        "@",
    ),
    *("a b", " a", "a ", "a,b", ",", "a,", "choice(a,b)", "range(1,3)", "range(0,1000000000)", "range(1,1)", "glob(*)"),
    *(
        "interval(0,1)",
        "sort(3,1)",
        "shuffle(1,2)",
        "tag(a,1)",
        "extend_list(1)",
        "int(1.5)",
        "float(x)",
        "str(1)",
        "bool(2)",
    ),
    *(
        "json_str('{}')",
        "cast(1)",
        "range(1,0,0)",
        "range(0,1,0)",
        "choice()",
        "choice(range(1,2),3)",
        "sort(range(1,9))",
    ),
)
"""Values that are odd in one way or another."""

STRANGE_KEYS = (
    *(
        "",
        ".",
        "..",
        "a",
        "seed.",
        ".seed",
        "data..root",
        "data.",
        "data.root.x",
        "seed.x",
        "method.optimizer.lr.x",
        "_",
    ),
    *(
        "_target_",
        "data._target_",
        "method._args_",
        "data._partial_",
        "data._recursive_",
        "data._convert_",
        "args._target_",
    ),
    *("hydra", "hydra.run.dir", "hydra/launcher", "hydra.searchpath", "hydra.mode", "hydra.verbose", "hydra.job.name"),
    *(
        "data@x",
        "data@data",
        "data@_global_",
        "data@args",
        "@data",
        "data@",
        "data@a.b",
        "method/optimizer@method.scheduler",
    ),
    *(
        "method/optimiser",
        "method/optimizer/x",
        "/data",
        "data/",
        "//",
        "a/b/c",
        "recipe",
        "logger",
        "runner/callbacks",
    ),
    *(
        "dаta.root",
        "ｓｅｅｄ",
        "séed",
        "seed ",
        " seed",
        "se ed",
        "data[0]",
        "data[root]",
        "args[0]",
        "runner.callbacks.x",
    ),
    *(
        "defaults",
        "trusted",
        "wandb",
        "resume",
        "resume.force",
        "args",
        "args.x",
        "args.x.y",
        "init_from",
        "name",
        "debug",
    ),
)


def chosen_keys() -> dict[str, str]:
    """Every key of the default run and of some other options, with its value."""
    composer = Composer()
    lines = (
        ["method=sgd"],
        ["model=torchvision", "data=cifar"],
        ["method/scheduler=onecycle", "logger=tensorboard"],
        [],
    )
    found: dict[str, Any] = {}
    for line in lines:
        found |= flat(composer.compose(list(line), checked=False).values)
    return {key: json.dumps(value).replace('"', "") for key, value in found.items()}


class Fuzzer:
    """Command lines, many of them nearly sound: the grammar of overrides, mutated."""

    def __init__(self, seed: int, known: dict[str, str]) -> None:
        self.random, self.known, self.keys = random.Random(seed), known, list(known)

    def line(self) -> list[str]:
        """One to three overrides, and now and then ``-m``."""
        overrides = [self.override() for _ in range(self.random.choice((1, 1, 1, 2, 3)))]
        swept = self.random.random() < 0.08
        return (["-m"] if swept else []) + [override for override in overrides if swept or override != "-m"]

    def override(self) -> str:
        roll, pick = self.random.random(), self.random.choice
        if self.random.random() < 0.4:  # nearly sound
            key, group = pick(self.keys), pick(list(OPTIONS))
            near = pick((self.known[key], self.known[key], "0.5", "3", "null", "true", pick(EXOTIC)))
            own = f"+args.{pick('abcd')}={pick((pick(EXOTIC), self.value()))}"
            return pick((f"{key}={near}", f"{pick(('', '++'))}{key}={near}", f"{group}={pick(OPTIONS[group])}", own))
        if roll < 0.15:
            group = pick(list(OPTIONS))
            return f"{pick(('', '', '+', '++', '~'))}{group}={pick((*OPTIONS[group], 'nothing', 'null', self.value()))}"
        key = pick(STRANGE_KEYS) if roll < 0.4 else pick(self.keys)
        if self.random.random() < 0.15:
            key = self.mutated(key)
        text = f"{pick(('', '', '', '', '+', '++', '~', '+++'))}{key}{pick(('=', '=', '=', '=', '=', '', '==', ' = '))}"
        text += self.value()
        return self.mutated(text) if self.random.random() < 0.1 else text

    def value(self) -> str:
        pick = self.random.choice
        size = pick((1, 5, 30, 300, 3000, 100_000))
        kinds: list[Callable[[], str]] = [
            lambda: pick(EXOTIC),
            lambda: pick(EXOTIC),
            lambda: str(self.random.randrange(-3, 200)),
            lambda: str(self.random.uniform(-1, 2)),
            lambda: f"{pick(EXOTIC)},{pick(EXOTIC)}",
            lambda: f"[{pick(EXOTIC)},{pick(EXOTIC)}]",
            lambda: f"{{{pick(self.keys).split('.')[-1]}:{pick(EXOTIC)}}}",
            lambda: pick(("a", "é", "0", "[", "{a:", "${", "1,", "\\", "'", "a.", "a b ", "(", "=")) * size,
            lambda: "[" * min(size, 3000) + "]" * min(size, 3000),
            lambda: "{a:" * min(size, 3000) + "1" + "}" * min(size, 3000),
            lambda: "".join(self.random.choices("ab01[]{}(),:=${}'\"\\.~+@/ ", k=min(size, 300))),
            lambda: "".join(chr(self.random.randrange(1, 0x2FFF)) for _ in range(min(size, 30))),
        ]
        return pick(kinds)()

    def mutated(self, text: str) -> str:
        """``text`` with a character or a part taken away, doubled or put in."""
        pick = self.random.choice
        place = self.random.randrange(len(text) + 1)
        other = self.random.randrange(place, len(text) + 1)
        insert = pick((*"=+~@/.,:'\"\\ {}[]()$\x00\n", "${", "_target_", "é"))
        return pick(
            (text[:place] + insert + text[place:], text[:place] + text[other:], text[:other] + text[place:], text * 2)
        )


@cache
def taken(target: str) -> tuple[frozenset[str], bool]:
    """What a constructor takes by name, told by the imported class itself; whether it takes anything else."""
    part = get_object(target)
    makers = (
        [maker for kind in part.__mro__ if (maker := vars(kind).get("__init__"))] if inspect.isclass(part) else [part]
    )
    names: set[str] = set()
    for maker in makers:
        try:
            parameters = inspect.signature(maker).parameters.values()
        except ValueError:
            return frozenset(names), True
        names |= {one.name for one in parameters if one.kind in (one.KEYWORD_ONLY, one.POSITIONAL_OR_KEYWORD)}
        if all(one.kind is not one.VAR_KEYWORD for one in parameters):
            return frozenset(names), False
    return frozenset(names), False


def nodes(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict) and "_target_" in value:
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from nodes(inner)


def assert_no_unknown_key(values: dict[str, Any]) -> None:
    """What was accepted has no key that nothing reads; asked of the classes, not of the checker."""
    assert set(values) <= {field.name for field in dataclasses.fields(TaskConfig)}
    assert set(values["resume"]) == {"force"}
    assert set(values["wandb"]) <= set(inspect.signature(Wandb).parameters)
    assert not any("${" in str(leaf) for _, leaf in flat(values))
    for node in nodes(values):
        names, is_open = taken(node["_target_"])
        unknown = set(node) - names - {"_target_", "_partial_", "_recursive_", "_convert_"}
        assert is_open or not unknown, f"{node['_target_']} takes no {unknown}"


class Hang(BaseException):
    """A command line was not answered in time."""


def _hang(*_: object) -> None:
    raise Hang(f"no answer within {LIMIT} s")


@pytest.fixture
def accepted(monkeypatch: pytest.MonkeyPatch) -> list[Composed]:
    """Composition and checks are real; what would begin a run writes down what it was given."""
    given: list[Composed] = []

    def enter(composed: Composed, path: Path | None = None) -> None:
        acquire.check_name(composed.values["name"] or acquire.new_name(composed.choices))

    def train(self: TaskTrainer, folder: RunFolder | None = None) -> dict[str, Any]:
        given.append(self.composed)
        return {"status": "finished", "exit": 0}

    monkeypatch.setattr(acquire, "acquire_folder", enter)
    monkeypatch.setattr(TaskTrainer, "train", train)
    monkeypatch.setattr(processes, "process_count", lambda composed, folder=None: 1)
    return given


def answered(call: Callable[[], int]) -> tuple[int, float]:
    """The status of a call and its seconds, which are limited."""
    before = signal.signal(signal.SIGALRM, _hang)
    signal.setitimer(signal.ITIMER_REAL, LIMIT)
    began = time.monotonic()
    try:
        return call(), time.monotonic() - began
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def assert_one_line(error: str) -> None:
    assert error.startswith("error: "), error[:500]
    assert error.count("\n") == 1, error[:500]
    assert error.endswith("\n")
    assert len(error) > 20
    assert not any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in error[:-1]), repr(error)


def fuzz(
    count: int, seed: int, accepted: list[Composed], capsys: pytest.CaptureFixture[str]
) -> tuple[Counter[int], float, list[str]]:
    """Give ``count`` command lines; returns the statuses, the longest time, and what was wrong."""
    fuzzer, statuses, slowest, wrong = Fuzzer(seed, chosen_keys()), Counter[int](), 0.0, list[str]()
    for number in range(count):
        line = fuzzer.line()
        accepted.clear()
        try:
            status, seconds = answered(lambda given=line: main(["train", *given]))  # type: ignore[misc]
            output = capsys.readouterr()
            if status == 0:
                assert "-h" in line or "--help" in line or accepted, "neither refused nor accepted"
                for composed in accepted:
                    assert_no_unknown_key(composed.values)
            elif not (status == 1 and "-m" in line):  # in a sweep a wrong value fails its job alone
                assert status == 2, status
                cause = output.err.rpartition("\nerror: ")[2] if "debug=true" in line else output.err
                assert_one_line(f"error: {cause.removeprefix('error: ')}")
            assert "debug=true" in line or "Traceback" not in output.out + output.err
        except (Exception, Hang) as error:
            wrong.append(f"{number}: {[part[:200] for part in line]}: {type(error).__name__}: {str(error)[:300]}")
            capsys.readouterr()
            continue
        statuses[status] += 1
        slowest = max(slowest, seconds)
    return statuses, slowest, wrong


def test_fuzzed_command_lines(accepted: list[Composed], capsys: pytest.CaptureFixture[str]) -> None:
    statuses, _, wrong = fuzz(100, 0, accepted, capsys)
    assert not wrong, "\n".join(wrong)
    assert statuses[0] >= 10
    assert statuses[2] >= 40


@pytest.mark.soak
def test_two_thousand_fuzzed_command_lines(accepted: list[Composed], capsys: pytest.CaptureFixture[str]) -> None:
    statuses, slowest, wrong = fuzz(2000, 1, accepted, capsys)
    with capsys.disabled():
        print(f"\n2000 command lines: {dict(statuses)}, the slowest took {slowest:.2f} s")
    assert not wrong, "\n".join(wrong)
    assert statuses.total() == 2000
    assert statuses[0] >= 200


def fuzz_saved(count: int, seed: int) -> Counter[str]:
    """The same overrides on a run that exists."""
    folder = RunFolder(Path("saved"))
    folder.path.mkdir()
    folder.config.write_text(yaml.safe_dump(Composer().compose([]).values))
    fuzzer, answers = Fuzzer(seed, chosen_keys()), Counter[str]()

    def load(override: str) -> int:
        try:
            assert_no_unknown_key(load_saved(folder, [override]).values)
        except (ConfigError, RunError) as error:
            return 2 if len(str(error)) > 15 else 1
        return 0

    for _ in range(count):
        override = fuzzer.override()
        try:
            answers[f"{answered(lambda given=override: load(given))[0]}"] += 1  # type: ignore[misc]
        except (Exception, Hang) as error:
            raise AssertionError(f"{override[:200]!r}: {type(error).__name__}: {str(error)[:300]}") from error
    return answers


def test_fuzzed_overrides_of_a_run_that_exists() -> None:
    answers = fuzz_saved(100, 2)
    assert set(answers) == {"0", "2"}
    assert answers["0"] >= 5
    assert answers["2"] >= 40


@pytest.mark.soak
def test_five_hundred_fuzzed_overrides_of_a_run_that_exists() -> None:
    answers = fuzz_saved(500, 3)
    assert set(answers) == {"0", "2"}
    assert answers.total() == 500


BOUNDED = {
    "a list of 100 kB": "+args.x=[" + "1," * 50_000 + "1]",
    "a text of 100 kB": "+args.x=" + "a b " * 25_000,
    "a key of 100 kB": "+args." + "k" * 100_000 + "=1",
    "a path of 100 kB": "+args." + ".".join("k" * 50_000) + "=1",
    "a key that no file can have": "data." + "k" * 3000 + "=1",
    "a path of 1,000 keys": "+args." + ".".join("k" * 1000) + "=1",
    "a name of 3,000": "init_from=" + "a" * 3000,
    "an option of 3,000": "method=" + "a" * 3000,
    "1,000 lists in each other": "+args.x=" + "[" * 1000 + "]" * 1000,
    "100 lists in each other": "+args.x=" + "[" * 100 + "]" * 100,
    "1,000 mappings in each other": "+args.x=" + "{a:" * 1000 + "1" + "}" * 1000,
    "900 interpolations in each other": "+args.x=" + "${" * 900 + "seed" + "}" * 900,
    "itself": "+args.x=${args.x}",
    "its own node": "+args.x=${args}",
    "a number of packages": "trusted=3",
    "a null byte": "data.root='a\0b'",
    "half of a surrogate pair": "data.root=\ud800",
    "a line of its own": "+args.x=a\nb=1",
}


@pytest.mark.parametrize("override", BOUNDED.values(), ids=BOUNDED)
def test_what_has_no_bound_is_refused_in_time(
    override: str, accepted: list[Composed], capsys: pytest.CaptureFixture[str]
) -> None:
    status, _ = answered(lambda: main(["train", override]))
    assert status == 2
    assert not accepted
    assert_one_line(capsys.readouterr().err)


def test_a_sweep_of_a_thousand_million_jobs_is_refused(
    accepted: list[Composed], capsys: pytest.CaptureFixture[str]
) -> None:
    for line in (
        ["seed=range(0,1000000000)"],
        [f"{key}=range(0,100)" for key in ("seed", "data.split_seed", "+args.x")],
    ):
        assert answered(lambda given=line: main(["train", "-m", *given]))[0] == 2  # type: ignore[misc]
        assert "jobs" in capsys.readouterr().err
    assert not accepted


def test_the_watchdog_bites(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("test_fuzz.LIMIT", 0.05)
    with pytest.raises(Hang):
        answered(lambda: time.sleep(2) or 0)  # type: ignore[func-returns-value]


def test_the_judge_of_keys_bites() -> None:
    values = Composer().compose([]).values
    assert_no_unknown_key(values)
    for change in ({"data": values["data"] | {"rot": 1}}, {"seeds": 1}, {"resume": {"force": True, "x": 1}}):
        with pytest.raises(AssertionError):
            assert_no_unknown_key(values | change)
