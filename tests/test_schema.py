"""What constructors take, read from source."""

from __future__ import annotations

import inspect
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from healsg.config.signature import ANY, NONE, PART, Constructor, Kind, constructor
from healsg.errors import ConfigError
from healsg.types import Range

SOURCE = """
from __future__ import annotations
import typing as t
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, KW_ONLY
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Optional, Union
from torch import nn
import healsg.types
from healsg import types as kinds
from healsg.types import Count, Positive as Above, Range, Share
from unknown_package import Thing

Precision = Literal["fp32", "bf16"]
Level = t.Union[int, Precision]

class Colour(Enum):
    RED = 1

class Part:
    pass

class Many:
    def __init__(self, a: int, b: float = 1.5, c: "str" = "x", d: bool = False, e: None = None, f: Any = None,
        g: int | None = None, h: Optional[float] = None, i: Union[int, str] = 1, j: Precision = "fp32",
        k: list[int] = [], l: tuple[float, float] = (0.9, 0.99), m: tuple[int, ...] = (), n: dict[str, float] = {},
        o: Sequence[str] = (), p: Annotated[int, Range(low=2, high=8)] = 2, q: Count = 1, r: Above = 1.0,
        s: healsg.types.Share = 0.5, t: kinds.Natural = 0, u: Callable[..., Any] = print, v: Part | None = None,
        w: Thing = None, x: Colour = Colour.RED, y: nn.Module | None = None, z: Path = Path("."),
        implicit: int = None, plain=3, level: Level = 1, aa: Mapping[str, Count] | None = None,
        *rest: int, only: int, **more: int): ...
"""


def write(folder: Path, name: str, text: str) -> None:
    (folder / f"{name}.py").write_text(textwrap.dedent(text))


def made(target: str, folder: Path) -> Constructor:
    found = constructor(target, [folder])
    assert found is not None
    return found


def union(*kinds: Kind) -> Kind:
    return Kind("union", kinds)


def test_kinds_of_annotations(tmp_path: Path) -> None:
    write(tmp_path, "my_kinds", SOURCE)
    found = made("my_kinds.Many", tmp_path)
    integer, number, text = Kind("int"), Kind("float"), Kind("str")
    precision = Kind("literal", values=("fp32", "bf16"))
    count = Kind("int", range=Range(low=1))
    expected: dict[str, Kind] = {
        **{"a": integer, "b": number, "c": text, "d": Kind("bool"), "e": union(NONE), "f": ANY},
        **{"g": union(integer, NONE), "h": union(number, NONE), "i": union(integer, text), "j": precision},
        **{"k": Kind("list", (integer,)), "l": Kind("tuple", (number, number)), "m": Kind("list", (integer,))},
        **{"n": Kind("dict", (number,)), "o": Kind("list", (text,)), "p": Kind("int", range=Range(2, 8)), "q": count},
        **{"r": Kind("float", range=Range(low=0, open_low=True)), "t": Kind("int", range=Range(low=0))},
        **{"s": Kind("float", range=Range(0, 1, open_high=True)), "u": PART, "v": union(PART, NONE), "w": ANY},
        **{"x": ANY, "y": union(PART, NONE), "z": text, "implicit": union(integer, NONE), "plain": ANY},
        **{"level": union(integer, precision), "aa": union(Kind("dict", (count,)), NONE), "only": integer},
    }
    assert {name: parameter.kind for name, parameter in found.parameters.items()} == expected
    assert found.open
    assert [p.name for p in found.parameters.values() if not p.has_default] == ["a", "only"]
    assert [found.parameters[name].default for name in ("b", "l", "x", "a")] == [1.5, (0.9, 0.99), ..., ...]


