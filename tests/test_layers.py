"""Layers against outside oracles: closed forms, published values, SciPy and PyTorch."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import array_api_compat.numpy
import numpy as np
import pytest
import scipy.special
from numpy.testing import assert_allclose, assert_array_equal

import gpunn as gn
from gpunn.kernels import kernels
from gpunn.kernels.random import splitmix64
from gpunn.nn.special import erfc
from tests.conftest import Place, get_place

# Values in random order, so that every row of four holds large and small ones.
EXTREMES = [-1e4, -745.0, -104.0, -88.0, -1e-30, 0.0, 0.0, 1e-30, 88.0, 104.0, 745.0, 1e4]
X = (
    np.random.default_rng(0)
    .permutation([*np.linspace(-12.0, 12.0, 1000), *EXTREMES])
    .reshape(-1, 4)
)

_GELU_C = math.sqrt(2 / math.pi)
# Every activation by name: h(x) in float64, from SciPy or a closed form.
ORACLES: dict[str, Callable[[Any], Any]] = {
    "identity": lambda x: x,
    "sigmoid": scipy.special.expit,
    "tanh": np.tanh,
    "relu": lambda x: np.where(x > 0, x, 0.0),
    "leaky_relu": lambda x: np.where(x > 0, x, 0.01 * x),
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0.0))),
    "silu": lambda x: x * scipy.special.expit(x),
    "gelu": lambda x: x * scipy.special.ndtr(x),
    "gelu_tanh": lambda x: x * scipy.special.expit(2 * _GELU_C * (x + 0.044715 * x**3)),
    "softplus": lambda x: np.logaddexp(0.0, x),
    "softmax": lambda x: scipy.special.softmax(x, axis=-1),
    "log_softmax": lambda x: scipy.special.log_softmax(x, axis=-1),
    "selu": lambda x: _SELU * np.where(x > 0, x, 1.6732632423543772 * np.expm1(np.minimum(x, 0))),
    "celu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0.0))),
    "mish": lambda x: x * np.tanh(np.logaddexp(0.0, x)),
    "softsign": lambda x: x / (1.0 + np.abs(x)),
    "log_sigmoid": lambda x: -np.logaddexp(0.0, -x),
    "hardtanh": lambda x: np.clip(x, -1.0, 1.0),
    "relu6": lambda x: np.clip(x, 0.0, 6.0),
    "hardsigmoid": lambda x: np.clip(x + 3.0, 0.0, 6.0) / 6.0,
    "hardswish": lambda x: x * np.clip(x + 3.0, 0.0, 6.0) / 6.0,
    "softshrink": lambda x: np.sign(x) * np.maximum(np.abs(x) - 0.5, 0.0),
}
_SELU = 1.0507009873554805
_SLOPE = _SELU * 1.6732632423543772
# Derivatives by x, of those whose tails have to be right relative to themselves.
SLOPES: dict[str, Callable[[Any], Any]] = {
    "selu": lambda x: np.where(x > 0, _SELU, _SLOPE * np.exp(np.minimum(x, 0.0))),
    "celu": lambda x: np.exp(np.minimum(x, 0.0)),
    "mish": lambda x: (
        np.tanh(np.logaddexp(0.0, x))
        + x * scipy.special.expit(x) / np.cosh(np.minimum(np.logaddexp(0.0, x), 300.0)) ** 2
    ),
    "softsign": lambda x: (1.0 + np.abs(x)) ** -2.0,
    "log_sigmoid": lambda x: scipy.special.expit(-x),
    "hardswish": lambda x: np.where(np.abs(x) < 3.0, x / 3.0 + 0.5, 1.0 * (x >= 3.0)),
}
# Where a formula adds to 1, small results lose digits: the absolute error allowed, in units in the
# last place of 1.
ULPS_OF_ONE = {"softmax": 4.0, "log_softmax": 4.0}
# Where an exponential is taken of a computed number, the rounding of that number, relative to 1, is
# a relative error of the result.
EXPONENTS: dict[str, Any] = {
    "gelu": lambda x: x**2 / 2,
    "gelu_tanh": lambda x: 2 * _GELU_C * np.abs(x + 0.044715 * x**3),
}
# From the documentation of tf.nn.gelu.
GELU_X = [-3.0, -1.0, 0.0, 1.0, 3.0]
PUBLISHED_GELU = {
    False: [-0.00404951, -0.15865529, 0.0, 0.8413447, 2.9959507],
    True: [-0.00363752, -0.15880796, 0.0, 0.841192, 2.9963627],
}
# The first numbers for seed 1234567, from
# https://rosettacode.org/wiki/Pseudo-random_numbers/Splitmix64.
PUBLISHED_SPLITMIX64 = [
    6457827717110365317,
    3203168211198807973,
    9817491932198370423,
    4593380528125082431,
    16408922859458223821,
]


def python_splitmix64(key: int, size: int) -> list[int]:
    """Return the sequence in Python's own integers."""
    drawn, ones = [], 2**64 - 1
    for i in range(1, size + 1):
        z = (key + i * 0x9E3779B97F4A7C15) & ones
        z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & ones
        z = ((z ^ z >> 27) * 0x94D049BB133111EB) & ones
        drawn.append(z ^ z >> 31)
    return drawn


