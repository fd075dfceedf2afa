"""Many numbers of each sample's own from a few draws: hashed once for a whole batch, so that they cost little."""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor

from healsg.seeding import Draw, hash_bits, mix


def _words(draw: Draw, count: int, which: int) -> Tensor:
    """(N, count) int64 of 64 mixed bits each, a pure function of the samples' draws ``which`` and ``which + 1``."""
    own = hash_bits(draw.bits(which) << 24 | draw.bits(which + 1), mix("numbers", which))
    words: Tensor = own.unsqueeze(1) + torch.arange(count, device=own.device)
    return hash_bits(words, mix("words", which))


def uniform(draw: Draw, count: int, which: int = 0) -> Tensor:
    """(N, count) float32 in [0, 1), from the draws ``which`` and ``which + 1``."""
    bits: Tensor = _words(draw, count, which) >> 40 & 0xFFFFFF
    return bits.to(torch.float32) * 2.0**-24


def bell(draw: Draw, count: int, which: int = 0) -> Tensor:
    """(N, count) float32, nearly normal with mean 0 and variance 1: sums of four uniform numbers, within +-3.5.

    Whole numbers are summed, so that every device and every batch size gives the same bits.
    """
    words = _words(draw, count, which)
    total = sum((words >> place & 0xFFFF) for place in (0, 16, 32, 48))
    assert isinstance(total, Tensor)
    return (total - 2 * 0xFFFF).to(torch.float32) * sqrt(3 / (0x10000**2 - 1))


def between(numbers: Tensor, low: float, high: float) -> Tensor:
    """Numbers of [0, 1) to [low, high)."""
    return numbers * (high - low) + low
