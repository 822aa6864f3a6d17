"""The features of a prediction: which need scikit-learn's checks, and in what blocks they go."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn import config_context

from gpunn.estimators import LogisticRegression, MLPClassifier, NetworkClassifier, features, fitted
from tests.quick_estimators import X, Y, classifier

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

MODELS = {
    "MLPClassifier": classifier(),
    "LogisticRegression": LogisticRegression(max_iter=5, random_state=0),
    "NetworkClassifier": NetworkClassifier(max_iter=5, random_state=0),
}


def spoiled(value: float, row: int = -1) -> np.ndarray:
    """Return features of which one has another value."""
    x = X.copy()
    x[row, 2] = value
    return x


#: Whatever may come as X, and whether it is seen to be as the checks would return it.
FORMS: dict[str, tuple[Any, bool]] = {
    "doubles": (X, True),
    "singles": (X.astype("float32"), True),
    "one row": (X[:1], True),
    "columns": (np.asfortranarray(X), True),
    "every other": (np.repeat(X, 2, axis=1)[:, ::2], True),
    "backwards": (X[::-1], True),
    "read-only": (np.broadcast_to(X[0], X.shape), True),
    "not a number": (spoiled(np.nan), True),
    "infinite": (spoiled(np.inf), True),
    "both infinities": (np.where(X[3, 3] == X, np.inf, spoiled(-np.inf)), True),
    "a sum too large": (np.full_like(X, 1e308), True),
    "a sum too large, singles": (np.full(X.shape, 3e38, "float32"), True),
    "halves": (X.astype("float16"), False),
    "integers": ((10 * X).astype(int), False),
    "another byte order": (X.astype(">f8"), False),
    "a list": (X.tolist(), False),
    "a masked array": (np.ma.array(X, mask=False), False),
    "a row": (X[0], False),
    "no rows": (X[:0], False),
    "a feature less": (X[:, :4], False),
    "three axes": (X[:, :, None], False),
    "objects": (X.astype(object), False),
    "complex": (X.astype(complex), False),
}


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> Any:
    """Return a fitted model."""
    kind = MODELS[request.param]
    return type(kind)(**kind.get_params()).fit(X, Y["multiclass"])


def answer(model: Any, x: Any) -> Any:
    """Return the probabilities, or the error."""
    try:
        return model.predict_proba(x)
    except (ValueError, TypeError) as error:
        return type(error).__name__, str(error)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """Return, for each prediction, whether X was plain."""
    found: list[bool] = []
    real = features.is_plain
    monkeypatch.setattr(fitted, "is_plain", lambda *given: found.append(real(*given)) or found[-1])
    return found


@pytest.mark.parametrize("finite", [False, True], ids=["checked", "assumed finite"])
@pytest.mark.parametrize("form", FORMS)
def test_the_checks_would_say_the_same(
    form: str, finite: bool, model: Any, seen: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, plain = FORMS[form]
    with config_context(assume_finite=finite), np.errstate(all="ignore"):
        got = answer(model, x)
        monkeypatch.setattr(fitted, "is_plain", lambda *_: False)
        wanted = answer(model, x)
    assert seen == [plain]
    if isinstance(wanted, tuple):
        assert got == wanted
    else:
        assert got.dtype == wanted.dtype
        assert_array_equal(got, wanted)


def test_a_plain_row_is_not_checked_twice(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """scikit-learn's checks of a row take longer than the prediction."""
    monkeypatch.setattr(fitted, "validate_data", lambda *_, **__: pytest.fail("checked"))
    model.predict(X[:1])
    with pytest.raises(BaseException, match="checked"):
        model.predict(spoiled(np.nan))


def test_names_of_columns_are_missed(model: Any) -> None:
    pd = pytest.importorskip("pandas")
    model.fit(pd.DataFrame(X, columns=list("abcde")), Y["multiclass"])
    with pytest.warns(UserWarning, match="does not have valid feature names"):
        model.predict(X)


class TestBlocks:
    @pytest.fixture(autouse=True)
    def _short(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(features, "_LEAST", 7)
        monkeypatch.setattr(features, "_NUMBERS", 1)

    def test_answers(self, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        got = model.predict_proba(X)
        monkeypatch.setattr(features, "_LEAST", len(X))
        assert_allclose(got, model.predict_proba(X), rtol=1e-12)

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("row", [0, 63, -1])
    def test_each_is_checked(self, model: Any, row: int, value: float) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(ValueError, match=r"Input X contains (NaN|infinity)"):
                model.predict(spoiled(value, row))

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_a_product_tells_of_its_features_unless_a_weight_is_0(self, value: float) -> None:
        model = LogisticRegression(max_iter=5, random_state=0).fit(X, Y["multiclass"])
        weight = model._network.layers[0].weight.value
        assert features.is_one_product(model._network, X)
        weight[2] = 0.0  # that of the spoiled feature; some libraries skip such products
        assert not features.is_one_product(model._network, X)
        with pytest.raises(ValueError, match=r"Input X contains (NaN|infinity)"):
            model.predict(spoiled(value))

    @pytest.mark.gpu
    def test_numpy_features_of_a_network_on_a_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(fitted, "ROWS", 8)
        model = LogisticRegression(max_iter=2, random_state=0, backend="cupy").fit(X, Y["binary"])
        assert_allclose(model.predict_proba(X)[:5], model.predict_proba(X[:5]))

    def test_other_models_and_dtypes_are_no_product(self) -> None:
        model = LogisticRegression(max_iter=5, random_state=0).fit(X, Y["multiclass"])
        assert not features.is_one_product(model._network, X.astype("float32"))
        for kind in ("MLPClassifier", "NetworkClassifier"):
            model = MODELS[kind].fit(X, Y["multiclass"])
            assert not features.is_one_product(model._network, X)

    def test_wide_layers_have_few_rows(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(features, "_NUMBERS", 4096)
        rows = {}
        for width in (4, 64, 512, 4096):
            model = MLPClassifier((width,), max_iter=1).fit(X, Y["multiclass"])
            weights = [p.value for p in model._network.parameters()]
            rows[width] = features.rows_at_once(X, weights)
        assert rows == {4: 819, 64: 64, 512: 8, 4096: 7}
