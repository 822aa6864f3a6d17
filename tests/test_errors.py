"""The common mistakes: each is an error that says who speaks, what was wanted and what came."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gpunn as gn
from gpunn import errors
from gpunn.errors import (
    DataError,
    DeviceError,
    DTypeError,
    GpunnError,
    LabelError,
    SettingError,
    ShapeError,
    TapeError,
)
from gpunn.training.metrics import METRICS

pytest.importorskip("array_api_strict")  # the tables below mix devices

STRICT0, STRICT1 = "array-api-strict:0", "array-api-strict:1"
X = np.linspace(-1.0, 1.0, 24, dtype="float32").reshape(6, 4)
Y = np.array([0, 1, 2, 0, 1, 2])
Z = X[:, :3]


def there(x: Any, name: str = STRICT1) -> Any:
    return gn.get_backend(name).asarray(x)


def network(backend: str = "numpy", head: str | None = None) -> gn.Sequential:
    return gn.Sequential(gn.Dense(4, 5, "tanh", rng=0), gn.Dense(5, 3, head, rng=1)).to(backend)


def trainer(model: Any = None, loss: Any = None, **settings: Any) -> gn.Trainer:
    model = network() if model is None else model
    loss = gn.SoftmaxCrossEntropy() if loss is None else loss
    return gn.Trainer(model, loss, gn.SGD(model.parameters(), 0.1), **settings)


def loader(x: Any = X, y: Any = Y, **settings: Any) -> gn.Loader:
    return gn.Loader(x, y, **{"batch_size": 2, "rng": 0, **settings})


def half_moved() -> None:
    model = network()
    model[0].to(STRICT1)
    model(there(X))


def backward_twice() -> None:
    tape, layer = gn.Tape(), gn.Dense(4, 3)
    grad = layer(X, tape)
    layer.backward(grad, tape)
    layer.backward(grad, tape)


def backward_out_of_order() -> None:
    tape, first, second = gn.Tape(), gn.ReLU(), gn.Tanh()
    first.backward(second(first(X, tape), tape), tape)


def moved_too_late(step: bool) -> None:
    model = network()
    late = trainer(model)
    model.to(STRICT1)
    if step:
        late.optimizer.step()
    late.fit(loader(backend=STRICT1), epochs=1)


def foreign_optimizer() -> None:
    gn.Trainer(network(), gn.SoftmaxCrossEntropy(), gn.SGD(network().parameters()))


def fit(x: Any = X, y: Any = Y, loss: Any = None, epochs: Any = 1, **settings: Any) -> gn.History:
    return trainer(loss=loss).fit(loader(x, y), epochs, **settings)


# fmt: off
LAYERS = [
    *(
        (f"x {x.shape}", lambda x=x: gn.Dense(4, 3)(x), ShapeError,
         f"Dense(4, 3): expected x of shape (N, 4), got {x.shape}{advice}")
        for x, advice in ((Z, ""), (X[:, 0], ""), (X.reshape(6, 2, 2), "; flatten it first"))
    ),
    *(
        (f"x {x.dtype}", lambda x=x: gn.Dense(4, 3)(x), DTypeError, 'x.astype("float32")',
         f"Dense(4, 3): expected floating-point x, got {x.dtype}; convert it")
        for x in (X.astype("int64"), X > 0, there(X.astype("int32")))
    ),
    *(
        (f"{home} and {away}", lambda home=home, away=away: network(home)(there(X, away)),
         DeviceError, f"is on {home} and x on {away}; move one of them: model.to('{away}')",
         f"gn.get_backend('{home}').asarray(x)")
        for home, away in (("numpy", STRICT1), (STRICT1, "numpy"), (STRICT0, STRICT1))
    ),
    *(
        (f"{name}={came}", make, SettingError,
         f"Dense: {name} must be a whole number above 0, got {came}")
        for make, name, came in (
            (lambda: gn.Dense(0, 3), "in_features", 0),
            (lambda: gn.Dense(3, -1), "out_features", -1),
            (lambda: gn.Dense(3, 2.0), "out_features", 2.0),
        )
    ),
    *(
        (f"Dropout({rate})", lambda rate=rate: gn.Dropout(rate), SettingError,
         f"Dropout: rate must be a number in [0, 1), got {rate}")
        for rate in (1.0, -0.1, float("nan"))
    ),
    ("float64 into float32", lambda: network()(X.astype("float64")), DTypeError,
     "Dense(4, 5, activation='tanh'): the weights are float32 and x is float64; convert x",
     'x.astype("float32")',
     'Loader(..., dtype="float32")', "model.to(dtype=...)"),
    ("a list", lambda: gn.Dense(4, 3)(X.tolist()), DTypeError,
     "Dense(4, 3): expected an array, got list; convert it by numpy.asarray(x)"),
    ("half a model", half_moved, DeviceError, "on different devices", "layers.1.weight on numpy"),
    ("activation", lambda: gn.Dense(4, 3, "rleu"), SettingError,
     "unknown activation 'rleu'; known are ", *gn.ACTIVATIONS),
    ("activation class", lambda: gn.Dense(4, 3, gn.ReLU), SettingError,
     "Dense: activation is the class ReLU; pass gn.ReLU()"),
    ("initializer", lambda: gn.Dense(4, 3, init="xavier"), SettingError,
     "unknown initializer 'xavier'; known are ", *gn.init.INITIALIZERS),
    ("initial shape", lambda: gn.Dense(4, 3, init=lambda *_: np.zeros((3, 4))), ShapeError,
     "Dense(4, 3): init must return shape (4, 3), got (3, 4)"),
    ("dtype", lambda: gn.Dense(4, 3, dtype="int8"), SettingError,
     "Dense(4, 3): dtype must be 'float32' or 'float64', got 'int8'"),
    ("dtype to", lambda: network().to(dtype="int8"), SettingError,
     "dtype must be 'float32' or 'float64', got 'int8'"),
    ("backend", lambda: gn.Dense(4, 3, backend="gpu"), SettingError,
     "unknown backend 'gpu'; known are auto, numpy, cupy", "(did you mean 'cupy'?)"),
    ("device cpu", lambda: gn.get_backend("cpu"), SettingError, "(did you mean 'numpy'?)"),
    ("dtype as a backend", lambda: network().to("float32"), SettingError,
     "unknown backend 'float32'", "(that is a dtype: say dtype='float32')"),
    ("backend to", lambda: network().to("gpu"), SettingError, "unknown backend 'gpu'; known are"),
    ("Sequential([...])", lambda: gn.Sequential([gn.Dense(4, 3), gn.ReLU()]), SettingError,
     "Sequential: expected layers, got list at position 0",
     "Sequential(a, b), or unpack a list, Sequential(*layers)"),
    ("Residual(class)", lambda: gn.Residual(gn.ReLU), SettingError,
     "Residual: expected a layer, got the class ReLU; pass gn.ReLU()"),
    ("Residual", lambda: gn.Residual(gn.Dense(4, 3))(X), ShapeError,
     "Residual(Dense(4, 3)): the inner layer must keep the shape (6, 4), it returned (6, 3)"),
]

TAPES = [
    *(
        (f"{layer!r} backward", lambda layer=layer: layer.backward(X, gn.Tape()), TapeError,
         f"{layer!r}: backward has nothing to read; run forward with this tape first")
        for layer in (gn.Dense(4, 3), gn.ReLU(), gn.Dropout(0.5), gn.Flatten())
    ),
    ("a loss", lambda: gn.MeanSquaredError().backward(gn.Tape()), TapeError,
     "MeanSquaredError(): backward has nothing to read"),
    ("twice", backward_twice, TapeError, "Dense(4, 3): ", "only once for each forward"),
    ("order", backward_out_of_order, TapeError, "ReLU(): ", "out of order", "expects Tanh()"),
]

ENTROPIES = [gn.SoftmaxCrossEntropy(), gn.CrossEntropy()]
LOSSES = [
    *(
        (f"{loss!r} {what}", lambda loss=loss, y=y: loss(Z, y), kind, f"{loss!r}: ", *told)
        for loss in ENTROPIES
        for what, y, kind, *told in (
            ("float labels", Y * 1.0, DTypeError, "class labels must be integers, got float64",
             'y.astype("int64")'),
            ("labels 1..3", Y + 1, LabelError, "the model outputs 3 classes, so labels must be in",
             "0..2; got labels from 1 to 3; subtract 1"),
            ("labels -1..1", Y - 1, LabelError, "the model", "in 0..2; got labels from -1 to 1"),
            ("labels (N, 1)", Y[:, None], ShapeError,
             "expected labels of shape (N,) or soft targets of shape (N, 3), got (6, 1)"),
            ("fewer labels", Y[:5], ShapeError, "expected labels of shape (6,)", "got (5,)"),
            ("negative targets", Z - 2.0, LabelError, "targets must be in [0, inf]", "from -3"),
        )
    ),
    *(
        (f"{loss!r} {what}", lambda loss=loss, a=a, y=y: loss(a, y), kind, f"{loss!r}: ", *told)
        for loss in (gn.MeanSquaredError(), gn.BinaryCrossEntropy(), ENTROPIES[0])
        for what, a, y, kind, *told in (
            ("fewer targets", Z, Z[:5] ** 2, ShapeError, "expected ", "got (5, 3)"),
            ("target list", Z, Y.tolist(), DTypeError, "expected an array as target, got list"),
            ("prediction list", Z.tolist(), Y, DTypeError, "an array as prediction, got list"),
            ("prediction (N,)", Z[:, 0], Z[:, 0] ** 2, ShapeError,
             "expected a prediction of shape (N, outputs), got (N,)"),
            ("devices", there(Z), there(Z, STRICT0), DeviceError,
             f"prediction is on {STRICT1} and the target on {STRICT0}",
             f"gn.get_backend('{STRICT1}').asarray(target)"),
            ("libraries", Z, there(Z), DeviceError, f"on numpy and the target on {STRICT1}"),
        )
    ),
    ("targets (N,)", lambda: gn.MeanSquaredError()(Z, Z[:, 0]), ShapeError,
     "MeanSquaredError(): expected a target of shape (N, 3)"),
    ("labels 1, 2", lambda: gn.BinaryCrossEntropy()(Z[:, :1], Y[:, None] + 1), LabelError,
     "BinaryCrossEntropy(): targets must be in [0, 1], got values from 1 to 3"),
    ("few weights", lambda: gn.MeanSquaredError()(Z, Z, sample_weight=Z[:5, 0]), ShapeError,
     "expected sample_weight of shape (6,), got (5,)"),
    ("weights", lambda: gn.MeanSquaredError()(Z, Z, sample_weight=np.ones(6)), DTypeError,
     "sample_weight is float64 and the prediction float32"),
    ("weights elsewhere", lambda: gn.MeanSquaredError()(Z, Z, sample_weight=there(Z[:, 0])),
     DeviceError, f"on numpy and the sample_weight on {STRICT1}"),
    ("reduction", lambda: gn.MeanSquaredError(reduction="avg"), SettingError,
     "MeanSquaredError: reduction must be one of 'mean', 'sum', 'none'; got 'avg'"),
    ("class weights", lambda: gn.CrossEntropy(class_weight=[1.0, 2.0])(Z, Y), SettingError,
     "class_weight has 2 entries, and the model outputs 3 classes"),
    ("bad class weights", lambda: gn.CrossEntropy(class_weight=[1.0, -2.0]), SettingError,
     "CrossEntropy: class_weight[1] must be a number of at least 0, got -2.0"),
    ("smoothing", lambda: gn.CrossEntropy(label_smoothing=1.5), SettingError,
     "CrossEntropy: label_smoothing must be a number in [0, 1], got 1.5"),
    ("one class", lambda: gn.logistic_regression(4, 1), SettingError,
     "logistic_regression: n_classes must be a whole number of at least 2, got 1"),
]

P = network().parameters()
SETTINGS = [
    (gn.SGD, {"learning_rate": 0.0}, "learning_rate must be a number above 0, got 0.0"),
    (gn.SGD, {"learning_rate": -1}, "learning_rate must be a number above 0, got -1"),
    (gn.SGD, {"learning_rate": "1"}, "learning_rate must be a number above 0, got '1'"),
    (gn.SGD, {"momentum": 1.0}, "SGD: momentum must be a number in [0, 1), got 1.0"),
    (gn.SGD, {"momentum": -0.5}, "SGD: momentum must be a number in [0, 1), got -0.5"),
    (gn.SGD, {"nesterov": True}, "SGD: nesterov=True needs momentum above 0"),
    (gn.SGD, {"weight_decay": -0.1}, "SGD: weight_decay must be a number of at least 0, got -0.1"),
    (gn.Adam, {"beta_1": 1.0}, "Adam: beta_1 must be a number in [0, 1), got 1.0"),
    (gn.Adam, {"beta_2": -0.1}, "Adam: beta_2 must be a number in [0, 1), got -0.1"),
    (gn.Adam, {"epsilon": 0.0}, "Adam: epsilon must be a number above 0, got 0.0"),
    (gn.SGD, {"clip_norm": 0.0}, "SGD: clip_norm must be None or a number above 0, got 0.0"),
    (gn.SGD, {"clip_value": -1}, "SGD: clip_value must be None or a number above 0, got -1"),
    (gn.SGD, {"parameters": []}, "SGD: there is nothing to train; pass model.parameters()"),
    (gn.SGD, {"parameters": [*P, P[0]]}, "SGD: a parameter was given twice"),
    (gn.SGD, {"parameters": network()}, "SGD: got a model; pass its parameters"),
    (gn.SGD, {"parameters": [X]}, "SGD: expected model.parameters(), got ndarray at position 0"),
    (gn.Constant, {"learning_rate": float("nan")}, "Constant: learning_rate must be a number"),
    (gn.StepDecay, {"every": 0}, "StepDecay: every must be a whole number above 0, got 0"),
    (gn.StepDecay, {"every": 5, "factor": 1.5},
     "StepDecay: factor must be a number in (0, 1], got 1.5"),
    (gn.ExponentialDecay, {"factor": 0},
     "ExponentialDecay: factor must be a number in (0, 1], got 0"),
    (gn.Cosine, {"steps": 1.5}, "Cosine: steps must be a whole number above 0, got 1.5"),
    (gn.Cosine, {"steps": 5, "final": 0.2}, "Cosine: final must be a number in [0, 0.1], got 0.2"),
    (gn.WarmUp, {"steps": 0, "after": 0.1}, "WarmUp: steps must be a whole number above 0, got 0"),
    (gn.ReduceOnPlateau, {"patience": 0}, "ReduceOnPlateau: patience must be a whole number"),
    (gn.ReduceOnPlateau, {"factor": 2}, "ReduceOnPlateau: factor must be a number in (0, 1"),
    (gn.ReduceOnPlateau, {"tolerance": -1},
     "ReduceOnPlateau: tolerance must be a number of at least 0"),
    (gn.ReduceOnPlateau, {"minimum": 1},
     "ReduceOnPlateau: minimum must be a number in [0, 0.1], got 1"),
    (gn.EarlyStopping, {"patience": 0}, "EarlyStopping: patience must be a whole number above 0"),
    (gn.EarlyStopping, {"patience": True}, "patience must be a whole number above 0, got True"),
    (gn.EarlyStopping, {"patience": 2.5}, "patience must be a whole number above 0, got 2.5"),
    (gn.EarlyStopping, {"tolerance": "0.1"}, "a number of at least 0, got '0.1'"),
    (gn.EarlyStopping, {"monitor": gn.Accuracy()}, "monitor must be None or the name of a column"),
    (gn.EarlyStopping, {"restore_best": "no"}, "restore_best must be one of True, False; got 'no'"),
    (gn.EarlyStopping, {"higher_is_better": "max"}, "one of None, True, False; got 'max'"),
    (gn.TopK, {"k": True}, "TopK: k must be a whole number above 0, got True"),
    (gn.TopK, {"k": 0}, "TopK: k must be a whole number above 0, got 0"),
    (gn.BinaryAccuracy, {"threshold": "0"}, "threshold must be a finite number, got '0'"),
    (gn.BinaryAccuracy, {"threshold": float("nan")}, "threshold must be a finite number, got nan"),
    (gn.EarlyStopping, {"tolerance": -1.0}, "tolerance must be a number of at least 0, got -1.0"),
]


def _complete(make: Any, settings: dict[str, Any]) -> Callable[[], Any]:
    wanted = inspect.signature(make).parameters
    usual = {"parameters": P, "learning_rate": 0.1}
    return lambda: make(**{k: v for k, v in usual.items() if k in wanted} | settings)


OPTIMIZERS = [
    (f"{make.__name__}({settings})", _complete(make, settings), SettingError, told)
    for make, settings, told in SETTINGS
]

TRAINING = [
    ("softmax head", lambda: trainer(network(head="softmax")), SettingError,
     "Trainer: the model ends in Softmax and SoftmaxCrossEntropy applies it again; remove"),
    ("log-softmax head", lambda: trainer(network(head="log_softmax")), SettingError,
     "ends in LogSoftmax and SoftmaxCrossEntropy"),
    ("head of a convolution",
     lambda: trainer(gn.Sequential(gn.Conv1d(1, 3, 4, "softmax"), gn.Flatten())), SettingError,
     "Trainer: the model ends in Softmax and SoftmaxCrossEntropy applies it again; remove"),
    ("labels in a column",
     lambda: gn.CrossEntropy().check_target(np.zeros((4, 1), int), (3,)), ShapeError,
     "got (4, 1); pass a column of labels as y.ravel()"),
    ("no head", lambda: trainer(network(), gn.CrossEntropy()), SettingError,
     "CrossEntropy() takes probabilities, and the model ends without an activation"),
    ("sigmoid head", lambda: trainer(network(head="sigmoid"), gn.BinaryCrossEntropy()),
     SettingError, "ends in Sigmoid", "BinaryCrossEntropy(from_logits=False)"),
    ("no reduction", lambda: trainer(loss=gn.SoftmaxCrossEntropy(reduction="none")), SettingError,
     "Trainer: the loss must reduce to one number; reduction is 'none'"),
    ("metric", lambda: trainer(metrics=["f1"]), SettingError,
     "unknown metric 'f1'; known are ", *METRICS),
    ("loss", lambda: trainer(loss="mse"), SettingError, "Trainer: loss must be a Loss, got str"),
    ("optimizer", foreign_optimizer, SettingError, "not the model's", "model.parameters()"),
    ("epochs 0", lambda: fit(epochs=0), SettingError, "epochs must be a whole number", "got 0"),
    ("epochs 1.5", lambda: fit(epochs=1.5), SettingError, "epochs must be a whole", "got 1.5"),
    ("arrays", lambda: trainer().fit(X, 1), SettingError, "expected a Loader, got ndarray"),
    ("validation", lambda: fit(validation=X), SettingError,
     "expected a Loader, (x, y) or (x, y, sample_weight), got ndarray"),
    ("validation of 4", lambda: fit(validation=(X, Y, Y, Y)), SettingError, "got 4 items"),
    ("validation labels", lambda: fit(validation=(X, Y + 1)), LabelError, "from 1 to 3"),
    ("validation x", lambda: fit(validation=(Z, Y)), ShapeError, "(N, 4), got (1, 3)"),
    ("monitor", lambda: fit(early_stopping=gn.EarlyStopping(monitor="f1")), SettingError, "'f1'"),
    ("no targets", lambda: fit(y=None), DataError, "the loader has no targets; say Loader(x, y)"),
    ("features", lambda: fit(Z), ShapeError, "expected x of shape (N, 4), got (1, 3)"),
    ("targets", lambda: fit(loss=gn.MeanSquaredError()), ShapeError, "(N, 3)", "got (6,)"),
    ("devices", lambda: trainer(network(STRICT1)).fit(loader(), 1), DeviceError,
     f"the model is on {STRICT1} and the loader's batches on numpy",
     f"Loader(..., backend='{STRICT1}')", "model.to('numpy') before building the optimizer"),
    ("moved late", lambda: moved_too_late(step=False), DeviceError, "SGD was built when",
     f"on numpy, and now they are on {STRICT1}", f"after model.to('{STRICT1}')"),
    ("step", lambda: moved_too_late(step=True), DeviceError, f"after model.to('{STRICT1}')"),
]
# fmt: on

MISTAKES = [
    pytest.param(make, kind, parts, id=what)
    for what, make, kind, *parts in (*LAYERS, *TAPES, *LOSSES, *OPTIMIZERS, *TRAINING)
]


@pytest.mark.parametrize(("make", "kind", "parts"), MISTAKES)
def test_a_mistake_is_told(
    make: Callable[[], Any], kind: type[Exception], parts: tuple[str, ...]
) -> None:
    with pytest.raises(kind) as caught:
        make()
    assert isinstance(caught.value, GpunnError)
    missing = [part for part in parts if part not in str(caught.value)]
    assert missing == [], str(caught.value)


@pytest.mark.parametrize("home", ["numpy", STRICT1])
@pytest.mark.parametrize(
    ("y", "born"),
    [(Y + 1, None), (Y - 1, None), (Y * 1.0, None), (Y[:, None], None), (Y, "array-api-strict:2")],
    ids=["high labels", "low labels", "float labels", "2-D labels", "moved late"],
)
def test_it_is_told_before_anything_is_learnt(home: str, y: Any, born: str | None) -> None:
    model, seen = network(born or home), []
    before = [gn.to_numpy(p.value).tobytes() for p in model.parameters()]
    at_home = trainer(model)
    model.to(home)
    batches = loader(y=y, backend=home)
    with pytest.raises(GpunnError):
        at_home.fit(batches, 2, callbacks=[lambda *_: seen.append(1)])
    assert [gn.to_numpy(p.value).tobytes() for p in model.parameters()] == before
    assert (at_home.optimizer.steps, seen) == (0, [])
    first, fresh = (next(iter(each)).x for each in (batches, loader(rng=0)))
    assert gn.to_numpy(first).tolist() == gn.to_numpy(fresh).tolist()  # no epoch was drawn


def test_every_error_is_ours_and_a_builtin() -> None:
    classes = dict(inspect.getmembers(errors, inspect.isclass))
    assert classes.pop("GpunnError") is GpunnError
    for error in classes.values():
        assert issubclass(error, GpunnError)
        assert [base for base in error.__bases__ if base.__module__ == "builtins"]
        assert inspect.getdoc(error)
