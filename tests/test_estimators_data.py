"""What goes into an estimator, and what comes out: lists, pandas, sparse and other arrays."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from numpy.testing import assert_allclose, assert_array_equal
from sklearn import config_context

import gpunn as gn
from gpunn.estimators import LogisticRegression, MLPClassifier, MLPRegressor

try:
    import cudasim  # the emulator's counters
except ImportError:
    cudasim = None

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

N = 100
_RNG = np.random.default_rng(0)
X = _RNG.standard_normal((N, 5)) * (_RNG.uniform(size=(N, 5)) < 0.6)
_Z = X[:, :3] + 0.3 * _RNG.standard_normal((N, 3))
Y = {"multiclass": 2 * _Z.argmax(axis=1), "binary": (_Z[:, 0] > 0).astype(int)}
YES = (_Z > 0.2).astype(int)
WEIGHT = _RNG.uniform(0.5, 2.0, N)

FEW: dict[str, Any] = {
    "hidden_layer_sizes": (6,),
    "max_iter": 5,
    "random_state": 0,
    "batch_size": 30,
    "learning_rate_init": 0.03,
}
CASES = [
    pytest.param(MLPClassifier(**FEW), Y["multiclass"], id="multiclass"),
    pytest.param(MLPClassifier(**FEW), Y["binary"], id="binary"),
    pytest.param(MLPClassifier(**FEW), YES, id="multilabel"),
    pytest.param(MLPRegressor(**FEW), _Z[:, 0], id="number"),
    pytest.param(MLPRegressor(**FEW), _Z, id="numbers"),
    pytest.param(LogisticRegression(max_iter=5), Y["multiclass"], id="logistic"),
    pytest.param(MLPClassifier(early_stopping=True, **FEW), Y["binary"], id="early stopping"),
]


def clone_of(model: Any, **settings: Any) -> Any:
    return type(model)(**model.get_params() | {"random_state": 0} | settings)


def answers(model: Any, x: Any) -> dict[str, Any]:
    names = ("predict", "predict_proba", "predict_log_proba", "decision_function")
    return {name: getattr(model, name)(x) for name in names if hasattr(model, name)}


def weights(model: Any) -> list[Any]:
    if hasattr(model, "coef_"):
        return [model.coef_, model.intercept_]
    return [*model.coefs_, *model.intercepts_]


def fitted(model: Any, y: Any, dtype: str = "float64") -> Any:
    """Return a model trained on NumPy's arrays."""
    return clone_of(model).fit(X.astype(dtype), y, WEIGHT)


@pytest.mark.parametrize(("model", "y"), CASES)
class TestOnTheHost:
    def test_lists(self, model: Any, y: Any) -> None:
        wanted = fitted(model, y)
        got = clone_of(model).fit(X.tolist(), y.tolist(), WEIGHT.tolist())
        assert got.loss_curve_ == wanted.loss_curve_
        for name, answer in answers(got, X.tolist()).items():
            assert_array_equal(answer, answers(wanted, X)[name])

    def test_pandas(self, model: Any, y: Any) -> None:
        pd = pytest.importorskip("pandas")
        frame = pd.DataFrame(X, columns=list("abcde"))
        column = pd.DataFrame(y) if y.ndim == 2 else pd.Series(y)
        got = clone_of(model).fit(frame, column, pd.Series(WEIGHT))
        assert got.loss_curve_ == fitted(model, y).loss_curve_
        assert_array_equal(got.feature_names_in_, list("abcde"))
        assert isinstance(got.predict(frame), np.ndarray)
        with pytest.raises(ValueError, match="feature names"):
            got.predict(frame[list("edcba")])
        with pytest.warns(UserWarning, match="does not have valid feature names"):
            got.predict(X)

    @pytest.mark.parametrize("form", ["csr", "csc", "coo"])
    @pytest.mark.parametrize("kind", ["matrix", "array"])
    def test_sparse(self, model: Any, y: Any, form: str, kind: str, monkeypatch: Any) -> None:
        rows, make = [], getattr(scipy.sparse, f"{form}_{kind}")
        for name in ("csr_matrix", "csr_array", "csc_matrix", "coo_matrix"):
            dense = getattr(scipy.sparse, name).toarray
            monkeypatch.setattr(
                getattr(scipy.sparse, name),
                "toarray",
                lambda x, *a, dense=dense, **k: rows.append(x.shape[0]) or dense(x, *a, **k),
            )
        monkeypatch.setattr("gpunn.estimators.features._LEAST", 40)
        monkeypatch.setattr("gpunn.estimators.features._NUMBERS", 40)
        monkeypatch.setattr("gpunn.data.loader._BYTES_AT_ONCE", 0)
        got = clone_of(model, batch_size=30).fit(make(X), y, WEIGHT)
        wanted = clone_of(model, batch_size=30).fit(X, y, WEIGHT)
        assert_allclose(got.loss_curve_, wanted.loss_curve_, rtol=1e-12)
        for name, answer in answers(got, make(X)).items():
            assert_allclose(answer, answers(wanted, X)[name], rtol=1e-10, atol=1e-14)
        assert 0 < max(rows) <= 40  # batches, never the whole

    def test_columns_and_strides(self, model: Any, y: Any) -> None:
        wanted = fitted(model, y)
        for x in (np.asfortranarray(X), np.repeat(X, 2, axis=1)[:, ::2], X[::-1][::-1]):
            assert clone_of(model).fit(x, y, WEIGHT).loss_curve_ == wanted.loss_curve_
        assert_allclose(wanted.predict(X[:1]), wanted.predict(X)[:1], rtol=1e-12)


