"""Several ranks, as threads, against one process: the same numbers."""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np
import pytest
from ranks import Threads, run_ranks

import gpunn as gn
from gpunn.distributed import engines
from gpunn.training import epoch
from gpunn.training.several_ranks import SeveralRanks

SIZES = (1, 2, 3, 4)


def data(n: int = 45, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 6))
    return {"x": x, "y": rng.integers(0, 3, n), "sample_weight": rng.uniform(0.1, 2.0, n)}


def network(seed: int = 0) -> gn.Sequential:
    hidden = gn.Dense(6, 8, gn.Tanh(), rng=seed, dtype="float64")
    return gn.Sequential(hidden, gn.Dense(8, 3, rng=seed + 1, dtype="float64"))


#: Settings of `DataParallel`, and their defaults.
PARALLEL = {"compress": False, "bucket_bytes": None, "synchronise_batch_norm": False}


class Run:
    """A trainer on one rank, with everything that the ranks have to agree on."""

    def __init__(self, communicator: Any = None, **settings: Any) -> None:
        self.model = settings.pop("model", None) or network()
        rule = settings.pop("rule", gn.Adam)
        clip = settings.pop("clip_norm", None)
        kept = {name: settings.pop(name, unset) for name, unset in PARALLEL.items()}
        loss = settings.pop("loss", None) or gn.SoftmaxCrossEntropy()
        accumulate = settings.pop("accumulate", 1)
        parameters = self.model.parameters()
        self.optimizer = rule(parameters, 0.05, weight_decay=0.01, clip_norm=clip)
        if communicator is not None:
            self.parallel = gn.DataParallel(self.optimizer, communicator, **kept)
        self.trainer = gn.Trainer(
            self.model, loss, self.optimizer, metrics=["accuracy"], rng=7, accumulate=accumulate
        )
        parts = settings.pop("data", None) or data()
        plain = {"batch_size": 12, "dtype": "float64", "rng": 3, "communicator": communicator}
        if communicator is not None:
            plain["batch_size"] = 12 // communicator.size
        self.loader = gn.Loader(**parts, **plain | settings)

    def fit(self, epochs: int = 3, **settings: Any) -> Run:
        self.history = self.trainer.fit(self.loader, epochs, progress=False, **settings)
        return self

    def weights(self) -> list[Any]:
        return [np.array(parameter.value) for parameter in self.model.parameters()]


def assert_close(runs: list[Run], alone: Run) -> None:
    for run in runs:
        for name in ("loss", "accuracy"):
            np.testing.assert_allclose(run.history[name], alone.history[name], rtol=1e-9)
        for mine, wanted in zip(run.weights(), alone.weights(), strict=True):
            np.testing.assert_allclose(mine, wanted, rtol=0, atol=1e-9)
        for mine, wanted in zip(run.weights(), runs[0].weights(), strict=True):
            np.testing.assert_array_equal(mine, wanted)
        assert run.history.to_dict() == runs[0].history.to_dict()


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "clipped by norm": {"clip_norm": 0.05},
    "stored order": {"shuffle": False},
    "in blocks": {"shuffle": "blocks", "block_size": 4, "window": 2},
    "last batch dropped": {"drop_last": True},
    "without weights": {"data": {**data(), "sample_weight": None}},
    "a sum": {"loss": gn.SoftmaxCrossEntropy(reduction="sum"), "rule": gn.SGD, "clip_norm": 1.0},
    "class weights": {"loss": gn.SoftmaxCrossEntropy(class_weight=[1.0, 2.0, 0.5])},
    "last step smaller than the ranks": {"data": data(37), "clip_norm": 0.05},
    "one step": {"data": data(11), "batch_size": None},
    "accumulated": {"accumulate": 3},
    "with a weight of 0": {"data": {**data(), "sample_weight": np.arange(45) % 2.0}},
    "a step of weight 0": {
        "data": {**data(), "sample_weight": 1.0 * (np.arange(45) >= 12)},
        "shuffle": False,
    },
    "streamed": {"resident": False},
}
#: Sums that begin before the backward pass has ended.
BUCKETS = {
    f"{name}, in buckets": settings | {"bucket_bytes": 64} for name, settings in SETTINGS.items()
}
SETTINGS |= BUCKETS


