"""Settings: each constructor says which of them is wrong, what it must be and what came."""

from __future__ import annotations

import copy
import inspect
import pickle
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import gpunn as gn
from gpunn.arrays.checks import shown
from gpunn.errors import DTypeError, SettingError, ShapeError

MODEL = gn.Dense(4, 3, rng=0)
P = gn.Dense(4, 3, rng=0).parameters()
X = np.linspace(-1.0, 1.0, 8, dtype="float32").reshape(2, 4)

#: What a constructor needs besides the setting under test, by name.
NEEDED: dict[str, Any] = {
    "after": 0.1,
    "every": 5,
    "factor": 0.5,
    "function": gn.ReLU(),
    "in_features": 4,
    "layer": gn.ReLU(),
    "learning_rate": 0.1,
    "model": MODEL,
    "loss": gn.SoftmaxCrossEntropy(),
    "optimizer": gn.SGD(MODEL.parameters()),
    "path": "weights.safetensors",
    "value": np.zeros(3),
    "channels": 4,
    "features": 4,
    "groups": 2,
    "heads": 2,
    "in_channels": 4,
    "kernel_size": 2,
    "length": 4,
    "n_features": 4,
    "n_tokens": 4,
    "out_features": 3,
    "package": "numpy",
    "out_channels": 4,
    "parameters": P,
    "predicted": [0, 1],
    "rate": 0.5,
    "shape": (2, 3),
    "steps": 5,
    "x": X,
    "y": [0, 1],
}

#: What is made by the library, and not by its users.
RESULTS = {"Batch", "GradientReport", "History", "LoadReport"}


VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)

#: A whole number that no dtype holds.
HUGE = -(10**400)


def public() -> Iterator[tuple[str, Any]]:
    for name in gn.__all__:
        if name in RESULTS:
            continue
        item = getattr(gn, name)
        if inspect.isclass(item) or inspect.isfunction(item):
            yield name, item


def wrong_values(annotation: str) -> list[Any]:
    """Return what a setting of that type refuses; nothing if it is neither number nor flag."""
    kinds = {kind.strip() for kind in annotation.split("|")}
    if "bool" in kinds:
        wrong = ["no", 1, 0.0, [True]]
        return wrong if "None" in kinds else [*wrong, None]
    if not {"float", "int"} & kinds:
        return []
    wrong = ["0.5", [0.5], float("nan"), True, 1j, np.array([0.5]), object(), HUGE]
    return wrong if "None" in kinds else [*wrong, None]


WRONG = [
    pytest.param(name, item, setting.name, value, id=f"{name}({setting.name}={value!r:.9})")
    for name, item in public()
    for setting in inspect.signature(item).parameters.values()
    for value in wrong_values(str(setting.annotation))
]


def complete(item: Any, **given: Any) -> Any:
    """Call `item`, with what it needs besides."""
    needed = [
        setting.name
        for setting in inspect.signature(item).parameters.values()
        if setting.default is setting.empty and setting.kind not in VARIABLE
    ]
    return item(**{name: NEEDED[name] for name in needed if name not in given} | given)


@pytest.mark.parametrize(("name", "item", "setting", "value"), WRONG)
def test_a_wrong_type_is_told(name: str, item: Any, setting: str, value: Any) -> None:
    with pytest.raises(SettingError) as caught:
        complete(item, **{setting: value})
    told = str(caught.value)
    wanted = "(None or |a function or )?(a |one of |True|'valid')"
    assert re.match(rf"{name}: {setting} must be {wanted}", told), told
    assert told.endswith(f"got {shown(value)}")


def test_there_are_as_many_as_one_would_think() -> None:
    found = {(param.values[0], param.values[2]) for param in WRONG}
    assert {
        ("SGD", "momentum"),
        ("SGD", "nesterov"),
        ("Adam", "clip_norm"),
        ("Dense", "in_features"),
        ("Dense", "bias"),
        ("ELU", "alpha"),
        ("WarmUp", "after"),
        ("TopK", "k"),
        ("CrossEntropy", "label_smoothing"),
        ("BinaryCrossEntropy", "from_logits"),
        ("check_gradients", "max_entries"),
        ("logistic_regression", "n_classes"),
        ("Backend", "index"),
    } <= found
    assert len(found) > 40


