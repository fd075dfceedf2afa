"""Randomness as a pure function of (seed, purpose, position): no state is saved, and any position is one jump away.

Three kinds, by how often they are needed:

* ``mix`` turns a seed, a purpose and a position into 64 well-mixed bits, and ``generator`` into a seeded generator
  (the order of an epoch);
* ``seed_device`` sets the default generator of a device, about 1 us (dropout and mixup of one step);
* ``Draw`` gives every sample its own uniform numbers by a counter-based hash, for a whole epoch at once (augmentation).
"""

from __future__ import annotations

import math
import random
import sys
import zlib

import torch
from torch import Tensor

_MASK = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB


def mix(*parts: int | str, state: int = 0) -> int:
    """64 bits that depend on every part and its position (splitmix64; Steele, Lea and Flood 2014).

    ``state`` is the result for the preceding parts: ``mix(a, b, c)`` is ``mix(c, state=mix(a, b))``.
    """
    for part in parts:
        value = zlib.crc32(part.encode()) if isinstance(part, str) else part
        state = (state ^ (value & _MASK)) + _GAMMA & _MASK
        state = (state ^ (state >> 30)) * _FIRST & _MASK
        state = (state ^ (state >> 27)) * _SECOND & _MASK
        state ^= state >> 31
    return state


def generator(*parts: int | str) -> torch.Generator:
    """A CPU generator seeded by ``parts``. The Mersenne Twister takes 32 bits, hence the mixing."""
    return torch.Generator().manual_seed(mix(*parts))


def seed_device(device: torch.device, *parts: int | str, state: int = 0) -> None:
    """Seed what a training step draws from: the default generators of the CPU and of ``device``, and nothing else."""
    value = mix(*parts, state=state)
    torch.default_generator.manual_seed(value)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(value)
    elif device.type == "mps":
        torch.mps.manual_seed(value)


def seed_libraries(value: int) -> None:
    """Seed the global generators of Python and NumPy (if it is loaded) with a result of ``mix``, about 8 us."""
    random.seed(value)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(value & 0xFFFFFFFF)


def seed_step(device: torch.device, position: int, pass_seed: int, libraries: bool) -> None:
    """Seed what one step draws from: of training, of an evaluation, or, before its first batch, of an epoch.

    Args:
        device: of the network.
        position: of the batch in the pass, or of the epoch in the run.
        pass_seed: the seed of the pass, or of all epochs.
        libraries: whether to seed Python's and NumPy's generators too; see ``training.draws.only_from_torch``.
    """
    seed_device(device, position, state=pass_seed)
    if libraries:
        seed_libraries(mix(position, state=pass_seed))


def seed_everything(*parts: int | str) -> None:
    """Seed the global generators of Python, NumPy (if it is loaded) and torch: for the initial weights, and for data
    sets and transforms of other libraries."""
    value = mix(*parts)
    seed_libraries(value)
    torch.manual_seed(value)


def seed_foreign(value: int) -> None:
    """Seed the global generators that data sets and per-sample transforms of other libraries use, once per batch.

    Args:
        value: the result of ``mix``.
    """
    seed_libraries(value)
    torch.default_generator.manual_seed(value)


def _signed(value: int) -> int:
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


def _shifted(bits: Tensor, places: int) -> Tensor:
    return (bits >> places) & ((1 << (64 - places)) - 1)


def hash_bits(index: Tensor, key: int) -> Tensor:
    """splitmix64 of each element of ``index`` (integers, any shape) under ``key``; the same bits on every device."""
    bits = index.long() * _signed(_GAMMA) + _signed(key)
    bits = (bits ^ _shifted(bits, 30)) * _signed(_FIRST)
    bits = (bits ^ _shifted(bits, 27)) * _signed(_SECOND)
    return bits ^ _shifted(bits, 31)


def uniform_of(index: Tensor, key: int, shape: tuple[int, ...]) -> Tensor:
    """(N, *shape) float32 in [0, 1): per-sample random numbers.

    Args:
        index: (N,) int64, each sample's index in its data set.
        key: the result of ``mix(seed, purpose, epoch, ...)``.
        shape: of the numbers of one sample.
    """
    sample_bits = hash_bits(index, key).view(-1, *[1] * len(shape))
    offsets = torch.arange(math.prod(shape), device=index.device).view(shape)
    return _shifted(hash_bits(sample_bits + offsets, mix(1, state=key)), 40).to(torch.float32) * 2.0**-24


