"""The peak memory of writing a checkpoint, as multiples of its state: python -m benchmarks.memory_saving [MB]

Two processes of their own: one writes a state of that many MB by ``runs.writer.Writer`` and ``runs.checkpoint.save``,
as a run does; the other by ``torch.save``. What is counted is the largest resident memory while three saves are made,
above that of the process before the state is there.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch

from benchmarks.bars import Bar, keep
from healsg.runs import checkpoint
from healsg.runs.writer import Writer

MOST = 2.2
"""Of the state, above the idle process."""


def resident(process: int | str = "self") -> int:
    """Bytes of a process's own memory, by default of this one."""
    rows = Path(f"/proc/{process}/status").read_text().splitlines()
    return 1024 * next(int(row.split()[1]) for row in rows if row.startswith("RssAnon"))


class Watch:
    """The largest ``resident`` of a process that is seen while it is entered."""

    def __init__(self, process: int | str = "self") -> None:
        self.process = process

    def __enter__(self) -> Watch:
        self.most, self.over = resident(self.process), False
        self.thread = threading.Thread(target=self.look)
        self.thread.start()
        return self

    def look(self) -> None:
        while not self.over:
            self.most = max(self.most, resident(self.process))
            time.sleep(0.002)

    def __exit__(self, *_: object) -> None:
        self.over = True
        self.thread.join()


def measure(kind: str, megabytes: int) -> None:
    idle = resident()
    count = megabytes * 1_000_000 // 16
    state = {"model": {f"weight{place}": torch.rand(count // 4) for place in range(16)}}
    size = sum(value.nbytes for value in state["model"].values())
    with tempfile.TemporaryDirectory(dir=".") as folder, Watch() as watch:
        path = Path(folder) / "last.pt"
        writer = Writer(lambda taken: checkpoint.save(path, taken))
        for _ in range(3):
            if kind == "Writer":
                writer.save(state)
                writer.wait()
            else:
                torch.save(state, path)
        writer.close()
    print(
        f"{kind:10} state {size / 1e6:.0f} MB, peak above idle {(watch.most - idle) / size:.2f} x the state", flush=True
    )


def main() -> None:
    if len(sys.argv) > 2:
        measure(sys.argv[1], int(sys.argv[2]))
        return
    size = sys.argv[1] if len(sys.argv) > 1 else "400"
    bars = []
    for kind, most in (("Writer", MOST), ("torch.save", None)):
        line = [sys.executable, "-m", "benchmarks.memory_saving", kind, size]
        printed = subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True).stdout
        print(printed, end="", flush=True)
        share = float(printed.split(" x the state")[0].split()[-1])
        bars.append(Bar("W11", f"peak memory of writing a checkpoint, {kind}, x its state", share, share, share, most))
    keep(f"python -m benchmarks.memory_saving {size}", f"torch {torch.__version__}, a state of {size} MB", bars)


if __name__ == "__main__":
    main()
