"""Pickles of what is on a device: they load there, and where the device or CuPy is missing."""

from __future__ import annotations

import copy
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn import config_context

import gpunn as gn
from gpunn.estimators import LogisticRegression, MLPClassifier
from gpunn.nn.parameter import Buffer
from tests.conftest import get_place

N = 40
_RNG = np.random.default_rng(0)
X = _RNG.standard_normal((N, 4)).astype("float32")
Y = X[:, :3].argmax(axis=1)
FEW: dict[str, Any] = {"hidden_layer_sizes": (6,), "max_iter": 3, "random_state": 0}
HOMES = ["numpy", "array-api-strict:1", pytest.param("cupy:0", marks=pytest.mark.gpu)]
AWAY = HOMES[1:]
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


class Counted(gn.Layer):
    """A layer with a buffer."""

    def __init__(self, home: gn.Backend) -> None:
        self.calls = Buffer(home.asarray(np.full(2, 7.0), "float32"))

    def forward(self, x: Any, tape: Any = None) -> Any:
        return x

    def backward(self, grad: Any, tape: Any) -> Any:
        return grad


def trainer_at(home: str, rule: Any = gn.Adam) -> gn.Trainer:
    """Return a trainer whose optimizer has states, and whose parameters have gradients."""
    place = gn.get_backend(home)
    model = gn.Sequential(gn.Dense(4, 3, "tanh", rng=0), Counted(place), gn.Dense(3, 3, rng=1))
    model.to(home)
    loss = gn.SoftmaxCrossEntropy(class_weight=[1.0, 2.0, 3.0])  # kept on the device
    trainer = gn.Trainer(model, loss, rule(model.parameters(), 0.01))
    train(trainer)
    for parameter in model.parameters():
        with place.scope():
            parameter.grad = 0.5 * parameter.value
    return trainer


def train(trainer: gn.Trainer) -> None:
    home = trainer.model.backend
    trainer.fit(gn.Loader(X, Y, batch_size=16, rng=3, backend=home), epochs=2)


def estimators_at(home: str) -> list[Any]:
    place = gn.get_backend(home)
    with config_context(array_api_dispatch=True):
        x, y = place.asarray(X), place.asarray(Y)
        assigned = LogisticRegression()
        assigned.coef_ = place.asarray([[1.0, 2.0, 0.0, 0.0]])
        linear = LogisticRegression(max_iter=3, random_state=0)
        return [MLPClassifier(**FEW).fit(x, y), linear.fit(x, y), assigned]


def contents(trainer: gn.Trainer) -> list[Any]:
    """Return all arrays of a trainer, on the host."""
    optimizer = trainer.optimizer
    held = [*trainer.model.parameters(), *optimizer.parameters]
    arrays = [p.value for p in held] + [p.grad for p in held if p.grad is not None]
    arrays += [x for state in optimizer._states for x in state]
    return [gn.to_numpy(x) for x in [*arrays, trainer.model.layers[1].calls.value]]


#: Loads a pickle in a process that lacks a library or a device, and says what came of it.
CHILD = """
import json, logging, os, pickle, sys
for name in sys.argv[2:]:
    sys.modules[name] = None
os.environ["SCIPY_ARRAY_API"] = "1"
said = []
handler = logging.Handler()
handler.emit = lambda record: said.append(record.getMessage())
logging.getLogger("gpunn").addHandler(handler)
import numpy as np
import gpunn as gn
sys.path.insert(0, "tests")
import test_pickles as ours
with open(sys.argv[1], "rb") as file:
    found = pickle.load(file)
    said_at_once = list(said)
trainer, model, optimizer, estimators, backend = found
print(json.dumps({
    "homes": sorted({str(m.backend) for m in (trainer.model, model)}),
    "contents": [x.tolist() for x in ours.contents(trainer)],
    "said": said_at_once,
    "predicted": [e.predict_proba(ours.X).tolist() for e in estimators[:2]],
    "origins": [str(gn.backend_of(e.coefs_[0] if hasattr(e, "coefs_") else e.coef_))
                for e in estimators],
    "classes": [str(gn.backend_of(e.classes_)) for e in estimators[:2]],
    "trained": (ours.train(trainer), [x.tolist() for x in ours.contents(trainer)])[1],
    "stepped": str(gn.backend_of(optimizer.parameters[0].value)) + str(optimizer.check_places()),
}))
"""


