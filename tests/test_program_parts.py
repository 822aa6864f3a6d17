"""Which parts of a user's own are recorded; what is not trains in the readable loop, right."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.testing import assert_allclose

import gpunn as gn
from gpunn.kernels import kernels

pytest.importorskip("numba", reason="steps are compiled by numba")
pytestmark = pytest.mark.skipif(
    os.environ.get("GPUNN_COMPILED") == "0", reason="GPUNN_COMPILED=0: nothing is compiled"
)

from tests.runs import WAYS, Block, Run, assert_alike, both  # noqa: E402
from tests.turns import taking_turns  # noqa: E402


class Scale(gn.Layer):
    """Written against the standard, with no declaration."""

    def __init__(self) -> None:
        self.factor = gn.Parameter(np.full(6, 1.5))

    def forward(self, x: Any, tape: gn.Tape | None = None) -> Any:
        if tape is not None:
            tape.push(self, x)
        return x * self.factor.value

    def backward(self, grad: Any, tape: gn.Tape) -> Any:
        (x,) = tape.pop(self)
        self.factor.add_grad((grad * x).sum(axis=0))
        return grad * self.factor.value


class DeclaredScale(Scale):
    """Says that it records, and computes with arrays itself."""

    records = True


class Square(gn.Layer):
    """All its work is a kernel's."""

    records = True

    def forward(self, x: Any, tape: gn.Tape | None = None) -> Any:
        if tape is not None:
            tape.push(self, x)
        return kernels(x).multiply(x, x)

    def backward(self, grad: Any, tape: gn.Tape) -> Any:
        (x,) = tape.pop(self)
        k = kernels(grad)
        product = k.multiply(grad, x)
        return k.add(product, product)


class Shift(gn.Layer):
    """Adds a bias, which needs nothing of the forward pass."""

    records = True

    def __init__(self, n: int) -> None:
        self.bias = gn.Parameter(np.zeros(n))

    def forward(self, x: Any, tape: gn.Tape | None = None) -> Any:
        return kernels(x).bias_activation(x, self.bias.value, gn.Identity())[0]

    def backward(self, grad: Any, tape: gn.Tape) -> Any:
        self.bias.add_grad(kernels(grad).column_sums(grad, self.bias.grad_buffer))
        return grad


class Inherited(Square):
    """Says nothing itself."""


class Branching(Square):
    records = True

    def forward(self, x: Any, tape: gn.Tape | None = None) -> Any:
        if kernels(x).xp.max(x) > 1e9:
            return x
        return super().forward(x, tape)


class OnValues(Square):
    records = True

    def forward(self, x: Any, tape: gn.Tape | None = None) -> Any:
        return x if (x > 1e9).any() else super().forward(x, tape)


class Both(gn.Layer):
    """Adds what two layers make of its input; they are kept in any container."""

    records = True

    def __init__(self, kept: Any) -> None:
        self.kept = kept

    def forward(self, x: Any, tape: gn.Tape | None = None) -> Any:
        one, other = self._layers()
        return kernels(x).add(one.forward(x, tape), other.forward(x, tape))

    def backward(self, grad: Any, tape: gn.Tape) -> Any:
        one, other = self._layers()
        second = other.backward(grad, tape)
        return kernels(grad).add(one.backward(grad, tape), second)

    def _layers(self) -> list[gn.Layer]:
        return list(self.kept.values() if isinstance(self.kept, dict) else self.kept)


class Pair(NamedTuple):
    one: gn.Layer
    other: gn.Layer


class Layers(list[gn.Layer]):
    """A list of one's own."""


CONTAINERS: dict[str, Callable[[gn.Layer, gn.Layer], Any]] = {
    "list": lambda a, b: [a, b],
    "tuple": lambda a, b: (a, b),
    "dict": lambda a, b: {"a": a, "b": b},
    "ordered dict": lambda a, b: OrderedDict(a=a, b=b),
    "named tuple": Pair,
    "list of one's own": lambda a, b: Layers([a, b]),
}

RUN = Run(blocks=(Block("dense", 6, "tanh"), Block("dropout")), optimizer="adam")


class With(NamedTuple):
    """A run with one more layer before the last."""

    make: Callable[[], gn.Layer]
    change: Callable[[gn.Layer], object] | None = None

    def run(self) -> tuple[gn.Trainer, gn.History, gn.Loader]:
        parts, loader = RUN.trainer(), RUN.loader()
        own = self.make()
        model = gn.Sequential(*parts.model.layers[:-1], own, parts.model.layers[-1])
        trainer = gn.Trainer(model, parts.loss, RUN.make_optimizer(model), rng=3)

        def change(_: gn.Trainer, history: gn.History) -> None:
            if self.change is not None and len(history) == 2:
                self.change(own)

        return trainer, trainer.fit(loader, 4, callbacks=[change], progress=False), loader


