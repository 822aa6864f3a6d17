"""Images that are moved at random: where to, how often, and that nothing waits."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import gpunn as gn
from bench.gpu_costs import costs, read
from tests.conftest import Place


def images(n: int = 40, height: int = 3, width: int = 4, channels: int = 2) -> np.ndarray[Any, Any]:
    return np.arange(1, 1 + n * height * width * channels, dtype="float32").reshape(
        n, height, width, channels
    )


def moved(image: Any, down: int, right: int, *, mirrored: bool) -> Any:
    """Return an image as a person would move it."""
    image = image[:, ::-1] if mirrored else image
    result = np.zeros_like(image)
    for i, j in np.ndindex(image.shape[:2]):
        if 0 <= i + down < image.shape[0] and 0 <= j + right < image.shape[1]:
            result[i + down, j + right] = image[i, j]
    return result


def ways(shift: int, *, flip: bool) -> list[tuple[int, int, bool]]:
    steps = range(-shift, shift + 1)
    return [(down, right, m) for down in steps for right in steps for m in {False, flip}]


@pytest.mark.parametrize(("shift", "flip"), [(1, False), (0, True), (2, True)])
def test_each_image_goes_one_of_the_ways(place: Place, shift: int, flip: bool) -> None:
    x = images()
    given = place.array(x)
    result = gn.Augment(shift, flip=flip, rng=0)(given)
    assert gn.backend_of(result) == place.backend
    assert result.dtype == given.dtype
    assert_array_equal(gn.to_numpy(given), x)
    for before, after in zip(x, gn.to_numpy(result), strict=True):
        assert any(
            np.array_equal(after, moved(before, down, right, mirrored=mirrored))
            for down, right, mirrored in ways(shift, flip=flip)
        )


def test_all_ways_are_equally_probable() -> None:
    x = np.broadcast_to(images(1), (18_000, 3, 4, 2))
    found = Counter(image.tobytes() for image in gn.Augment(1, flip=True, rng=0)(x))
    all_ways = ways(1, flip=True)
    assert set(found) == {moved(x[0], d, r, mirrored=m).tobytes() for d, r, m in all_ways}
    assert len(found) == 18
    assert all(abs(count - 1000) < 5 * np.sqrt(1000) for count in found.values())


def test_the_seed_decides_and_batches_differ(place: Place) -> None:
    x = images()
    one, other, on_host = gn.Augment(2, rng=1), gn.Augment(2, rng=1), gn.Augment(2, rng=1)
    first, second = one(place.array(x)), one(place.array(x))
    assert_array_equal(gn.to_numpy(first), gn.to_numpy(other(place.array(x))))
    assert_array_equal(gn.to_numpy(first), on_host(x))
    assert not np.array_equal(gn.to_numpy(first), gn.to_numpy(second))


def test_a_shift_beyond_the_image_and_no_images() -> None:
    result = gn.Augment(9, rng=0)(images(200))
    assert (result == 0).all(axis=(1, 2, 3)).any()
    assert gn.Augment(1)(images(0)).shape == (0, 3, 4, 2)


def test_in_a_loader(place: Place) -> None:
    augment = gn.Augment(1, flip=True, rng=0)
    x, y = gn.datasets.load_digits()
    settings: Any = {"batch_size": 50, "shuffle": False, "backend": place.backend}
    plain = gn.Loader(x[:100], y[:100], **settings)
    loader = gn.Loader(x[:100], y[:100], transform=augment, **settings)
    for before, after in zip(plain, loader, strict=True):
        assert after.x.shape == before.x.shape
        assert not np.array_equal(gn.to_numpy(before.x), gn.to_numpy(after.x))
        assert_array_equal(gn.to_numpy(before.y), gn.to_numpy(after.y))


@pytest.mark.gpu
@pytest.mark.emulated
def test_nothing_waits_or_is_copied_to_the_device() -> None:
    x = gn.get_backend("cupy").asarray(images())
    augment = gn.Augment(2, flip=True, rng=0)
    augment(x)  # what is compiled at the first call
    before = read()
    augment(x)
    spent = costs(before, read())
    assert (spent.h2d_bytes, spent.d2h_bytes, spent.syncs) == (0, 0, 0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (gn.Augment, "shift=0 and flip=False change nothing"),
        (lambda: gn.Augment(1)(np.zeros((2, 64))), r"images, an array \(N, H, W, C\), got shape"),
        (lambda: gn.Augment(1)([[1.0]]), "got list"),
    ],
)
def test_mistakes(call: Any, message: str) -> None:
    with pytest.raises(gn.errors.GpunnError, match=message):
        call()


def test_its_repr() -> None:
    assert repr(gn.Augment(2, flip=True)) == "Augment(2, flip=True)"


def test_two_trainings_move_images_as_one_twice_as_long_does(place: Place) -> None:
    """What a trainer tries first moves none."""
    x, y = images(6), np.arange(6) % 2
    weights = []
    for epochs in ([4], [2, 2]):
        model = gn.Sequential(gn.Flatten(), gn.Dense(24, 2, rng=0)).to(place.backend)
        trainer = gn.Trainer(model, gn.SoftmaxCrossEntropy(), gn.SGD(model.parameters(), 1e-4))
        settings: Any = {"batch_size": 2, "shuffle": False, "backend": place.backend}
        loader = gn.Loader(x, y, transform=gn.Augment(1, flip=True, rng=0), **settings)
        for n in epochs:
            trainer.fit(loader, n, progress=False)
        weights.append(gn.to_numpy(model[1].weight.value))
    assert_array_equal(*weights)
