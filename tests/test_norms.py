"""Norms: what they compute, and when running statistics change."""

from __future__ import annotations

import os
from collections import Counter
from contextlib import nullcontext
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import gpunn as gn
from bench.gpu_costs import costs, operations, read
from tests.conftest import Place
from tests.runs import one_by_one


def moments(x: Any) -> tuple[Any, Any]:
    """Return the mean and the variance over all axes but the last, in float64."""
    rows = gn.to_numpy(x).astype("float64").reshape(-1, x.shape[-1])
    return rows.mean(axis=0), rows.var(axis=0)


def running(layer: gn.BatchNorm) -> list[Any]:
    return [np.array(gn.to_numpy(b.value)) for b in (layer.running_mean, layer.running_variance)]


class TestStatistics:
    @pytest.mark.parametrize("first", [0.0, 1e4])  # an outlier must not be what others are near
    @pytest.mark.parametrize("n", [3, 200, 20_000])
    def test_a_large_mean_does_not_cancel(self, place: Place, n: int, first: float) -> None:
        """In float32, numbers around 10,000 are 0.001 apart.

        So near is the mean, and no nearer; and the variance by the square of half of that.
        """
        x = np.random.default_rng(0).normal(1e4, 1.0, (n, 6)).astype("float32")
        x[0] = x[0] + first
        layer = gn.BatchNorm(6, momentum=1.0).to(place.backend)
        tape = gn.Tape()
        y = gn.to_numpy(layer(place.array(x), tape))
        with place.backend.scope():
            tape.commit()
        mean, variance = moments(x)
        scale = 1 / np.sqrt(variance + layer.epsilon)
        assert np.all(abs(y - (x - mean) * scale) <= 1e-3 * scale + 1e-5 * abs(y))
        got_mean, got_variance = running(layer)
        assert_allclose(got_mean, mean, rtol=1e-7)
        assert_allclose(got_variance, variance * n / (n - 1), rtol=1e-5, atol=0.0005**2)

    @pytest.mark.parametrize("kind", [gn.LayerNorm, lambda c: gn.GroupNorm(4, c)])
    def test_a_large_mean_of_a_row(self, place: Place, kind: Any) -> None:
        x = np.random.default_rng(0).normal(1e4, 1.0, (5, 1024)).astype("float32")
        y = gn.to_numpy(kind(1024).to(place.backend)(place.array(x)))
        assert_allclose(y, kind(1024).to(dtype="float64")(x.astype("float64")), atol=1e-3)

    def test_a_channel_that_is_constant(self, place: Place) -> None:
        x = place.array(np.full((10, 2), 1e4), "float32")
        layer, tape = gn.BatchNorm(2).to(place.backend), gn.Tape()
        assert not gn.to_numpy(layer(x, tape)).any()
        grad = gn.to_numpy(layer.backward(place.array(np.ones((10, 2)), "float32"), tape))
        assert_allclose(grad, 0.0, atol=1e-4)

    def test_of_a_group_norm_one_group_is_the_sample(self, place: Place) -> None:
        x = np.random.default_rng(0).standard_normal((3, 2, 4, 6))
        y = gn.GroupNorm(1, 6, dtype="float64").to(place.backend)(place.array(x))
        whole = gn.LayerNorm(48, dtype="float64")(x.reshape(3, 48))
        assert_allclose(gn.to_numpy(y), whole.reshape(x.shape), rtol=1e-12)

    def test_groups_that_do_not_divide_the_channels(self) -> None:
        with pytest.raises(
            gn.errors.SettingError, match="groups must divide the 6 channels, got 4"
        ):
            gn.GroupNorm(4, 6)

    @pytest.mark.parametrize("layer", [gn.LayerNorm(3), gn.BatchNorm(3), gn.GroupNorm(1, 3)])
    def test_arrays_that_do_not_fit(self, layer: gn.Layer) -> None:
        for shape in ((2, 4), (3,)):
            with pytest.raises(gn.errors.ShapeError, match=r"expected x of shape \(N, \.\.\., 3\)"):
                layer(np.ones(shape, "float32"))
        with pytest.raises(gn.errors.DTypeError, match="parameters are float32 and x is float64"):
            layer(np.ones((2, 3)))

    def test_no_weight_decay(self) -> None:
        for layer in (gn.LayerNorm(3), gn.RMSNorm(3), gn.GroupNorm(1, 3), gn.BatchNorm(3)):
            assert not any(parameter.decay for parameter in layer.parameters())