class Scale(gn.Layer):
    """The layer that a user writes first, as in the docstring of `Layer`."""

    def __init__(self, factor: Any) -> None:
        self.factor = gn.Parameter(factor)

    def forward(self, x: Any, tape: gn.Tape | None = None) -> Any:
        if tape is not None:
            tape.push(self, x)
        return x * self.factor.value

    def backward(self, grad: Any, tape: gn.Tape) -> Any:
        (x,) = tape.pop(self)
        self.factor.add_grad(kernels(grad).column_sums(grad * x))
        return grad * self.factor.value


class Cube(gn.Activation):
    """An activation that a user writes."""

    saves_output = False

    def function(self, xp: Any, x: Any) -> Any:
        return xp.square(x) * x

    def gradient(self, xp: Any, grad: Any, saved: Any) -> Any:
        return grad * (3.0 * xp.square(saved))


class TestActivations:
    def test_every_activation_has_an_oracle(self) -> None:
        assert set(ORACLES) == set(gn.ACTIVATIONS)

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    @pytest.mark.parametrize("name", ORACLES)
    def test_values(self, place: Place, name: str, dtype: str) -> None:
        x, info = X.astype(dtype), np.finfo(dtype)
        got = gn.to_numpy(gn.ACTIVATIONS[name]()(place.array(x)))
        wanted = ORACLES[name](x.astype("float64"))
        exponent = EXPONENTS.get(name, np.zeros_like)(np.minimum(x.astype("float64"), 0.0))
        finite = np.isfinite(wanted) & (wanted != 0)
        relative = 8 + 2 * np.where(finite, exponent, 0.0)
        allowed = relative * np.abs(wanted) + ULPS_OF_ONE.get(name, 0.0)
        # CuPy compiles for a GPU on which single-precision subnormals are zero: a factor e^x that
        # is one of them vanishes, and with it a product of up to |x| times the smallest normal.
        flushes = place.backend.package == "cupy" and dtype == "float32"
        underflow = float(info.tiny) * (np.maximum(np.abs(x), 1.0) if flushes else 1.0)
        assert got.dtype == dtype
        assert (np.abs(got - wanted) <= float(info.eps) * allowed + underflow).all()

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    @pytest.mark.parametrize("name", SLOPES)
    def test_derivatives_far_in_the_tails(self, place: Place, name: str, dtype: str) -> None:
        """A rounding of x, and a result near a zero in between, are excused."""
        x, info = np.linspace(-80.0, 80.0, 20_001).astype(dtype), np.finfo(dtype)
        layer, tape = gn.ACTIVATIONS[name](), gn.Tape()
        layer(place.array(x), tape)
        got = gn.to_numpy(layer.backward(place.array(np.ones_like(x)), tape))
        wanted = SLOPES[name](x.astype("float64"))
        relative = (16.0 + 2.0 * np.abs(x)) * np.abs(wanted)
        near_a_zero = 16.0 * (np.abs(x) < 4.0)
        allowed = float(info.eps) * (relative + near_a_zero) + float(info.tiny) * (1 + np.abs(x))
        assert (np.abs(got - wanted) <= allowed).all()

    @staticmethod
    def assert_erfc(xp: Any, place: Place, dtype: str) -> None:
        x = np.concatenate([X.ravel(), np.linspace(-6.0, 30.0, 60_001)]).astype(dtype)
        got = gn.to_numpy(erfc(xp, place.array(x)))
        wanted = np.vectorize(math.erfc)(x.astype("float64"))  # SciPy's is as far off as ours
        square = np.minimum(x.astype("float64"), 40.0) ** 2
        allowed = np.where(x < 0, 4.0, (4 + 2 * square) * wanted)
        info = np.finfo(dtype)
        assert (np.abs(got - wanted) <= float(info.eps) * allowed + float(info.tiny)).all()

    @pytest.mark.parametrize("units", [-2, 2])
    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_its_bound_allows_for_the_exponential_of_cuda(self, dtype: str, units: int) -> None:
        class TwoUnitsOff:
            """NumPy with an exponential as far off as CUDA's may be."""

            def __getattr__(self, name: str) -> Any:
                return getattr(array_api_compat.numpy, name)

            def exp(self, x: Any) -> Any:
                y = np.exp(x.astype("float64")).astype(x.dtype)  # rounded once
                return y + units * np.spacing(y)

        self.assert_erfc(TwoUnitsOff(), get_place("numpy"), dtype)

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_the_complementary_error_function(self, place: Place, dtype: str) -> None:
        self.assert_erfc(place.backend.xp, place, dtype)
        ends = gn.to_numpy(
            erfc(place.backend.xp, place.array(np.asarray([-np.inf, np.inf], dtype)))
        )
        assert_array_equal(ends, [2, 0])

    @pytest.mark.parametrize("approximate", [False, True])
    def test_published_gelu(self, place: Place, approximate: bool) -> None:
        gelu = gn.GELU(approximate=approximate)
        got = gn.to_numpy(gelu(place.array([GELU_X], "float32")))[0]
        x, published = np.array(GELU_X), np.array(PUBLISHED_GELU[approximate])
        # Ours is as above. Theirs adds 1 to erf or tanh, then multiplies by x, which costs it
        # two units in the last place of x.
        exponent = EXPONENTS["gelu_tanh" if approximate else "gelu"](np.minimum(x, 0.0))
        units = (8 + 2 * exponent) * np.abs(published) + 2 * np.abs(x)
        assert (np.abs(got - published) <= float(np.finfo("float32").eps) * units).all()

    def test_the_tanh_form_is_as_near_as_it_says(self) -> None:
        x = np.linspace(-6.0, 6.0, 10_001)[None]
        assert 4e-4 < np.abs(gn.GELU()(x) - gn.GELU(approximate=True)(x)).max() < 5e-4

    @pytest.mark.parametrize(
        ("layer", "torch_name", "settings"),
        [
            (gn.GELU(), "gelu", {}),
            (gn.GELU(approximate=True), "gelu", {"approximate": "tanh"}),
            (gn.SiLU(), "silu", {}),
            (gn.ELU(0.7), "elu", {"alpha": 0.7}),
            (gn.LeakyReLU(0.2), "leaky_relu", {"negative_slope": 0.2}),
            (gn.Softplus(), "softplus", {}),
            (gn.LogSoftmax(), "log_softmax", {"dim": -1}),
            (gn.Softmax(), "softmax", {"dim": -1}),
        ],
        ids=repr,
    )
    def test_values_and_gradients_as_in_torch(
        self, layer: gn.Layer, torch_name: str, settings: dict[str, Any], torch: Any
    ) -> None:
        x, weight = X[np.abs(X).max(axis=1) < 13], np.linspace(0.5, 1.5, 4)
        theirs = torch.tensor(x, requires_grad=True)
        h = getattr(torch.nn.functional, torch_name)(theirs, **settings)
        (h * torch.tensor(weight)).sum().backward()
        tape = gn.Tape()
        assert_allclose(layer(x, tape), h.detach().numpy(), rtol=1e-12, atol=2e-15)
        grad = layer.backward(np.broadcast_to(weight, x.shape), tape)
        # torch's softplus turns into the identity at 20, and x does not reach that far
        assert_allclose(grad, theirs.grad.numpy(), rtol=1e-11, atol=1e-14)


