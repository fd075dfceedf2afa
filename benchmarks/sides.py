"""The sides of a comparison, each in a process of its own, which is asked for one measurement after the other.

What one side does to its process, such as how memory is allocated, does nothing to the others.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path


class Side:
    """A process that measures.

    Args:
        module: its ``main`` is to call ``serve`` where the first argument is ``side``.
        arguments: the others.
    """

    def __init__(self, module: str, *arguments: str) -> None:
        line = [sys.executable, "-m", module, "side", *arguments]
        root = Path(__file__).parents[1]  # from which a relative PYTHONPATH is meant, wherever this process is now
        self.process = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root)

    def measure(self, number: int) -> list[float]:
        """The numbers of one measurement. Raises RuntimeError where the process has ended."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(f"{number}\n")
            self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("measured "):
                return [float(word) for word in line.split()[1:]]
        raise RuntimeError(f"{self.process.args}: ended")

    def close(self) -> None:
        self.process.communicate(timeout=60)


def serve(measure: Callable[[int], Sequence[float]]) -> None:
    """Answer each number on standard input with what ``measure`` makes of it."""
    for line in sys.stdin:
        print("measured", *measure(int(line)), flush=True)


@contextlib.contextmanager
def together(sides: dict[str, Side]) -> Iterator[dict[str, Side]]:
    """A context at whose end the processes end."""
    try:
        yield sides
    finally:
        for side in sides.values():
            side.close()


def in_turns(sides: dict[str, Side], rounds: int, uncounted: int = 1) -> dict[str, list[list[float]]]:
    """By side the numbers of each round; the order changes from round to round, and the first ones do not count."""
    found: dict[str, list[list[float]]] = {name: [] for name in sides}
    for number in range(rounds + uncounted):
        for name in [*sides][:: 1 if number % 2 else -1]:
            numbers = sides[name].measure(number)
            if number >= uncounted:
                found[name].append(numbers)
    return found
