"""The space of a search: the keys that are searched over, each with an interval or a choice of values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from healsg.errors import ConfigError, one_line

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

MOST = 10_000
"""Values of one key."""

Value = float | int | str
"""A value of a key: a number of an interval, or one of a choice as it is written in an override."""


@dataclass(frozen=True)
class Interval:
    """Numbers from ``low`` to ``high``, both included; of whole ones every ``step``-th.

    Args:
        log: whether their logarithms are drawn evenly.
        whole: whether they are whole numbers.
    """

    low: float
    high: float
    log: bool = False
    whole: bool = False
    step: int = 1

    def __str__(self) -> str:
        if self.step > 1:
            return f"range({self.low},{int(self.high) + 1},{self.step})"
        text = f"interval({self.low},{self.high})"
        text = f"int({text})" if self.whole else text
        return f"tag(log,{text})" if self.log else text

    def __contains__(self, value: object) -> bool:
        if type(value) is not (int if self.whole else float):
            return False
        assert isinstance(value, (int, float))
        return self.low <= value <= self.high and (not self.whole or (value - self.low) % self.step == 0)


@dataclass(frozen=True)
class Choice:
    """Some values without an order, as they are written in an override."""

    values: tuple[str, ...]

    def __str__(self) -> str:
        return f"choice({','.join(self.values)})"

    def __contains__(self, value: object) -> bool:
        return value in self.values


Dimension = Interval | Choice
Space = Mapping[str, Dimension]
"""By key, in the order of the command."""


def space_of(overrides: Sequence[Override]) -> dict[str, Dimension]:
    """What is searched over: the overrides that give several values. Raises ConfigError."""
    found: dict[str, Dimension] = {}
    for override in overrides:
        if not override.is_sweep_override():
            continue
        key = override.get_key_element()
        if key.split(".")[0].lstrip("+") in ("name", "search", "launcher"):
            raise ConfigError(f"{key}: applies to the entire search; give one value")
        if key in found:
            raise ConfigError(f"{key}: is given twice")
        found[key] = _dimension(override)
    if not found:
        ranges = "'method.optimizer.lr=tag(log,interval(1e-4,1e-1))' or model.width=choice(32,64)"
        raise ConfigError(f"search: there is nothing to search over; give ranges such as {ranges}")
    return found


def _dimension(override: Override) -> Dimension:
    from hydra.core.override_parser.types import IntervalSweep, RangeSweep, Sweep
    from hydra.errors import HydraException

    line, value = override.input_line, override.value()
    assert isinstance(value, Sweep)
    if unknown := sorted(value.tags - {"log"}):
        raise ConfigError(
            f"{line}: there is no tag {unknown[0]}; the only one is log, as in tag(log,interval(1e-4,1e-1))"
        )
    if isinstance(value, IntervalSweep):
        low, high = value.start, value.end
        if low is None or high is None or not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ConfigError(f"{line}: an interval goes from a lower to a higher number")
        if "log" in value.tags and low <= 0:
            raise ConfigError(f"{line}: with the tag log an interval begins above 0, not at {low}")
        integers = type(low) is int and type(high) is int
        return Interval(low, high, "log" in value.tags, integers)
    if value.tags:
        raise ConfigError(f"{line}: the tag log is one of intervals, as in tag(log,interval(1e-4,1e-1))")
    if isinstance(value, RangeSweep) and all(type(one) is int for one in (value.start, value.stop, value.step)):
        numbers: Any = range(value.start, value.stop, value.step)  # type: ignore[arg-type]
        if value.step > 0 and len(numbers) > 1:
            return Interval(numbers[0], numbers[-1], whole=True, step=numbers.step)
    try:
        values = tuple(dict.fromkeys(islice(override.sweep_string_iterator(), MOST + 1)))
    except (HydraException, ArithmeticError, ValueError) as error:
        raise ConfigError(f"{line}: is no list of values ({one_line(error)})") from error
    if not 0 < len(values) <= MOST:
        raise ConfigError(f"{line}: has no values, or more than {MOST:,}")
    return Choice(values)


def written(key: str, value: Value) -> str:
    """A value of a key as an override."""
    return f"{key}={value if isinstance(value, str) else repr(value)}"
