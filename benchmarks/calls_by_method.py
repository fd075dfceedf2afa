"""Python and C calls of a training step by method: PYTHONPATH=src:. python -m benchmarks.calls_by_method [methods]

Every option of ``conf/method`` on the digits with ``model=mlp`` (what needs pictures or a transformer has the smallest
such network), batches of 64. Calls of the training pass are counted by ``sys.setprofile`` over the third and fourth
epoch, without evaluation and saves. They say what a step asks of Python, not what its kernels take; see
``benchmarks.own_methods`` for that.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import torch

from healsg import TaskTrainer
from healsg.config.compose import conf_folder

RESULTS = Path(__file__).parent / "results" / "calls_by_method.txt"

COMMON = ["data.batch_size=64", "quiet=true", "runner.device=cpu", "runner.threads=1", "fresh=true"]
MLP = ["model=mlp"]
CNN = ["model=cnn", "model.width=4"]
VIT = ["model=vit", "model.patch=4", "model.width=12", "model.heads=2", "model.depth=1"]
TEACHER = "method.teacher=runs/teacher"

NEEDS: dict[str, list[str]] = {
    "airbench": ["data=synthetic", "data.shape=[3,32,32]", "data.train=256", "data.test=32", "model=airbench"],
    "kd": [*MLP, TEACHER],
    "dkd": [*MLP, TEACHER],
    "fitnet": [*MLP, TEACHER],
    "crd": [*MLP, TEACHER],
    "attention_transfer": [*CNN, "method.teacher=runs/teacher-cnn"],
    "mae": [*VIT, "method.width=8", "method.depth=1", "method.heads=2"],
    "moco": [*MLP, "method.queue=600"],
    "lora": [*VIT, "init_from=runs/teacher-vit"],
    "finetune": [*MLP, "init_from=runs/teacher"],
    "linear_probe": [*MLP, "init_from=runs/teacher"],
}
"""By method what it cannot do without; all others take ``MLP``."""


def counted(method: str) -> tuple[float, int]:
    """Calls a step of the training pass, and the steps of an epoch."""
    told = [*COMMON, f"method={method}", *NEEDS.get(method, MLP), "runner.epochs=100", f"name=run-{method}"]
    task = TaskTrainer.compose(*told).make_task()
    task.build()
    calls = 0

    def profile(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    for epoch in range(4):
        if epoch >= 2:
            sys.setprofile(profile)
        try:
            task.train_epoch.run()
        finally:
            sys.setprofile(None)
        task.runner.next_epoch()
    return calls / (2 * task.runner.length), task.runner.length


def main() -> None:
    torch.set_num_threads(1)
    methods = sorted(path.stem for path in (Path(str(conf_folder())) / "method").glob("*.yaml"))
    before = RESULTS.read_text().splitlines()[2:] if RESULTS.exists() else []
    lines = {line.split()[0]: line for line in before}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for name, model in (("teacher", MLP), ("teacher-cnn", CNN), ("teacher-vit", VIT)):
            TaskTrainer.compose(*COMMON, *model, "runner.steps=2", f"name={name}").train()
        for method in sys.argv[1:] or methods:
            calls, steps = counted(method)
            lines[method] = f"{method:20}{calls:8.0f} calls a step, {steps} steps an epoch"
            print(lines[method], flush=True)
    head = ["python -m benchmarks.calls_by_method", f"torch {torch.__version__}, batches of 64"]
    RESULTS.write_text("\n".join([*head, *(lines[name] for name in methods if name in lines)]) + "\n")


if __name__ == "__main__":
    main()
