"""What the class of a part declares of itself."""

from __future__ import annotations

import pytest

from healsg.parts import declares


class Declaring:
    per_sample = True


class Deriving(Declaring):
    """Does what its base class does not, and declares nothing."""


class Denying(Declaring):
    per_sample = False


@pytest.mark.parametrize(("part", "told"), [(Declaring(), True), (Deriving(), False), (Denying(), False), (len, False)])
def test_a_declaration_counts_for_its_own_class_alone(part: object, told: bool) -> None:
    assert declares(part, "per_sample") is told