class TestDense:
    def test_the_formulas(self, place: Place) -> None:
        layer = gn.Dense(3, 2, "tanh", rng=0, dtype="float64", backend=place.backend)
        layer.bias.value += 0.25
        weight, bias = gn.to_numpy(layer.weight.value), gn.to_numpy(layer.bias.value)
        x, grad = np.linspace(-1, 1, 12).reshape(4, 3), np.linspace(2, 1, 8).reshape(4, 2)
        tape = gn.Tape()
        h = np.tanh(x @ weight + bias)
        assert_allclose(gn.to_numpy(layer(place.array(x), tape)), h, rtol=1e-13)
        g = grad * (1 - h**2)
        grad_x = layer.backward(place.array(grad), tape)
        assert_allclose(gn.to_numpy(grad_x), g @ weight.T, rtol=1e-12)
        assert_allclose(gn.to_numpy(layer.weight.grad), x.T @ g, rtol=1e-12)
        assert_allclose(gn.to_numpy(layer.bias.grad), g.sum(axis=0), rtol=1e-12)

    def test_an_activation_of_the_user(self, place: Place) -> None:
        layer = gn.Dense(3, 4, Cube(), rng=0, dtype="float64", backend=place.backend)
        x = place.array(np.linspace(-1, 1, 6).reshape(2, 3))
        assert gn.check_gradients(layer, x).error < 1e-6
        plain = gn.Dense(3, 4, rng=0, dtype="float64", backend=place.backend)
        assert_allclose(gn.to_numpy(layer(x)), gn.to_numpy(plain(x)) ** 3, rtol=1e-12)


