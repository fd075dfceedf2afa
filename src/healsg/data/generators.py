"""Random generators that a data set of others keeps inside its transforms, found and seeded sample by sample.

``torch.manual_seed`` and its like in NumPy and Python reach the global generators alone. MONAI's transforms have a
``numpy.random.RandomState`` each, albumentations' a generator each: unseeded, they draw other numbers in every process
and with every number of workers, and a resumed run would not be the same run.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor

DEPTH, MOST = 6, 64
"""How many objects deep transforms are looked for, and the longest list that is one of transforms, not of samples."""

SETTERS = ("set_random_state", "set_random_seed")
"""What MONAI's and albumentations' transforms, and pipelines of these, call the method that seeds all within them."""

_BARE = (str, bytes, int, float, bool, complex, type(None), type, Tensor, np.ndarray, np.generic, torch.nn.Module)


class Generators:
    """The generators in a data set, which are seeded together.

    Args:
        seeders: each called with a number below 2**32.
    """

    def __init__(self, seeders: list[Callable[[int], Any]]) -> None:
        self.seeders = seeders

    def __bool__(self) -> bool:
        return bool(self.seeders)

    def seed(self, seed: int) -> None:
        """Begin all generators anew: what they draw next is a function of ``seed`` and their place in the data set."""
        for place, seeder in enumerate(self.seeders):
            seeder((seed + place * 0x9E3779B1) % (1 << 32))


def generators_of(dataset: Any) -> Generators:
    """All generators that are found in the attributes of a data set and of its transforms."""
    found: dict[int, tuple[Any, Callable[[int], Any]]] = {}
    _search(dataset, found, set(), DEPTH)
    return Generators([seeder for _, seeder in found.values()])


def _search(value: Any, found: dict[int, tuple[Any, Callable[[int], Any]]], seen: set[int], depth: int) -> None:
    if isinstance(value, _BARE) or id(value) in seen or depth < 0:
        return
    seen.add(id(value))
    seeder = _seeder(value)
    if seeder is not None:
        found[id(value)] = (value, seeder)
        return
    for inner in _inside(value):
        _search(inner, found, seen, depth - 1)


def _seeder(value: Any) -> Callable[[int], Any] | None:
    """What seeds an object that draws random numbers by itself; None of any other."""
    if isinstance(value, np.random.RandomState | random.Random):
        return value.seed
    if isinstance(value, np.random.Generator):
        return partial(_seed_numpy, value)
    if isinstance(value, torch.Generator):
        return value.manual_seed
    if isinstance(value, torch.utils.data.Dataset):
        return None  # MONAI's own data sets have such a method too, which does not reach their transforms
    for name in SETTERS:
        setter = getattr(value, name, None)
        if isinstance(setter, MethodType):
            return partial(_seed_by_name, setter)
    return None


def _seed_numpy(generator: np.random.Generator, seed: int) -> None:
    generator.bit_generator.state = type(generator.bit_generator)(seed).state


def _seed_by_name(setter: Callable[[int], Any], seed: int) -> None:
    setter(seed)


def _inside(value: Any) -> Iterator[Any]:
    """What an object holds in which transforms may lie: its attributes, the items of short lists, closures."""
    if isinstance(value, Mapping):
        yield from value.values() if len(value) <= MOST else ()
    elif isinstance(value, list | tuple | set | frozenset):
        yield from value if len(value) <= MOST else ()
    elif isinstance(value, partial):
        yield from (value.func, *value.args, *value.keywords.values())
    elif isinstance(value, MethodType):
        yield value.__self__
    elif isinstance(value, FunctionType):
        for cell in value.__closure__ or ():
            try:
                yield cell.cell_contents
            except ValueError:  # an empty cell
                continue
    else:
        yield from getattr(value, "__dict__", {}).values()
