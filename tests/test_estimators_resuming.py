"""Estimators with a checkpoint: `fit` goes on where another process left it, with the same bits."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from scipy import sparse
from sklearn.exceptions import NotFittedError

import gpunn as gn
from gpunn.errors import FileError, StateError
from gpunn.estimators import LogisticRegression, NetworkClassifier
from tests.quick_estimators import HELD, NUMBERS, TRAIN, WEIGHT, X, Y, classifier, regressor

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.safetensors"


def network(input_shape: tuple[int, ...], n_outputs: int, *, rng: Any = None) -> gn.Layer:
    hidden = gn.Dense(input_shape[0], 8, rng=rng), gn.BatchNorm(8), gn.ReLU(), gn.Dropout(0.2)
    return gn.Sequential(*hidden, gn.Dense(8, n_outputs, rng=rng))


def averaged(parameters: Any) -> gn.Optimizer:
    return gn.RMSprop(parameters, gn.StepDecay(0.01, every=3, factor=0.5), clip_norm=1.0)


SETTINGS: dict[str, tuple[Any, dict[str, Any]]] = {
    "Adam": (classifier, {}),
    "dropout": (classifier, {"dropout": 0.3}),
    "early stopping": (classifier, {"early_stopping": True, "n_iter_no_change": 2}),
    "invscaling": (classifier, {"solver": "sgd", "learning_rate": "invscaling"}),
    "adaptive": (
        classifier,
        {"solver": "sgd", "learning_rate": "adaptive", "tol": 0.1, "n_iter_no_change": 1},
    ),
    "no shuffling": (classifier, {"shuffle": False, "metrics": ["accuracy"]}),
    "an optimizer": (classifier, {"solver": averaged}),
    "class weights": (classifier, {"class_weight": "balanced"}),
    "a regressor": (regressor, {"early_stopping": True, "dropout": 0.1}),
    "logistic": (functools.partial(LogisticRegression, max_iter=5), {"random_state": 3}),
    "a network": (
        functools.partial(NetworkClassifier, network, max_iter=5, batch_size=30),
        {"early_stopping": True, "random_state": 0},
    ),
}


def target_of(model: Any) -> Any:
    return (
        NUMBERS["three"]
        if hasattr(model, "loss") and model.loss == "squared_error"
        else Y["multiclass"]
    )


def weights_of(model: Any) -> list[Any]:
    arrays = model._network.named_parameters() | model._network.named_buffers()
    return [gn.to_numpy(item.value) for item in arrays.values()]


def assert_same_bits(one: Any, other: Any) -> None:
    for a, b in zip(weights_of(one), weights_of(other), strict=True):
        assert_array_equal(a, b)
    timeless = [
        {k: v for k, v in model.history_.columns.items() if not k.endswith("_s")}
        for model in (one, other)
    ]
    assert timeless[0] == timeless[1]
    for name in ("n_iter_", "t_", "loss_curve_", "best_loss_", "validation_scores_"):
        assert getattr(one, name) == getattr(other, name), name


@pytest.mark.parametrize("stop", [1, 4])
@pytest.mark.parametrize("name", SETTINGS)
def test_a_fit_that_goes_on_has_the_bits_of_one_that_never_stopped(
    name: str, stop: int, path: Path
) -> None:
    make, settings = SETTINGS[name]
    whole = make(**settings).set_params(max_iter=8)
    y = target_of(whole)
    whole.fit(X, y, WEIGHT)
    saved = {"checkpoint": path, "warm_start": True}
    make(**settings).set_params(**saved, max_iter=stop).fit(X, y, WEIGHT)
    assert_same_bits(make(**settings).set_params(**saved, max_iter=8).fit(X, y, WEIGHT), whole)


@pytest.mark.parametrize(
    "x", [X.astype("float32"), sparse.csr_matrix(X), np.asfortranarray(X)], ids=type
)
def test_it_knows_its_data_again(x: Any, path: Path) -> None:
    saved = {"checkpoint": path, "warm_start": True}
    whole = classifier(max_iter=6).fit(x, Y["binary"])
    classifier(max_iter=2, **saved).fit(x, Y["binary"])
    assert_same_bits(classifier(max_iter=6, **saved).fit(x.copy(), Y["binary"]), whole)


@pytest.mark.parametrize("changed", ["x", "y", "weight", "held out", "rows"])
def test_other_data_are_refused(changed: str, path: Path) -> None:
    data = {
        "x": X[TRAIN].copy(),
        "y": Y["multiclass"][TRAIN].copy(),
        "weight": WEIGHT[TRAIN].copy(),
    }
    held = {"X_val": X[HELD].copy(), "y_val": Y["multiclass"][HELD]}
    saved = {"checkpoint": path, "warm_start": True}
    classifier(**saved).fit(data["x"], data["y"], data["weight"], **held)
    if changed == "rows":
        data = {name: value[1:] for name, value in data.items()}
    elif changed == "held out":
        held["X_val"][3, 2] += 1e-9
    else:
        data[changed][7] = 2 - data[changed][7]
    model = classifier(**saved)
    with pytest.raises(StateError, match="written for other training data"):
        model.fit(data["x"], data["y"], data["weight"], **held)
    with pytest.raises(NotFittedError):
        model.predict(X)


@pytest.mark.parametrize(
    ("name", "value"),
    [("alpha", 0.5), ("hidden_layer_sizes", (7,)), ("solver", averaged), ("batch_size", 20)],
)
def test_another_setting_is_named(name: str, value: Any, path: Path) -> None:
    saved = {"checkpoint": path, "warm_start": True}
    classifier(**saved).fit(X, Y["binary"])
    before = path.read_bytes()
    with pytest.raises(StateError, match=rf"cannot resume from .*: {name} was .* and is "):
        classifier(**{**saved, name: value}).fit(X, Y["binary"])
    assert path.read_bytes() == before
    classifier(checkpoint=path, **{name: value}).fit(X, Y["binary"])  # starts over


def test_a_fit_that_ended_is_returned_as_it_was(path: Path) -> None:
    """Also where it had converged before `max_iter`; another call goes on from there."""
    settings = {"tol": 10.0, "n_iter_no_change": 1, "max_iter": 50}
    saved = {"checkpoint": path, "warm_start": True, **settings}
    whole = classifier(**saved).fit(X, Y["binary"])
    assert whole.n_iter_ < 50
    again = classifier(**saved).fit(X, Y["binary"])
    assert_same_bits(again, whole)
    assert_same_bits(again.fit(X, Y["binary"]), whole.fit(X, Y["binary"]))


def test_a_second_call_can_be_gone_on_with_too(path: Path) -> None:
    y, saved = Y["multiclass"], {"warm_start": True, "checkpoint": path}
    whole = classifier(warm_start=True, early_stopping=True).fit(X, y).fit(X, y)
    part = classifier(**saved, early_stopping=True).fit(X, y)
    part.set_params(max_iter=2).fit(X, y)
    gone_on = classifier(**saved, early_stopping=True).fit(X, y)
    for a, b in zip(weights_of(whole), weights_of(gone_on), strict=True):
        assert_array_equal(a, b)
    assert whole.loss_curve_ == gone_on.loss_curve_


@pytest.mark.parametrize("seed", [None, "an object"])
def test_generators_go_on_from_where_they_were(seed: str | None, path: Path) -> None:
    """NumPy's global one stays as it is; one that was given has drawn what it would have drawn."""
    saved, own = {"checkpoint": path, "warm_start": True}, np.random.RandomState
    given = [None] * 3 if seed is None else [own(5), own(5), own(6)]
    np.random.seed(11)  # noqa: NPY002
    whole = classifier(max_iter=6, random_state=given[0]).fit(X, Y["binary"])
    np.random.seed(11)  # noqa: NPY002
    classifier(max_iter=2, random_state=given[1], **saved).fit(X, Y["binary"])
    np.random.seed(12)  # noqa: NPY002
    gone_on = classifier(max_iter=6, random_state=given[2], **saved).fit(X, Y["binary"])
    assert_same_bits(gone_on, whole)
    if given[0] is not None:
        assert given[0].randint(1 << 30) == given[2].randint(1 << 30)