class TestRunningStatistics:
    """They change when a step is done, and never before."""

    def model(self, place: Place, *, frozen: bool = False) -> Any:
        norm = gn.BatchNorm(4, 0.25, dtype="float64")
        model = gn.Sequential(norm, gn.Dense(4, 2, rng=1, dtype="float64")).to(place.backend)
        trained = model.layers[1].parameters() if frozen else model.parameters()
        x = 3 + 2 * np.random.default_rng(0).standard_normal((10, 4))
        return model, norm, gn.SGD(trained, 0.1), place.array(x), place.array(np.ones((10, 2)))

    @pytest.mark.parametrize("frozen", [False, True])
    def test_a_step_moves_them(self, place: Place, frozen: bool) -> None:
        model, norm, optimizer, x, y = self.model(place, frozen=frozen)
        for _ in range(2):
            before = running(norm)
            gn.train_step(model, gn.MeanSquaredError(), optimizer, x, y)
            mean, variance = moments(x)
            for got, old, new in zip(running(norm), before, (mean, variance * 10 / 9), strict=True):
                assert_allclose(got, 0.75 * old + 0.25 * new, rtol=1e-12)

    def test_nothing_else_does(self, place: Place) -> None:
        model, norm, optimizer, x, y = self.model(place)
        before = running(norm)
        model(x)
        model(x, gn.Tape(training=False))
        tape = gn.Tape()
        model.backward(model(x, tape), tape)
        model.memory(100, optimizer=optimizer)
        gn.check_gradients(model, x)
        trainer = gn.Trainer(model, gn.MeanSquaredError(), optimizer)
        data = gn.Loader(gn.to_numpy(x), backend=place.backend, batch_size=5, dtype="float64")
        trainer.predict(data)
        empty = x[:0, :]
        gn.train_step(model, gn.MeanSquaredError(), optimizer, empty, y[:0, :])
        for a, b in zip(before, running(norm), strict=True):
            assert_array_equal(a, b)

    def test_a_step_that_fails_does_not(self, place: Place, monkeypatch: Any) -> None:
        model, norm, optimizer, x, y = self.model(place)
        before = running(norm)

        def fail(*_: Any, **__: Any) -> None:
            raise RuntimeError("the update fails")

        monkeypatch.setattr(optimizer, "step", fail)
        with pytest.raises(RuntimeError, match="the update fails"):
            gn.train_step(model, gn.MeanSquaredError(), optimizer, x, y)
        for a, b in zip(before, running(norm), strict=True):
            assert_array_equal(a, b)

    def test_a_tape_commits_once_and_in_order(self, place: Place) -> None:
        _, norm, _, x, _ = self.model(place)
        tape = gn.Tape()
        norm(x, tape)
        norm(x * 2.0, tape)
        with place.backend.scope():
            tape.commit()
            tape.commit()
        mean, _ = moments(x)
        assert_allclose(running(norm)[0], 0.75 * 0.25 * mean + 0.25 * 2 * mean, rtol=1e-12)

    def test_inference_is_by_them(self, place: Place) -> None:
        _, norm, _, x, _ = self.model(place)
        norm.running_mean.value[...] = place.array([1.0, 2.0, 3.0, 4.0])
        norm.running_variance.value[...] = place.array([0.5, 1.0, 2.0, 4.0])
        mean, variance = running(norm)
        wanted = (gn.to_numpy(x) - mean) / np.sqrt(variance + norm.epsilon)
        for y in (norm(x), norm(x[:1, :]), norm(x, gn.Tape(training=False))):
            assert_allclose(gn.to_numpy(y), wanted[: y.shape[0]], rtol=1e-12)

    def test_the_gradient_by_them(self, place: Place) -> None:
        """With a tape that is not for training they do not depend on x."""
        _, norm, _, x, _ = self.model(place)
        norm.running_variance.value[...] = place.array([0.5, 1.0, 2.0, 4.0])
        tape, grad = gn.Tape(training=False), place.array(np.arange(40.0).reshape(10, 4))
        norm(x, tape)
        grad_x = gn.to_numpy(norm.backward(grad, tape))
        assert_allclose(grad_x, gn.to_numpy(grad) / np.sqrt(running(norm)[1] + norm.epsilon))
        assert_allclose(gn.to_numpy(norm.bias.grad), gn.to_numpy(grad).sum(axis=0))

    def test_they_are_filed_with_the_model(self, place: Place, tmp_path: Any) -> None:
        model, norm, optimizer, x, y = self.model(place)
        gn.train_step(model, gn.MeanSquaredError(), optimizer, x, y)
        gn.save(tmp_path / "model.safetensors", model)
        other = self.model(place)[0]
        assert gn.load(tmp_path / "model.safetensors", other) == ([], [])
        for a, b in zip(running(norm), running(other.layers[0]), strict=True):
            assert_array_equal(a, b)
        assert list(model.named_buffers()) == [
            "layers.0.running_mean",
            "layers.0.running_variance",
        ]