class TestInitialWeights:
    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_one_seed_gives_the_same_bits_everywhere(self, place: Place, dtype: str) -> None:
        here = gn.Dense(7, 5, "relu", rng=11, dtype=dtype, backend=place.backend).weight.value
        wanted = np.random.default_rng(11).standard_normal((7, 5)) * math.sqrt(2 / 7)
        assert gn.backend_of(here) == place.backend
        assert_array_equal(gn.to_numpy(here), wanted.astype(dtype))

    def test_rectifiers_get_he_selu_lecun_and_the_rest_glorot(self) -> None:
        he = {"relu", "leaky_relu", "relu6", "elu", "celu", "silu", "gelu", "gelu_tanh", "mish"}
        suits = dict.fromkeys(he | {"hardswish", "softplus"}, gn.init.he_normal)
        suits["selu"] = gn.init.lecun_normal
        for name in gn.ACTIVATIONS:
            drawn = suits.get(name, gn.init.glorot_uniform)
            wanted = drawn(np.random.default_rng(1), 6, 4)
            assert_array_equal(gn.Dense(6, 4, name, rng=1, dtype="float64").weight.value, wanted)

    def test_a_generator_is_used_up_and_a_function_will_do(self) -> None:
        rng = np.random.default_rng(0)
        first, second = (gn.Dense(3, 3, rng=rng).weight.value for _ in range(2))
        assert (first != second).any()
        layer = gn.Dense(2, 3, init=lambda _, n, m: np.arange(6.0).reshape(n, m))
        assert layer.weight.value.ravel().tolist() == [0, 1, 2, 3, 4, 5]