def test_how_often_is_up_to_the_checkpoint(path: Path) -> None:
    writes: list[int] = []

    class Counting(gn.Checkpoint):
        def write(self, state: dict[str, Any], step: int) -> None:
            writes.append(state["progress"]["n_iter"])
            super().write(state, step)

    classifier(max_iter=8, checkpoint=Counting(path, 3)).fit(X, Y["binary"])
    assert writes == [3, 6, 8]


@pytest.mark.parametrize("arguments", [{"unit": "steps"}, {"keep": 2}])
def test_what_an_estimator_cannot_write_is_refused(arguments: Any, path: Path) -> None:
    with pytest.raises(ValueError, match="MLPClassifier: checkpoint is a path, or"):
        classifier(checkpoint=gn.Checkpoint(path, **arguments)).fit(X, Y["binary"])


def test_partial_fit_neither_reads_nor_writes(path: Path) -> None:
    classifier(checkpoint=path, warm_start=True).partial_fit(X, Y["binary"], classes=[0, 1])
    assert not path.exists()


def test_weights_load_into_a_network(path: Path) -> None:
    model = classifier(checkpoint=path).fit(X, Y["binary"])
    hidden = gn.Dense(5, 6, "relu", dtype="float64")
    other = gn.Sequential(hidden, gn.Dense(6, 1, dtype="float64"))
    names = dict(zip(other.named_parameters(), model._network.named_parameters(), strict=True))
    gn.load(path, other, names=names)
    for layer, coef in zip(other.layers, model.coefs_, strict=True):
        assert_array_equal(layer.weight.value, coef)