def load_elsewhere(path: Path, *hidden: str, devices: int | None = None) -> dict[str, Any]:
    """Return what a process finds that lacks these modules, or has so many devices."""
    environment = dict(os.environ)
    if devices is not None:
        shown = ",".join(map(str, range(devices)))
        environment |= {"CUDA_VISIBLE_DEVICES": shown, "CUDASIM_DEVICES": str(devices)}
    done = subprocess.run(  # noqa: S603 (our own pickle)
        [sys.executable, "-W", "ignore", "-c", CHILD, str(path), *hidden],
        cwd=Path(__file__).parents[1],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.returncode, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def dump(home: str, path: Path) -> gn.Trainer:
    trainer = trainer_at(home)
    parts = (trainer.model, trainer.optimizer, estimators_at(home), trainer.model.backend)
    path.write_bytes(pickle.dumps((trainer, *parts)))
    return trainer


def check(found: dict[str, Any], trainer: gn.Trainer, home: str, place: str) -> None:
    assert found["homes"] == [place]
    for got, wanted in zip(found["contents"], contents(trainer), strict=True):
        assert_array_equal(np.array(got, wanted.dtype), wanted)
    assert found["origins"] == [place] * 3
    assert found["classes"] == [place] * 2
    assert found["stepped"] == f"{place}None"
    (said,) = set(found["said"])
    assert said.startswith(f"arrays that were pickled on {home} are now on {place}, since ")
    train(trainer)
    for got, wanted in zip(found["trained"], contents(trainer), strict=True):
        assert_allclose(np.array(got, wanted.dtype), wanted, rtol=1e-4, atol=1e-6)


class TestElsewhere:
    @pytest.mark.parametrize("home", AWAY)
    def test_without_the_library_all_is_numpys(self, home: str, tmp_path: Path) -> None:
        get_place(home)
        trainer = dump(home, tmp_path / "all")
        hidden = home.partition(":")[0].replace("-", "_")
        found = load_elsewhere(tmp_path / "all", hidden)
        with config_context(array_api_dispatch=True):
            x = gn.get_backend(home).asarray(X)
            answers = [gn.to_numpy(e.predict_proba(x)) for e in estimators_at(home)[:2]]
        for got, wanted in zip(found["predicted"], answers, strict=True):
            assert_allclose(got, wanted, rtol=1e-4, atol=1e-6)
        check(found, trainer, home, "numpy")

    @pytest.mark.gpu
    @pytest.mark.two_devices
    def test_without_the_device_all_is_on_another(self, tmp_path: Path) -> None:
        trainer = dump("cupy:1", tmp_path / "all")
        check(load_elsewhere(tmp_path / "all", devices=1), trainer, "cupy:1", "cupy:0")


class TestHere:
    @pytest.mark.parametrize("home", HOMES)
    @pytest.mark.parametrize("rule", [gn.SGD, gn.Adam])
    @pytest.mark.parametrize("way", [lambda x: pickle.loads(pickle.dumps(x)), copy.deepcopy])  # noqa: S301
    def test_it_is_back_where_it_was(self, home: str, rule: Any, way: Any) -> None:
        get_place(home)
        trainer = trainer_at(home, rule)
        other = way(trainer)
        assert other.model.backend == trainer.model.backend == gn.get_backend(home)
        if way is copy.deepcopy:  # a copy has no gradients
            trainer.optimizer.clear()
        for got, wanted in zip(contents(other), contents(trainer), strict=True):
            assert_array_equal(got, wanted)
        for one in (trainer, other):
            train(one)
        for got, wanted in zip(contents(other), contents(trainer), strict=True):
            assert_array_equal(got, wanted)

    @pytest.mark.parametrize("home", AWAY)
    def test_a_pickle_names_no_class_of_the_library(self, home: str) -> None:
        get_place(home)
        kept = pickle.dumps((trainer_at(home), estimators_at(home)))
        assert b"cupy._core" not in kept
        assert b"array_api_strict" not in kept

    @pytest.mark.parametrize("home", AWAY)
    def test_a_copy_does_not_leave_the_device(self, home: str, monkeypatch: Any) -> None:
        get_place(home)
        trainer = trainer_at(home)

        def refuse(x: Any) -> Any:
            raise AssertionError(f"{type(x)} was brought to the host")

        monkeypatch.setattr("gpunn.arrays.portable.to_numpy", refuse)
        assert copy.deepcopy(trainer).model.backend == trainer.model.backend

    def test_an_optimizer_that_was_left_behind_is_still_refused(self) -> None:
        get_place("array-api-strict:1")
        trainer = trainer_at("array-api-strict:1")
        trainer.model.to("numpy")
        for other in (trainer, pickle.loads(pickle.dumps(trainer))):  # noqa: S301
            with pytest.raises(gn.errors.DeviceError, match="build the optimizer after"):
                other.optimizer.check_places()
