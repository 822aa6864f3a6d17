"""scikit-learn's pipelines and searches on a GPU's arrays: all answers, and nothing by the host."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose
from sklearn import config_context
from sklearn.decomposition import PCA
from sklearn.model_selection import GridSearchCV, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import gpunn as gn
from gpunn.estimators import LogisticRegression, MLPClassifier, MLPRegressor
from tests.conftest import get_place
from tests.test_estimators_dispatch import OF_TODAY

try:
    import cudasim  # the emulator's counters
except ImportError:
    cudasim = None

pytestmark = [
    OF_TODAY,
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore:invalid value encountered in divide"),  # StandardScaler's
]

N = 240
_RNG = np.random.default_rng(0)
_FACTORS = _RNG.standard_normal((N, 4)) * [4, 3, 2, 1]
X = 3.0 + _FACTORS @ _RNG.standard_normal((4, 12)) + 0.1 * _RNG.standard_normal((N, 12))
Y = (_FACTORS[:, :3] / [4, 3, 2]).argmax(axis=1)
FEW: dict[str, Any] = {
    "hidden_layer_sizes": (16,),
    "max_iter": 40,
    "n_iter_no_change": 40,
    "random_state": 0,
}
MODELS = {
    "MLPClassifier": MLPClassifier(learning_rate_init=0.02, **FEW),
    "early stopping": MLPClassifier(learning_rate_init=0.02, early_stopping=True, **FEW),
    "lbfgs": LogisticRegression(solver="lbfgs", max_iter=8, tol=1e-12),
}
PARTS = {
    "as it is": PCA(),
    "few": PCA(6, svd_solver="covariance_eigh"),
    "full": PCA(6, svd_solver="full"),
    "randomized": PCA(6, svd_solver="randomized", power_iteration_normalizer="QR", random_state=0),
}
GPU = pytest.param("cupy:0", marks=pytest.mark.gpu)
TRANSFERS = ("h2d_bytes", "d2h_bytes")


class StandIns:
    """NumPy's decompositions where there is no cuSOLVER, and the bytes that they copy.

    The emulator of CUDA has none.
    """

    def __init__(self, cupy: Any, patch: pytest.MonkeyPatch) -> None:
        self._cupy = cupy
        self.copied = dict.fromkeys(TRANSFERS, 0)
        try:
            cupy.linalg.eigh(cupy.eye(2))
        except ImportError:
            for name in ("eigh", "svd", "qr"):
                patch.setattr(cupy.linalg, name, self._by_numpy(getattr(np.linalg, name)))

    def _by_numpy(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def by_numpy(x: Any, *args: Any, **settings: Any) -> tuple[Any, ...]:
            with cudasim.count() as counted:
                found = function(self._cupy.asnumpy(x), *args, **settings)
                results = tuple(self._cupy.asarray(part) for part in found)
            for name in TRANSFERS:
                self.copied[name] += counted[name]
            return results

        return by_numpy


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> StandIns:
    """Return what stands in for cuSOLVER."""
    return StandIns(pytest.importorskip("cupy"), monkeypatch)


@pytest.fixture(params=["array-api-strict:0", GPU])
def home(request: pytest.FixtureRequest) -> Iterator[gn.Backend]:
    """Return where X is, with dispatch on."""
    backend = get_place(request.param).backend
    if backend.package == "cupy":
        request.getfixturevalue("stand_ins")
    with config_context(array_api_dispatch=True):
        yield backend


def pipeline(part: str = "few", model: str = "MLPClassifier") -> Any:
    """Return an unfitted pipeline."""
    last = MODELS[model]
    first = type(PARTS[part])(**PARTS[part].get_params())
    return make_pipeline(StandardScaler(), first, type(last)(**last.get_params()))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("part", PARTS)
def test_answers(part: str, model: str, home: gn.Backend) -> None:
    x, y = home.asarray(X), home.asarray(Y)
    got = pipeline(part, model).fit(x, y)
    with config_context(array_api_dispatch=False):
        wanted = pipeline(part, model).fit(X, Y)
    for method in ("predict", "predict_proba", "predict_log_proba"):
        answer = getattr(got, method)(x)
        assert gn.backend_of(answer) == home
        assert_allclose(
            gn.to_numpy(answer), getattr(wanted, method)(X), rtol=1e-5, atol=1e-7, err_msg=method
        )
    assert got.score(x, y) == pytest.approx(wanted.score(X, Y))
    assert got.score(x, y) > 0.8
    assert gn.backend_of(got[-1].classes_) == home


def test_of_numbers(home: gn.Backend) -> None:
    x, y = home.asarray(X), home.asarray(_FACTORS[:, 0])
    last = MLPRegressor(learning_rate_init=0.05, **FEW)
    model = make_pipeline(StandardScaler(), PCA(), last).fit(x, y)
    answer = model.predict(x)
    assert gn.backend_of(answer) == home
    assert 0.5 < model.score(x, y) <= 1


def test_cross_validation(home: gn.Backend) -> None:
    settings = {"cv": 3, "error_score": "raise", "return_train_score": True}
    given: Any = {"scoring": ["accuracy", "neg_log_loss"], **settings}
    found = cross_validate(
        pipeline(), home.asarray(X), home.asarray(Y), return_estimator=True, **given
    )
    with config_context(array_api_dispatch=False):
        wanted = cross_validate(pipeline(), X, Y, **given)
    for name in ("test_accuracy", "train_accuracy", "test_neg_log_loss"):
        assert_allclose(found[name], wanted[name], rtol=1e-5)
    for model in found["estimator"]:
        assert gn.backend_of(model[-1].coefs_[0]) == home


def test_a_search(home: gn.Backend) -> None:
    grid = {"mlpclassifier__alpha": [1e-4, 1.0], "pca__n_components": [2, 6]}
    search = GridSearchCV(pipeline(), grid, cv=2, error_score="raise")
    found = search.fit(home.asarray(X), home.asarray(Y))
    assert gn.backend_of(found.predict(home.asarray(X))) == home
    with config_context(array_api_dispatch=False):
        wanted = GridSearchCV(pipeline(), grid, cv=2).fit(X, Y)
    assert found.best_params_ == wanted.best_params_
    assert_allclose(
        found.cv_results_["mean_test_score"], wanted.cv_results_["mean_test_score"], rtol=1e-7
    )


def copied(stand_ins: StandIns, run: Callable[[], object]) -> dict[str, int]:
    """Return the bytes that went to the device and came from it, but for the stand-ins'."""
    before = dict(stand_ins.copied)
    with cudasim.count() as counted:
        run()
    return {name: counted[name] - stand_ins.copied[name] + before[name] for name in TRANSFERS}


