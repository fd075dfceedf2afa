"""Many random numbers for each sample of a batch, by hashing a few draws; the batch is hashed at once."""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor

from healsg.seeding import Draw, hash_bits, mix


def _words(draw: Draw, count: int, which: int) -> Tensor:
    """(N, count) int64 of 64 random bits, a pure function of the samples' draws ``which`` and ``which + 1``."""
    own = hash_bits(draw.bits(which) << 24 | draw.bits(which + 1), mix("numbers", which))
    words: Tensor = own.unsqueeze(1) + torch.arange(count, device=own.device)
    return hash_bits(words, mix("words", which))


def uniform(draw: Draw, count: int, which: int = 0) -> Tensor:
    """(N, count) float32 in [0, 1), from the draws ``which`` and ``which + 1``."""
    bits: Tensor = _words(draw, count, which) >> 40 & 0xFFFFFF
    return bits.to(torch.float32) * 2.0**-24


def bell(draw: Draw, count: int, which: int = 0) -> Tensor:
    """(N, count) float32, approximately normal with mean 0 and variance 1: sums of four uniform numbers, within +-3.5.

    The sums are of integers, so that the result is bitwise the same on every device and in batches of every size.
    """
    words = _words(draw, count, which)
    total = sum((words >> bits & 0xFFFF) for bits in (0, 16, 32, 48))
    assert isinstance(total, Tensor)
    return (total - 2 * 0xFFFF).to(torch.float32) * sqrt(3 / (0x10000**2 - 1))


def between(numbers: Tensor, low: float, high: float) -> Tensor:
    """Scale numbers in [0, 1) to [low, high)."""
    return numbers * (high - low) + low
