"""What the class of a part says about itself: declarations, methods of its own, and methods that it lacks."""

from __future__ import annotations

import pytest

from healsg import TaskData, TaskModel
from healsg.data.base import Needs
from healsg.data.info import DataInfo
from healsg.errors import ConfigError
from healsg.parts import copied, declares, defines


class Declaring:
    per_sample = True


class Deriving(Declaring):
    """Does what its base class does not, and declares nothing."""


class Denying(Declaring):
    per_sample = False


@pytest.mark.parametrize(("part", "told"), [(Declaring(), True), (Deriving(), False), (Denying(), False), (len, False)])
def test_a_declaration_counts_for_its_own_class_alone(part: object, told: bool) -> None:
    assert declares(part, "per_sample") is told


class Base:
    def read(self) -> int:
        return 0

    def write(self) -> int:
        return 0


class Middle(Base):
    def read(self) -> int:
        return 1


class Mixin:
    def write(self) -> int:
        return 2


class Mixed(Mixin, Base):
    pass


class Hidden(Base, Mixin):
    """Its ``write`` is that of ``Base``."""


class Lower(Middle):
    pass


def bound() -> Base:
    part = Base()
    part.write = lambda: 3  # type: ignore[method-assign]
    return part


@pytest.mark.parametrize(
    ("part", "own"),
    [(Base(), set()), (Lower(), {"read"}), (Mixed(), {"write"}), (Hidden(), set()), (bound(), {"write"})],
)
def test_a_method_is_defined_by_class_mixin_or_object(part: Base, own: set[str]) -> None:
    assert {name for name in ("read", "write") if defines(part, Base, name)} == own


class Undefined(TaskData):
    """Defines neither ``info`` nor ``read``."""


class Unread(TaskData):
    info = DataInfo(input_shape=(2,), num_classes=2)  # type: ignore[assignment]


def test_a_method_that_is_missing_is_named_by_its_first_call() -> None:
    with pytest.raises(ConfigError, match="data: Undefined: defines no info"):
        Undefined().fitted()
    with pytest.raises(ConfigError, match="data: Unread: defines no read"):
        Unread().loaders(Needs())
    with pytest.raises(ConfigError, match="model: TaskModel: defines no build"):
        TaskModel().build(DataInfo(input_shape=(2,), num_classes=2))


def test_a_copy_has_what_was_changed_and_shares_the_rest() -> None:
    first = TaskData(batch_size=8)
    second = copied(first, {"batch_size": 4}, without=["target_scale"])
    assert (first.batch_size, second.batch_size) == (8, 4)
    assert second.reading is first.reading
    assert not hasattr(second, "target_scale")
    assert hasattr(first, "target_scale")
