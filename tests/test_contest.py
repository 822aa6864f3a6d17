"""How the benchmarks run libraries against each other: who takes part, who agrees, who is late."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def contest(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "bench"))
    return importlib.import_module("contest")


@pytest.fixture
def work(contest: Any) -> Any:
    return contest.Workload((4, 3), 8, 4, 1)


class Stub:
    """A worker without a process; `run` says what a measurement takes, or raises."""

    def __init__(self, name: str, losses: list[float], run: Callable[[], float] = lambda: 2.0):
        self.name, self.device, self.required = name, "cpu", name == "gpunn"
        self._losses, self._run = losses, run

    def tell(self, what: str, **arguments: Any) -> None:
        pass

    def answer(self, within_s: float = 0.0) -> Any:
        return self._losses

    def ask(self, what: str, within_s: float = 0.0) -> float:
        return self._run()


def test_seconds_are_those_of_a_step(contest: Any, work: Any) -> None:
    outcome = contest.measure("w", {Stub("gpunn", [1.0]): work}, 3)
    assert outcome.seconds == {"gpunn": [1.0] * 3}  # two steps took 2 s


@pytest.mark.parametrize("losses", [[1.0, 0.9], [1.0, float("nan")]])
def test_who_disagrees_is_not_timed(contest: Any, work: Any, losses: list[float]) -> None:
    entrants = {Stub("gpunn", [1.0, 0.5]): work, Stub("torch", losses): work}
    outcome = contest.measure("w", entrants, 1)
    assert list(outcome.seconds) == ["gpunn"]
    assert outcome.disagreeing == ["torch"]
    with pytest.raises(contest.Failure, match="torch"):
        outcome.check()


def test_the_format_of_products_decides_how_near_is_near(contest: Any, work: Any) -> None:
    entrants = {Stub("gpunn", [1.0]): work, Stub("torch", [1.01]): work}
    assert contest.measure("w", entrants, 0).disagreeing == ["torch"]
    rounded = work._replace(products="bfloat16")
    assert not contest.measure("w", dict.fromkeys(entrants, rounded), 0).disagreeing


def test_a_peer_that_breaks_is_left_out_and_gpunn_ends_the_run(contest: Any, work: Any) -> None:
    def broken() -> float:
        raise contest.LeftOut("out of memory")

    ours, peer = Stub("gpunn", [1.0]), Stub("torch", [1.0], broken)
    outcome = contest.measure("w", {ours: work, peer: work}, 2)
    assert outcome.left_out == {"torch": "out of memory"}
    assert list(outcome.seconds) == ["gpunn"]
    with pytest.raises(contest.Failure, match="out of memory"):
        contest.measure("w", {Stub("gpunn", [1.0], broken): work}, 2)


def test_after_its_time_a_workload_has_the_least_rounds(contest: Any, work: Any) -> None:
    outcome = contest.measure("w", {Stub("gpunn", [1.0]): work}, 9, until=0.0)
    assert len(outcome.seconds["gpunn"]) == contest.LEAST_ROUNDS


def test_a_process_tells_what_it_cannot_do(contest: Any, work: Any) -> None:
    worker = contest.Worker("none", contest.Contender("no_such_library"))
    with pytest.raises(contest.LeftOut, match="ModuleNotFoundError"):
        worker.ask("version")
    worker.close()


def test_a_process_that_is_late_is_ended(contest: Any) -> None:
    worker = contest.Worker("gpunn", contest.Contender("gpunn"))
    worker.tell("version")
    with pytest.raises(contest.LeftOut, match=r"more than 0\.01 s"):
        worker.answer(within_s=0.01)
    with pytest.raises(contest.LeftOut, match="has ended"):
        worker.ask("version")
    worker.close()


def test_gpunn_refuses_what_it_does_not_take(contest: Any, work: Any) -> None:
    worker = contest.Worker("gpunn", contest.Contender("gpunn"))
    worker.ask("version")
    odd = work._replace(products="float7")
    with pytest.raises(contest.LeftOut, match="no float7 products on numpy") as reason:
        worker.ask("prepare", work=odd._asdict(), steps=1)
    assert reason.value.refused
    assert len(worker.ask("prepare", work=work._asdict(), steps=3)) == 3
    worker.close()
