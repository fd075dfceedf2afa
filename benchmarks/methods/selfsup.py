"""Self-supervised learning: a linear probe with 100 labels on features that were learned without any.

Every method is held against two baselines: a linear classifier on raw pixels, and the same probe on a network with
random weights, whose BatchNorm has measured the same images as the learned one's (as drawn, with statistics of mean 0
and variance 1, such features are four points worse).
"""

from __future__ import annotations

from benchmarks.methods.experiment import Experiment, Stages

DATA = ("data=digits", "data.val_fraction=0", "runner.eval_every=1000000", "quiet=true")
CNN = (*DATA, "model=cnn", "model.width=16")
VIT = (
    *(*DATA, "model=vit", "model.patch=2", "model.width=48", "model.heads=4", "model.depth=3"),
    *("model.mlp_ratio=2", "model.pooling=mean"),
)
FEW = ("data.labels=100", "data.augment=none", "data.batch_size=100", "method.optimizer.lr=0.1", "runner.steps=300")
PROBE = ("method=linear_probe", *FEW)
LEARN = ("data.batch_size=128", "method.optimizer.lr=3e-3", "runner.steps=1500")
STILL = (*LEARN, "runner.steps=60", "method.optimizer.lr=1e-12", "method.optimizer.weight_decay=0")
SMALL = ("method.hidden=128", "method.size=128")

PIXELS: Stages = ((*DATA, "model=mlp", "model.depth=0", "method=supervised", *FEW),)


def probed(network: tuple[str, ...], *learning: str) -> Stages:
    """A network that learns without labels, then a linear probe on it."""
    return (*network, *learning), (*network, "init_from=runs/{0}", *PROBE)


def rows(
    name: str, network: tuple[str, ...], gains: tuple[float | None, float | None], *settings: str
) -> tuple[Experiment, Experiment]:
    """A method against raw pixels and against random features."""
    learned = probed(network, f"method={name}", *LEARN, *settings)
    random = probed(network, "method=mae" if network is VIT else "method=vicreg", *STILL)
    model = "vit" if network is VIT else "cnn"
    told = f"{model}, 1,500 updates without labels; linear probe, 100 labels"
    return (
        Experiment(name, f"{told}; baseline raw pixels", PIXELS, learned, gain=gains[0]),
        Experiment(f"{name}_random", f"{told}; baseline random features", random, learned, gain=gains[1]),
    )


EXPERIMENTS: tuple[Experiment, ...] = (
    *rows("vicreg", CNN, (4.0, 6.0), *SMALL),
    *rows("simclr", CNN, (2.5, 4.0), "method.hidden=128", "method.size=64"),
    *rows("byol", CNN, (2.5, 4.0), "method.hidden=128", "method.size=64", "method.momentum=0.95"),
    *rows("barlow_twins", CNN, (None, None), *SMALL, "method.weight=0.02"),
    *rows("moco", CNN, (None, None), "method.hidden=128", "method.size=64", "method.queue=1024"),
    *rows("simsiam", CNN, (None, None), *SMALL, "method.bottleneck=32"),
    *rows("dino", CNN, (None, None), "method.hidden=128", "method.bottleneck=64", "method.prototypes=256"),
    *rows("mae", VIT, (None, None), "method.width=32", "method.depth=1"),
)
