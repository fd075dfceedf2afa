"""Random generators inside the transforms of other libraries, which are found and seeded for each sample.

``torch.manual_seed`` and its counterparts in NumPy and Python seed only the global generators. MONAI's transforms have
their own ``numpy.random.RandomState``, albumentations' their own generator: unseeded, they draw different numbers in
every process and with every number of workers, and a resumed run would differ from an uninterrupted one.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

DEPTH, MOST = 6, 64
"""The depth of nested objects that is searched, and the longest list that may contain transforms and not samples."""

SETTERS = ("set_random_state", "set_random_seed")
"""The methods by which transforms, and pipelines of them, seed everything inside: MONAI's and albumentations'."""

_VALUES = (str, bytes, int, float, bool, complex, type(None), Tensor, np.ndarray, np.generic)
_BARE = (*_VALUES, type, torch.nn.Module, ModuleType)
"""Types whose objects are not searched; the generators of a whole module do not belong to one data set."""


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
        """Seed all generators: each gets a seed that depends on ``seed`` and its position in the data set."""
        for number, seeder in enumerate(self.seeders):
            seeder((seed + number * 0x9E3779B1) % (1 << 32))


def generators_of(dataset: Any) -> Generators:
    """All generators in the attributes of a data set and of its transforms."""
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
    """The function that seeds an object with random numbers of its own; None for any other object."""
    if isinstance(value, np.random.RandomState | random.Random):
        return value.seed
    if isinstance(value, np.random.Generator):
        return partial(_seed_numpy, value)
    if isinstance(value, torch.Generator):
        return value.manual_seed
    if isinstance(value, torch.utils.data.Dataset):
        return None  # MONAI's data sets have such a method too, but it does not seed their transforms
    for name in SETTERS:
        try:
            setter = getattr(value, name, None)
        except Exception:  # attributes of others may do anything: torch.ops looks for a library of that name
            setter = None
        if isinstance(setter, MethodType):
            return partial(_seed_by_name, setter)
    return None


def _seed_numpy(generator: np.random.Generator, seed: int) -> None:
    generator.bit_generator.state = type(generator.bit_generator)(seed).state


def _seed_by_name(setter: Callable[[int], Any], seed: int) -> None:
    setter(seed)


def _inside(value: Any) -> Iterator[Any]:
    """The objects inside an object that may be or contain transforms: attributes, items of short lists, closures."""
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
