"""Layers for sequences: attention, tokens and positions."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest

import gpunn as gn
from bench import gpu_costs
from gpunn.errors import DataError, DTypeError, SettingError, ShapeError
from gpunn.kernels import kernels
from tests.conftest import Place
from tests.runs import WAYS, assert_alike

X = np.random.default_rng(0).standard_normal((3, 5, 6))


def attention(**settings: Any) -> gn.MultiHeadAttention:
    return gn.MultiHeadAttention(6, 2, rng=1, dtype="float64", **settings)


def by_hand(layer: gn.MultiHeadAttention, x: Any, allowed: Any) -> Any:
    """Return y, head by head and sample by sample; `allowed` is (N, T, T)."""
    d = layer.features // layer.heads
    qkv = x @ layer.projection.weight.value + layer.projection.bias.value
    y = np.empty_like(x)
    for i in range(len(x)):
        heads = []
        for h in range(layer.heads):
            q, k, v = (qkv[i, :, part * layer.features + h * d :][:, :d] for part in range(3))
            weights = np.exp(q @ k.T / np.sqrt(d)) * allowed[i]
            total = weights.sum(axis=1, keepdims=True)
            heads.append(weights / np.where(total, total, 1.0) @ v)
        y[i] = np.concatenate(heads, axis=1) @ layer.output.weight.value + layer.output.bias.value
    return y


class TestAttention:
    @pytest.mark.parametrize("causal", [False, True])
    @pytest.mark.parametrize("axes", [0, 2, 3])
    def test_it_is_what_the_formula_says(self, place: Place, causal: bool, axes: int) -> None:
        layer = attention(causal=causal)
        rng = np.random.default_rng(1)
        allowed = np.ones((3, 5, 5), bool)
        mask = None
        if axes:
            mask = rng.random((3, 5) if axes == 2 else (3, 5, 5)) < 0.6
            mask[0, 0] = False
            allowed &= mask[:, None, :] if axes == 2 else mask
        if causal:
            allowed &= np.tri(5, dtype=bool)
        wanted = by_hand(layer, X, allowed)
        layer.to(place.backend)
        given = None if mask is None else place.array(mask)
        y = layer(place.array(X), mask=given)
        np.testing.assert_allclose(gn.to_numpy(y), wanted, rtol=1e-12, atol=1e-13)

    def test_a_position_sees_none_that_come_later(self, place: Place) -> None:
        layer = attention(causal=True).to(place.backend)
        other = X.copy()
        other[:, 3:] = 100.0
        y, changed = (gn.to_numpy(layer(place.array(x))) for x in (X, other))
        np.testing.assert_array_equal(y[:, :3], changed[:, :3])
        assert (y[:, 3:] != changed[:, 3:]).all()

    def test_a_row_that_may_see_nothing_gets_the_bias_and_passes_no_gradient_on(
        self, place: Place
    ) -> None:
        layer = attention()
        layer.output.bias.value[:] = np.arange(6.0)
        layer.to(place.backend)
        tape = gn.Tape()
        y = layer(place.array(X), tape, mask=place.array(np.zeros((3, 5), bool)))
        np.testing.assert_array_equal(gn.to_numpy(y), np.broadcast_to(np.arange(6.0), X.shape))
        grad = layer.backward(y, tape)
        assert not gn.to_numpy(grad).any()

    @pytest.mark.parametrize("masked", [False, True])
    def test_without_a_tape_weights_are_computed_for_some_samples_at_a_time(
        self, monkeypatch: pytest.MonkeyPatch, masked: bool
    ) -> None:
        layer, mask = attention(causal=True), np.random.default_rng(1).random((3, 5)) < 0.6
        given = {"mask": mask} if masked else {}
        whole = layer(X, **given)
        monkeypatch.setattr("gpunn.kernels.numpy_sequences._SCORES", 2 * 5 * 5 * 2)
        np.testing.assert_array_equal(layer(X, **given), whole)
        np.testing.assert_array_equal(layer(X, gn.Tape(), **given), whole)

    def test_masked_gradients_are_the_derivative(self, place: Place) -> None:
        class Masked(gn.Layer):
            def __init__(self, mask: Any) -> None:
                self.inner, self.mask = attention(causal=True), gn.Buffer(mask)

            def forward(self, x: Any, tape: Any = None) -> Any:
                return self.inner.forward(x, tape, mask=self.mask.value)

            def backward(self, grad: Any, tape: Any) -> Any:
                return self.inner.backward(grad, tape)

        mask = np.random.default_rng(1).random((3, 5)) < 0.6
        layer = Masked(mask).to(place.backend)
        assert gn.check_gradients(layer, place.array(X)).error < 1e-6

    def test_large_scores_do_not_overflow(self, place: Place) -> None:
        layer = attention(causal=True).to(place.backend)
        tape = gn.Tape()
        y = layer(place.array(1e4 * X), tape)
        assert np.isfinite(gn.to_numpy(y)).all()
        assert np.isfinite(gn.to_numpy(layer.backward(y, tape))).all()

    def test_nan_does_not_go_unseen(self, place: Place) -> None:
        layer = attention().to(place.backend)
        x = X.copy()
        x[1, 2, 3] = np.nan
        y = gn.to_numpy(layer(place.array(x)))
        assert np.isnan(y[1]).all()
        assert np.isfinite(y[[0, 2]]).all()

    @pytest.mark.parametrize(
        ("call", "error", "says"),
        [
            (lambda: gn.MultiHeadAttention(6, 4), SettingError, "heads must divide features"),
            (lambda: attention()(X[0]), ShapeError, "expected x of shape (N, T, 6), got (5, 6)"),
            (lambda: attention()(X[:, :0]), ShapeError, "expected at least one position"),
            (lambda: attention()(X.astype("float32")), DTypeError, "x is float32"),
            (lambda: attention()(X, mask=np.ones((3, 5))), DTypeError, "an array of bool"),
            (
                lambda: attention()(X, mask=np.ones((5, 5), bool)),
                ShapeError,
                "mask must have shape (3, 5) or (3, 5, 5), got (5, 5)",
            ),
        ],
    )
    def test_errors_say_what_was_wanted(self, call: Any, error: Any, says: str) -> None:
        with pytest.raises(error) as caught:
            call()
        assert says in str(caught.value)


class TestTokens:
    def test_each_place_gets_the_row_of_its_token(self, place: Place) -> None:
        layer = gn.Embedding(7, 3, rng=0)
        table = np.array(layer.weight.value)
        tokens = np.random.default_rng(0).integers(0, 7, (4, 5))
        layer.to(place.backend)
        for dtype in ("int64", "int32", "uint8"):
            h = layer(place.array(tokens, dtype))
            np.testing.assert_array_equal(gn.to_numpy(h), table[tokens])

    def test_gradients_of_a_token_add_up(self, place: Place) -> None:
        layer = gn.Embedding(300, 3, rng=0, dtype="float64").to(place.backend)
        rng = np.random.default_rng(0)
        tokens = rng.integers(0, 200, (40, 25))
        tape = gn.Tape()
        layer(place.array(tokens), tape)
        grad = rng.standard_normal((40, 25, 3))
        layer.backward(place.array(grad), tape)
        wanted = np.zeros((300, 3))
        np.add.at(wanted, tokens, grad)
        np.testing.assert_allclose(gn.to_numpy(layer.weight.grad), wanted, rtol=1e-12, atol=1e-13)

    def test_a_token_out_of_range_is_refused_on_the_host_and_nan_elsewhere(
        self, place: Place
    ) -> None:
        layer = gn.Embedding(7, 3, rng=0).to(place.backend)
        for token in (-1, 7, 2**40):
            tokens = place.array([[0, token], [1, 2]])
            if place.backend.package == "numpy":
                with pytest.raises(DataError, match=r"expected tokens in 0\.\.6"):
                    layer(tokens)
                continue
            h = gn.to_numpy(layer(tokens))
            assert np.isnan(h[0, 1]).all()
            assert np.isfinite(h[[0, 1, 1], [0, 0, 1]]).all()

    def test_floats_are_refused(self) -> None:
        for call in (gn.Embedding(7, 3), gn.Sequential(gn.Embedding(7, 3), gn.Flatten())):
            with pytest.raises(DTypeError, match="keep_integers=True"):
                call(np.zeros((2, 3), "float32"))

    def test_a_longer_sequence_than_there_are_positions_is_refused(self) -> None:
        with pytest.raises(ShapeError, match="at most 4 positions"):
            gn.Position(4, 6, dtype="float64")(X)


def transformer(
    tokens: int, length: int, outputs: int, dtype: str = "float32", *, flat: bool = True
) -> gn.Sequential:
    """Return a small one, with outputs for each sample, or else for each position."""
    given: Any = {"rng": np.random.default_rng(0), "dtype": dtype}
    inner = gn.Dense(16, 32, "relu", **given), gn.Dense(32, 16, **given)
    head = [gn.Flatten(), gn.Dense(16 * length, outputs, **given)]
    return gn.Sequential(
        gn.Embedding(tokens, 16, **given),
        gn.Position(length, 16, **given),
        gn.Residual(gn.MultiHeadAttention(16, 4, causal=True, **given)),
        gn.Residual(gn.Sequential(gn.LayerNorm(16, dtype=dtype), *inner)),
        *(head if flat else [gn.Dense(16, outputs, **given)]),
    )


def sorting_data(n: int = 400, length: int = 6, tokens: int = 5) -> tuple[Any, Any]:
    """Return sequences, and which token they have most of."""
    x = np.random.default_rng(0).integers(0, tokens, (n, length))
    counts = (x[:, :, None] == np.arange(tokens)).sum(axis=1)
    return x, counts.argmax(axis=1)


class TestTraining:
    @pytest.mark.parametrize("backend", ["numpy", pytest.param("cupy", marks=pytest.mark.gpu)])
    def test_a_small_transformer_learns(self, backend: str) -> None:
        x, y = sorting_data()
        model = transformer(5, 6, 5).to(backend)
        trainer = gn.Trainer(
            model, gn.SoftmaxCrossEntropy(), gn.Adam(model.parameters(), 3e-3), metrics=["accuracy"]
        )
        loader = gn.Loader(x, y, batch_size=32, keep_integers=True, backend=backend, rng=0)
        history = trainer.fit(loader, 30, validation=(x, y), progress=False)
        assert history["validation_accuracy"][-1] > 0.9

    def test_the_loader_must_keep_the_integers(self) -> None:
        x, y = sorting_data()
        model = transformer(5, 6, 5)
        trainer = gn.Trainer(model, gn.SoftmaxCrossEntropy(), gn.SGD(model.parameters()))
        with pytest.raises(DTypeError, match="a Loader keeps them with keep_integers=True"):
            trainer.fit(gn.Loader(x, y), 1)
        with pytest.raises(DTypeError, match="x must hold integers, as keep_integers says"):
            gn.Loader(x.astype("float32"), y, keep_integers=True)

    def test_tokens_are_checked_before_the_first_epoch(self) -> None:
        x, y = sorting_data()
        x[-1, -1] = 5
        model = transformer(5, 6, 5)
        trainer = gn.Trainer(model, gn.SoftmaxCrossEntropy(), gn.SGD(model.parameters()))
        with pytest.raises(DataError, match=r"expected tokens in 0\.\.4, got 0 to 5"):
            trainer.fit(gn.Loader(x, y, keep_integers=True), 1)

    def test_what_is_asked_of_a_model_of_tokens(self) -> None:
        model = transformer(5, 6, 5)
        assert model.output_shape(6) == (5,)
        assert "Embedding(5, 16)" in model.summary(6)
        assert model.memory(32, input_shape=6).total > 0
        x, _ = sorting_data(3)
        trainer = gn.Trainer(model, gn.SoftmaxCrossEntropy(), gn.SGD(model.parameters()))
        np.testing.assert_array_equal(trainer.predict(x), model(x))

    @pytest.mark.parametrize("length", [1, 6, 70])  # 64 queries are taken at a time
    @pytest.mark.parametrize("threads", [1, 2])
    def test_recorded_steps_leave_what_the_readable_loop_leaves(
        self, length: int, threads: int
    ) -> None:
        pytest.importorskip("numba", reason="steps are compiled by numba")
        turns = importlib.import_module("tests.turns")
        x = np.random.default_rng(0).integers(0, 5, (40, length + 1))
        found = []
        with turns.threads_for_all(threads):
            for way in WAYS:
                model = transformer(5, length, 5, "float64", flat=False)
                optimizer = gn.SGD(model.parameters(), 0.1, momentum=0.9)
                trainer = gn.Trainer(model, gn.SequenceCrossEntropy(), optimizer, rng=3)
                data = {"dtype": "float64", "keep_integers": True, "rng": 0, "batch_size": 16}
                loader = gn.Loader(x[:, :-1], x[:, 1:], **data)
                with way():
                    found.append((trainer, trainer.fit(loader, 2, progress=False), loader))
        assert found[0][0].why_not_recorded == ""
        assert found[1][0].why_not_recorded
        assert_alike(*found, "float64")

    def test_fewer_positions_than_a_table_has_train_in_the_readable_loop(self) -> None:
        x, y = sorting_data(50, 3)
        model = gn.Sequential(
            gn.Embedding(5, 4, rng=0), gn.Position(6, 4, rng=1), gn.Flatten(), gn.Dense(12, 5)
        )
        trainer = gn.Trainer(model, gn.SoftmaxCrossEntropy(), gn.SGD(model.parameters(), 0.1))
        trainer.fit(gn.Loader(x, y, keep_integers=True), 1, progress=False)
        assert "fewer positions than a table has" in trainer.why_not_recorded or (
            "numba" in trainer.why_not_recorded
        )


@pytest.mark.gpu
@pytest.mark.emulated
def test_a_step_on_a_device_runs_these_operations_and_no_others() -> None:
    x, y = sorting_data(96)
    model = transformer(5, 6, 5).to("cupy")
    trainer = gn.Trainer(model, gn.SoftmaxCrossEntropy(), gn.SGD(model.parameters()))
    settings = {"batch_size": 16, "keep_integers": True, "resident": True, "backend": "cupy"}
    loader = gpu_costs.Watched(x, y, shuffle=False, **settings)
    trainer.fit(loader, 2, progress=False)
    before, after = loader.epochs[1][2:4]
    ran = gpu_costs.operations(before, after, "kernels")
    ran += gpu_costs.operations(before, after, "library_calls")
    wanted = {
        "embedding": 1,
        "split_heads": 3,  # queries, keys and values, both ways, and the gradient of the means
        "merge_heads": 2,
        "softmax_of_scores": 1,
        "slope_of_scores": 1,
        "cublasGemmStridedBatchedEx": 6,  # Q K^T and P V; P^T G, G V^T, dS K and dS^T Q
        "embedding_backward": 1,
    }
    assert {name: ran[name] for name in wanted} == wanted
    counted = gpu_costs.costs(before, after)
    assert (counted.syncs, counted.h2d_bytes, counted.d2h_bytes) == (0, 0, 0)
    assert (counted.memsets, counted.device_allocs) == (0, 0)


def test_scores_that_overflow(place: Place) -> None:
    """A query whose scores are all minus infinity sees nothing, as one behind a mask."""
    qkv = np.ones((1, 2, 6), "float32")
    qkv[0, 0, :2], qkv[0, :, 2:4] = 3e38, -3e38
    with np.errstate(over="ignore"):  # NumPy tells of it
        context, weights = kernels(place.array(qkv)).attention(place.array(qkv), 1)
    assert gn.to_numpy(context)[0, 0].tolist() == [0.0, 0.0]
    assert gn.to_numpy(weights)[0, 0, 0].tolist() == [0.0, 0.0]


def test_scores_that_overflow_in_compiled_steps() -> None:
    pytest.importorskip("numba", reason="steps are compiled by numba")
    loops = importlib.import_module("gpunn.kernels.loops_sequences")
    scores = np.array([[-np.inf, -np.inf], [-np.inf, 1.0]], "float32")
    loops.softmax_of_scores(scores, 0, False, np.float32(1))
    assert scores.tolist() == [[0.0, 0.0], [pytest.approx(0.0, abs=1e-37), 1.0]]
