"""What bf16 does to the test accuracy on the digits: python -m benchmarks.precision [seeds] [first]

The default network, trained in fp32 and in bf16 with the same seeds: HEALSg, and a bare loop with ``torch.autocast``
that starts from HEALSg's weights, gets the batches of HEALSg's loader, and uses torch's own AdamW with the same
settings and the learning rates that HEALSg's schedule gave. The weights after the last epoch are measured on the test
part: those of a bf16 run in bf16 and in fp32, which tells training from evaluation. Differences are paired by seed;
means and 95 % intervals. A test sample is 0.28 points. Nothing is chosen by these numbers.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.bars import Bar, keep
from healsg import BasicTask, TaskTrainer
from healsg.commands.compare.statistics import interval

RESULTS = Path(__file__).parent / "results" / "precision.txt"
ROWS = RESULTS.with_suffix(".json")
"""The accuracies by seed; a seed that is there is not measured again."""
MOST = 0.3
"""Points of accuracy that bf16 may cost."""
BARE = 5
"""The first seeds, for which the bare loop trains too."""


def built(seed: int, precision: str) -> BasicTask:
    options = ["data=digits", "quiet=true", "runner.threads=1", f"seed={seed}", f"runner.precision={precision}"]
    task = TaskTrainer.compose(*options, "name=run", "fresh=true", "runner.device=cpu").make_task()
    task.build()
    return task


@torch.no_grad()
def accuracy(task: BasicTask, network: nn.Module, half: bool) -> float:
    """On the test part, in percent; ``half``: under autocast to bf16."""
    network.eval()
    hits = rows = 0
    for batch in task.runner.eval_batches(task, "test"):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            output = network(batch["input"])
        hits += int((output.argmax(dim=1) == batch["target"]).sum())
        rows += len(output)
    return 100 * hits / rows


def ours(seed: int, precision: str) -> tuple[BasicTask, list[list[float]]]:
    """A task after its training, and the learning rate of each group at each update."""
    task = built(seed, precision)
    rates = []
    whole = task.optimizer.step

    def step(*given: Any) -> Any:
        rates.append([float(group["lr"]) for group in task.optimizer.param_groups])
        return whole(*given)

    task.optimizer.step = step  # type: ignore[method-assign]
    for _ in range(task.runner.max_epoch):
        task.train_epoch.run()
        task.runner.next_epoch()
    return task, rates


def by_hand(seed: int, rates: list[list[float]], half: bool) -> tuple[BasicTask, nn.Module]:
    """The same training in a bare loop."""
    task = built(seed, "fp32")
    network, criterion = task.model, task.criterion
    groups = [{**group, "fused": True} for group in task.optimizer.param_groups]
    names = ("params", "lr", "betas", "eps", "weight_decay", "fused")
    optimizer = torch.optim.AdamW([{name: group[name] for name in names if name in group} for group in groups])
    dealt = iter(rates)
    for epoch in range(task.runner.max_epoch):
        network.train()
        for batch, _ in task.loaders["train"].batches(epoch):  # type: ignore[union-attr]
            for group, rate in zip(optimizer.param_groups, next(dealt), strict=True):
                group["lr"] = rate
            batch = task.runner.device_setup.move(batch)
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                loss = criterion(network(batch["input"]), batch["target"])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return task, network


def of_seed(seed: int, bare: bool) -> dict[str, float]:
    """Test accuracy by setting; with ``bare`` also the bare loop's."""
    found = {}
    task, rates = ours(seed, "fp32")
    found["ours fp32"] = accuracy(task, task.model, False)
    task, _ = ours(seed, "bf16")
    found["ours bf16"] = accuracy(task, task.model, True)
    found["ours bf16, measured in fp32"] = accuracy(task, task.model, False)
    for half in (False, True) if bare else ():
        task, network = by_hand(seed, rates, half)
        found[f"bare {'bf16' if half else 'fp32'}"] = accuracy(task, network, half)
    return found


def summary(rows: Sequence[dict[str, float]]) -> tuple[list[str], list[Bar]]:
    """The means of the settings and of the paired differences, and their figures."""
    lines = []
    for name in rows[0]:
        mean, half = interval([row[name] for row in rows if name in row])
        lines.append(f"{name:32}{mean:7.2f} ({mean - half:.2f} to {mean + half:.2f})")
    pairs = [("ours bf16", "ours fp32"), ("ours bf16, measured in fp32", "ours fp32")]
    pairs += [("bare bf16", "bare fp32"), ("ours bf16", "bare bf16"), ("ours fp32", "bare fp32")]
    bars = []
    for one, other in pairs:
        differences = [row[one] - row[other] for row in rows if one in row and other in row]
        mean, half = interval(differences)
        found = f"{mean:+.2f} ({mean - half:+.2f} to {mean + half:+.2f}), {len(differences)} seeds"
        lines.append(f"{one} minus {other}: {found}")
        most = MOST if (one, other) == pairs[0] else None
        title = f"loss of test accuracy on digits: {other} minus {one}, 95 %"
        bars.append(Bar("W12", title, -mean, -mean - half, -mean + half, most, "points"))
    return lines, bars


def main() -> None:
    count, first = [*map(int, sys.argv[1:]), *[20, 0][len(sys.argv) - 1 :]][:2]
    torch.set_num_threads(1)
    kept: dict[str, dict[str, float]] = json.loads(ROWS.read_text()) if ROWS.exists() else {}
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        for seed in range(first, first + count):
            if str(seed) not in kept:
                kept[str(seed)] = of_seed(seed, seed < BARE)
                ROWS.write_text(json.dumps(kept, indent=1) + "\n")
                print(seed, kept[str(seed)], flush=True)
    rows = [kept[seed] for seed in sorted(kept, key=int)]
    conditions = f"torch {torch.__version__}, one thread, no GPU, {len(rows)} seeds"
    found, bars = summary(rows)
    lines = [f"python -m benchmarks.precision {len(rows)}", f"{conditions}: test accuracy on digits, points", *found]
    print(*lines, sep="\n")
    RESULTS.write_text("\n".join(lines) + "\n")
    keep(lines[0], conditions, bars)


if __name__ == "__main__":
    main()
