"""Whatever is given to an estimator, it works or says what is wrong.

Constructors take anything, as scikit-learn's do: `fit` checks.
"""

from __future__ import annotations

import inspect
import itertools
import warnings
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose
from sklearn.base import is_classifier
from sklearn.exceptions import ConvergenceWarning, DataConversionWarning

import gpunn as gn
from gpunn import estimators
from gpunn.arrays.checks import is_whole
from gpunn.errors import GpunnError
from tests.bounds import bounded, check_words
from tests.odd_arrays import NOT_FINITE, OTHER, SAME
from tests.odd_settings import ODD

RNG = np.random.default_rng(0)
X = RNG.standard_normal((24, 3))
LABELS = np.arange(24) % 3
NUMBERS = X[:, 0] - 2.0 * X[:, 1]

ESTIMATORS: dict[str, Callable[..., Any]] = {
    name: getattr(estimators, name) for name in estimators.__all__
}


def network(shape: tuple[int, ...], n: int, **network_params: Any) -> gn.Layer:
    if network_params:
        raise TypeError(f"network_params are {sorted(network_params)}")
    return gn.Dense(*shape, n, rng=0)


#: Settings of a short fit.
SHORT: dict[str, Any] = {"max_iter": 3, "batch_size": 10, "random_state": 0}
#: What has to be set for another setting to be used.
WITH: dict[str, list[dict[str, Any]]] = {
    "momentum": [{"solver": "sgd"}],
    "nesterovs_momentum": [{"solver": "sgd"}],
    "learning_rate": [{"solver": "sgd"}],
    "power_t": [{"solver": "sgd", "learning_rate": "invscaling"}],
    "max_fun": [{"solver": "lbfgs"}],
    "beta_1": [{"solver": "adam"}],
    "beta_2": [{"solver": "adam"}],
    "epsilon": [{"solver": "adam"}],
    "validation_fraction": [{"early_stopping": True}],
    "l1_ratio": [{"penalty": "elasticnet", "solver": "lbfgs"}, {}],
    "penalty": [{"solver": "lbfgs"}, {}],
    "network_params": [{"network": network}],
}


def is_left_out(setting: str, value: Any) -> bool:
    """Return whether a value is right, and takes as long as it says."""
    if setting in ("max_iter", "max_fun"):
        return is_whole(value) and value > 10**4
    return setting == "hidden_layer_sizes" and isinstance(value, list) and len(value) > 10**4


def settings_of(name: str) -> list[str]:
    return list(inspect.signature(ESTIMATORS[name]).parameters)


def made(name: str, **settings: Any) -> Any:
    given = dict(SHORT)
    if "hidden_layer_sizes" in settings_of(name):
        given["hidden_layer_sizes"] = (4,)
    return ESTIMATORS[name](**given | settings)


def use(model: Any, x: Any = X) -> None:
    """Train a model, and check what it answers."""
    y = LABELS if is_classifier(model) else NUMBERS
    model.fit(x, y)
    check(model, x, y)


def check(model: Any, x: Any, y: Any) -> None:
    answers = model.predict(x)
    assert answers.shape == (len(x),)
    assert len(model.loss_curve_) == len(model.history_) >= model.n_iter_
    if not is_classifier(model):
        assert np.isfinite(answers).all()
        assert model.score(x, y) <= 1.0
        return
    assert np.isin(answers, model.classes_).all()
    p = model.predict_proba(x)
    assert p.shape == (len(x), 3)
    assert np.allclose(p.sum(axis=1), 1.0)
    assert ((p >= 0) & (p <= 1)).all()
    assert 0.0 <= model.score(x, y) <= 1.0


def attempt(names: list[str], odd: Any, call: Callable[[], None]) -> None:
    """Make a call with an odd argument; an error says what is wrong."""
    with bounded():
        warnings.simplefilter("ignore", ConvergenceWarning)  # it says that epochs were too few
        warnings.filterwarnings("ignore", "Got `batch_size`", UserWarning)
        try:
            call()
        except (GpunnError, TypeError, ValueError) as error:
            refused = error
        else:
            return
    known = [*names, "training has diverged", "accuracy"]
    check_words(refused, [*known, *map(str.capitalize, known)], [odd])


