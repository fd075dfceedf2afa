"""What is missing on Windows and macOS is not needed: a process from which it was taken away trains, stops, resumes."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

from PIL import Image

SRC = Path(__file__).parents[1] / "src" / "healsg"

WINDOWS = """
import os, signal, sys
import torch, torch.multiprocessing, torch.utils.data  # which ask sys.platform, and use these names on Linux
import multiprocessing.context, multiprocessing.popen_spawn_posix
import multiprocessing.resource_tracker, multiprocessing.util
import logging, random, subprocess, tempfile, threading
multiprocessing.resource_tracker.ensure_running()  # Python's own use of signals on this system
sys.modules["fcntl"] = None
for name in "fork register_at_fork posix_fallocate sysconf O_DIRECTORY O_NOFOLLOW O_NONBLOCK killpg fchdir".split():
    delattr(os, name)
for name in "SIGUSR1 SIGUSR2 SIGHUP SIGALRM pthread_sigmask sigwaitinfo".split():
    delattr(signal, name)
multiprocessing.context._default_context._actual_context = multiprocessing.get_context("spawn")
from healsg.cli import main

def healsg(*line):
    sys.argv = ["healsg", *line]
    return main()

def stop_once_trained(metrics):
    while not os.path.exists(metrics) or "epoch" not in open(metrics).read():
        threading.Event().wait(0.01)
    os.kill(os.getpid(), signal.SIGTERM)
"""

DAY = """
if __name__ == "__main__":
    small = ["data=digits", "model=mlp", "method=sgd", "runner.device=cpu"]
    assert healsg("train", *small, "name=whole", "runner.epochs=2") == 0
    threading.Thread(target=stop_once_trained, args=("runs/cut/metrics.jsonl",)).start()
    status = healsg("train", *small, "name=cut", "runner.epochs=400")
    assert status == 128 + signal.SIGTERM, status
    assert healsg("resume", "runs/cut", "runner.max_time=4.5") == 0
    child = subprocess.Popen([sys.executable, __file__, "hold"], stdout=subprocess.PIPE, text=True)
    child.stdout.readline()
    assert healsg("train", *small, "name=held", "runner.epochs=2") == 1
    child.kill()
    child.wait()
    assert healsg("train", *small, "name=held", "runner.epochs=2") == 0
    assert healsg("train", "-m", *small, "name=sweep", "runner.epochs=1", "seed=0,1") == 0
    pictures = ["data=imagefolder", "data.folder=pictures", "data.image_size=8", "data.augment=none", "data.shift=0"]
    pictures += ["data.workers=1", "model=mlp", "method=sgd", "runner.device=cpu"]
    assert healsg("train", *pictures, "name=pictures", "runner.epochs=1") == 0
"""

HOLD = """
if sys.argv[1:] == ["hold"]:
    from pathlib import Path
    from healsg.runs.folder import RunFolder
    RunFolder(Path("runs/held")).lock()
    print("held", flush=True)
    threading.Event().wait()
"""


def test_a_run_needs_nothing_that_windows_lacks(tmp_path: Path) -> None:
    """It trains, stops by a signal, goes on, sweeps, reads pictures in a worker, and a second process is refused."""
    for split in ("train", "val"):
        for number, name in enumerate(("cats", "dogs")):
            folder = tmp_path / "pictures" / split / name
            folder.mkdir(parents=True)
            for sample in range(4):
                Image.new("RGB", (8, 8), (60 * sample, 200 * number, 0)).save(folder / f"{sample}.png")
    script = tmp_path / "windows.py"
    script.write_text(WINDOWS + HOLD + DAY.replace('__main__":', '__main__" and not sys.argv[1:]:'))
    environment = os.environ | {"PYTHONPATH": str(SRC.parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "runs/held: is being trained by process" in done.stderr
    for name, status in (("whole", "finished"), ("cut", "stopped"), ("held", "finished"), ("pictures", "finished")):
        assert json.loads((tmp_path / "runs" / name / "run.json").read_text())["status"] == status
    assert len(list((tmp_path / "runs" / "sweep").glob("seed=*/checkpoints/last.pt"))) == 2


POSIX_ONLY = {"fork", "register_at_fork", "posix_fallocate", "sysconf", "killpg", "statvfs", "getuid", "setsid"} | {
    *("SIGUSR1", "SIGUSR2", "SIGHUP", "SIGKILL", "SIGALRM", "pthread_sigmask", "sigwaitinfo", "setitimer", "alarm")
}


def test_names_of_posix_systems_alone_are_in_one_file() -> None:
    found = []
    for path in sorted(SRC.rglob("*.py")):
        if path == SRC / "system.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                if node.value.id in ("os", "signal") and node.attr in POSIX_ONLY:
                    found.append(f"{path.relative_to(SRC)}:{node.lineno}: {node.value.id}.{node.attr}")
            elif isinstance(node, ast.Import) and {"fcntl", "resource", "pwd"} & {name.name for name in node.names}:
                found.append(f"{path.relative_to(SRC)}:{node.lineno}: {ast.unparse(node)}")
    assert not found, f"healsg.system has what takes their place: {found}"
