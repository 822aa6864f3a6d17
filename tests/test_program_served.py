"""Which networks, rules and data are recorded; whatever is not trains in the readable loop."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import gpunn as gn
from gpunn import program

pytest.importorskip("numba", reason="steps are compiled by numba")
pytestmark = pytest.mark.skipif(
    os.environ.get("GPUNN_COMPILED") == "0", reason="GPUNN_COMPILED=0: nothing is compiled"
)

from gpunn.program import cpu, interpreter, products  # noqa: E402
from tests.runs import WAYS, Scaling, state  # noqa: E402
from tests.steps import Case  # noqa: E402


class Own(gn.Dense):
    """A layer that may do anything."""


class Doubled(gn.ReLU):
    """Rises twice as steeply."""

    def function(self, xp: Any, x: Any) -> Any:
        return 2.0 * xp.maximum(x, 0.0)


class Flat(gn.SoftmaxCrossEntropy):
    """Has the same gradient everywhere."""

    def per_sample(self, prediction: Any, target: Any, scale: Any) -> Any:
        return 0.0 * prediction[:, 0] + 1.0, 0.0 * prediction + 0.1


class Halved(gn.Parameter):
    """Takes half of each gradient."""

    def add_grad(self, grad: Any) -> None:
        super().add_grad(0.5 * grad)


def halved(layer: gn.Dense) -> gn.Parameter:
    return Halved(layer.weight.value)


def cut(layer: gn.Dense, outputs: int) -> None:
    """Leave so many outputs, whatever `out_features` says."""
    layer.weight.value = layer.weight.value[:, :outputs].copy()
    layer.bias.value = layer.bias.value[:outputs].copy()


SERVED: dict[str, Callable[[gn.Trainer], None]] = {
    "clip_norm": lambda t: setattr(t.optimizer, "clip_norm", 0.1),
    "clip_value": lambda t: setattr(t.optimizer, "clip_value", 0.01),
    "both clips": lambda t: vars(t.optimizer).update(_clip_norm=0.1, _clip_value=0.01),
    "one more activation": lambda t: t.model.layers.append(gn.ELU()),
    "two activations": lambda t: t.model.layers.insert(1, gn.Tanh()),
    "dropout": lambda t: t.model.layers.insert(1, gn.Dropout(0.5)),
    "a residual": lambda t: t.model.layers.insert(
        1, gn.Residual(gn.Dense(3, 3, rng=5, dtype="float64"))
    ),
    "label smoothing": lambda t: setattr(t.loss, "label_smoothing", 0.1),
    "class weights": lambda t: setattr(t.loss, "class_weight", (1.0, 2.0, 3.0)),
    "probabilities": lambda t: setattr(t, "loss", gn.BinaryCrossEntropy(from_logits=False)),
    "an outer layer that was cut": lambda t: cut(t.model.layers[-1], 2),
    "part of the parameters": lambda t: setattr(
        t, "optimizer", gn.SGD(list(t.model.parameters())[2:])
    ),
    "one layer twice": lambda t: setattr(t.model, "layers", [t.model.layers[0]] * 2),
}

NOT_SERVED: dict[str, Callable[[gn.Trainer], None]] = {
    "a subclass": lambda t: setattr(t.model.layers[0], "__class__", Own),
    "a method of one's own": lambda t: setattr(t.model.layers[0], "forward", t.model[0].forward),
    "an inner layer that was cut": lambda t: cut(t.model.layers[0], 2),
    "biases of another dtype": lambda t: setattr(
        t.model[0].bias, "value", t.model[0].bias.value.astype("float32")
    ),
    "an activation's own function": lambda t: setattr(
        t.model[0].activation, "function", lambda xp, x: 2.0 * xp.maximum(x, 0.0)
    ),
    "an activation's own gradient": lambda t: setattr(
        t.model[0].activation, "gradient", lambda xp, grad, saved: 2.0 * grad
    ),
    "an activation of a subclass": lambda t: setattr(t.model[0], "activation", Doubled()),
    "a loss's own formula": lambda t: setattr(
        t.loss, "per_sample", lambda p, y, scale: (0.0 * p[:, 0] + 1.0, 0.0 * p + 0.1)
    ),
    "a loss's own scale": lambda t: setattr(t.loss, "_scale", lambda *_: 0.25),
    "a loss of a subclass": lambda t: setattr(t, "loss", Flat()),
    "a parameter of a subclass": lambda t: setattr(t.model[0], "weight", halved(t.model[0])),
}


class TestWhatIsServed:
    @pytest.mark.parametrize("name", sorted(SERVED | NOT_SERVED))
    def test_what_is_and_what_is_not(self, name: str, calls: list[int]) -> None:
        """All is as it is one by one, errors, too."""
        results: list[Any] = []
        for way in WAYS:
            case = Case(sizes=(3, 3, 3), loss="binary" if name == "probabilities" else "softmax")
            trainer, loader = case.trainer(), case.loader()
            (SERVED | NOT_SERVED)[name](trainer)
            if name == "probabilities":
                trainer.model.layers[-1].activation = gn.Sigmoid()
            if "outer" in name:
                loader.stored.y.base[...] %= 2
            trained = trainer.model.parameters()[2 if name == "part of the parameters" else 0 :]
            given = trainer.optimizer
            clips: Any = {"clip_norm": given.clip_norm, "clip_value": given.clip_value}
            optimizer = gn.SGD(trained, 0.1, **clips)
            trainer = gn.Trainer(trainer.model, trainer.loss, optimizer, rng=3)
            with way():
                try:
                    trainer.fit(loader, 2, progress=False)
                    results.append(state(trainer))
                except (ValueError, TypeError) as error:
                    results.append(str(error))
            assert (trainer.why_not_recorded == "") == (name in SERVED and way is nullcontext)
        if isinstance(results[0], str):
            assert results[0] == results[1]
        else:
            for a, b in zip(*results, strict=True):
                assert_allclose(a, b, rtol=1e-9, atol=1e-12)
        assert bool(calls) == (name in SERVED)

    @pytest.mark.parametrize("kind", [gn.SGD, gn.Adam])
    @pytest.mark.parametrize("method", ["_update", "update", "step", "step_sizes", "count_updates"])
    def test_an_optimizer_with_a_rule_of_its_own(
        self, kind: type[gn.Optimizer], method: str, calls: list[int]
    ) -> None:
        """Replaced on the object, or written in a subclass."""
        case = Case()

        def update_all(optimizer: gn.Optimizer, slots: Any) -> None:
            for value, grad in zip(slots.values, slots.grads, strict=True):
                value[...] = value - 0.5 * grad

        def update_one(
            optimizer: gn.Optimizer, xp: Any, value: Any, grad: Any, states: Any, step_size: float
        ) -> None:
            value -= 0.25 * grad

        own_rules = {"_update": update_all, "update": update_one}

        states = []
        for as_subclass in (True, False):
            trainer = case.trainer()
            rule: Any = own_rules.get(method) or getattr(kind, method)
            own = type("Own", (kind,), {method: rule}) if as_subclass else kind
            trainer.optimizer = own(trainer.model.parameters(), 0.01)
            if not as_subclass:
                setattr(trainer.optimizer, method, rule.__get__(trainer.optimizer))
            trainer.fit(case.loader(), 2, progress=False)
            states.append(state(trainer))
        for a, b in zip(*states, strict=True):
            assert_allclose(a, b, rtol=1e-12, atol=1e-14)  # a subclass has no fused kernel
        assert not calls

    def test_methods_in_the_place_of_those_of_a_class(
        self, monkeypatch: pytest.MonkeyPatch, calls: list[int]
    ) -> None:
        seen = []
        forward = gn.Dense.forward

        def patched(*arguments: Any) -> Any:
            seen.append(1)
            return forward(*arguments)

        monkeypatch.setattr(gn.Dense, "forward", patched)
        Case().run()
        assert len(seen) >= 3 * 4 * 2
        assert not calls

    @pytest.mark.parametrize(
        "change", [np.asfortranarray, lambda x: np.repeat(x, 2, axis=1)[:, ::2]]
    )
    def test_data_that_lie_otherwise(self, change: Any, calls: list[int]) -> None:
        case = Case()
        x, y, _ = case.loader().stored
        assert not change(x).flags.c_contiguous
        states = []
        for features in (x, change(x)):
            trainer = case.trainer()
            loader = gn.Loader(features, y, batch_size=16, dtype="float64", backend="numpy", rng=1)
            trainer.fit(loader, 2, progress=False)
            states.append(state(trainer))
        for a, b in zip(*states, strict=True):
            assert_array_equal(a, b)
        assert calls == [1] * 4

    def test_all_have_the_same_code(self) -> None:
        """It takes seconds to compile it."""
        case = Case(weights="some")
        case.run()
        known = list(interpreter.run_program.signatures)
        loader = case.loader()
        for part in loader.stored:
            part.flags.writeable = False
        case.trainer().fit(loader, 1, progress=False)
        odd = np.empty(loader.stored.x.nbytes + 1, np.uint8)[1:].view("float64").reshape(-1, 5)
        odd[...] = loader.stored.x
        assert not odd.flags.aligned
        loader.stored = loader.stored._replace(x=odd, y=loader.stored.y.astype(">i4"))
        case.trainer().fit(loader, 1, progress=False)
        assert interpreter.run_program.signatures == known

    def test_batches_that_are_made(self, calls: list[int]) -> None:
        """A transform, a subclass's own batches, and data that are not resident."""

        class Twice(gn.Loader):
            def __iter__(self) -> Any:
                yield from super().__iter__()
                yield from super().__iter__()

        x, y = np.ones((8, 5), "float32"), np.zeros(8, int)
        settings: Any = {"batch_size": 4, "backend": "numpy"}
        for loader in (
            gn.Loader(x, y, transform=lambda x: x + 1, **settings),
            gn.Loader(x, y, resident=False, **settings),
            gn.Loader(x, y, transform=Scaling(), **settings),
            Twice(x, y, **settings),
            gn.Loader(x, y, sample_weight=y + 1.0, dtype=None, **settings),
        ):
            trainer = Case(dtype="float32").trainer()
            if loader.dtype is None:
                with pytest.raises(gn.errors.DTypeError, match="sample_weight"):
                    trainer.fit(loader, 1, progress=False)
            else:
                trainer.fit(loader, 1, progress=False)
        # Of the data that are not resident: batches are rows of them; and of those that keep their
        # shape.
        assert calls == [1, 1]

    def test_without_threadpoolctl(self, monkeypatch: Any, calls: list[int]) -> None:
        monkeypatch.setattr(cpu, "one_thread", lambda: None)
        program._cpu_steps.cache_clear()
        Case().run()
        program._cpu_steps.cache_clear()
        assert not calls

    def test_without_scipy(self, monkeypatch: Any, calls: list[int]) -> None:
        monkeypatch.setitem(sys.modules, "gpunn.program.cpu", None)
        program._cpu_steps.cache_clear()
        Case().run()
        program._cpu_steps.cache_clear()
        assert not calls

    def test_a_blas_of_other_integers(self, monkeypatch: Any) -> None:
        monkeypatch.setattr(products, "_signature", lambda _: b"void (char *, long *)")
        with pytest.raises(ImportError, match="integers"):
            products._function("dgemm", 6, 13)
