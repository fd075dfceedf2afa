"""The benchmark: python -m benchmarks.peers [W1 W2 ...] [--rounds 5] [--peers bare,tight,healsg] [--docs]

W1 an MLP on digits, W2 a small CNN, W3 a residual network on CIFAR-shaped images: CPU time a step beside a bare loop,
a tight one and other frameworks, which train the same, so that the sums of all parameters agree. W4 start-up, W5
memory, W6 a sweep, W7 what a save keeps the loop, W8 growth. Fresh processes on one thread, rounds interleaved, ratios
within a round, medians and ranges.

Run it where HEALSg and its peers are installed; a peer that is not, or that fails, is told with its error. Figures go
to ``benchmarks/results/peers.json``; workloads that are not named keep theirs. ``--docs`` writes ``docs/speed.md`` and
``docs/speed.svg`` of that file, with ``--rounds 0`` without measuring.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.peers import document, report
from benchmarks.peers.measure import REPOSITORY, WORKLOADS, measured
from benchmarks.peers.run import PEERS

RESULTS = REPOSITORY / "benchmarks" / "results" / "peers.json"
PACKAGES = ["torch", "torchvision", "numpy", "scikit-learn", "hydra-core", "accelerate", "pytorch-ignite", "mmengine"]
PACKAGES += ["skorch", "transformers", "fastai", "lightning", "mosaicml"]


def machine() -> dict[str, Any]:
    """Where it was measured, with what."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    told = {"processor": names[0] if names else platform.processor(), "architecture": platform.machine()}
    told |= {"cores": os.cpu_count(), "python": platform.python_version(), "system": platform.system()}
    return {**told, "load at the start": [round(load, 2) for load in os.getloadavg()], "versions": versions}


def commit() -> str:
    """The commit of this checkout, with ``+`` where files differ from it."""
    line = ["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty=+", "--exclude=*"]
    return subprocess.run(line, capture_output=True, text=True, check=False).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers")
    parser.add_argument("workloads", nargs="*", help="W1 ... W8; all where none is named")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers", default=",".join(PEERS))
    parser.add_argument("--docs", action="store_true")
    args = parser.parse_args()
    if unknown := set(args.workloads) - set(WORKLOADS):
        parser.error(f"{', '.join(sorted(unknown))}: there is {', '.join(WORKLOADS)}")
    peers = args.peers.split(",")
    if unknown := set(peers) - set(PEERS):
        parser.error(f"--peers: no {', '.join(sorted(unknown))}; there is {', '.join(PEERS)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what is running ends with this
    names = [name for name in WORKLOADS if name in args.workloads or not args.workloads]
    told = {"rounds": args.rounds, "commit": commit(), "machine": machine()}
    results, failed = measured(names, args.rounds, peers) if args.rounds else ({}, {})
    kept: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"workloads": {}, "failed": {}}
    if args.rounds:
        workloads = kept["workloads"] | {name: {**result, **told} for name, result in results.items()}
        before = {name: why for name, why in kept["failed"].items() if name not in [*names, *peers]}
        kept = {"workloads": dict(sorted(workloads.items())), "failed": {**before, **failed}}
        RESULTS.write_text(json.dumps(kept, indent=1) + "\n")
    print(report.text(kept))
    if args.docs:
        (REPOSITORY / "docs" / "speed.md").write_text(document.document(kept))
        (REPOSITORY / "docs" / "speed.svg").write_text(document.picture(kept))


if __name__ == "__main__":
    main()