class Draw:
    """Per-sample uniform random numbers: a pure function of (key, index of the sample, which draw).

    Args:
        key: the result of ``mix(seed, purpose, epoch, ...)``.
        index: (N,) int64 or int32, each sample's index in its data set.
        lasting: the result of ``mix(seed, purpose)``, for draws that do not change from epoch to epoch.
        epoch: the epoch, from 0.
        shared: the draws common to all views of these samples, if their targets are spatial; see ``shared``.
        host: the same draws on the CPU, if these are on another device; see ``host``.
    """

    def __init__(
        self,
        key: int,
        index: Tensor,
        lasting: int = 0,
        epoch: int = 0,
        shared: Draw | None = None,
        host: Draw | None = None,
    ) -> None:
        self._host = host
        self.key = key
        self.index = index
        self.lasting = lasting
        self.epoch = epoch
        self.common = shared
        self._drawn: dict[int, Tensor] = {}

    @property
    def shared(self) -> Draw:
        """The draws for geometric transforms. If the target is spatial, such as a mask, all views of a sample share
        them, so that one target fits all views; otherwise each view has its own."""
        return self if self.common is None else self.common

    @property
    def host(self) -> Draw:
        """The same draws on the CPU, if they were before ``to``: they can be read without waiting for a device."""
        return self if self._host is None else self._host

    def bits(self, which: int) -> Tensor:
        """(N,) int64 in [0, 2**24), one number per sample; ``which`` distinguishes the draws of one sample."""
        if which not in self._drawn:
            self._drawn[which] = _shifted(hash_bits(self.index, mix(self.key, which)), 40)
        return self._drawn[which]

    def uniform(self, which: int) -> Tensor:
        """(N,) float32 in [0, 1)."""
        return self.bits(which).to(torch.float32) * 2.0**-24

    def integers(self, which: int, low: int, high: int) -> Tensor:
        """(N,) int64 in [low, high], both ends included."""
        return (self.bits(which) * (high - low + 1) >> 24) + low

    def alternating(self, which: int) -> Tensor:
        """(N,) int64: a random 0 or 1 per sample in the first epoch, which flips with every epoch after it."""
        return (hash_bits(self.index, mix(self.lasting, which)) + self.epoch) & 1

    def seeds(self) -> list[int]:
        """A number below 2**32 for each sample, to seed a generator of its own."""
        return _shifted(hash_bits(self.index, mix(self.key, "generator")), 32).tolist()

    def of(self, chosen: Tensor) -> Draw:
        """The draws of some of the samples."""
        common = None if self.common is None else self.common.of(chosen)
        return Draw(self.key, self.index[chosen], self.lasting, self.epoch, common)

    def copied(self, start: int, stop: int) -> Draw:
        """The draws of samples ``start`` to ``stop`` in memory of their own."""
        common = None if self.common is None else self.common.copied(start, stop)
        return Draw(self.key, self.index[start:stop].clone(), self.lasting, self.epoch, common)

    def to(self, device: torch.device) -> Draw:
        """The same draws on another device."""
        common = None if self.common is None else self.common.to(device)
        return Draw(self.key, self.index.to(device), self.lasting, self.epoch, common, self.host)

    def part(self, start: int, stop: int) -> Draw:
        """The draws of samples ``start`` to ``stop``: the same numbers, computed once for all."""
        return _Part(self, start, stop)

    def alone(self) -> Draw:
        """The same draws without a reference to those of other samples, to send to another process."""
        return self


class _Part(Draw):
    def __init__(self, draw: Draw, start: int, stop: int) -> None:
        self.whole = draw
        self.start = start
        self.stop = stop

    @property
    def host(self) -> Draw:
        host = self.whole.host
        return self if host is self.whole else host.part(self.start, self.stop)

    @property
    def shared(self) -> Draw:
        return self if self.whole.common is None else self.whole.common.part(self.start, self.stop)

    def bits(self, which: int) -> Tensor:
        return self.whole.bits(which)[self.start : self.stop]

    def alternating(self, which: int) -> Tensor:
        return self.whole.alternating(which)[self.start : self.stop]

    def seeds(self) -> list[int]:
        return self.alone().seeds()

    def of(self, chosen: Tensor) -> Draw:
        return self.alone().of(chosen)

    def to(self, device: torch.device) -> Draw:
        return self.alone().to(device)

    def part(self, start: int, stop: int) -> Draw:
        return _Part(self.whole, self.start + start, self.start + stop)

    def copied(self, start: int, stop: int) -> Draw:
        return self.whole.copied(self.start + start, self.start + stop)

    def alone(self) -> Draw:
        return self.copied(0, self.stop - self.start)
