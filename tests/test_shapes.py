"""The sets that are made on the spot: pure functions of (seed, index), with all classes and what the docs promise."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from healsg.datasets.digits import read_table
from healsg.datasets.drawn.digits import digits_seg
from healsg.datasets.drawn.shapes import Drawn, shapes2d, shapes3d
from healsg.datasets.drawn.tubes import tubes3d

TABLE = read_table()
PICTURES, DIGITS = TABLE[:, :-1].reshape(-1, 1, 8, 8), TABLE[:, -1].long()

SETS: dict[str, tuple[Callable[[int, int], Drawn], int]] = {
    "shapes2d": (shapes2d, 1),
    "shapes3d": (shapes3d, 1),
    "by form": (lambda seed, index: shapes3d(seed, index, by_form=True), 2),
    "tubes3d": (lambda seed, index: tubes3d(seed, index, size=32), 1),
    "digits_seg": (lambda seed, index: digits_seg(seed, index, PICTURES, DIGITS), 1),
    "by digit": (lambda seed, index: digits_seg(seed, index, PICTURES, DIGITS, by_digit=True), 10),
}


@pytest.mark.parametrize("name", SETS)
def test_a_sample_is_a_pure_function_of_seed_and_index(name: str) -> None:
    draw, most = SETS[name]
    np.random.seed(0)
    first = draw(3, 5)
    np.random.seed(1)
    draw(3, 4)
    again = draw(3, 5)
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.labels, again.labels)
    assert np.array_equal(first.affine, again.affine)
    assert not any(
        first.image.shape == other.image.shape and np.array_equal(first.image, other.image)
        for other in (draw(3, 6), draw(4, 5))
    )
    assert (first.image.dtype, first.labels.dtype) == (np.float32, np.uint8)
    assert first.image.shape == (1, *first.labels.shape)
    assert np.isfinite(first.image).all()
    assert first.labels.max() <= most


@pytest.mark.parametrize("name", SETS)
def test_the_classes_are_there_and_most_is_background(name: str) -> None:
    draw, most = SETS[name]
    labels = np.concatenate([draw(0, index).labels.ravel() for index in range(30 if most == 10 else 8)])
    shares = np.bincount(labels, minlength=most + 1) / len(labels)
    assert (shares[1:] > 0.002).all()
    assert shares[0] > 0.5


def test_volumes_are_of_unlike_sizes_with_longer_voxels_across() -> None:
    drawn = [shapes3d(0, index) for index in range(6)]
    assert len({one.image.shape for one in drawn}) == 6
    for one in drawn:
        sizes = np.linalg.norm(one.affine[:3, :3], axis=0)
        assert sizes[0] == sizes[1] <= sizes[2]
        middle = one.affine @ [*((np.array(one.labels.shape) - 1) / 2), 1]
        np.testing.assert_allclose(middle, [0, 0, 0, 1], atol=1e-9)
    assert max(one.affine[2, 2] / -one.affine[0, 0] for one in drawn) > 1.3


def test_brightness_does_not_tell_the_classes() -> None:
    """Ellipsoids and boxes are equally bright, and as bright as some of what is neither."""
    quiet = {"texture": 0.0, "bias": 0.0, "noise": 0.0}
    for draw in (shapes2d, shapes3d):
        inside: dict[int, list[float]] = {0: [], 1: [], 2: []}
        for index in range(6):
            one = draw(1, index, by_form=True, **quiet)  # type: ignore[operator]
            for label in inside:
                inside[label] += one.image[0][one.labels == label].tolist()
        assert abs(np.median(inside[1]) - np.median(inside[2])) < 0.05
        assert max(inside[0]) > 0.9, "a decoy"
        assert np.median(inside[0]) < 0.1


def test_vessels_are_thin_branching_and_connected() -> None:
    ndimage = pytest.importorskip("scipy.ndimage", reason="scipy is not installed: pip install 'healsg[seg]'")
    for index in range(3):
        one = tubes3d(0, index, noise=0.0)
        parts, _ = ndimage.label(one.labels, np.ones((3, 3, 3)))
        largest = np.bincount(parts.ravel())[1:].max()
        assert largest > 0.9 * one.labels.sum()
        depth = ndimage.distance_transform_edt(one.labels)
        assert np.median(depth[one.labels > 0]) <= 1.5
        assert 0.002 < one.labels.mean() < 0.15