class TestTraining:
    """A last batch of one sample, on the recorded and on the readable way."""

    @pytest.mark.parametrize("readable", [False, True])
    @pytest.mark.parametrize(("n", "size"), [(33, 16), (5, 1)])
    def test_a_batch_of_one_sample(self, readable: bool, n: int, size: int) -> None:
        x = np.random.default_rng(0).standard_normal((n, 4)).astype("float32")
        model = gn.Sequential(gn.BatchNorm(4), gn.Dense(4, 1, rng=0))
        loader = gn.Loader(x, x[:, :1], batch_size=size, rng=0)
        trainer = gn.Trainer(model, gn.MeanSquaredError(), gn.SGD(model.parameters(), 0.1))
        with (
            one_by_one() if readable else nullcontext(),
            pytest.raises(gn.errors.ShapeError, match=r"more than one entry.*drop_last=True"),
        ):
            trainer.fit(loader, 1, progress=False)

    def test_steps_are_recorded(self) -> None:
        pytest.importorskip("numba", reason="steps are compiled by numba")
        if os.environ.get("GPUNN_COMPILED") == "0":
            pytest.skip("GPUNN_COMPILED=0: nothing is compiled")
        x = np.random.default_rng(0).standard_normal((64, 3, 4)).astype("float32")
        norms = gn.BatchNorm(4), gn.LayerNorm(4), gn.RMSNorm(4), gn.GroupNorm(2, 4)
        model = gn.Sequential(*norms, gn.Flatten(), gn.Dense(12, 1, rng=0))
        trainer = gn.Trainer(model, gn.MeanSquaredError(), gn.SGD(model.parameters(), 0.1))
        trainer.fit(gn.Loader(x, x[:, 0, :1], batch_size=16, rng=0), 2, progress=False)
        assert trainer.why_not_recorded == ""
        assert norms[0].running_mean.value.any()


@pytest.mark.gpu
@pytest.mark.emulated
class TestLaunches:
    """What each pass of a norm asks of a GPU: these launches, and no waiting."""

    @pytest.mark.parametrize(
        ("make", "forward", "backward", "commit"),
        [
            (gn.LayerNorm, ["row_norm"], ["row_norm_backward", "norm_sums", "norm_totals"], []),
            (gn.RMSNorm, ["row_norm"], ["row_norm_backward", "norm_sums", "norm_totals"], []),
            (
                lambda channels: gn.GroupNorm(4, channels),
                ["row_norm"],
                ["row_norm_backward", "norm_sums", "norm_totals"],
                [],
            ),
            (
                gn.BatchNorm,
                ["batch_norm_parts", "batch_norm"],
                ["norm_sums", "batch_norm_backward"],
                ["track"],
            ),
            (gn.PReLU, ["prelu"], ["prelu_backward", "norm_totals"], []),
        ],
        ids=["layer", "rms", "group", "batch", "prelu"],
    )
    def test_a_pass(self, make: Any, forward: Any, backward: Any, commit: Any) -> None:
        place = Place(gn.get_backend("cupy"))
        x = place.array(np.random.default_rng(0).standard_normal((64, 5, 32)), "float32")
        layer, tape = make(32).to(place.backend), gn.Tape()
        readings = []
        for _ in range(2):  # at first, kernels are loaded
            readings = [read()]
            y = layer(x, tape)
            readings.append(read())
            layer.backward(y, tape)
            readings.append(read())
            tape.commit()
            readings.append(read())
            for parameter in layer.parameters():
                parameter.grad = None
        for (before, after), wanted in zip(
            pairwise(readings), (forward, backward, commit), strict=True
        ):
            assert operations(before, after, "kernels") == Counter(wanted)
            counted = costs(before, after)
            assert (counted.syncs, counted.copies, counted.memsets) == (0, 0, 0)
