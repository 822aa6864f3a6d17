"""What the estimators refuse."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from sklearn.exceptions import NotFittedError
from sklearn.utils._param_validation import InvalidParameterError

import gpunn as gn
from gpunn.estimators import LogisticRegression, MLPClassifier, MLPRegressor
from tests.labels import label

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

N = 60
_RNG = np.random.default_rng(0)
X = _RNG.standard_normal((N, 4))
Y = X[:, :3].argmax(axis=1)
FEW: dict[str, Any] = {"max_iter": 3, "random_state": 0, "tol": 1e3, "n_iter_no_change": 1}
KINDS = (MLPClassifier, MLPRegressor, LogisticRegression)
NETWORKS = (MLPClassifier, MLPRegressor)
CLASSIFIERS = (MLPClassifier, LogisticRegression)


def network(**settings: Any) -> MLPClassifier:
    return MLPClassifier(**{"hidden_layer_sizes": (5,), **FEW, **settings})


class TestSettings:
    BAD = (
        ("solver", "newton"), ("batch_size", 0), ("batch_size", "all"), ("batch_size", 2.5),
        ("learning_rate", "optimal"), ("learning_rate_init", 0.0), ("learning_rate_init", -1.0),
        ("power_t", -1.0), ("max_iter", 0), ("max_iter", 1.5), ("shuffle", "yes"),
        ("random_state", "seed"), ("tol", -1.0), ("verbose", -1), ("warm_start", 2),
        ("momentum", 1.0), ("momentum", -0.1), ("nesterovs_momentum", None),
        ("early_stopping", "maybe"), ("validation_fraction", 0.0), ("validation_fraction", 1.0),
        ("beta_1", 1.0), ("beta_2", -0.1), ("epsilon", 0.0), ("n_iter_no_change", 0),
        ("metrics", 3), ("backend", 1), ("device", -1), ("device", "cuda"),
    )  # fmt: skip

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize(("name", "value"), BAD)
    def test_of_training(self, kind: Any, name: str, value: Any) -> None:
        with pytest.raises(InvalidParameterError, match=f"'{name}' parameter of {kind.__name__}"):
            kind(**{name: value}).fit(X, Y)

    @pytest.mark.parametrize("kind", NETWORKS)
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"hidden_layer_sizes": 0}, "hidden_layer_sizes"),
            (
                {"solver": functools.partial(gn.SGD, weight_decay=1.0)},
                "weight_decay=1; leave it out",
            ),
            ({"hidden_layer_sizes": (4, 0)}, "hidden_layer_sizes must be > 0"),
            ({"hidden_layer_sizes": (4, -1)}, "hidden_layer_sizes must be > 0"),
            ({"hidden_layer_sizes": [2.5]}, "hidden_layer_sizes must be whole numbers"),
            ({"activation": "step"}, "'activation' parameter"),
            ({"activation": ["tanh", "relu"]}, "activation has 2 entries and the network 1 hidden"),
            ({"activation": ["step"]}, "step"),
            ({"alpha": -1.0}, "'alpha' parameter"),
            ({"dropout": 1.0}, "'dropout' parameter"),
            ({"dropout": [0.1, 0.2]}, "dropout has 2 entries and the network 1 hidden"),
            ({"dropout": [1.5]}, "1.5"),
            ({"loss": "hinge"}, "'loss' parameter"),
            (
                {"loss": gn.BinaryCrossEntropy(from_logits=False)},
                "probabilities|of classes",
            ),
            ({"device": 0}, "device=0 is the index of a GPU and goes with backend='cupy'"),
            (
                {"backend": "numpy", "device": 0},
                "goes with backend='cupy' or 'auto', got backend='numpy'",
            ),
            ({"backend": "tpu"}, "tpu"),
            ({"metrics": ["gini"]}, "gini"),
        ],
        ids=str,
    )
    def test_of_networks(self, kind: Any, settings: dict[str, Any], message: str) -> None:
        model = kind(**settings)
        with pytest.raises((ValueError, gn.errors.GpunnError), match=message):
            model.fit(X, Y)
        assert not model.__sklearn_is_fitted__()

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"C": 0.0}, "'C' parameter"),
            ({"C": -1.0}, "'C' parameter"),
            ({"fit_intercept": "no"}, "'fit_intercept' parameter"),
            ({"class_weight": "even"}, "'class_weight' parameter"),
        ],
        ids=str,
    )
    def test_of_logistic_regression(self, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(InvalidParameterError, match=message):
            LogisticRegression(**settings).fit(X, Y)

    @pytest.mark.parametrize("loss", [gn.Hinge(), gn.KLDivergence()], ids=repr)
    def test_a_regressor_whose_outputs_are_no_predictions(self, loss: gn.Loss) -> None:
        with pytest.raises(InvalidParameterError, match=r"predict gives.*outputs.*gpunn\.Trainer"):
            MLPRegressor(loss=loss).fit(X, Y)

    def test_a_function_that_returns_no_optimizer(self) -> None:
        with pytest.raises(TypeError, match=r"solver must return a gpunn optimizer.*returned list"):
            network(solver=list).fit(X, Y)


class TestBeforeFit:
    @pytest.mark.parametrize("kind", KINDS)
    def test_answers(self, kind: Any) -> None:
        for name in ("predict", "predict_proba", "predict_log_proba", "decision_function"):
            if hasattr(kind, name):
                with pytest.raises(NotFittedError, match="not fitted yet"):
                    getattr(kind(), name)(X)

    @pytest.mark.parametrize("kind", KINDS)
    def test_attributes(self, kind: Any) -> None:
        names = [name for name in dir(kind) if name.endswith("_") and not name.startswith("_")]
        assert len(names) > 8
        for name in names:
            assert not hasattr(kind(), name), name
            assert hasattr(kind(**FEW).fit(X, Y), name), name


class TestData:
    @pytest.mark.parametrize("kind", KINDS)
    def test_columns(self, kind: Any) -> None:
        model = kind(**FEW).fit(X, Y)
        for x in (X[:, :3], scipy.sparse.csr_matrix(X[:, :3])):
            with pytest.raises(ValueError, match=r"X has 3 features, but .* is expecting 4"):
                model.predict(x)
        with pytest.raises(ValueError, match="X has 3 features"):
            model.partial_fit(X[:, :3], Y)
        with pytest.raises(ValueError, match="X has 3 features"):
            kind(**FEW).fit(X, Y, X_val=X[:, :3], y_val=Y)

    @pytest.mark.parametrize("kind", KINDS)
    def test_values(self, kind: Any) -> None:
        for bad in (np.nan, np.inf):
            x = X.copy()
            x[1, 1] = bad
            with pytest.raises(ValueError, match=r"contains (NaN|infinity)"):
                kind(**FEW).fit(x, Y)
            with pytest.raises(ValueError, match=r"contains (NaN|infinity)"):
                kind(**FEW).fit(X, Y).predict(x)
        with pytest.raises(ValueError, match="inconsistent numbers of samples"):
            kind(**FEW).fit(X, Y[:-1])
        with pytest.raises(ValueError, match="go together"):
            kind(**FEW).fit(X, Y, X_val=X)

    @pytest.mark.parametrize("kind", KINDS)
    def test_weights(self, kind: Any) -> None:
        for weight, message in [
            (np.zeros(N), "zero"),
            (np.full(N, -1.0), "[Nn]egative"),
            (np.ones(N - 1), "shape"),
            (np.full(N, np.nan), "NaN"),
        ]:
            for method in ("fit", "partial_fit"):
                extra = {} if method == "fit" or kind is MLPRegressor else {"classes": [0, 1, 2]}
                with pytest.raises(ValueError, match=message):
                    getattr(kind(**FEW), method)(X, Y, sample_weight=weight, **extra)
        if kind in CLASSIFIERS:
            with pytest.raises(ValueError, match="sample weights sum to zero"):
                kind(class_weight=dict.fromkeys(range(3), 0.0), **FEW).fit(X, Y)
        some = (np.arange(N) == 3).astype(float)
        with pytest.raises(ValueError, match="validation set is too small"):
            kind(**FEW, early_stopping=True).fit(X, Y, some)

    @pytest.mark.parametrize("kind", CLASSIFIERS)
    def test_labels(self, kind: Any) -> None:
        with pytest.raises(ValueError, match="Unknown label type"):
            kind(**FEW).fit(X, X[:, 0])
        with pytest.raises(ValueError, match="classes must be passed on the first call"):
            kind(**FEW).partial_fit(X, Y)
        with pytest.raises(ValueError, match="classes must be passed on the first call"):
            kind(**FEW).partial_fit(X, Y[:, None])
        with pytest.raises(ValueError, match=r"not there before: \[2\]; known are \[0, 1\]"):
            kind(**FEW).partial_fit(X, Y, classes=[0, 1])
        model = kind(**FEW).partial_fit(X, Y, classes=[0, 1, 2])
        with pytest.raises(ValueError, match="not the same as on last call"):
            model.partial_fit(X, Y, classes=[0, 1])
        with pytest.raises(ValueError, match=r"not there before: \[3\]"):
            model.partial_fit(X, Y + 1)
        with pytest.raises(ValueError, match=r"not there before"):
            kind(**FEW).fit(X, Y, X_val=X, y_val=Y + 1)
        with pytest.raises(ValueError, match="partial_fit sees some"):
            kind(class_weight="balanced").partial_fit(X, Y, classes=[0, 1, 2])
        model = kind(warm_start=True, **FEW).fit(X, Y)
        for other in (Y + 1, np.minimum(Y, 1), np.array(list("abc"))[Y]):
            with pytest.raises(ValueError, match="warm_start can only be used where"):
                model.fit(X, other)

    def test_columns_of_labels(self) -> None:
        with pytest.raises(ValueError, match="several columns of more than two classes"):
            network().fit(X, np.column_stack([Y, Y]))
        model = network().fit(X, np.eye(3, dtype=int)[Y])
        with pytest.raises(ValueError, match="3 columns of zeros and ones"):
            model.partial_fit(X, np.eye(3, dtype=int)[Y][:, :2])
        with pytest.raises(ValueError, match="y should be a 1d array"):
            LogisticRegression().fit(X, np.eye(3, dtype=int)[Y])

    def test_columns_of_numbers(self) -> None:
        model = MLPRegressor(**FEW).fit(X, X[:, :2])
        with pytest.raises(ValueError, match=r"3 outputs a sample, and the network .* 2"):
            model.partial_fit(X, X[:, :3])
        with pytest.raises(ValueError, match=r"could not convert|dtype"):
            MLPRegressor(**FEW).fit(X, np.array(list("abc"))[Y])

    @pytest.mark.parametrize("kind", KINDS)
    def test_too_few_to_hold_out(self, kind: Any) -> None:
        with pytest.raises(ValueError, match="The validation set is too small"):
            kind(early_stopping=True, validation_fraction=0.01, **FEW).fit(X, Y)
        with pytest.raises(ValueError, match="does not support early_stopping"):
            kind(early_stopping=True).partial_fit(
                X, Y, **({} if kind is MLPRegressor else {"classes": [0, 1, 2]})
            )


class TestKinds:
    """Settings that are iterated over: each kind is taken in its sense, or refused."""

    @pytest.mark.parametrize("kind", CLASSIFIERS)
    @pytest.mark.parametrize(
        ("value", "message"),
        [
            ([1.0, 2.0], "class_weight is a list.*a dict"),
            ([0, 1], "class_weight is a list.*a dict"),
            ([{0: 1.0, 1: 2.0}], "class_weight is a list.*a dict"),
            ([], "class_weight is a list.*a dict"),
            ({0: "a"}, r"class_weight\[0\] must be a number of at least 0, got 'a'"),
            ({0: -1.0, 1: 3.0}, r"class_weight\[0\] must be a number of at least 0, got -1.0"),
            ({0: np.nan}, r"class_weight\[0\] must be a number of at least 0, got nan"),
            ({1: np.inf}, r"class_weight\[1\] must be a number of at least 0, got inf"),
            ({1: None}, r"class_weight\[1\] must be a number of at least 0, got None"),
            ({1: [1.0, 2.0]}, r"class_weight\[1\] must be a number of at least 0"),
            ({1: 1j}, r"class_weight\[1\] must be a number of at least 0"),
            ((1.0, 2.0), "'class_weight' parameter"),
            ({0, 1}, "'class_weight' parameter"),
        ],
        ids=str,
    )
    def test_class_weight(self, kind: Any, value: Any, message: str) -> None:
        model = kind(class_weight=value, **FEW)
        for method, extra in (("fit", {}), ("partial_fit", {"classes": [0, 1]})):
            with pytest.raises(
                InvalidParameterError, match=f"{kind.__name__}.*{message}|{message}"
            ):
                getattr(model, method)(X, np.minimum(Y, 1), **extra)
            assert not model.__sklearn_is_fitted__()

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            ({0: 1.0, 1: 2.0}, "class_weight of 3 labels a sample must be a list of as many"),
            ([{0: 1.0}] * 2, "class_weight of 3 labels a sample must be a list of as many"),
            ([1, 2, 3], r"class_weight\[0\] must be a dict"),
            ([{0: 1.0}, {1: -1.0}, None], r"class_weight\[1\]\[1\] must be a number of at least 0"),
            ([{2: 1.0}, None, None], r"class_weight\[0\] is of the labels 0 and 1"),
        ],
        ids=str,
    )
    def test_class_weight_of_several_labels(self, value: Any, message: str) -> None:
        with pytest.raises(InvalidParameterError, match=f"MLPClassifier: {message}"):
            network(class_weight=value).fit(X, np.eye(3, dtype=int)[Y])

    def test_class_weight_of_several_labels_in_parts(self) -> None:
        y = np.eye(3, dtype=int)[Y]
        weight = [{1: 5.0}, {0: 2.0, 1: 3.0}, None]
        one, other = network(class_weight=weight), network()
        for k in range(3):  # in two of the columns there are only zeros
            some = k == Y
            one.partial_fit(X[some], y[some])
            other.partial_fit(X[some], y[some], np.full(some.sum(), [10.0, 3.0, 2.0][k]))
        assert one.loss_curve_ == pytest.approx(other.loss_curve_, rel=1e-12)
        with pytest.raises(ValueError, match="partial_fit sees some"):
            network(class_weight=["balanced", None, None]).partial_fit(X, y)

    @pytest.mark.parametrize("kind", NETWORKS)
    @pytest.mark.parametrize(
        "value",
        [{5: 1}, {5}, frozenset({4}), "5", "", b"5", bytearray(b"5"), True, (True,), np.array(5),
         np.array([[5]]), [[5]], (v for v in [5]), {5: 1}.keys(), None, 5.0],
        ids=label,
    )  # fmt: skip
    def test_hidden_layer_sizes(self, kind: Any, value: Any) -> None:
        with pytest.raises(ValueError, match="hidden_layer_sizes"):
            kind(hidden_layer_sizes=value, **FEW).fit(X, Y)

    @pytest.mark.parametrize("value", [5, [5], (5,), np.array([5]), np.int64(5), range(5, 6)])
    def test_hidden_layer_sizes_that_are_right(self, value: Any) -> None:
        assert network(hidden_layer_sizes=value).fit(X, Y).coefs_[0].shape == (4, 5)

    @pytest.mark.parametrize("kind", NETWORKS)
    @pytest.mark.parametrize("name", ["dropout", "activation"])
    @pytest.mark.parametrize(
        "wrap",
        [
            lambda value: {value},
            lambda value: {value: 1},
            lambda value: (v for v in [value]),
            lambda value: np.array([value]),
            lambda value: [[value]],
            lambda _: [None],
        ],
        ids=["set", "dict", "generator", "array", "nested", "None"],
    )
    def test_of_each_layer(self, kind: Any, name: str, wrap: Any) -> None:
        value = wrap({"dropout": 0.5, "activation": "tanh"}[name])
        with pytest.raises(InvalidParameterError, match=name):
            kind(**{name: value}, **FEW).fit(X, Y)

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize(
        "value",
        [{"mae"}, {"mae": 1}, {"mae": 1}.keys(), (v for v in ["mae"]), None, 3, [3], [["mae"]],
         gn.TopK, [gn.TopK], b"mae"],
        ids=label,
    )  # fmt: skip
    def test_metrics(self, kind: Any, value: Any) -> None:
        with pytest.raises(InvalidParameterError, match="metrics"):
            kind(metrics=value, **FEW).fit(X, Y)

    @pytest.mark.parametrize(
        "value", ["accuracy", gn.TopK(1), ["accuracy"], np.array(["accuracy"])]
    )
    def test_metrics_that_are_right(self, value: Any) -> None:
        assert len(network(metrics=value).fit(X, Y).history_.columns) == 5

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("value", [None, 0, 1, "no", [True]], ids=repr)
    def test_early_stopping(self, kind: Any, value: Any) -> None:
        with pytest.raises(InvalidParameterError, match="early_stopping"):
            kind(early_stopping=value, **FEW).fit(X, Y)


class TestMixed:
    """What holds things of several kinds, which have no order and no common dtype."""

    def test_sizes_in_sizes(self) -> None:
        for sizes in ([(10,), (20, 3)], [[10], 3]):
            with pytest.raises(ValueError, match="hidden_layer_sizes must be whole numbers, got"):
                MLPClassifier(sizes).fit(X, Y)

    def test_classes(self) -> None:
        for classes in ([0, "a", 1], {0, "a"}, (0, b"a")):
            with pytest.raises(ValueError, match=r"classes must be a list of labels.*of one kind"):
                network().partial_fit(X, Y, classes=classes)

    def test_labels_of_another_kind(self) -> None:
        names = np.array(["a", "b", "c"], dtype=object)
        model = network().partial_fit(X, names[Y], classes=["a", "b", "c"])
        mixed = np.where(Y == 2, 2, names[Y].astype(object))
        with pytest.raises(
            ValueError, match=r"y has classes that were not there before.*known are"
        ):
            model.partial_fit(X, mixed)


def test_too_few_of_each_class_to_hold_out() -> None:
    """As in a bag: the advice names what counts, and what can be changed."""
    weight = (np.arange(N) < 6).astype(float)
    message = (
        r"The validation set is too small: early stopping holds out 1 of 6 samples of a weight "
        r"above 0, and needs one of each of the 2 classes; "
        r"raise validation_fraction \(now 0.1\)"
    )
    with pytest.raises(ValueError, match=message):
        network(early_stopping=True).fit(X, Y % 2, sample_weight=weight)
