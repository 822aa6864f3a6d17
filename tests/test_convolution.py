"""Convolutions and pooling: their errors, their memory, and training with them."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import gpunn as gn
from gpunn.errors import DTypeError, SettingError, ShapeError
from gpunn.kernels import kernels
from gpunn.kernels.reference import Kernels
from gpunn.kernels.window import WindowSettings, window_on
from tests.conftest import Place


def images(*shape: int, dtype: str = "float64", seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


class TestErrors:
    @pytest.mark.parametrize(
        ("shape", "advice"),
        [
            ((5, 3, 8, 8), "numpy.moveaxis(x, 1, -1)"),
            ((5, 192), "x.reshape(-1, height, width, 3)"),
            ((5, 8, 8, 4), "expected images of shape (N, H, W, 3), got (5, 8, 8, 4)"),
        ],
    )
    def test_images_that_lie_in_another_order(self, shape: tuple[int, ...], advice: str) -> None:
        with pytest.raises(ShapeError) as raised:
            gn.Conv2d(3, 2, 3)(np.zeros(shape, "float32"))
        assert advice in str(raised.value)

    def test_images_without_an_axis_of_channels(self) -> None:
        with pytest.raises(ShapeError, match=r"x\[..., None\]"):
            gn.Conv2d(1, 2, 3)(np.zeros((5, 8, 8), "float32"))
        with pytest.raises(ShapeError, match=r"sequences of shape \(N, T, 1\).*x\[..., None\]"):
            gn.Conv1d(1, 2, 3)(np.zeros((5, 8), "float32"))

    def test_images_smaller_than_the_filter(self) -> None:
        layer: Any
        for layer in (gn.Conv2d(1, 2, 3), gn.MaxPool2d(3), gn.AveragePool2d(3)):
            with pytest.raises(ShapeError, match=r"covers more than the 2 x 9 pixels.*'same'"):
                layer(np.zeros((5, 2, 9, 1), "float32"))
        with pytest.raises(ShapeError, match="more than the 4 steps"):
            gn.Conv1d(1, 2, 3, dilation=2)(np.zeros((5, 4, 1), "float32"))

    def test_what_a_transposed_convolution_cuts_away(self) -> None:
        with pytest.raises(ShapeError, match="leaves nothing of the output"):
            gn.ConvTranspose2d(1, 2, 3, padding=2)(np.zeros((5, 1, 1, 1), "float32"))

    def test_another_dtype(self) -> None:
        with pytest.raises(DTypeError, match=r'x.astype\("float32"\)'):
            gn.Conv2d(1, 2, 3)(np.zeros((5, 8, 8, 1)))

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: gn.Conv2d(2, 2, 0), "kernel_size must be a whole number of at least 1"),
            (lambda: gn.Conv2d(2, 2, (3, 3, 3)), r"or a pair of them, \(down, across\)"),
            (lambda: gn.Conv2d(2, 2, 3, stride=1.5), "stride must be a whole number"),
            (lambda: gn.Conv2d(2, 2, 3, padding="full"), "padding must be 'valid', 'same', or"),
            (lambda: gn.Conv2d(2, 2, 3, padding=-1), "of at least 0"),
            (lambda: gn.Conv2d(2, 3, 3, groups=2), "groups must divide in_channels and out_ch"),
            (lambda: gn.Conv1d(2, 2, (3, 3)), "kernel_size must be a whole number of at least 1, "),
            (lambda: gn.MaxPool2d(2, padding=2), "padding must be less than kernel_size"),
            (lambda: gn.ConvTranspose2d(2, 2, 3, output_padding=1), "must be less than stride"),
            (
                lambda: gn.ConvTranspose2d(2, 2, 3, stride=2, padding="same", output_padding=1),
                "leaves no choice",
            ),
        ],
    )
    def test_settings(self, make: Any, message: str) -> None:
        with pytest.raises(SettingError, match=message):
            make()


class TestValues:
    def test_a_convolution_by_hand(self) -> None:
        layer = gn.Conv2d(1, 1, 2, dtype="float64")
        layer.weight.value[:, :, 0, 0] = [[1, 2], [3, 4]]
        x = np.arange(9.0).reshape(1, 3, 3, 1)
        # 0*1 + 1*2 + 3*3 + 4*4 = 27, and so on.
        assert_array_equal(layer(x)[0, :, :, 0], [[27, 37], [57, 67]])

    @pytest.mark.parametrize("side", range(1, 8))
    @pytest.mark.parametrize("stride", [1, 2, 3])
    @pytest.mark.parametrize("size", [1, 2, 3, 5])
    def test_same_is_that_of_keras(self, side: int, stride: int, size: int) -> None:
        window = window_on((side, 1), WindowSettings((size, 1), (stride, 1), padding="same"))
        assert window is not None
        assert window.output == (-(-side // stride), 1)
        # As TensorFlow's documentation has it.
        rest = side % stride or stride
        total = max(size - rest, 0)
        assert (window.before[0], window.after[0]) == (total // 2, total - total // 2)

    def test_nan_and_ties_in_a_pool(self) -> None:
        x = np.array([[1.0, 1.0], [np.nan, 2.0]]).reshape(1, 2, 2, 1)
        y, where = kernels(x).max_pool(x, gn.GlobalMaxPool()._window(x))
        assert np.isnan(y).all()
        assert where.item() == 2
        tape, pool = gn.Tape(), gn.MaxPool2d(2)
        pool(np.ones((1, 2, 2, 1)), tape)
        grad = pool.backward(np.full((1, 1, 1, 1), 7.0), tape)
        assert grad is not None
        assert_array_equal(grad.ravel(), [7, 0, 0, 0])  # the first

    def test_transposing_makes_images_larger_as_in_keras(self) -> None:
        layer = gn.ConvTranspose2d(3, 2, 3, stride=2, padding="same")
        assert layer.output_shape((5, 4, 3)) == (10, 8, 2)
        assert layer.weight.value.shape == (3, 3, 2, 3)


@pytest.mark.parametrize("groups", [1, 2])
def test_each_backend_agrees_with_the_reference(place: Place, groups: int) -> None:
    """Windows of all kinds, and some of more than 256 entries, whose numbers take more bytes."""
    reference = Kernels(gn.get_backend("numpy").xp)
    for size, stride, dilation, padding in (
        ((3, 2), (1, 2), (1, 1), "same"),
        ((2, 2), (2, 1), (2, 3), (3, 1)),
        ((17, 16), (1, 1), (1, 1), "valid"),
        ((1, 1), (1, 1), (1, 1), "valid"),
    ):
        settings = WindowSettings(size, stride, dilation, padding, groups)
        window = window_on((18, 17), settings)
        assert window is not None
        host_x, host_w = images(3, 18, 17, 4), images(*size, 4 // groups, 6, seed=1)
        x, weight = place.array(host_x), place.array(host_w)
        k = kernels(x)
        z = reference.convolution(host_x, host_w, window)
        close: Any = {"rtol": 1e-10, "atol": 1e-10}
        assert_allclose(gn.to_numpy(k.convolution(x, weight, window)), z, **close)
        grad = place.array(z)
        for got, want in (
            (
                k.convolution_input_grad(grad, weight, window),
                reference.convolution_input_grad(z, host_w, window),
            ),
            (
                k.convolution_weight_grad(x, grad, window),
                reference.convolution_weight_grad(host_x, z, window),
            ),
        ):
            assert_allclose(gn.to_numpy(got), want, **close)


def test_threads_have_memory_of_their_own_to_work_in() -> None:
    pytest.importorskip("numba")
    lower = importlib.import_module("gpunn.program.lower")
    values = importlib.import_module("gpunn.program.values")
    x = values.Value((6, 2), np.dtype("float32"), by_sample=True)
    lowering = lower.Lowering(values.Recording(x=x, prediction=x), 3)
    lowering.scratch(100)
    _, place = lowering.scratch(50)  # no more than before
    lanes = [lower.Lane(i, 3, 2 * i, 2 * i + 2, lambda *_: 0) for i in range(3)]
    assert np.diff([place(lane) for lane in lanes]).min() >= 4 * 100


@pytest.mark.gpu
class TestTheWorkspace:
    def test_batches_that_do_not_fit_go_through_in_pieces(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        module = importlib.import_module("gpunn.kernels.cupy_convolution")
        layer = gn.Conv2d(2, 3, 3, padding="same", rng=0, backend="cupy")
        x = gn.get_backend("cupy").asarray(images(7, 5, 4, 2, dtype="float32"))

        def passed() -> list[Any]:
            tape = gn.Tape()
            y = layer(x, tape)
            layer.weight.grad = None
            grad = layer.backward(y, tape)
            return [gn.to_numpy(item) for item in (y, grad, layer.weight.grad)]

        whole = passed()
        image = 5 * 4 * 18 * 4
        for limit, n_images in ((1, 1), (3 * image, 3)):
            monkeypatch.setattr(module, "WORKSPACE", limit)
            for a, b in zip(passed(), whole, strict=True):
                assert_allclose(a, b, rtol=1e-5, atol=1e-5)
            report = layer.memory(7, input_shape=(5, 4, 2))
            assert report.workspace == n_images * image
            assert "workspace" in str(report)
        assert layer.to("numpy").memory(7, input_shape=(5, 4, 2)).workspace == 0


def test_a_small_network_learns_digits() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    digits = datasets.load_digits()
    x, y = (digits.images[..., None] / 16).astype("float32"), digits.target
    model = gn.Sequential(
        gn.Conv2d(1, 8, 3, "relu", padding="same", rng=0),
        gn.MaxPool2d(2),
        gn.Conv2d(8, 16, 3, "relu", padding="same", rng=1),
        gn.MaxPool2d(2),
        gn.Flatten(),
        gn.Dense(64, 10, rng=2),
    )
    trainer = gn.Trainer(
        model,
        gn.SoftmaxCrossEntropy(),
        gn.SGD(model.parameters(), 0.05, momentum=0.9),
        metrics=("accuracy",),
        rng=0,
    )
    held_out = np.arange(len(x)) % 4 == 3
    trainer.fit(gn.Loader(x[~held_out], y[~held_out], batch_size=32, rng=0), 5, progress=False)
    tested = trainer.evaluate(gn.Loader(x[held_out], y[held_out], batch_size=100))
    assert tested["accuracy"] > 0.95


@pytest.mark.parametrize("groups", [1, 2])
def test_the_weights_of_a_transposed_convolution_need_no_copy(groups: int) -> None:
    weight = gn.ConvTranspose2d(4, 6, 3, groups=groups).weight.value
    assert weight.flags.c_contiguous