@pytest.mark.gpu
@pytest.mark.emulated
@pytest.mark.parametrize("part", ["few", "as it is"])
@pytest.mark.parametrize("model", MODELS)
def test_no_features_go_by_the_host(part: str, model: str, stand_ins: StandIns) -> None:
    """More columns are no more bytes that are copied, but for the weights of what is kept."""
    place, found = gn.get_backend("cupy"), []
    more = _RNG.standard_normal((N, 300)) / 100
    for wide in (X, np.concatenate([X, more], axis=1)):
        x, y = place.asarray(wide), place.asarray(Y)
        with config_context(array_api_dispatch=True):
            fitted = pipeline(part, model)
            runs = {
                "fit": lambda fitted=fitted, x=x, y=y: fitted.fit(x, y),
                "predict": lambda fitted=fitted, x=x: fitted.predict(x),
                "predict_proba": lambda fitted=fitted, x=x: fitted.predict_proba(x),
                "score": lambda fitted=fitted, x=x, y=y: fitted.score(x, y),
                "cross-validation": lambda fitted=fitted, x=x, y=y: cross_validate(
                    fitted, x, y, cv=3, error_score="raise"
                ),
            }
            found.append({name: copied(stand_ins, run) for name, run in runs.items()})
    narrow, wide = found
    for name in ("predict", "predict_proba", "score"):
        assert wide[name] == narrow[name]
        assert sum(wide[name].values()) < 100, (name, wide)  # is all finite? which classes?
    for name in ("fit", "cross-validation"):
        for way in TRANSFERS:
            # L-BFGS copies its weights both ways, and its searches are not of one length.
            exact = model != "lbfgs" and (part == "few" or way == "d2h_bytes")
            allowed = 64 if exact else more.nbytes / 2  # a status of LAPACK's, and such
            assert abs(wide[name][way] - narrow[name][way]) <= allowed, (name, way, found)