@pytest.fixture
def _same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse to make the weights of all ranks the same: they must be."""

    def refuse(*_: Any) -> None:
        raise AssertionError("the ranks have other weights")

    monkeypatch.setattr(SeveralRanks, "_take_from_first", refuse)


@pytest.mark.usefixtures("_same_bits")
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", SETTINGS)
def test_ranks_train_as_one_process_does(name: str, size: int) -> None:
    settings = SETTINGS[name]
    alone = Run(**settings).fit()
    assert_close(run_ranks(size, lambda c: Run(c, **settings).fit()), alone)


@pytest.mark.usefixtures("one_by_one", "_same_bits")
@pytest.mark.parametrize("name", SETTINGS)
def test_so_do_steps_that_are_not_recorded(name: str) -> None:
    settings = SETTINGS[name]
    alone = Run(**settings).fit()
    runs = run_ranks(3, lambda c: Run(c, **settings).fit())
    assert all(run.trainer.why_not_recorded for run in runs)
    assert_close(runs, alone)


@pytest.mark.parametrize("size", SIZES)
def test_loaders_without_a_seed_draw_one_order(size: int) -> None:
    def program(communicator: Any) -> list[int]:
        x = np.arange(20.0)[:, None]
        loader = gn.Loader(x, batch_size=4, communicator=communicator)
        return [int(value) for batch in loader for value in batch.x[:, 0]]

    taken = [number for part in run_ranks(size, program) for number in part]
    assert sorted(taken) == list(range(20))


def test_get_communicator_makes_one_of_a_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    monkeypatch.setattr(engines, "MPICommunicator", lambda **_: made.append(0) or len(made))
    monkeypatch.setattr(engines, "_made", {})
    assert gn.get_communicator("mpi") == gn.get_communicator("mpi") == 1
    assert gn.get_communicator("mpi", timeout_s=3) == 2


def test_steps_by_hand_are_those_of_one_process() -> None:
    def program(communicator: Threads | None = None, seed: int = 0) -> Run:
        run = Run(communicator, model=network(seed))
        for x, y, weight in run.loader:
            gn.train_step(run.model, run.trainer.loss, run.optimizer, x, y, weight)
        return run

    alone = program()
    for run in run_ranks(4, lambda c: program(c, seed=10 * c.rank)):  # values are those of rank 0
        for mine, wanted in zip(run.weights(), alone.weights(), strict=True):
            np.testing.assert_allclose(mine, wanted, atol=1e-12)


def normalised(size: int) -> list[Run]:
    """Return runs whose loaders go on while statistics of `BatchNorm` differ by rank."""

    def program(communicator: Threads) -> Run:
        first = gn.Dense(6, 8, rng=0, dtype="float64")
        norm = gn.BatchNorm(8, dtype="float64")
        last = gn.Dense(8, 3, rng=communicator.rank, dtype="float64")
        model = gn.Sequential(first, norm, gn.ReLU(), gn.Dropout(0.2), last)
        x, y, _ = data().values()
        return Run(communicator, model=model).fit(validation=(x, y))

    return run_ranks(size, program)


class TestWhatIsOfOneRank:
    def test_values_and_statistics_are_the_same_in_the_end(self) -> None:
        one, other = normalised(2)
        held = [
            {**run.model.named_parameters(), **run.model.named_buffers()} for run in (one, other)
        ]
        for name, item in held[0].items():
            np.testing.assert_array_equal(item.value, held[1][name].value, err_msg=name)
        assert one.history.to_dict() == other.history.to_dict()

    @pytest.mark.parametrize("recorded", [True, False])
    def test_ranks_draw_other_masks(
        self, monkeypatch: pytest.MonkeyPatch, *, recorded: bool
    ) -> None:
        if not recorded:
            monkeypatch.setattr(epoch, "feed_of", lambda *_: None)

        class Seen(gn.Metric):
            """Keeps what a rank predicts."""

            name, higher_is_better = "seen", None

            def __init__(self) -> None:
                self.outputs: list[bytes] = []

            def measure(self, prediction: Any, target: Any) -> tuple[Any, ...]:
                self.outputs.append(np.array(prediction).tobytes())
                return (prediction[0, 0],)

            def combine(self, rows: Any, counts: Any) -> float:
                return 0.0

        def program(communicator: Threads) -> list[bytes]:
            seen = Seen()
            model = gn.Sequential(gn.Dropout(0.5), gn.Dense(32, 2, rng=0))
            optimizer = gn.SGD(model.parameters(), 1e-9)
            gn.DataParallel(optimizer, communicator)
            loss = gn.SoftmaxCrossEntropy()
            trainer = gn.Trainer(model, loss, optimizer, metrics=[seen], rng=0)
            x, y = np.ones((8, 32)), np.zeros(8, int)
            loader = gn.Loader(x, y, batch_size=2, communicator=communicator)
            trainer.fit(loader, 2, progress=False)
            assert bool(trainer.why_not_recorded) != recorded
            return seen.outputs[1:]  # the first is of a sample that is tried

        one, other = run_ranks(2, program)
        assert len(one) == len(other) == 4
        assert not set(one) & set(other)

    def test_a_parameter_without_a_gradient_on_one_rank(self) -> None:
        def program(communicator: Threads) -> list[float]:
            parameters = [gn.Parameter(np.zeros(1)) for _ in range(3)]
            optimizer = gn.SGD(parameters, 1.0)
            parallel = gn.DataParallel(optimizer, communicator)
            for step in range(2):
                parameters[0].add_grad(np.ones(1))
                if communicator.rank == step:
                    parameters[1].add_grad(np.ones(1))
                parallel.average(3.0 - 2.0 * communicator.rank)  # weights 3 and 1
                assert parameters[2].grad is None
                optimizer.step()
            return [float(parameter.value[0]) for parameter in parameters]

        assert run_ranks(2, program) == [[-2.0, -1.0, 0.0]] * 2

    def test_each_reads_its_own_rows_alone(self) -> None:
        x = np.arange(40.0)[:, None]

        def program(communicator: Threads) -> list[float]:
            loader = gn.Loader(x, batch_size=4, rng=5, communicator=communicator, resident=False)
            return [float(value) for batch in loader for value in batch.x[:, 0]]

        parts = run_ranks(3, program)
        assert sorted(chain.from_iterable(parts)) == x[:, 0].tolist()


class TestAgreement:
    def test_a_callback_on_one_rank_stops_all(self) -> None:
        def program(communicator: Threads) -> Run:
            def enough(trainer: gn.Trainer, history: gn.History) -> bool:
                history.append({"own": float(communicator.rank)})
                return communicator.rank == 1 and len(history) == 2

            return Run(communicator).fit(5, callbacks=[enough])

        runs = run_ranks(2, program)
        for run in runs:
            assert run.history.stopped == "enough asked for it"
            assert run.history["own"] == [0.0, 0.0]  # those of rank 0 are everybody's

    def test_early_stopping_is_that_of_one_process(self) -> None:
        stopping = gn.EarlyStopping(patience=2, tolerance=0.01)
        alone = Run().fit(60, early_stopping=stopping)
        runs = run_ranks(3, lambda c: Run(c).fit(60, early_stopping=stopping))
        assert len(alone.history) < 60
        assert_close(runs, alone)

    def test_divergence_is_an_error_on_every_rank(self) -> None:
        bad = data()
        bad["x"][7] = np.nan
        results = run_ranks(2, lambda c: Run(c, data=bad).fit())
        assert [type(each) for each in results] == [gn.errors.DivergenceError] * 2

    def test_random_seeds_are_those_of_rank_0(self) -> None:
        def program(communicator: Threads) -> tuple[Run, list[float]]:
            seen: list[float] = []

            def note(x: Any) -> Any:
                seen.extend(x[:, 0].tolist())
                return x

            model = network(communicator.rank)
            run = Run(communicator, rng=None, model=model, transform=note)
            seen.clear()
            return run.fit(1), seen[1:]  # the first is of a sample that is tried

        (one, mine), (other, its) = run_ranks(2, program)
        assert sorted(mine + its) == sorted(data()["x"][:, 0])  # one order: each sample once
        for weight, wanted in zip(one.weights(), other.weights(), strict=True):
            np.testing.assert_array_equal(weight, wanted)
        assert one.history.to_dict() == other.history.to_dict()


def test_a_step_is_one_sum_of_the_gradients_and_a_number() -> None:
    def program(communicator: Threads) -> tuple[int, int, int]:
        run = Run(communicator, data={**data(48)}, rule=gn.SGD)
        run.optimizer.weight_decay = 0.0
        batches = list(run.loader)
        arguments = run.model, run.trainer.loss, run.optimizer
        gn.train_step(*arguments, *batches[0])  # agrees on what has a gradient
        before = communicator.n_sums, communicator.n_bytes
        gn.train_step(*arguments, *batches[1])
        after = communicator.n_sums, communicator.n_bytes
        grads = 8 * sum(parameter.value.size for parameter in run.model.parameters())
        return after[0] - before[0], after[1] - before[1], grads

    for sums, sent, grads in run_ranks(2, program):
        assert sums == 1
        assert grads < sent <= grads + 8 * 64  # blocks begin at multiples of 64 bytes


def test_one_process_costs_nothing() -> None:
    run = Run(gn.get_communicator("single"))
    assert run.optimizer.parallel is None
    run.fit()
    assert run.trainer.why_not_recorded == Run().fit().trainer.why_not_recorded


def test_a_callback_that_changes_the_weights_of_one_rank() -> None:
    def program(communicator: Threads) -> Run:
        def change(trainer: gn.Trainer, _: gn.History) -> None:
            trainer.model.parameters()[0].value[0, 0] += communicator.rank

        return Run(communicator).fit(1, callbacks=[change])

    for error in run_ranks(2, program):
        with pytest.raises(gn.errors.DistributedError, match="their weights differ by"):
            raise error


def test_weights_that_were_rounded_differently_are_those_of_rank_0() -> None:
    def program(communicator: Threads) -> Run:
        def change(trainer: gn.Trainer, _: gn.History) -> None:
            trainer.model.parameters()[0].value[0, 0] += 1e-7 * communicator.rank

        return Run(communicator).fit(2, callbacks=[change])

    one, other = run_ranks(2, program)
    for mine, wanted in zip(one.weights(), other.weights(), strict=True):
        np.testing.assert_array_equal(mine, wanted)