def test_arguments_of_base_classes(tmp_path: Path) -> None:
    write(
        tmp_path,
        "my_bases",
        """
        import zlib
        from abc import ABC
        from dataclasses import dataclass, field
        from typing import ClassVar, Generic, TypeVar
        T = TypeVar("T")
        class Base(ABC):
            def __init__(self, root: str, size: int = 1, deep: bool = False): ...
        class Mixin(Generic[T]): ...
        class Child(Mixin[int], Base):
            def __init__(self, own: float = 1.0, **common):
                super().__init__("fixed", deep=True, **common)
        class Grandchild(Child): ...
        class Keeps:
            def __init__(self, **settings): self.settings = settings
        class Foreign(zlib.compressobj): ...
        class Empty: ...
        @dataclass
        class Fields:
            a: int
            b: list[int] = field(default_factory=list)
            c: int = field(default=2, init=False)
            d: ClassVar[int] = 3
        @dataclass
        class MoreFields(Fields):
            e: str = "x"
        def build(width: int, *, depth: int = 2): ...
        async_thing = lambda: None
        """,
    )
    assert list(made("my_bases.Child", tmp_path).parameters) == ["size", "own"]
    assert not made("my_bases.Child", tmp_path).open
    assert made("my_bases.Grandchild", tmp_path).parameters == made("my_bases.Child", tmp_path).parameters
    assert made("my_bases.Keeps", tmp_path).open
    assert made("my_bases.Empty", tmp_path)[2:4] == ({}, False)
    assert list(made("my_bases.MoreFields", tmp_path).parameters) == ["a", "b", "e"]
    assert made("my_bases.build", tmp_path).kind == "function"
    for target in ("my_bases.Foreign", "my_bases.async_thing", "zlib.compressobj", "math.sin"):
        assert constructor(target, [tmp_path]) is None


def test_reexports_are_followed(tmp_path: Path) -> None:
    package = tmp_path / "my_library"
    (package / "deep").mkdir(parents=True)
    write(package, "__init__", "from .deep import *\nfrom .deep.nets import Net as Other\n__version__ = '1'")
    write(package / "deep", "__init__", "from .nets import Net, Hidden\n__all__ = ['Net']")
    write(
        package / "deep",
        "nets",
        "try:\n    class Net:\n        def __init__(self, a=1): ...\nfinally:\n    Hidden = Net",
    )
    for target in ("my_library.Net", "my_library.Other", "my_library.deep.Net", "my_library.deep.Hidden"):
        assert made(target, tmp_path).defined_in == "my_library.deep.nets.Net"
    with pytest.raises(ConfigError, match="my_library has no Hidden"):
        constructor("my_library.Hidden", [tmp_path])


@pytest.mark.parametrize(
    ("target", "line"),
    [
        ("healsg.data.loader.Loder", "healsg.data.loader has no Loder; did you mean Loader?"),
        ("healsg.metrix.Accuracy", "healsg has no metrix; did you mean metrics?"),
        ("torch.optim.AdamX", r"torch.optim has no AdamX; did you mean Adamax\?"),
        ("no_such_package.Thing", "there is no module no_such_package"),
    ],
)
def test_what_does_not_exist(target: str, line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        constructor(target)


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    write(tmp_path, "my_changing", "class Net:\n    def __init__(self, a=1): ...")
    assert list(made("my_changing.Net", tmp_path).parameters) == ["a"]
    write(tmp_path, "my_changing", "class Net:\n    def __init__(self, b=1): ...")
    (tmp_path / "my_changing.py").touch()
    assert list(made("my_changing.Net", tmp_path).parameters) == ["b"]


def test_what_python_itself_says() -> None:
    import torch
    from torchvision.transforms.v2 import RandomCrop

    from healsg.data.base import TaskData

    parts: list[tuple[str, Any]] = [
        (f"torch.optim.{n}", getattr(torch.optim, n)) for n in ("SGD", "AdamW", "Muon", "LBFGS")
    ]
    parts += [(f"torch.nn.{n}", getattr(torch.nn, n)) for n in ("Linear", "Conv2d", "BatchNorm2d", "CrossEntropyLoss")]
    parts += [("torch.optim.lr_scheduler.OneCycleLR", torch.optim.lr_scheduler.OneCycleLR)]
    parts += [("torchvision.transforms.v2.RandomCrop", RandomCrop)]
    parts += [("healsg.data.TaskData", TaskData)]
    for target, part in parts:
        found = constructor(target)
        assert found is not None
        taken = {
            p.name: p
            for p in inspect.signature(part).parameters.values()
            if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        }
        assert list(found.parameters) == list(taken), target
        for name, parameter in taken.items():
            assert found.parameters[name].has_default == (parameter.default is not parameter.empty), (target, name)
    resnet = constructor("torchvision.models.resnet18")
    assert resnet is not None
    assert (list(resnet.parameters), resnet.open) == (["weights", "progress"], True)
    assert resnet.defined_in == "torchvision.models.resnet.resnet18"


def test_nothing_is_imported() -> None:
    program = (
        "import sys; from healsg.config.signature import constructor; "
        "print(constructor('torch.nn.Linear').defined_in, constructor('torchvision.models.resnet18').defined_in, "
        "'torch' in sys.modules, 'torchvision' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == [
        "torch.nn.modules.linear.Linear",
        "torchvision.models.resnet.resnet18",
        "False",
        "False",
    ]
