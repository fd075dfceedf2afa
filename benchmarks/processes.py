"""A training step of several processes beside plain DistributedDataParallel by hand: CPU time and bytes exchanged.

    OMP_NUM_THREADS=1 PYTHONPATH=src:. python -m benchmarks.processes [rounds] [processes ...]

The network is that of ``benchmarks.own_parts``, with 8,192 random vectors in memory and torch's AdamW; a batch has 64
samples a process. Each side has processes of its own (gloo, one thread each), and only one side works at a time: they
train in turns, within one run of this command, and the ratio is taken within the round. The figure with the bar is the
CPU time of all ranks of a side, threads included, so that HEALSg's failure detection counts. gloo's thread spins while
it waits for other processes, and takes as much of it as the machine makes it wait. So two more are told beside: the CPU
time of the threads that train, where the two sides differ, and the wall time.

Bytes are those of the tensors that one rank gives to collectives, counted in the dispatcher of torch; calls are
Python's and C's in the thread that trains. Both are the same in each run. CPU time is not where other work shares the
cores: waiting and being woken cost more then. So rounds are short and many. Writes ``results/processes.txt``.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import platform
import socket
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import yaml
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.bars import Bar, keep
from benchmarks.own_parts import OPTIONS, Vectors, network
from healsg import TensorSource

SAMPLES = 8192
ROWS = 64
"""Samples of a batch in each process."""
STEPS = 64
"""Updates of a round."""
BAR = 1.05
RESULTS = Path(__file__).with_name("results") / "processes.txt"

Epochs = Callable[[], None]
SETTINGS = {"lr": 1e-3, "weight_decay": 0.01}


def samples() -> tuple[Tensor, Tensor]:
    """(N, 64) inputs and (N,) classes."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(SAMPLES, 64, generator=generator), torch.randint(0, 10, (SAMPLES,), generator=generator)


class ManyVectors(Vectors):
    """The samples, in memory."""

    def read(self, part: str) -> TensorSource | None:
        return TensorSource(*samples()) if part == "train" else super().read(part)