def test_damaged_files_are_refused(path: Path) -> None:
    saved = {"checkpoint": path, "warm_start": True}
    classifier(**saved).fit(X, Y["binary"])
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(FileError, match=r"MLPClassifier.fit: .*sha256"):
        classifier(**saved).fit(X, Y["binary"])


def test_the_file_of_a_trainer_is_refused(path: Path) -> None:
    model = gn.Sequential(gn.Dense(5, 6, rng=0), gn.ReLU(), gn.Dense(6, 1, rng=0))
    trainer = gn.Trainer(model, gn.BinaryCrossEntropy(), gn.Adam(model.parameters()))
    trainer.fit(gn.Loader(X, Y["binary"]), 1, callbacks=[gn.Checkpoint(path)], progress=False)
    with pytest.raises(StateError, match=r"MLPClassifier.fit: .* was written by Trainer"):
        classifier(checkpoint=path, warm_start=True).fit(X, Y["binary"])


CHILD = """
import os, signal, sys
import gpunn as gn
from tests.quick_estimators import X, Y, classifier

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored

class Ending(gn.Checkpoint):
    def write(self, state, step):
        super().write(state, step)
        if state["progress"]["n_iter"] == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    def is_due(self, step, epochs):
        if epochs == 3 and sys.argv[2] != "SIGKILL":
            print("ready", flush=True)
            sys.stdin.readline()
        return sys.argv[2] == "SIGKILL"

saved = {"checkpoint": Ending(sys.argv[1]), "warm_start": True, "dropout": 0.2}
classifier(max_iter=9, early_stopping=True, **saved).fit(X, Y["multiclass"])
"""


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGINT"])
def test_a_killed_fit_is_gone_on_with(name: str, path: Path) -> None:
    child = subprocess.Popen(  # noqa: S603
        [sys.executable, "-W", "ignore", "-c", CHILD, str(path), name],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    if name != "SIGKILL":
        assert child.stdout.readline() == "ready\n"
        child.send_signal(getattr(signal, name))
    child.communicate("" if name == "SIGKILL" else "go on\n" * 9)
    assert child.returncode == (0 if name == "SIGINT" else -getattr(signal, name))
    settings = {"max_iter": 9, "early_stopping": True, "dropout": 0.2}
    whole = classifier(**settings).fit(X, Y["multiclass"])
    saved = {"checkpoint": path, "warm_start": True}
    few = classifier(**{**settings, "max_iter": 1}, **saved).fit(X, Y["multiclass"])
    assert 3 <= few.n_iter_ < 9
    assert_same_bits(classifier(**settings, **saved).fit(X, Y["multiclass"]), whole)


@pytest.mark.gpu
@pytest.mark.parametrize(("begun", "ended"), [("cupy", "cupy"), ("cupy", "numpy")])
def test_on_a_gpu_and_from_there_to_the_cpu(begun: str, ended: str, path: Path) -> None:
    y, settings = Y["multiclass"], {"dropout": 0.3, "early_stopping": True}
    saved = {"checkpoint": path, "warm_start": True}
    whole = classifier(**settings, max_iter=6, backend=ended).fit(X, y)
    classifier(**settings, **saved, max_iter=3, backend=begun).fit(X, y)
    gone_on = classifier(**settings, **saved, max_iter=6, backend=ended).fit(X, y)
    if begun == ended:
        assert_same_bits(gone_on, whole)
        return
    for a, b in zip(weights_of(whole), weights_of(gone_on), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