class TestLabels:
    LABELS = (
        np.array(["b", "a", "ccc"]),
        np.array(["b", "a", "ccc"], dtype=object),
        np.array([5, -3, 2**40]),
        np.array([0.0, -1.0, 7.0]),
        np.array([3, 250, 4], dtype="uint8"),
    )

    @pytest.mark.parametrize("several", [True, False], ids=["three", "two"])
    @pytest.mark.parametrize("labels", LABELS, ids=lambda labels: str(labels.dtype))
    def test_come_back_as_they_were(self, labels: Any, several: bool) -> None:
        codes = Y["multiclass"] // 2 if several else Y["binary"]
        model = clone_of(MLPClassifier(**FEW), max_iter=30).fit(X, labels[codes])
        wanted = np.unique(labels[: 2 + several])
        assert_array_equal(model.classes_, wanted)
        got = model.predict(X)
        assert got.dtype == labels.dtype
        assert set(got) <= set(wanted)
        assert_array_equal(got, wanted[model.predict_proba(X).argmax(axis=1)])
        assert (got == labels[codes]).mean() > 0.7

    @pytest.mark.parametrize("several", [True, False], ids=["three", "two"])
    def test_strings_of_any_width(self, several: bool) -> None:
        kind = np.dtypes.StringDType()
        codes = Y["multiclass"] // 2 if several else Y["binary"]
        plain = np.array(["b", "a", "ccc"])[codes]
        y = plain.astype(kind)
        wanted = MLPClassifier(**FEW).fit(X, plain)
        for model in (
            MLPClassifier(**FEW).fit(X, y, X_val=X, y_val=y),
            MLPClassifier(**FEW, warm_start=True).fit(X, y),
        ):
            assert model.loss_curve_ == wanted.loss_curve_
            assert_array_equal(model.classes_, wanted.classes_)
            assert_array_equal(model.predict(X), wanted.predict(X))
            assert model.predict(X).dtype.kind == "U"
            assert model.score(X, y) == model.score(X, plain) == wanted.score(X, plain)
            assert model.score(X, y, WEIGHT) == wanted.score(X, plain, WEIGHT)
            model.fit(X, y)
        parts = LogisticRegression(random_state=0, class_weight={"a": 2.0})
        for _ in range(3):
            parts.partial_fit(X, y, classes=np.unique(plain).astype(kind))
        assert set(parts.predict(X)) <= set(plain)
        early = MLPClassifier(**FEW, early_stopping=True).fit(X, y)
        assert early.best_validation_score_ > 0.2

    @pytest.mark.parametrize("missing", [None, np.nan])
    def test_missing_strings(self, missing: Any) -> None:
        y = np.array(["a", "b"] * (N // 2), dtype=np.dtypes.StringDType(na_object=missing))
        y[3] = missing
        for method, extra in (("fit", {}), ("partial_fit", {"classes": ["a", "b"]})):
            with pytest.raises(ValueError, match="y has missing values"):
                getattr(MLPClassifier(**FEW), method)(X, y, **extra)

    def test_booleans(self) -> None:
        model = MLPClassifier(**FEW).fit(X, Y["binary"].astype(bool))
        assert model.predict(X).dtype == bool

    def test_pandas_strings(self) -> None:
        for kind in (None, "category"):
            y = pytest.importorskip("pandas").Series(
                np.array(["no", "yes"])[Y["binary"]], dtype=kind
            )
            model = MLPClassifier(**FEW).fit(X, y)
            assert_array_equal(model.classes_, ["no", "yes"])
            assert set(model.predict(X)) == {"no", "yes"}

    def test_a_column(self) -> None:
        wanted = MLPClassifier(**FEW).fit(X, Y["binary"])
        with pytest.warns(UserWarning, match="column-vector y was passed"):
            got = MLPClassifier(**FEW).fit(X, Y["binary"][:, None])
        assert got.loss_curve_ == wanted.loss_curve_

    @pytest.mark.parametrize("make", [scipy.sparse.csr_matrix, scipy.sparse.coo_array])
    def test_sparse(self, make: Any) -> None:
        wanted = MLPClassifier(**FEW).fit(X, YES)
        for x in (X, make(X)):
            got = MLPClassifier(**FEW).fit(x, make(YES))
            assert_allclose(got.loss_curve_, wanted.loss_curve_, rtol=1e-12)
            assert MLPClassifier(**FEW).partial_fit(x, make(YES)).n_outputs_ == 3

    @pytest.mark.parametrize("kind", ["matrix", "array"])
    def test_sparse_answers_to_sparse_targets(self, kind: str) -> None:
        """As in scikit-learn, but of the kind of the targets."""
        make, rows = (getattr(scipy.sparse, f"{form}_{kind}") for form in ("coo", "csr"))
        model = MLPClassifier(**FEW).fit(X, make(YES))
        wanted = MLPClassifier(**FEW).fit(X, YES)
        answer = model.predict(X)
        assert type(answer) is rows
        assert_array_equal(answer.toarray(), wanted.predict(X))
        assert model.score(X, make(YES)) == wanted.score(X, YES)
        assert type(pickle.loads(pickle.dumps(model)).predict(X)) is rows  # noqa: S301
        model.classes_ = model.classes_
        assert type(model.predict(X)) is rows
        assert type(model.partial_fit(X, YES).predict(X)) is rows


def place_of(x: Any) -> str:
    return str(x.device) if hasattr(x, "device") else "cpu"


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(("model", "y"), CASES)
class TestOtherLibraries:
    def check(self, model: Any, y: Any, x: Any, targets: Any, weight: Any, rtol: float) -> Any:
        """Check that answers and weights are of the library and device of x, and right."""
        wanted = fitted(model, y, str(x.dtype).rpartition(".")[2])
        model = clone_of(model)
        with config_context(array_api_dispatch=True):
            got = model.fit(x, targets, weight)
            assert_allclose(got.loss_curve_, wanted.loss_curve_, rtol=rtol)
            given = answers(got, x)
            for name, answer in given.items():
                assert type(answer) is type(x), name
                assert place_of(answer) == place_of(x), name
                host = gn.to_numpy(answer)
                assert host.dtype == answers(wanted, X)[name].dtype or name != "predict"
                assert_allclose(host, answers(wanted, X)[name], rtol=100 * rtol, atol=100 * rtol)
            for value in weights(got):
                assert type(value) is type(x)
                assert place_of(value) == place_of(x)
                assert value.dtype == x.dtype
            assert isinstance(got.score(x, targets), float)
            with pytest.raises(ValueError, match="must use the same namespace and device"):
                got.predict(X)
        return got

    @pytest.mark.parametrize("device", ["CPU_DEVICE", "device1"])
    def test_array_api_strict(
        self, model: Any, y: Any, dtype: str, device: str, strict: Any
    ) -> None:
        x, targets, weight = (
            strict.asarray(a, device=strict.Device(device)) for a in (X.astype(dtype), y, WEIGHT)
        )
        got = self.check(model, y, x, targets, weight, 1e-11 if dtype == "float64" else 1e-4)
        other = "device1" if device == "CPU_DEVICE" else "CPU_DEVICE"
        with config_context(array_api_dispatch=True):
            elsewhere = x.to_device(strict.Device(other))
            with pytest.raises(ValueError, match="must use the same namespace and device"):
                got.predict(elsewhere)

    def test_torch(self, model: Any, y: Any, dtype: str, torch: Any) -> None:
        x, targets, weight = (torch.asarray(a) for a in (X.astype(dtype), y, WEIGHT))
        self.check(model, y, x, targets, weight, 1e-11 if dtype == "float64" else 1e-4)

    @pytest.mark.gpu
    def test_cupy(self, model: Any, y: Any, dtype: str) -> None:
        place = gn.get_backend("cupy")
        x, targets, weight = (place.asarray(a) for a in (X.astype(dtype), y, WEIGHT))
        got = self.check(model, y, x, targets, weight, 1e-9 if dtype == "float64" else 1e-3)
        assert got._network.backend == place


class TestMixed:
    def test_labels_that_are_strings_of_arrays(self, strict: Any) -> None:
        x = strict.asarray(X)
        with config_context(array_api_dispatch=True):
            model = MLPClassifier(**FEW).fit(x, np.array(["no", "yes"])[Y["binary"]])
            assert isinstance(model.predict(x), np.ndarray)
            assert isinstance(model.predict_proba(x), type(x))

    def test_without_dispatch_all_is_numpy(self, strict: Any) -> None:
        wanted = MLPClassifier(**FEW).fit(X, Y["binary"])
        got = MLPClassifier(**FEW).fit(strict.asarray(X), strict.asarray(Y["binary"]))
        assert got.loss_curve_ == wanted.loss_curve_
        assert isinstance(got.predict_proba(strict.asarray(X)), np.ndarray)

    @pytest.mark.gpu
    @pytest.mark.parametrize("strange", ["y", "weight", "both"])
    def test_features_on_a_gpu_and_the_rest_on_the_host(self, strange: str) -> None:
        place = gn.get_backend("cupy")
        y = Y["multiclass"] if strange != "weight" else place.asarray(Y["multiclass"])
        weight = WEIGHT if strange != "y" else place.asarray(WEIGHT)
        with config_context(array_api_dispatch=True):
            model = MLPClassifier(**FEW).fit(place.asarray(X), y, weight)
            assert gn.backend_of(model.predict(place.asarray(X))) == place
        wanted = MLPClassifier(**FEW).fit(X, Y["multiclass"], WEIGHT)
        assert_allclose(model.loss_curve_, wanted.loss_curve_, rtol=1e-9)

    @pytest.mark.gpu
    @pytest.mark.two_devices
    @pytest.mark.parametrize(("model", "y"), CASES)
    def test_it_is_trained_where_the_features_are(self, model: Any, y: Any) -> None:
        first, second = (gn.get_backend(f"cupy:{i}") for i in range(2))
        x = second.asarray(X)
        with config_context(array_api_dispatch=True):
            for targets in (first.asarray(y), second.asarray(y)):
                got = clone_of(model).fit(x, targets, first.asarray(WEIGHT))
                assert got._network.backend == second
                assert_allclose(got.loss_curve_, fitted(model, y).loss_curve_, rtol=1e-9)
            for array in (*answers(got, x).values(), *weights(got)):
                assert gn.backend_of(array) == second
            with pytest.raises(ValueError, match=r"had X in cupy:1, this has it in cupy:0"):
                got.predict(first.asarray(X))

    @pytest.mark.gpu
    def test_sparse_on_a_gpu(self) -> None:
        got = MLPClassifier(backend="cupy", **FEW).fit(scipy.sparse.csr_matrix(X), Y["binary"])
        wanted = MLPClassifier(**FEW).fit(X, Y["binary"])
        assert_allclose(got.loss_curve_, wanted.loss_curve_, rtol=1e-9)
        assert_allclose(got.predict_proba(X), wanted.predict_proba(X), rtol=1e-9)


@pytest.mark.gpu
@pytest.mark.emulated
@pytest.mark.parametrize("early_stopping", [False, True])
def test_features_on_a_gpu_stay_there(early_stopping: bool) -> None:
    place = gn.get_backend("cupy")
    wide = _RNG.standard_normal((N, 400))
    x, y = place.asarray(wide), place.asarray(Y["binary"])
    model = MLPClassifier(**FEW | {"early_stopping": early_stopping})
    with config_context(array_api_dispatch=True):
        with cudasim.count() as counted:
            model.fit(x, y)
        assert counted["d2h_bytes"] < 10 * Y["binary"].nbytes
        assert counted["h2d_bytes"] < wide.nbytes / 2  # first weights, labels and orders
        with cudasim.count() as counted:
            model.predict_proba(x)
        assert counted["d2h_bytes"] < 100  # scikit-learn asks whether all is finite