class Exchanged(TorchDispatchMode):
    """Counts the collectives that are called within, by name, and the bytes of the tensors they are given."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.sizes: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            name = func.name().removeprefix("c10d::").rstrip("_")
            given = args[1] if name == "allgather" else args[0]  # what others give comes before what is given
            self.calls[name] += 1
            self.sizes[name] += sum(one.nbytes for one in tree_leaves(given) if isinstance(one, Tensor))
        return func(*args, **(kwargs or {}))


def by_hand(rank: int, world: int) -> Epochs:
    """Epochs of plain DistributedDataParallel."""
    dist.init_process_group("gloo", rank=rank, world_size=world)
    inputs, targets = samples()
    net, criterion = DistributedDataParallel(network()), nn.CrossEntropyLoss()
    optimizer = torch.optim.AdamW(net.parameters(), **SETTINGS)
    generator = torch.Generator().manual_seed(0)

    def epochs() -> None:
        for _ in range(STEPS * ROWS * world // SAMPLES):
            losses = []
            for batch in torch.randperm(SAMPLES, generator=generator).split(ROWS * world):
                part = batch[rank * ROWS : (rank + 1) * ROWS]
                loss = criterion(net(inputs[part]), targets[part])
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                losses.append(loss.detach())
            shown = torch.stack(losses).mean()
            dist.all_reduce(shown)
            shown.item()

    return epochs


def ours(rank: int, world: int) -> Epochs:
    """Epochs of HEALSg, without what surrounds them."""
    from healsg import TaskTrainer

    options = ["data=vectors", f"data.batch_size={ROWS * world}", "model=own", "method=adamw", "trusted=[benchmarks]"]
    options += ["method.optimizer._target_=torch.optim.AdamW", "method/scheduler=constant", "quiet=true", "name=run"]
    options += [f"method.optimizer.{key}={value}" for key, value in SETTINGS.items()]
    options += ["runner.epochs=1000000", "runner.device=cpu"]
    task = TaskTrainer.compose(*options, config_dir="conf").make_task()
    task.build()
    assert isinstance(task.net, DistributedDataParallel)

    def epochs() -> None:
        for _ in range(STEPS * ROWS * world // SAMPLES):
            task.train_epoch.run()
            task.runner.next_epoch()

    return epochs


SIDES = {"HEALSg": ours, "by hand": by_hand}


def calls_of(epochs: Epochs) -> int:
    """The calls, Python's and C's, that the epochs take."""
    count = 0

    def seen(frame: Any, event: str, value: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(seen)
    epochs()
    sys.setprofile(None)
    return count


def clocks() -> list[float]:
    """Seconds: the CPU time of this process, that of this thread, and the time of the wall."""
    return [time.process_time(), time.thread_time(), time.perf_counter()]


def serve(side: str, rank: int, world: int, port: int, orders: Connection) -> None:
    """What a rank does: it trains whenever it is told to, and answers with its times, or with what was counted."""
    torch.set_num_threads(1)
    os.environ.update({"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1"})
    os.environ.update({"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), "MASTER_PORT": str(port)})
    epochs = SIDES[side](rank, world)
    for order in iter(orders.recv, "end"):
        if order == "train":
            began = clocks()
            epochs()
            orders.send([now - then for now, then in zip(clocks(), began, strict=True)])
        elif order == "calls":
            orders.send(calls_of(epochs))
        else:
            with Exchanged() as exchanged:
                epochs()
            orders.send((exchanged.calls, exchanged.sizes))
    os._exit(0)  # a group whose other ranks have left cannot be closed in an orderly way


class Side:
    """The processes of one side."""

    def __init__(self, side: str, world: int) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        context = multiprocessing.get_context("spawn")
        self.pipes = []
        self.processes = []
        for rank in range(world):
            own, other = context.Pipe()
            process = context.Process(target=serve, args=(side, rank, world, port, other), daemon=True)
            process.start()
            self.pipes.append(own)
            self.processes.append(process)

    def all(self, order: str) -> list[Any]:
        """The answer of each rank."""
        for pipe in self.pipes:
            pipe.send(order)
        return [pipe.recv() for pipe in self.pipes]

    def seconds(self) -> list[float]:
        """A round: CPU time of all ranks together, that of their training threads, and the wall time."""
        whole, training, wall = zip(*self.all("train"), strict=True)
        return [sum(whole), sum(training), max(wall)]

    def exchanged(self) -> str:
        """What rank 0 gives to collectives: by their names calls and bytes in all steps of a round."""
        calls, sizes = self.all("count")[0]
        return ", ".join(f"{name} {calls[name]} calls {sizes[name]:,} bytes" for name in sorted(calls))

    def close(self) -> None:
        for pipe in self.pipes:
            pipe.send("end")
        for process in self.processes:
            process.join(30)


KINDS = ("CPU time", "CPU time of the training threads", "wall time")


def measured(world: int, rounds: int) -> tuple[Bar, list[str]]:
    """What both sides take on so many processes: the figure, and the lines that tell it."""
    sides = {name: Side(name, world) for name in SIDES}
    for side in sides.values():
        side.seconds()
    pairs = []
    for number in range(rounds):
        order = list(sides) if number % 2 else list(reversed(sides))
        found = {name: sides[name].seconds() for name in order}
        pairs.append([found[name] for name in SIDES])
    lines = [f"{world} processes, HEALSg by hand = 1: median, half of the rounds; microseconds a step of all ranks"]
    spread = []
    for place, kind in enumerate(KINDS):
        own, by_hand = ([row[place] for row in one] for one in zip(*pairs, strict=True))
        low, middle, high = statistics.quantiles((a / b for a, b in zip(own, by_hand, strict=True)), n=4)
        each = [f"{1e6 * statistics.median(one) / STEPS:.0f}" for one in (own, by_hand)]
        lines.append(f"  {kind}: {middle:.3f} ({low:.3f} to {high:.3f}); {each[0]}, by hand {each[1]}")
        spread.append((middle, low, high))
    for name, side in sides.items():
        calls = side.all("calls")[0] / STEPS
        lines.append(f"  {name}, rank 0: {calls:.0f} calls a step; in {STEPS} steps {side.exchanged()}")
        side.close()
    return Bar(
        "W17", f"{world} processes, an update, x by hand, range of the middle half of the rounds", *spread[0], BAR
    ), lines


def main(rounds: int, worlds: Sequence[int]) -> None:
    conditions = f"torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}, no GPU, gloo, "
    conditions += f"one thread a process, {os.cpu_count()} cores; {rounds} rounds of {STEPS} updates a side, "
    conditions += f"load {os.getloadavg()[0]:.1f} at the start"
    command = " ".join(["python -m benchmarks.processes", *map(str, [rounds, *worlds])])
    lines = [command, f"{conditions}; bar {BAR}"]
    print(*lines, sep="\n", flush=True)
    bars = []
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        own = {"data/vectors": OPTIONS["data/vectors"] | {"_target_": "benchmarks.processes.ManyVectors"}}
        for option, node in (OPTIONS | own).items():
            path = Path(f"conf/{option}.yaml")
            path.parent.mkdir(parents=True)
            path.write_text(yaml.safe_dump(node))
        for world in worlds:
            bar, told = measured(world, rounds)
            print(*told, sep="\n", flush=True)
            bars.append(bar)
            lines += told
    RESULTS.write_text("\n".join(lines) + "\n")
    keep(command, conditions, bars)


if __name__ == "__main__":
    given = [int(word) for word in sys.argv[1:]]
    main(given[0] if given else 61, given[1:] or (2, 4))