class TestDropout:
    def mask(self, place: Place, rate: float = 0.3, seed: int = 0, dtype: str = "float32") -> Any:
        x = place.array(np.ones((1000, 7)), dtype)
        return gn.to_numpy(gn.Dropout(rate)(x, gn.Tape(rng=seed)))

    def test_the_published_sequence(self, place: Place) -> None:
        got = splitmix64(place.backend.xp, 1234567, 5, place.backend.device)
        assert gn.to_numpy(got).tolist() == PUBLISHED_SPLITMIX64
        assert python_splitmix64(1234567, 5) == PUBLISHED_SPLITMIX64

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_one_seed_gives_one_mask_on_every_backend(self, place: Place, dtype: str) -> None:
        key = int(np.random.default_rng(5).integers(2**64, dtype="uint64"))
        kept = [bits >> 32 >= 0.3 * 2**32 for bits in python_splitmix64(key, 7000)]
        wanted = np.where(kept, 1 / 0.7, 0).astype(dtype).reshape(1000, 7)
        assert_array_equal(self.mask(place, seed=5, dtype=dtype), wanted)

    @pytest.mark.parametrize("rate", [0.01, 0.3, 0.5, 0.9])
    def test_rate_and_mean(self, place: Place, rate: float) -> None:
        mask = self.mask(place, rate)
        assert set(np.unique(mask)) == {0.0, np.float32(1 / (1 - rate))}
        deviation = math.sqrt(rate * (1 - rate) / mask.size)
        assert abs((mask == 0).mean() - rate) < 4 * deviation
        assert abs(mask.mean() - 1) < 4 * deviation / (1 - rate)

    def test_masks_are_independent(self) -> None:
        x, tape = np.ones((200, 200), dtype="float32"), gn.Tape(rng=3)
        masks = [gn.Dropout(0.5)(x, tape).ravel() for _ in range(8)]
        near = [kernels(x).dropout(x, key, 0.5)[1].ravel() for key in range(4)]
        correlations = np.corrcoef([*masks, *near, masks[0][np.r_[1 : x.size, 0]]])
        off_diagonal = correlations[~np.eye(len(correlations), dtype=bool)]
        assert np.abs(off_diagonal).max() < 4.5 / math.sqrt(x.size)

    def test_the_gradient_passes_where_x_did(self, place: Place) -> None:
        layer, tape = gn.Dropout(0.4), gn.Tape(rng=1)
        x = place.array(np.linspace(1, 2, 60).reshape(6, 10))
        y = layer(x, tape)
        assert_array_equal(gn.to_numpy(layer.backward(x, tape)), gn.to_numpy(y))

    @pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5, math.nan])
    def test_rates_that_make_no_sense(self, rate: float) -> None:
        with pytest.raises(gn.errors.SettingError, match=r"rate must be a number in \[0, 1\)"):
            gn.Dropout(rate)


