"""The benchmarks: what they compute without measuring anything, and that their pages say what was measured."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
import torch

from helpers import REPOSITORY

if str(REPOSITORY) not in sys.path:
    sys.path.append(str(REPOSITORY))

from benchmarks import first_gpu
from benchmarks.methods import __main__ as methods
from benchmarks.peers import document, measure, report, tight
from benchmarks.peers.prepare import crops
from benchmarks.peers.work import Clock, Given, Images, Work, parameter_sum
from benchmarks.segmentation import turns

RESULTS = REPOSITORY / "benchmarks" / "results" / "peers.json"


def images(rows: int = 12, epochs: int = 3) -> Work:
    """Work on random images, with random crops."""
    generator = torch.Generator().manual_seed(0)

    def integers(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(high, shape, generator=generator)

    stored = integers(256, rows, 3, 32, 32).to(torch.uint8), integers(10, rows)
    orders = torch.stack([torch.randperm(rows, generator=generator) for _ in range(epochs)])
    draws = torch.stack([integers(high, epochs, rows) for high in (2, 9, 9)], dim=2)
    scaling = torch.full((3, 1, 1), 1 / 64), torch.full((3, 1, 1), -2.0)
    return Work("W3", epochs, 5, stored, stored, orders, draws, [], *scaling, [])


def test_batches_gathered_by_hand_are_those_of_the_loader() -> None:
    work = images()
    clock = Clock(work)
    loader, still = work.loaders(clock)
    for epoch in range(work.epochs):
        dealt, gathered = list(loader), list(tight.batches(work, epoch))
        assert [len(target) for _, target in dealt] == [5, 5, 2]
        for (input, target), (wanted, classes) in zip(dealt, gathered, strict=True):
            assert torch.equal(input, wanted)
            assert torch.equal(target, classes)
    assert len(clock.times) == work.epochs
    assert all(torch.equal(a[0], b[0]) for a, b in zip(still, tight.still(work), strict=True))


def test_crops_are_found_by_looking() -> None:
    work = images()
    assert work.draws is not None
    samples = Images(work, training=True)
    for epoch, wanted in enumerate(work.draws):
        dealt = torch.stack([samples[epoch * 12 + i][0] for i in range(12)])
        assert torch.equal(crops(work.train[0], ((dealt + 2) * 64).round().to(torch.uint8)), wanted)
    with pytest.raises(SystemExit, match="no window"):
        crops(work.train[0], work.train[0] // 2)


def test_the_clock_measures_the_epochs_between_the_first_and_the_last() -> None:
    work = images(epochs=4)
    clock = Clock(work)
    order = Given(work, clock)
    assert [sorted(index % 12 for index in order) for _ in range(4)] == [list(range(12))] * 4
    clock.times = [0.0, 1.0, 4.0, 7.0]
    assert clock.value() == (7 - 1) / (3 * 2)
    clock.epochs = 5
    with pytest.raises(RuntimeError, match="4 epochs began, not 5"):
        clock.value()


def test_calls_are_counted_between_those_epochs_alone() -> None:
    work = images(epochs=3)
    clock = Clock(work, counting=True)
    for epoch in range(3):
        clock.mark()
        for _ in range(9):
            abs(epoch)
    assert clock.value() == pytest.approx((9 + 3) / 3, abs=2), "nine calls, and those of the marks themselves"
    assert sys.getprofile() is None


def test_the_networks_take_the_weights_of_ours() -> None:
    from healsg.models.cifar_resnet import CifarResidualNetwork

    network = CifarResidualNetwork(3, 10, 8, 1, 16).eval()
    work = images()
    work.weights = list(network.state_dict().values())
    theirs, input = work.network().eval(), torch.randn(2, 3, 32, 32)
    assert torch.equal(theirs(input), network(input))
    assert parameter_sum(theirs) == parameter_sum(network)


def test_a_peer_that_trains_something_else_is_told() -> None:
    rows = {"bare": {"sum": [1.0, 1.0]}, "same": {"sum": [1.0004, 1.0]}, "other": {"sum": [1.0, 1.001]}}
    assert measure.different(rows) == ["other"]


def test_growth() -> None:
    sizes = [2.0, 20.0, 200.0]
    assert report.exponent([5 + size for size in sizes]) == pytest.approx(1)
    assert report.exponent([5 + size**2 for size in sizes]) == pytest.approx(2)
    assert report.exponent([5.0, 5.0, 5.0]) == 0
    rows = {str(size): {"seconds": [5 + size**2, 9e9], "peak": [8.0, 7.0]} for size in (2, 20, 200)}
    time, memory = report.of_growth({"kinds": {"lines": rows}})
    assert (time.value, time.verdict) == (pytest.approx(2), "missed")
    assert (memory.value, memory.verdict) == (0, "met")


def test_saving_is_read() -> None:
    text = "MLP 64-128-10, AdamW             blocked         0.341 (0.220 to 2.610)\n"
    text += "MLP 64-128-10, AdamW             torch.save      1.080 (0.980 to 1.390)  ratio 0.32\n"
    ((name, medians),) = measure.parsed(text).items()
    assert medians == {"blocked": 0.341, "torch.save": 1.08}
    rows: measure.Rows = {}
    for blocked in (0.341, 0.05, 0.09):
        measure.add(rows, name, **{**medians, "blocked": blocked})
    (figure,) = report.of_saving({"rows": rows})
    assert (figure.value, figure.most, figure.verdict) == (0.09 / 1.08, 0.341 / 1.08, "met")


@pytest.fixture(scope="module")
def kept() -> dict[str, Any]:
    stored: dict[str, Any] = json.loads(RESULTS.read_text())
    return stored


def test_the_page_says_what_was_measured(kept: dict[str, Any]) -> None:
    """After a measurement: python -m benchmarks.peers --rounds 0 --docs"""
    assert (REPOSITORY / "docs" / "speed.md").read_text() == document.document(kept)
    assert (REPOSITORY / "docs" / "speed.svg").read_text() == document.picture(kept)


def test_the_page_of_the_methods_says_what_was_measured() -> None:
    """After a change: python -m benchmarks.methods --docs"""
    assert (REPOSITORY / "docs" / "methods.md").read_text() == methods.document()


def test_all_peers_trained_the_same(kept: dict[str, Any]) -> None:
    assert report.disagreeing(kept) == {}
    assert {"bare", "tight", "healsg", "healsg_loader"} <= set(kept["workloads"]["W1"]["rows"])


def test_the_first_minutes_on_a_gpu_run_through_on_a_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    parts = dict(first_gpu.parts("cpu", tiny=True))
    for name in ("resume adamw", "losses", "step muon bf16"):
        parts[name]()
    assert first_gpu.main(["--tiny", "--seconds", "-1"]) == 0
    assert all("left_out" in json.loads(line) for line in capsys.readouterr().out.splitlines()[1:])


def test_two_sides_take_turns_and_the_first_round_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[str] = []
    found = turns.measured({"a step": calls.append}, rounds=2)
    assert calls == ["ours", "theirs", "theirs", "ours", "ours", "theirs"]
    assert {name: len(times) for name, times in found["a step"].items()} == {"ours": 2, "theirs": 2}
    assert len(capsys.readouterr().out.splitlines()) == 6
    times = {"ours": [1.0, 2.0, 3.0], "theirs": [2.0, 2.0, 4.0]}
    line = "a step: HEALSg 200.0 ms, X 200.0 ms, ratio 0.750 (0.500 to 1.000)"
    assert turns.line_of("a step", times, 10, "X") == line
    assert turns.line_of("a step", times, 10, "X", bar=0.7) == f"{line}; bar 0.7: missed"