class TestOwnLayers:
    @pytest.mark.parametrize("kind", [Square, lambda: Both([gn.Tanh(), Square()])])
    def test_kernels_alone_are_recorded(self, kind: Callable[[], gn.Layer]) -> None:
        many, few = both(With(kind))
        assert many[0].why_not_recorded == ""
        assert_alike(many, few, "float64")

    def test_on_several_threads(self) -> None:
        with taking_turns(3, seed=0):
            many, few = both(With(Square))
        assert many[0].why_not_recorded == ""
        assert_alike(many, few, "float64")

    @pytest.mark.parametrize("kind", [Scale, DeclaredScale, Inherited, Branching, OnValues])
    def test_others_train_all_the_same(self, kind: type[gn.Layer]) -> None:
        many, few = both(With(kind))
        assert many[0].why_not_recorded
        assert_alike(many, few, "float64")

    @pytest.mark.parametrize("kind", [Scale, Inherited])
    def test_the_reason_names_the_class(self, kind: type[gn.Layer]) -> None:
        trainer, *_ = With(kind).run()
        assert trainer.why_not_recorded.startswith(f"{kind.__name__} does not say")

    @pytest.mark.parametrize("name", sorted(CONTAINERS))
    def test_one_inside_of_others_is_found(self, name: str) -> None:
        trainer, *_ = With(lambda: Both(CONTAINERS[name](gn.Tanh(), Inherited()))).run()
        assert trainer.why_not_recorded.startswith("Inherited does not say")

    @pytest.mark.parametrize("name", sorted(CONTAINERS))
    def test_so_is_a_change_in_there(self, name: str) -> None:
        def change(own: Any) -> None:
            own._layers()[1].alpha = 0.1

        case = With(lambda: Both(CONTAINERS[name](gn.Tanh(), gn.ELU())), change)
        many, few = both(case)
        assert many[0].why_not_recorded == ""
        assert_alike(many, few, "float64")

    def test_a_declaration_later_on_is_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Inherited, "records", True)
        trainer, *_ = With(Inherited).run()
        assert trainer.why_not_recorded

    def test_a_layer_that_counts_its_calls(self) -> None:
        """It said that all its work is in kernels; a count is not, and stands still."""

        class Counting(Square):
            records = True
            calls = 0

            def forward(self, x: Any, tape: gn.Tape | None = None) -> Any:
                type(self).calls += 1
                return super().forward(x, tape)

        many, few = both(With(Counting))
        assert_alike(many, few, "float64")

    def test_a_layer_that_changes_its_own_settings(self) -> None:
        """That is noticed at the next epoch, and the step is recorded anew."""

        class Aging(Square):
            records = True

            def __init__(self) -> None:
                self.rate = 1.0

            def forward(self, x: Any, tape: gn.Tape | None = None) -> Any:
                if tape is not None:
                    self.rate *= 0.5
                return super().forward(x, tape)

        many, few = both(With(Aging))
        assert_alike(many, few, "float64")

    def test_a_layer_that_counts_its_own_calls(self) -> None:
        """Running it changes it, so it is not run to be recorded a second time."""

        class Calls(Square):
            records = True

            def __init__(self) -> None:
                self.calls = 0

            def forward(self, x: Any, tape: gn.Tape | None = None) -> Any:
                self.calls += 1
                return super().forward(x, tape)

        trainer, _, loader = With(Calls).run()
        assert "changes as it runs" in trainer.why_not_recorded
        before = trainer.model[-2].calls
        trainer.fit(loader, 2, progress=False)
        assert trainer.model[-2].calls - before == 2 * len(loader) + 1  # and the check of a sample

    @pytest.mark.parametrize("recorded", [False, True])
    def test_a_layer_that_writes_nothing_on_the_tape(
        self, recorded: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It needs nothing for its backward pass; but those above must compute its gradient."""
        if not recorded:
            monkeypatch.setattr(Shift, "_declared", Shift._declared._replace(records=False))
        x = np.random.default_rng(0).standard_normal((8, 4))
        y = np.arange(8) % 3
        model = gn.Sequential(
            gn.Dense(4, 5, rng=0, dtype="float64"), Shift(5), gn.Dense(5, 3, rng=1, dtype="float64")
        )
        tape, loss = gn.Tape(), gn.SoftmaxCrossEntropy()
        loss(model(x, tape), y, tape)
        model.backward(loss.backward(tape), tape)
        wanted = model[1].bias.value - 0.5 * model[1].bias.grad
        rest = [p for layer in model[1:] for p in layer.parameters()]
        trainer = gn.Trainer(model, loss, gn.SGD(rest, 0.5), rng=0)
        loader = gn.Loader(x, y, batch_size=8, shuffle=False, dtype="float64")
        trainer.fit(loader, 1, progress=False)
        assert (trainer.why_not_recorded == "") is recorded
        assert_allclose(model[1].bias.value, wanted, rtol=1e-12)

    @pytest.mark.parametrize("kept", [object(), {3}, [np.random.default_rng(0)], {"a": {}.keys()}])
    def test_a_layer_that_holds_what_may_change_unnoticed(self, kept: Any) -> None:
        class Holding(Square):
            records = True

            def __init__(self) -> None:
                self.kept = kept

        trainer, *_ = With(Holding).run()
        assert "may change without being noticed" in trainer.why_not_recorded


#: The network that the recorded steps were made for.
WHOLE = Run(
    blocks=(
        Block("dense", 8, "relu"),
        *(
            Block(
                "residual", inner=(Block("dense", 8, "relu"), Block("dropout"), Block("dense", 8))
            )
            for _ in range(3)
        ),
        Block("dropout", rate=0.2),
    ),
    n=100,
    batch_size=32,
    optimizer="adam",
    clip_norm=0.5,
    class_weight="tuple",
    metrics=True,
    epochs=4,
)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_a_residual_network_with_all_of_it(threads: int, dtype: str) -> None:
    """Dropout, Adam, clip_norm, class weights and a last batch of 4 of 32."""
    case = Run(**vars(WHOLE) | {"dtype": dtype})
    with taking_turns(threads, seed=threads):
        many, few = both(case)
    assert many[0].why_not_recorded == ""
    assert_alike(many, few, dtype)


def test_the_two_ways_are_two() -> None:
    found = []
    for way in WAYS:
        with way():
            found.append(WHOLE.run()[0].why_not_recorded)
    assert found[0] == ""
    assert found[1]