class TestLayersOfTheUser:
    def model(self, place: Place) -> gn.Layer:
        """Return a layer that keeps layers in a list, a dict and a tuple, one of them twice."""
        scale = Scale(place.backend.asarray(np.array([1.0, 2.0])))
        model = gn.Sequential(scale, gn.Dense(2, 2, rng=0, dtype="float64").to(place.backend))
        model.heads = {"a": scale, "b": (gn.ReLU(), model.layers[1])}
        model.mean = gn.Buffer(place.backend.asarray(np.array([0.5, 0.5])))
        model.seen = gn.Buffer(place.backend.asarray(np.array([3])))
        return model

    def test_parameters_are_found_once_and_named_by_path(self, place: Place) -> None:
        model = self.model(place)
        names = ["layers.0.factor", "layers.1.weight", "layers.1.bias"]
        assert list(model.named_parameters()) == names
        assert list(model.named_buffers()) == ["mean", "seen"]
        assert len(model.parameters()) == 3
        assert model.backend == place.backend

    def test_the_gradient_holds_and_it_learns(self, place: Place) -> None:
        model = self.model(place)
        x = place.array(np.linspace(-1, 1, 8).reshape(4, 2))
        assert gn.check_gradients(model, x).error < 1e-6
        before = gn.to_numpy(model.layers[0].factor.value).copy()
        optimizer = gn.SGD(model.parameters(), 0.1)
        gn.train_step(model, gn.MeanSquaredError(), optimizer, x, x)
        assert (gn.to_numpy(model.layers[0].factor.value) != before).all()

    def test_copies_share_nothing(self, place: Place) -> None:
        model = self.model(place)
        other = copy.deepcopy(model)
        assert other.heads["a"] is other.layers[0]
        for item in (*other.parameters(), *other.buffers()):
            item.value += 1
        for name, item in {**model.named_parameters(), **model.named_buffers()}.items():
            moved = {**other.named_parameters(), **other.named_buffers()}[name]
            assert_array_equal(gn.to_numpy(moved.value), gn.to_numpy(item.value) + 1)

    def test_a_change_of_dtype_leaves_integers_alone(self, place: Place) -> None:
        model = self.model(place).to(dtype="float32")
        dtypes = {n: gn.to_numpy(b.value).dtype for n, b in model.named_buffers().items()}
        assert dtypes == {"mean": "float32", "seen": "int64"}
        assert all(gn.to_numpy(p.value).dtype == "float32" for p in model.parameters())


class TestTape:
    def test_last_in_is_first_out(self) -> None:
        tape, a, b = gn.Tape(), gn.ReLU(), gn.Tanh()
        tape.push(a, 1)
        tape.push(b, 2, 3)
        tape.push(a, 4)
        assert repr(tape) == "Tape(ReLU(), Tanh(), ReLU())"
        assert [tape.pop(a), tape.pop(b), tape.pop(a)] == [(4,), (2, 3), (1,)]
        assert len(tape) == 0

    def test_backward_before_forward(self) -> None:
        with pytest.raises(gn.errors.TapeError, match=r"ReLU\(\): .*run forward .* first"):
            gn.ReLU().backward(np.ones((1, 1)), gn.Tape())

    def test_a_wrong_order_is_an_error_that_changes_nothing(self) -> None:
        tape, a, b = gn.Tape(), gn.ReLU(), gn.ReLU()
        y = b(a(np.ones((1, 1)), tape), tape)
        with pytest.raises(gn.errors.TapeError, match="out of order"):
            a.backward(y, tape)
        assert a.backward(b.backward(y, tape), tape) == 1.0

    @pytest.mark.parametrize(
        "first",
        [
            gn.Dense(3, 3, rng=0),
            gn.Sequential(gn.Flatten(), gn.Dense(3, 3, rng=0)),
            gn.Sequential(gn.ReLU(), gn.Dropout(0.5), gn.Dense(3, 3, rng=0)),
            gn.Residual(gn.Dense(3, 3, rng=0)),
            gn.Sequential(gn.Residual(gn.Tanh()), gn.Dense(3, 3, rng=0)),
        ],
        ids=repr,
    )
    def test_the_input_gradient_is_not_computed_for_nobody(self, first: gn.Layer) -> None:
        x = np.linspace(-1, 1, 6, dtype="float32").reshape(2, 3)
        for layers, input_grad, wanted in [
            ([first], False, False),
            ([first], True, True),
            ([Scale(np.ones(3, "float32")), first], False, True),
            ([gn.Dense(3, 3, rng=1), first], False, True),
        ]:
            tape = gn.Tape(rng=0, input_grad=input_grad)
            y = gn.Sequential(*layers)(x, tape)
            assert (first.backward(y, tape) is not None) == wanted