ARRAY = np.zeros((4, 3))
# fmt: off
CALLS = [
    (lambda: gn.Dense(4, 3, rng=-1),
     "Dense: rng must be None, a seed (a whole number of at least 0) or a numpy.random.Generator"),
    (lambda: gn.Dense(4, 3, rng=-1), "or a numpy.random.Generator, got -1"),
    (lambda: gn.Dense(4, 3, rng="0"), "or a numpy.random.Generator, got '0'"),
    (lambda: gn.Dense(4, 3, rng=True), "or a numpy.random.Generator, got True"),
    (lambda: gn.Dense(4, 3, rng=0.5), "or a numpy.random.Generator, got 0.5"),
    (lambda: gn.check_gradients(gn.ReLU(), X, rng="0"), "check_gradients: rng must be"),
    (lambda: gn.Dropout(0.5).forward(X, gn.Tape(rng="0")), "Tape: rng must be"),
    (lambda: gn.init.as_generator("0"), "rng must be None, a seed"),
    (lambda: gn.Dense(4, 3, init=ARRAY),
     "Dense: init must be a name or a function, got an array; pass init=lambda *_: array"),
    (lambda: gn.Dense(4, 3, init=ARRAY.tolist()), "Dense: init must be a name or a function, got"),
    (lambda: gn.Dense(4, 3, init=3), "Dense: init must be a name or a function, got 3"),
    (lambda: gn.Dense(4, 3, init="he"), "Dense: unknown initializer 'he'; known are glorot"),
    (lambda: gn.init.get_initializer([1]), "init must be a name or a function, got [1]"),
    (lambda: gn.Dense(4, 3, gn.ReLU), "Dense: activation is the class ReLU; pass gn.ReLU()"),
    (lambda: gn.Dense(4, 3, np.tanh), "Dense: unknown activation <ufunc 'tanh'>; known are"),
    (lambda: gn.Dense(4, 3, ["relu"]), "Dense: unknown activation ['relu']; known are"),
    (lambda: gn.Dense(4, 3, dtype=np.float16), "dtype must be 'float32' or 'float64', got <class"),
    (lambda: gn.Dense(4, 3, dtype=["float32"]), "dtype must be 'float32' or 'float64', got ['f"),
    (lambda: gn.ReLU().to(dtype=ARRAY), "ReLU(): dtype must be 'float32' or 'float64', got"),
    (lambda: gn.Sequential(gn.Dense),
     "Sequential: expected layers, got the class Dense at position 0; pass gn.Dense(...)"),
    (lambda: gn.Sequential(gn.ReLU(), gn.Tanh), "at position 1; pass gn.Tanh()"),
    (lambda: gn.Sequential({"a": gn.ReLU()}), "Sequential: expected layers, got dict at position"),
    (lambda: gn.Sequential("relu"), "Sequential: expected layers, got str at position 0"),
    (lambda: gn.Residual(gn.ReLU), "Residual: expected a layer, got the class ReLU; pass gn.ReLU"),
    (lambda: gn.Residual([gn.ReLU()]), "Residual: expected a layer, got list"),
    (lambda: gn.Dropout(np.array(0.5)), "Dropout: rate must be a number in [0, 1), got array(0.5)"),
    (lambda: gn.MeanSquaredError(reduction=["mean"]),
     "MeanSquaredError: reduction must be one of 'mean', 'sum', 'none'; got ['mean']"),
    (lambda: gn.MeanSquaredError(reduction=np.array(["mean", "sum"])), "must be one of 'mean'"),
    (lambda: gn.SGD(P, gn.Cosine),
     "SGD: learning_rate is the class Cosine; pass an instance, Cosine(...)"),
    (lambda: gn.WarmUp(3, gn.Cosine), "WarmUp: after is the class Cosine; pass an instance"),
    (lambda: gn.SGD(P, None), "SGD: learning_rate must be a number above 0, got None"),
    (lambda: gn.Constant(gn.Constant(0.1)), "Constant: learning_rate must be a number above 0"),
    (lambda: gn.Cosine(0.1, steps=3, final=0.2),
     "Cosine: final must be a number in [0, 0.1], got 0.2"),
    (lambda: gn.SGD(gn.Dense(4, 3).named_parameters()),
     "SGD: got a dict; pass its values, or model.parameters()"),
    (lambda: gn.SGD(P[0]), "SGD: got a Parameter; pass a list, [parameter]"),
    (lambda: gn.SGD(set(P)), "SGD: parameters must be ordered, got set; pass a list"),
    (lambda: gn.SGD("weight"), "SGD: expected model.parameters(), got str at position 0"),
    (lambda: gn.SGD(None), "SGD: expected model.parameters(), got NoneType"),
    (lambda: gn.SGD(3), "SGD: expected model.parameters(), got int"),
    (lambda: gn.SGD(gn.Dense(4, 3).parameters), "SGD: expected model.parameters(), got method"),
    (lambda: gn.SGD([gn.Dense(4, 3)]), "SGD: expected model.parameters(), got Dense at position 0"),
    (lambda: gn.Dense(4, 3).memory("32"), "memory: batch_size must be a whole number above 0"),
    (lambda: gn.Dense(4, 3).memory(0), "memory: batch_size must be a whole number above 0, got 0"),
    (lambda: gn.Dense(4, 3).memory(2, input_shape="4"),
     "memory: input_shape must be a shape, whole numbers of at least 0"),
    (lambda: gn.ReLU().memory(2, input_shape=(4, 2.5)), "memory: input_shape must be a shape"),
    (lambda: gn.Dense(4, 3).summary("4"), "summary: input_shape must be a shape, whole numbers"),
    (lambda: gn.ReLU().output_shape("4"), "output_shape: input_shape must be a shape"),
    (lambda: gn.check_gradients(gn.ReLU(), X, loss="mse", target=X),
     "check_gradients: loss must be a Loss or None, got 'mse'"),
    (lambda: gn.check_gradients(gn.ReLU, X),
     "check_gradients: expected a layer or a loss, got the class ReLU; pass gn.ReLU()"),
    (lambda: gn.check_gradients(gn.ReLU(), X, step=0),
     "check_gradients: step must be a number above 0, got 0"),
    (lambda: gn.get_backend(["numpy"]), "backend must be a name such as 'numpy' or 'cupy'"),
    (lambda: gn.Backend("torch"), "Backend: package must be one of 'numpy', 'cupy', "),
    (lambda: gn.Backend("cupy", -1), "Backend: index must be a whole number of at least 0, got -1"),
    (lambda: gn.logistic_regression(4, 1),
     "logistic_regression: n_classes must be a whole number of at least 2, got 1"),
]
# fmt: on