@pytest.fixture(autouse=True, scope="module")
def compiled() -> None:
    """Compile what is compiled the first time, which may take longer than a call should."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for name, solver in itertools.product(ESTIMATORS, ("adam", "sgd", "lbfgs")):
            use(made(name, solver=solver))


@pytest.fixture(autouse=True)
def aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("name", "setting"), [(name, setting) for name in ESTIMATORS for setting in settings_of(name)]
)
def test_one_odd_setting(name: str, setting: str) -> None:
    failures = []
    for kind, make in ODD.items():
        for others in WITH.get(setting, [{}]):
            value = make()
            if is_left_out(setting, value):
                continue
            settings = others | {setting: value}
            try:
                attempt([setting], value, lambda settings=settings: use(made(name, **settings)))
            except Exception as error:  # noqa: BLE001 (all of them are told)
                failures.append(f"{kind}: {type(error).__name__}: {error!s:.220}")
    assert not failures, failures


WEIGHTS = np.linspace(0.5, 2.0, 24)

#: What is done with data, of a new estimator.
CALLS: dict[str, Callable[..., Any]] = {
    "fit": lambda model, *given: model.fit(*given),
    "validation": lambda model, x, y, weight: model.fit(
        *ordinary(model), X_val=x, y_val=y, sample_weight_val=weight
    ),
    "held out": lambda model, *given: model.set_params(early_stopping=True).fit(*given),
    "partial_fit": lambda model, *given: model.partial_fit(*given, **classes(model)),
    "further": lambda model, *given: model.fit(*ordinary(model)).partial_fit(*given),
    "lbfgs": lambda model, *given: model.set_params(solver="lbfgs").fit(*given),
    "score": lambda model, *given: model.fit(*ordinary(model)).score(*given),
    "predict": lambda model, x, *_: model.fit(*ordinary(model)).predict(x),
    "decision": lambda model, x, *_: model.fit(*ordinary(model)).predict_log_proba(x),
}


def classes(model: Any) -> dict[str, Any]:
    return {"classes": [0, 1, 2]} if is_classifier(model) else {}


def ordinary(model: Any) -> tuple[Any, Any]:
    return X, LABELS if is_classifier(model) else NUMBERS


def outcome(name: str, call: str, given: dict[str, Any]) -> list[Any]:
    """Return what a call gives, and what the model has learned and answers then."""
    model = made(name)
    try:
        result = CALLS[call](model, *given.values())
    except Exception:
        assert call in ("further", "score", "predict", "decision") or not hasattr(model, "_network")
        raise
    validation = model.history_.columns.get("validation_loss", [])
    answers = [model.predict(X), model.loss_curve_, validation]
    return answers if result is model else [*answers, result]


def attempt_with(name: str, call: str, part: str, kind: str) -> None:
    """Make a call with an odd array; of the same values, it gives the same."""
    parts = {"X": X, "y": ordinary(made(name))[1], "sample_weight": WEIGHTS}
    given = {**SAME, **OTHER}[kind](parts[part])
    with bounded():
        for ignored in (ConvergenceWarning, DataConversionWarning):  # scikit-learn's
            warnings.simplefilter("ignore", ignored)
        if kind in NOT_FINITE:  # NumPy's, of what scikit-learn computes with them
            warnings.simplefilter("ignore", RuntimeWarning)
        try:
            result = outcome(name, call, parts | {part: given})
        except (GpunnError, TypeError, ValueError) as error:
            told = str(error)
            assert 10 < len(told) < 3000
            assert kind not in SAME or (kind, part) == ("objects", "y"), told  # of labels
            return
        assert kind != "masked"
        if kind in SAME:
            plain = np.array(np.asarray(given), parts[part].dtype)
            for a, b in zip(result, outcome(name, call, parts | {part: plain}), strict=True):
                assert_allclose(a, b, rtol=1e-9, atol=1e-12)


WHOLE = [(call, part) for call in CALLS for part in ("X", "y", "sample_weight")]
ANSWERS = ("predict", "decision")


@pytest.mark.parametrize(
    ("call", "part"), [(call, part) for call, part in WHOLE if part == "X" or call not in ANSWERS]
)
@pytest.mark.parametrize("name", ESTIMATORS)
def test_odd_data(name: str, call: str, part: str) -> None:
    if call == "decision" and not is_classifier(made(name)):
        pytest.skip("a regressor has no probabilities")
    failures = []
    for kind in (*SAME, *OTHER):
        try:
            attempt_with(name, call, part, kind)
        except Exception as error:  # noqa: BLE001, PERF203 (all of them are told)
            failures.append(f"{kind}: {type(error).__name__}: {error!s:.220}")
    assert not failures, failures


@pytest.mark.parametrize("name", ESTIMATORS)
def test_numbers_of_every_kind_mean_the_same(name: str) -> None:
    """In a checkpoint, too; half precision would lose what is divided by it."""
    settings = {"learning_rate_init": 0.25, "tol": 0.0625, "power_t": 0.5, "momentum": 0.75}
    settings |= {"validation_fraction": 0.25, "alpha": 0.0009765625, "C": 0.5}
    settings = {k: v for k, v in settings.items() if k in settings_of(name)}
    others = {"solver": "sgd", "learning_rate": "invscaling", "early_stopping": True}

    def curve(convert: Callable[[float], Any]) -> Any:
        given = {setting: convert(value) for setting, value in settings.items()}
        path = f"{name}.safetensors"
        model = made(name, **others, **given, checkpoint=path, warm_start=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(*ordinary(model))
        return model.loss_curve_

    fresh = curve(float)
    for kind in (np.float16, np.float32, np.longdouble, Fraction):
        assert curve(kind) == fresh  # from the checkpoint of the others
        Path(f"{name}.safetensors").unlink()
        assert curve(kind) == fresh
