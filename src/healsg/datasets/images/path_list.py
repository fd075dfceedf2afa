"""PathList: a million paths in one buffer, which loader processes share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import torch
from torch import Tensor


class PathList(Sequence[str]):
    """Paths as one buffer of bytes and the offsets at which each begins.

    A list of strings would be copied into every loader process page by page, since reading a string changes its
    reference count (copy-on-write). Strings are created on access.

    Args:
        content: (B,) uint8.
        offsets: (N + 1,) int64, where in it each path begins, and the last one ends.
    """

    def __init__(self, content: Tensor, offsets: Tensor) -> None:
        self.content = content
        self.offsets = offsets

    @classmethod
    def of(cls, paths: Iterable[str]) -> PathList:
        """These paths: any texts, also such as have no encoding in UTF-8 (names of files may be any bytes)."""
        content = bytearray()
        ends = [0]
        for path in paths:
            content += str(path).encode("utf-8", "surrogatepass")
            ends.append(len(content))
        buffer = torch.frombuffer(content or bytearray(1), dtype=torch.uint8)
        return cls(buffer, torch.tensor(ends, dtype=torch.int64))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        position = range(len(self))[index]  # from the end if it is negative; IndexError beyond
        begin, end = self.offsets[position : position + 2].tolist()
        return self.content[begin:end].numpy().tobytes().decode("utf-8", "surrogatepass")

    def __iter__(self) -> Iterator[str]:
        whole, begin = self.content.numpy().data, 0
        for ends in torch.split(self.offsets[1:], 1 << 12):  # a list of all indices would be a million numbers
            for end in ends.tolist():
                yield bytes(whole[begin:end]).decode("utf-8", "surrogatepass")
                begin = end

    def __eq__(self, other: object) -> bool:
        if isinstance(other, PathList):
            return torch.equal(self.offsets, other.offsets) and torch.equal(self.content, other.content)
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(str.__eq__, self, other))

    __hash__ = None  # type: ignore[assignment]