@pytest.mark.parametrize(("call", "told"), [pytest.param(*row, id=row[1][:60]) for row in CALLS])
def test_what_to_write_is_told(call: Callable[[], Any], told: str) -> None:
    with pytest.raises(SettingError) as caught:
        call()
    assert told in str(caught.value)


def test_what_an_initializer_must_return() -> None:
    for result in (3, ARRAY.tolist(), None):
        with pytest.raises(DTypeError, match=r"Dense\(4, 3\): init must return an array, got "):
            gn.Dense(4, 3, init=lambda *_, result=result: result)
    with pytest.raises(DTypeError, match=r"Dense\(4, 3\): init must return real numbers, got <U1"):
        gn.Dense(4, 3, init=lambda *_: np.full((4, 3), "a"))
    with pytest.raises(ShapeError, match=r"init must return shape \(4, 3\), got \(3,\)"):
        gn.Dense(4, 3, init=lambda *_: ARRAY[0])
    assert_array_equal(
        gn.Dense(4, 3, init=lambda *_: np.eye(4, 3, dtype=int)).weight.value, np.eye(4, 3)
    )


def test_what_is_a_number_and_a_flag_as_well() -> None:
    assert gn.Dropout(np.float32(0.25)).rate == 0.25
    assert type(gn.Dense(np.int64(4), np.uint8(3)).in_features) is int
    assert gn.Dense(4, 3, bias=np.bool_(False)).bias is None
    assert gn.Dense(4, 3, dtype=np.dtype("float64")).weight.value.dtype == "float64"
    assert gn.SGD(iter(P)).parameters == P
    assert gn.SGD(dict(enumerate(P)).values()).parameters == P
    seeds = [1, np.int64(1), [1, 2], np.random.SeedSequence(1), np.random.PCG64(1)]
    for seed in [*seeds, np.random.default_rng(1), None]:
        assert gn.Dense(4, 3, rng=seed).weight.value.shape == (4, 3)


