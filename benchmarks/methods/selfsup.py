"""Self-supervised learning: a linear probe with 100 labels on features that were learned without labels.

The baseline is the same probe on a network with random weights, whose BatchNorm statistics come from the same images.
For both, the learning rate of the probe is chosen.
"""

from __future__ import annotations

from benchmarks.methods.experiment import COMMON, DATA, Experiment, grid

VIT = (
    *(*DATA, "model=vit", "model.patch=2", "model.width=48", "model.heads=4", "model.depth=3"),
    *("model.mlp_ratio=2", "model.pooling=mean"),
)
PROBE = (
    *("method=linear_probe", "data.labels=100", "data.augment=none", "data.batch_size=100", "runner.steps=300"),
    "init_from=runs/{0}",
)
LEARN = ("data.batch_size=128", "method.optimizer.lr=3e-3", "runner.steps=600")
STILL = ("data.batch_size=128", "runner.steps=60", "method.optimizer.lr=1e-12", "method.optimizer.weight_decay=0")
RATES = grid(("0.03", "0.1"))


def experiment(name: str, *settings: str, network: tuple[str, ...] = COMMON) -> Experiment:
    """A method against random features."""
    learned = ((*network, f"method={name}", *LEARN, *settings), (*network, *PROBE))
    measuring = "method=mae" if network is VIT else "method=vicreg"
    random = ((*network, measuring, *STILL), (*network, *PROBE))
    model = "vit" if network is VIT else "cnn"
    told = f"{model}, 600 updates without labels; linear probe, 100 labels; baseline random features"
    return Experiment(name, told, random, learned, RATES, RATES)


EXPERIMENTS: tuple[Experiment, ...] = (
    experiment("vicreg", "method.hidden=128", "method.size=128"),
    experiment("simclr", "method.hidden=128", "method.size=64"),
    experiment("byol", "method.hidden=128", "method.size=64", "method.momentum=0.95"),
    experiment("barlow_twins", "method.hidden=128", "method.size=128", "method.weight=0.02"),
    experiment("moco", "method.hidden=128", "method.size=64", "method.queue=512"),
    experiment("simsiam", "method.hidden=128", "method.size=128", "method.bottleneck=32"),
    experiment("dino", "method.hidden=128", "method.bottleneck=64", "method.prototypes=256"),
    experiment("mae", "method.width=32", "method.depth=1", network=VIT),
)
