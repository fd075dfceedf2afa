"""One peer in a fresh process: python -m benchmarks.peers.run PEER FOLDER OUT WORKLOAD[,WORKLOAD] [--calls]

Writes what it measured to OUT as JSON: by workload the CPU seconds a step and of the whole, the sum of all parameters,
the images a second, and with ``--calls`` the calls a step of W1. The sum of a workload in ``OTHER_FORMAT`` is HEALSg's
only with ``--calls``.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

PEERS = {
    "bare": "bare.train",
    "tight": "tight.train",
    "healsg": "healsg.train",
    "healsg_loader": "healsg.train_with_loaders",
    "accelerate": "accelerate.train",
    "ignite": "ignite.train",
    "mmengine": "mmengine.train",
    "skorch": "skorch.train",
    "transformers": "transformers_trainer.train",
    "fastai": "fastai.train",
    "lightning_barebones": "lightning.train_barebones",
    "lightning": "lightning.train",
    "composer": "composer.train",
}


OTHER_FORMAT = ("W2", "W3")
"""Where HEALSg chooses another memory format than the other loops have, so that sums are rounded in another way. Its
parameters are compared with theirs after a further run in their format, which is not timed."""


def measure(peer: str, folder: str, names: list[str], counting: bool) -> dict[str, Any]:
    """Train with the peer; by workload what came of it."""
    import torch
    import torch._dynamo  # the first optimizer imports it; here it is among the imports for all

    from benchmarks.peers.work import Clock, Work, parameter_sum

    torch.set_num_threads(1)
    module, function = PEERS[peer].split(".")
    train = getattr(import_module(f"benchmarks.peers.{module}"), function)
    results: dict[str, Any] = {"imports": time.process_time()}
    for name in names:
        work = Work.load(folder, name)
        clock, began = Clock(work), time.process_time()
        gc.collect()
        network = train(work, clock)
        whole, step = time.process_time() - began, clock.value()
        results[name] = {"step": step, "whole": whole}
        if peer.startswith("healsg") and name in OTHER_FORMAT:
            if counting:
                work.overrides.append("runner.channels_last=false")
                results[name]["sum"] = parameter_sum(train(work, Clock(work)))
        else:
            results[name]["sum"] = parameter_sum(network)
        results[name]["images_per_second"] = len(work.train[1]) / (step * work.steps)
        if counting and name == "W1":
            work.epochs = 6
            clock = Clock(work, counting=True)
            work.overrides.append("runner.epochs=6")
            train(work, clock)
            results[name]["calls"] = clock.value()
    return results


def main() -> None:
    peer, folder, out, names = sys.argv[1:5]
    Path(out).write_text(json.dumps(measure(peer, folder, names.split(","), "--calls" in sys.argv)))


if __name__ == "__main__":
    main()