class TestLater:
    """Settings that are changed on an object that has been built."""

    @pytest.mark.parametrize(
        ("make", "name", "value", "told"),
        [
            (lambda: gn.SGD(P), "learning_rate", 0.0, "SGD: learning_rate must be a number above"),
            (lambda: gn.SGD(P), "learning_rate", "0.1", "SGD: learning_rate must be a number"),
            (lambda: gn.SGD(P), "learning_rate", gn.Cosine, "SGD: learning_rate is the class"),
            (lambda: gn.SGD(P), "schedule", "fast", "SGD: schedule must be a number above 0"),
            (lambda: gn.SGD(P), "momentum", 1.0, r"SGD: momentum must be a number in \[0, 1\)"),
            (lambda: gn.SGD(P), "momentum", None, r"SGD: momentum must be a number in \[0, 1\)"),
            (lambda: gn.SGD(P), "nesterov", True, "SGD: nesterov=True needs momentum above 0"),
            (
                lambda: gn.SGD(P, momentum=0.9, nesterov=True),
                "momentum",
                0.0,
                "SGD: nesterov=True needs momentum above 0",
            ),
            (lambda: gn.SGD(P), "nesterov", "yes", "SGD: nesterov must be True or False"),
            (lambda: gn.SGD(P), "clip_norm", "1", "SGD: clip_norm must be None or a number above"),
            (lambda: gn.SGD(P), "clip_value", 0, "SGD: clip_value must be None or a number above"),
            (lambda: gn.SGD(P), "weight_decay", "1", "SGD: weight_decay must be a number of at l"),
            (lambda: gn.Adam(P), "beta_1", 1.0, r"Adam: beta_1 must be a number in \[0, 1\)"),
            (lambda: gn.Adam(P), "beta_2", None, r"Adam: beta_2 must be a number in \[0, 1\)"),
            (lambda: gn.Adam(P), "epsilon", 0.0, "Adam: epsilon must be a number above 0"),
            (lambda: gn.Dropout(0.5), "rate", 1.0, r"Dropout: rate must be a number in \[0, 1\)"),
            (gn.LeakyReLU, "negative_slope", 1.0, "LeakyReLU: negative_slope must be a"),
            (gn.ELU, "alpha", 0.0, "ELU: alpha must be a number above 0"),
            (gn.GELU, "approximate", "no", "GELU: approximate must be True or False"),
            (gn.CrossEntropy, "label_smoothing", 2, "CrossEntropy: label_smoothing must"),
            (gn.CrossEntropy, "class_weight", "ab", "CrossEntropy: class_weight must be"),
            (gn.CrossEntropy, "reduction", "avg", "CrossEntropy: reduction must be one"),
            (
                gn.BinaryCrossEntropy,
                "from_logits",
                0,
                "from_logits must be True or False",
            ),
        ],
    )
    def test_what_is_wrong_is_told_and_not_taken(
        self, make: Callable[[], Any], name: str, value: Any, told: str
    ) -> None:
        item = make()
        before = getattr(item, name)
        with pytest.raises(SettingError, match=told):
            setattr(item, name, value)
        assert getattr(item, name) is before or getattr(item, name) == before

    def test_numbers_become_floats(self) -> None:
        optimizer = gn.SGD(P)
        optimizer.clip_norm = np.float32(2)
        assert type(optimizer.clip_norm) is float
        optimizer.clip_norm = None
        assert optimizer.clip_norm is None

    def test_they_are_copied_and_pickled(self) -> None:
        for item, name, value in (
            (gn.Adam(gn.Dense(4, 3).parameters()), "beta_1", 0.5),
            (gn.Dropout(0.5), "rate", 0.25),
            (gn.SGD(gn.Dense(4, 3).parameters()), "momentum", 0.5),
            (gn.SoftmaxCrossEntropy(class_weight={0: 2}), "class_weight", {1: 3.0}),
        ):
            setattr(item, name, value)
            for other in (copy.deepcopy(item), pickle.loads(pickle.dumps(item))):  # noqa: S301
                assert getattr(other, name) == value
                assert repr(other) == repr(item)

    def test_a_learning_rate(self) -> None:
        value = gn.Parameter(np.zeros(1))
        optimizer = gn.SGD([value], gn.StepDecay(1.0, every=1))
        for rate, moved in ((0.5, -0.5), (gn.StepDecay(1.0, every=1, factor=0.5), -1.0)):
            optimizer.learning_rate = rate
            value.add_grad(np.ones(1))
            optimizer.step()
            assert value.value.tolist() == [moved]
        assert optimizer.learning_rate == 0.25
        optimizer.learning_rate = 1
        assert repr(optimizer) == "SGD(learning_rate=1.0)"
        optimizer.schedule = gn.Constant(2.0)
        assert optimizer.learning_rate == 2.0
        assert optimizer.step_sizes(2) == [2.0, 2.0]


