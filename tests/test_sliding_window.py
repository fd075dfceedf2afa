"""Sliding windows: MONAI's numbers, nnU-Net's published rules, mirrors, and the memory that they take."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from healsg.errors import ConfigError
from healsg.evaluation.sliding_window import (
    Windows,
    ensemble,
    full_output,
    labels,
    memory,
    mirrored,
    slabs,
    starts,
    weights,
)

CASES = [
    ((37,), (16,)),
    ((29, 40), (16, 12)),
    ((16, 12), (16, 12)),
    ((9, 30), (16, 12)),
    ((21, 13, 34), (8, 13, 10)),
    ((7, 5, 30), (8, 9, 10)),
]
"""Sides of an image and of a window: odd, equal, and smaller than the window."""


def image(sides: tuple[int, ...], channels: int = 2) -> Tensor:
    return torch.randn(channels, *sides, generator=torch.Generator().manual_seed(sum(sides)))


def by_place(batch: Tensor) -> Tensor:
    """A network whose output depends on the place in the window, so that each weight shows."""
    ramp = torch.linspace(0.5, 1.5, batch[0, 0].numel()).view(batch.shape[2:])
    return torch.cat([batch * ramp, batch.mean(dim=1, keepdim=True) + ramp], dim=1)


@pytest.mark.parametrize("gaussian", [True, False])
@pytest.mark.parametrize("overlap", [0.5, 0.25, 0.7])
@pytest.mark.parametrize(("sides", "size"), CASES[1:])
def test_windows_are_monais(sides: tuple[int, ...], size: tuple[int, ...], overlap: float, gaussian: bool) -> None:
    inferers = pytest.importorskip("monai.inferers", reason="MONAI is not installed: pip install 'healsg[seg]'")
    given, mode = image(sides), "gaussian" if gaussian else "constant"
    wanted = inferers.sliding_window_inference(given[None], size, 3, by_place, overlap=overlap, mode=mode)[0]
    for batch, axis in ((1, 0), (3, None)):
        found = full_output(by_place, given, Windows(size, "monai", overlap, gaussian, batch), axis=axis)
        np.testing.assert_allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize(("sides", "size"), CASES)
def test_windows_are_nnunets(sides: tuple[int, ...], size: tuple[int, ...]) -> None:
    """Computed another way: steps of at most half a window, spread evenly; a blurred point as weights, in float64."""
    ndimage = pytest.importorskip("scipy.ndimage", reason="scipy is not installed: pip install 'healsg[seg]'")
    given = image(sides).double()
    point = np.zeros(size)
    point[tuple(side // 2 for side in size)] = 1
    blurred = ndimage.gaussian_filter(point, [side / 8 for side in size], mode="constant")
    np.testing.assert_allclose(weights(Windows(size)), blurred / blurred.max(), atol=1e-6)
    missing = [max(0, window - side) for side, window in zip(sides, size, strict=True)]
    pads = [(amount // 2, amount - amount // 2) for amount in missing]
    padded = np.pad(given.numpy(), [(0, 0), *pads])
    total, count = np.zeros((3, *padded.shape[1:])), np.zeros(padded.shape[1:])
    along = []
    for side, window in zip(padded.shape[1:], size, strict=True):
        number = int(np.ceil((side - window) / (window / 2))) + 1
        along.append([int(np.round(place)) for place in np.linspace(0, side - window, number)])
    for place in itertools.product(*along):
        box = tuple(slice(start, start + window) for start, window in zip(place, size, strict=True))
        window = torch.from_numpy(padded[(slice(None), *box)])[None]
        total[(slice(None), *box)] += by_place(window)[0].numpy() * blurred
        count[box] += blurred
    box = tuple(slice(low, low + side) for (low, _), side in zip(pads, sides, strict=True))
    np.testing.assert_allclose(
        full_output(by_place, given, Windows(size)), (total / count)[(slice(None), *box)], atol=1e-6
    )


def test_nnunets_examples() -> None:
    """Window 128, step 64: as few windows as reach over the whole, at even distances."""
    assert starts(128, 128, 0.5, "nnunet") == [0]
    assert starts(150, 128, 0.5, "nnunet") == [0, 22]
    assert starts(300, 128, 0.5, "nnunet") == [0, 57, 115, 172]
    assert starts(300, 128, 0.5, "monai") == [0, 64, 128, 172]


@pytest.mark.parametrize("rule", ["monai", "nnunet"])
def test_what_a_window_alone_says_is_what_all_say_together(rule: Any) -> None:
    """A network that knows no place gives the same through windows, whatever the weights."""
    given = image((19, 23, 31))
    found = full_output(lambda batch: batch.exp(), given, Windows((8, 6, 7), rule, 0.6, batch=4))
    np.testing.assert_allclose(found, given.exp(), rtol=1e-5)


def test_slabs_are_the_whole_in_order_and_no_longer_than_a_window() -> None:
    given = image((50, 20, 9))
    windows = Windows((8, 8, 9))
    parts = list(slabs(by_place, given, windows))
    lengths = [output.shape[1] for _, output in parts]
    assert [first for first, _ in parts] == [0, *np.cumsum(lengths)[:-1].tolist()]
    assert sum(lengths) == 50
    assert max(lengths) <= 8
    assert memory((50, 20, 9), windows, 3) < 50 * 20 * 9 * 4 * 3 / 2


def test_labels_are_the_largest_scores_or_the_last_region() -> None:
    given = image((30, 12, 10), channels=3)
    windows = Windows((10, 8, 8), batch=2)
    output = full_output(by_place, given, windows)
    assert torch.equal(labels(by_place, given, windows).long(), output.argmax(dim=0))
    found = labels(by_place, given, windows, regions=[2, 1, 7, 300])
    wanted = torch.zeros(output.shape[1:], dtype=torch.long)
    for label, scores in zip([2, 1, 7, 300], output, strict=True):
        wanted[scores > 0] = label
    assert torch.equal(found.long(), wanted)


def test_an_array_is_read_window_by_window() -> None:
    class Watched(np.ndarray[Any, Any]):
        largest = 0

        def __getitem__(self, key: Any) -> Any:
            taken = np.asarray(self)[key]
            Watched.largest = max(Watched.largest, taken.size)
            return taken

    stored = (image((40, 30)) * 1000).to(torch.int16).numpy()
    found = full_output(by_place, stored.view(Watched), Windows((12, 12)))
    assert Watched.largest == 2 * 12 * 12
    np.testing.assert_allclose(found, full_output(by_place, torch.from_numpy(stored).float(), Windows((12, 12))))


def test_mirrors_are_averaged_over_all_combinations() -> None:
    batch = image((6, 5))[None]
    wanted = torch.stack(
        [by_place(batch.flip(axes)).flip(axes) for axes in ([], [2], [3], [2, 3])]  # all that two axes have
    ).mean(dim=0)
    np.testing.assert_allclose(mirrored(by_place, (0, 1))(batch), wanted, atol=1e-6)
    np.testing.assert_allclose(full_output(by_place, batch[0], Windows((6, 5), mirror=(0, 1))), wanted[0], atol=1e-6)
    odd = mirrored(lambda one: one, (1,))(batch)
    assert torch.equal(odd, batch), "a mirror image has no shift of half a pixel"
    both = ensemble([by_place, lambda one: by_place(one) * 3])(batch)
    np.testing.assert_allclose(both, by_place(batch) * 2, rtol=1e-6)


WRONG: list[dict[str, Any]] = [
    {"size": (0, 4)},
    {"size": ()},
    {"size": (4,), "overlap": 1.0},
    {"size": (4,), "overlap": math.nan},
    {"size": (4,), "batch": 0},
    {"size": (4, 4), "mirror": (2,)},
]


@pytest.mark.parametrize("wrong", WRONG)
def test_windows_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="windows"):
        Windows(**wrong)
    with pytest.raises(ConfigError, match="3 axes, the image has 2"):
        next(slabs(by_place, image((8, 8)), Windows((4, 4, 4))))
