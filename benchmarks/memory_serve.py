"""The memory of ``healsg serve`` for one volume: python -m benchmarks.memory_serve [SIDE]

A drawn float32 volume of SIDE (256: 67 MB) voxels along each axis is sent three times to a server of the run of
``benchmarks.memory_predict``, which answers with its mask: a ``.nii`` at the volume's spacing, a ``.mha`` at another.
What is counted is the server's RssAnon above that of the fresh one, before it is asked: the largest while it answers,
and what it keeps afterwards. Written to ``results/memory_serve.txt``.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

import torch

from benchmarks.memory_predict import CASES, train, write_scan
from benchmarks.memory_saving import Watch, resident

TIMES = 3


def measure(run: str, file: Path) -> str:
    """The line of one kind of file."""
    command = [sys.executable, "-m", "healsg", "serve", run, "--port", "0", "--json", "runner.threads=1"]
    found = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            url = json.loads(server.stdout.readline())["url"]
            fresh = resident(server.pid)
            for _ in range(TIMES):
                with Watch(server.pid) as watch, file.open("rb") as body:
                    headers = {"Content-Length": str(file.stat().st_size), "Content-Type": "application/octet-stream"}
                    request = urllib.request.Request(url + "mask", body, headers)
                    with urllib.request.urlopen(request) as answer:
                        size = len(answer.read())
                found.append(f"{(watch.most - fresh) / 1e6:.0f} ({(resident(server.pid) - fresh) / 1e6:.0f} kept)")
        finally:
            server.terminate()
    return f"{file.name} {run}: {', '.join(found)} MB above the fresh server; a mask of {size} bytes"


def main() -> None:
    side = int(sys.argv[1]) if len(sys.argv) > 1 else 256
    lines = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.chdir(folder)
        for kind, spacing in CASES:
            train(folder, spacing)
            write_scan(folder / f"scan{kind}", side)
            lines.append(measure(f"run{spacing}", folder / f"scan{kind}"))
            print(lines[-1], flush=True)
        os.chdir("/")
    where = f"Python {platform.python_version()}, torch {torch.__version__}, {platform.machine()}, one thread, no GPU"
    text = "\n".join([f"python -m benchmarks.memory_serve {side}", where, "", *lines, ""])
    if side == 256:
        (Path(__file__).parent / "results" / "memory_serve.txt").write_text(text)


if __name__ == "__main__":
    main()