def descend(optimizer: gn.SGD, momenta: list[float]) -> list[float]:
    """Return the value after each step on a gradient of one."""
    (parameter,) = optimizer.parameters
    values = []
    for momentum in momenta:
        optimizer.momentum = momentum
        parameter.add_grad(gn.get_backend(gn.backend_of(parameter.value)).asarray([1.0]))
        optimizer.step()
        values.append(float(gn.to_numpy(parameter.value)[0]))
    return values


class TestMomentumLater:
    @pytest.mark.parametrize("backend", ["numpy", "array-api-strict"])
    def test_by_hand(self, backend: str) -> None:
        value = gn.get_backend(backend).asarray([0.0], "float64")
        optimizer = gn.SGD([gn.Parameter(value)], 1.0)
        # v is 0 when momentum begins, and again when it begins anew.
        values = descend(optimizer, [0.0, 0.5, 0.5, 0.0, 0.5])
        assert values == [-1.0, -2.0, -3.5, -4.5, -5.5]

    def test_it_takes_and_gives_back_memory(self) -> None:
        optimizer = gn.SGD(gn.Dense(4, 3, dtype="float64").parameters())
        sizes = []
        for momentum in (0.0, 0.5, 0.9, 0.0):
            optimizer.momentum = momentum
            sizes.append(optimizer.state_bytes())
        assert sizes == [0, 120, 120, 0]

    def test_gradients_that_are_there_are_used(self) -> None:
        results = []
        for late in (False, True):
            model = gn.Dense(4, 3, rng=0)
            optimizer = gn.SGD(model.parameters(), 0.1, momentum=0.0 if late else 0.5)
            for _ in range(2):
                for parameter in model.parameters():
                    parameter.add_grad(np.ones_like(parameter.value))
                optimizer.momentum = 0.5
                optimizer.step()
            results.append(model.weight.value)
        assert_allclose(*results)

    def test_nesterov_in_one_go(self) -> None:
        optimizer = gn.SGD([gn.Parameter(np.zeros(1))], 1.0)
        optimizer.momentum = 0.5
        optimizer.nesterov = True
        assert descend(optimizer, [0.5, 0.5]) == [-1.5, -3.25]
        assert repr(optimizer) == "SGD(learning_rate=1.0, momentum=0.5, nesterov=True)"

    def test_a_model_that_moved_is_an_error(self) -> None:
        model = gn.Dense(2, 2, rng=0)
        optimizer = gn.SGD(model.parameters())
        model.to("array-api-strict")
        with pytest.raises(gn.errors.DeviceError, match=r"build the optimizer after model\.to"):
            optimizer.momentum = 0.5
        assert optimizer.momentum == 0.0


@pytest.mark.parametrize("wrong", [5, True, 0.5, object])
def test_a_tape_of_what_are_no_parameters(wrong: Any) -> None:
    with pytest.raises(
        SettingError, match=r"Tape: expected parameters such as model\.parameters\(\)"
    ):
        gn.Tape(parameters=wrong)


@pytest.mark.parametrize("wrong", ["sgd", 0.1, gn.SGD])
def test_the_memory_of_what_is_no_optimizer(wrong: Any) -> None:
    with pytest.raises(SettingError, match=r"memory: optimizer must be None or an Optimizer, got"):
        MODEL.memory(2, optimizer=wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (None, "Parameter: expected an array, got NoneType"),
        ([0.5], "Parameter: expected an array, got list"),
        (0.5, "Parameter: expected an array, got float"),
    ],
)
def test_a_parameter_of_what_is_no_array(wrong: Any, message: str) -> None:
    with pytest.raises(DTypeError, match=message):
        gn.Parameter(wrong)
    with pytest.raises(DTypeError, match=message.replace("Parameter", "Buffer")):
        gn.Buffer(wrong)
