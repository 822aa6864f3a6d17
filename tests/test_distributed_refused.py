"""What ranks must not do: run different programs, or end at different times."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ranks import Threads, run_ranks
from test_distributed import Run, data

import gpunn as gn
from gpunn.distributed.agreement import check_alike


def test_a_function_is_the_same_one_wherever_it_lies() -> None:
    def program(communicator: Threads) -> bool:
        def rate(step: int) -> float:
            return 0.01 / (step + 1)

        optimizer = gn.SGD(gn.Dense(2, 3, rng=0).parameters(), rate)
        gn.DataParallel(optimizer, communicator)
        return optimizer.parallel is not None

    assert run_ranks(2, program) == [True, True]


def test_an_interrupt_that_one_rank_alone_hears_ends_it() -> None:
    """It must not go on: the others wait for it, and hear that it has ended."""

    def program(communicator: Threads) -> str:
        def interrupt(*_: Any) -> None:
            if communicator.rank == 1:
                raise KeyboardInterrupt

        try:
            Run(communicator).fit(3, callbacks=[interrupt])
        except KeyboardInterrupt:
            communicator._group.abort()
            return "interrupted"
        return "went on"

    assert run_ranks(2, program) == [None, "interrupted"]


def test_an_order_by_a_function_may_be_another_on_each_rank() -> None:
    def program(communicator: Threads) -> None:
        Run(communicator, shuffle=lambda: np.random.default_rng().permutation(45)).fit()

    for error in run_ranks(2, program):
        assert "shuffle is a function, which may draw another order" in str(error)


def other_end(rank: int) -> dict[str, Any]:
    """Return many rows, of which the last is another on each rank."""
    parts = data(9001)
    parts["y"][-1] = rank
    return parts


DIFFERENT: dict[str, tuple[Any, str]] = {
    "data": (lambda c: Run(c, data=data(seed=c.rank)).fit(), "training data: rank 0 has"),
    "the last row": (lambda c: Run(c, data=other_end(c.rank)).fit(), "training data: rank 0 has"),
    "sizes": (lambda c: Run(c, data=data(45 + c.rank)).fit(), r"rank 1 float64\(46, 6\)"),
    "order": (lambda c: Run(c, shuffle=not c.rank).fit(), "shuffle=True.*shuffle=False"),
    "epochs": (lambda c: Run(c).fit(3 + c.rank), "epochs: rank 0 has 3, rank 1 4"),
    "rules": (lambda c: Run(c, rule=(gn.Adam, gn.SGD)[c.rank]), "optimizer: rank 0 has Adam"),
    "losses": (
        lambda c: Run(c, loss=gn.SoftmaxCrossEntropy(label_smoothing=0.1 * c.rank)).fit(),
        "loss: rank 0 has SoftmaxCrossEntropy",
    ),
    "clipping": (lambda c: Run(c, clip_norm=1.0 + c.rank), "clip_norm=2.0"),
    "shapes": (
        lambda c: gn.DataParallel(gn.SGD(gn.Dense(2, 3 + c.rank).parameters()), c),
        r"parameters: rank 0 has float32\(2, 3\)",
    ),
    "layers": (
        lambda c: Run(
            c,
            model=gn.Sequential(
                (gn.Tanh(), gn.Sigmoid())[c.rank], gn.Dense(6, 3, rng=0, dtype="float64")
            ),
        ).fit(),
        r"model: rank 0 has .*Tanh.* rank 1 .*Sigmoid",
    ),
}


@pytest.mark.parametrize("kind", ["arrays", "a shared loader", "a loader of each rank"])
@pytest.mark.parametrize("n", [3, 20, 400])
def test_validation_is_that_of_one_process(n: int, kind: str) -> None:
    x, y, weight = data(n, seed=1).values()

    def program(communicator: Any = None) -> Run:
        parts: Any = x, y, weight
        if kind != "arrays":
            shared = communicator if kind == "a shared loader" else None
            settings = {"batch_size": 1, "dtype": "float64", "communicator": shared}
            parts = gn.Loader(x, y, sample_weight=weight, **settings)
            parts.step_size = min(n, 64)
        run = Run(communicator).fit(2, validation=parts)
        run.numbers = run.trainer.evaluate(parts)
        return run

    alone = program()
    for run in run_ranks(3, program):
        for name in ("validation_loss", "validation_accuracy"):
            np.testing.assert_allclose(run.history[name], alone.history[name], rtol=1e-9)
        for name, value in alone.numbers.items():
            np.testing.assert_allclose(run.numbers[name], value, rtol=1e-9)
        assert len(run.trainer.predict(x)) == n


class TestRefused:
    @pytest.mark.parametrize("name", DIFFERENT)
    def test_what_differs_is_named_on_every_rank(self, name: str) -> None:
        program, message = DIFFERENT[name]
        for error in run_ranks(2, program):
            with pytest.raises(gn.errors.DistributedError, match=message):
                raise error

    def test_versions_that_differ(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def program(communicator: Threads) -> None:
            told = {"numpy": f"2.{communicator.rank}"}
            check_alike("DataParallel", communicator, told)

        for error in run_ranks(2, program):
            with pytest.raises(
                gn.errors.DistributedError, match=r"numpy: rank 0 has 2\.0, rank 1 2\.1"
            ):
                raise error

    def test_the_same_data_on_every_rank(self) -> None:
        def program(communicator: Threads) -> None:
            run = Run(communicator)
            run.trainer.fit(gn.Loader(**data(), dtype="float64"), 1, progress=False)

        for error in run_ranks(2, program):
            with pytest.raises(gn.errors.SettingError, match="all ranks have the same data"):
                raise error

    def test_data_of_their_own_for_more_batches_on_one_rank(self) -> None:
        def program(communicator: Threads) -> None:
            run = Run(communicator)
            parts = data(45 + 20 * communicator.rank, seed=communicator.rank)
            run.trainer.fit(gn.Loader(**parts, batch_size=10, dtype="float64"), 1, progress=False)

        for error in run_ranks(2, program):
            with pytest.raises(gn.errors.DataError, match="by rank: 5, 7"):
                raise error

    def test_a_loader_of_its_own_that_runs_out(self) -> None:
        class Short(gn.Loader):
            def __iter__(self) -> Any:
                yield from list(super().__iter__())[: 2 + self.share.rank]

        def program(communicator: Threads) -> None:
            run = Run(communicator)
            loader = Short(**data(), batch_size=6, dtype="float64", communicator=communicator)
            run.trainer.fit(loader, 1, progress=False)

        for error in run_ranks(2, program):
            with pytest.raises(gn.errors.DataError, match="there are no more on rank 0"):
                raise error

    def test_a_step_by_the_gradients_of_one_rank(self) -> None:
        def program(communicator: Threads) -> None:
            run = Run(communicator)
            tape = gn.Tape()
            x, y, _ = next(iter(run.loader))
            run.trainer.loss(run.model(x, tape), y, tape)
            run.model.backward(run.trainer.loss.backward(tape), tape)
            run.optimizer.step()

        for error in run_ranks(2, program):
            with pytest.raises(gn.errors.SettingError, match="the gradients are those of rank"):
                raise error

    def test_a_shared_loader_without_a_parallel_optimizer(self) -> None:
        def program(communicator: Threads) -> None:
            run = Run(communicator)
            rule = gn.SGD(run.model.parameters())
            gn.Trainer(run.model, run.trainer.loss, rule).fit(run.loader, 1, progress=False)

        for error in run_ranks(2, program):
            with pytest.raises(gn.errors.SettingError, match="shares its samples among 2"):
                raise error

    @pytest.mark.parametrize(("n", "alone"), [(18, False), (25, True)])
    def test_a_part_of_one_row_is_named_with_its_rank(self, n: int, *, alone: bool) -> None:
        """In a recorded step, of which each rank has a row, and in one of which rank 0 has all."""

        def program(communicator: Threads) -> None:
            kept = {"dtype": "float64"}
            model = gn.Sequential(gn.Dense(6, 3, rng=0, **kept), gn.BatchNorm(3, **kept))
            Run(communicator, model=model, data=data(n), batch_size=4).fit(1)

        one, other = run_ranks(2, program)
        for error in (one,) if alone else (one, other):
            with pytest.raises(gn.errors.ShapeError, match="more than one entry") as caught:
                raise error
            rank = 0 if error is one else 1
            assert str(caught.value).startswith(f"on rank {rank} of 2, by its part of the data: ")
            assert "drop_last=True" in str(caught.value)

    def test_fewer_samples_than_ranks(self) -> None:
        for error in run_ranks(3, lambda c: gn.Loader(np.zeros((2, 1)), communicator=c)):
            with pytest.raises(gn.errors.DataError, match="3 processes cannot share 2 samples"):
                raise error
