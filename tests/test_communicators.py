"""Which communicator there is, what is missing, and NCCL with a stand-in for its library."""

from __future__ import annotations

import pickle
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ranks import run_ranks

import gpunn as gn
from gpunn.distributed import nccl
from gpunn.distributed.agreement import broadcast_value, gap_between, gather, merge
from gpunn.distributed.communicator import SingleProcess
from gpunn.distributed.mpi import RANKS
from gpunn.distributed.tcp import VARIABLES, Meeting

Unavailable = gn.errors.BackendUnavailableError


@pytest.fixture
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No launcher has started this process, and mpi4py is not installed."""
    for name in (*RANKS, *VARIABLES):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setitem(sys.modules, "mpi4py", None)


@pytest.mark.usefixtures("_alone")
class TestChoice:
    def test_a_process_without_a_launcher_is_alone(self) -> None:
        communicator = gn.get_communicator()
        assert isinstance(communicator, SingleProcess)
        assert isinstance(communicator, gn.Communicator)
        x = np.arange(3.0)
        communicator.broadcast(x)
        communicator.allreduce(x)
        communicator.barrier()
        assert x.tolist() == [0, 1, 2]

    @pytest.mark.parametrize("name", RANKS)
    def test_one_with_a_launcher_needs_mpi(
        self, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv(name, "0")
        with pytest.raises(Unavailable, match="mpi4py is not installed: pip install mpi4py"):
            gn.get_communicator()

    def test_a_library_of_mpi_that_is_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "mpi4py", SimpleNamespace(__path__=[]))
        monkeypatch.setitem(sys.modules, "mpi4py.MPI", None)
        with pytest.raises(Unavailable, match="an MPI library: pip install mpich"):
            gn.get_communicator("mpi")

    def test_nccl_without_cupy(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "cupy", None)
        with pytest.raises(Unavailable, match="cupy is not installed"):
            gn.get_communicator("nccl")

    @pytest.mark.parametrize("found", [None, SimpleNamespace(available=False)])
    def test_nccl_that_is_missing(self, found: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(__path__=[]))
        monkeypatch.setitem(sys.modules, "cupy.cuda", SimpleNamespace(__path__=[]))
        monkeypatch.setitem(sys.modules, "cupy.cuda.nccl", found)
        with pytest.raises(Unavailable, match="pip install nvidia-nccl-cu12"):
            gn.get_communicator("nccl")

    def test_one_with_an_address_needs_nccl(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "cupy", None)
        for name, value in zip(VARIABLES, ("0", "1", "localhost", "29500"), strict=True):
            monkeypatch.setenv(name, value)
        assert isinstance(gn.get_communicator(), SingleProcess)  # there is no other
        monkeypatch.setenv("WORLD_SIZE", "2")
        with pytest.raises(Unavailable, match="cupy is not installed"):
            gn.get_communicator()
        monkeypatch.setenv("PMI_RANK", "0")
        with pytest.raises(Unavailable, match="mpi4py is not installed"):
            gn.get_communicator()

    @pytest.mark.parametrize(
        ("changed", "port"),
        [
            ({}, 29500),
            ({"TORCHELASTIC_USE_AGENT_STORE": "True"}, 29501),
            ({"CUPYX_DISTRIBUTED_PORT": "13333"}, 13333),
        ],
    )
    def test_the_port_is_one_where_nobody_listens(
        self, changed: dict[str, str], port: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name, value in zip(VARIABLES, ("1", "2", "localhost", "29500"), strict=True):
            monkeypatch.setenv(name, value)
        for name, value in changed.items():
            monkeypatch.setenv(name, value)
        assert Meeting().port == port
        for rank, words in (("2", "from 0 to WORLD_SIZE - 1"), ("one", "a number in the")):
            monkeypatch.setenv("RANK", rank)
            with pytest.raises(gn.errors.SettingError, match=words):
                Meeting()

    def test_a_name_that_is_not_known(self) -> None:
        with pytest.raises(gn.errors.SettingError, match="'auto', 'single', 'mpi'"):
            gn.get_communicator("gloo")


class TestAgreement:
    def test_values_of_all_ranks_come_by_rank(self) -> None:
        values = [{"a": [1, None]}, "long " * 100, 0.1]
        for found in run_ranks(3, lambda c: gather(c, values[c.rank])):
            assert found == values

    def test_a_value_of_rank_0_goes_to_all(self) -> None:
        found = run_ranks(3, lambda c: broadcast_value(c, {"rank": c.rank, "x": float("nan")}))
        assert [each["rank"] for each in found] == [0, 0, 0]

    @pytest.mark.parametrize("common", [0, 2])
    def test_columns_are_merged_by_turns(self, common: int) -> None:
        begin = [7.0, 8.0][:common]
        own = [[0.0, 10.0, 20.0], [1.0, 11.0], [2.0]]

        def program(communicator: Any) -> list[float]:
            column = np.array(begin + own[communicator.rank])
            (merged,) = merge(communicator, [column], common)
            return merged.tolist()

        for found in run_ranks(3, program):
            assert found == [*begin, 0.0, 1.0, 2.0, 10.0, 11.0, 20.0]


@pytest.mark.parametrize(
    ("one", "other", "wanted"),
    [
        ([1.0, np.nan], [1.0, -np.nan], 0.0),
        ([1.0, 2.0], [1.0, 4.0], 0.5),
        ([0.0, 0.0], [0.0, 0.0], 0.0),
        ([np.inf, 1.0], [np.inf, 1.0], 0.0),
        ([1.0, np.nan], [1.0, 1.0], np.nan),
    ],
)
def test_the_gap_between_weights(one: Any, other: Any, wanted: float) -> None:
    np.testing.assert_equal(gap_between(np.array(one), np.array(other)), wanted)


class Library:
    """A stand-in for ``cupy.cuda.nccl``, which notes what it is asked."""

    NCCL_SUM, NCCL_FLOAT32, NCCL_FLOAT64 = 0, 7, 8

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def get_unique_id(self) -> bytes:
        return bytes(range(128))

    def NcclCommunicator(self, *made: Any) -> Library:  # noqa: N802 (CuPy's name)
        self.calls.append(made)
        return self

    def allReduce(self, *arguments: Any) -> None:  # noqa: N802
        self.calls.append(arguments)

    def bcast(self, *arguments: Any) -> None:
        self.calls.append(arguments)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    made = Library()
    monkeypatch.setattr(nccl, "_library", lambda: made)
    return made


class TestNCCL:
    def test_arrays_of_the_host_go_elsewhere(self, library: Library) -> None:
        def program(host: Any) -> list[float]:
            communicator = nccl.NCCLCommunicator(host)
            x = np.array([1.0, communicator.rank])
            communicator.allreduce(x)
            communicator.broadcast(x, 1)
            communicator.barrier()
            return x.tolist()

        assert run_ranks(2, program) == [[2.0, 1.0]] * 2
        assert not library.calls

    @pytest.mark.gpu
    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_arrays_of_a_gpu_are_sent_on_its_stream(self, library: Library, dtype: str) -> None:
        import cupy  # noqa: PLC0415 (where it is installed)

        communicator = nccl.NCCLCommunicator(SingleProcess())
        x = cupy.arange(6, dtype=dtype)
        place, kind = x.data.ptr, {"float32": 7, "float64": 8}[dtype]
        with cupy.cuda.Stream() as stream:
            communicator.allreduce(x)
            communicator.broadcast(x, 0)
        assert library.calls == [
            (1, bytes(range(128)), 0),
            (place, place, 6, kind, 0, stream.ptr),
            (place, 6, kind, 0, stream.ptr),
        ]

    @pytest.mark.gpu
    def test_a_sum_that_is_started_goes_beside_the_current_stream(self, library: Library) -> None:
        import cupy  # noqa: PLC0415

        communicator = nccl.NCCLCommunicator(SingleProcess())
        x = cupy.arange(6, dtype="float32")
        x *= 2  # queued, and perhaps not run yet
        seen: list[Any] = []

        def add(*arguments: Any) -> None:
            seen.append(arguments[-1])
            x.__iadd__(1)  # on that stream, as NCCL does

        library.allReduce = add  # type: ignore[method-assign]
        started = communicator.start_allreduce(x)
        started.advance()
        started.wait()
        y = x + 0
        assert seen[0] not in (0, cupy.cuda.get_current_stream().ptr)
        assert y.get().tolist() == [1, 3, 5, 7, 9, 11]

    @pytest.mark.gpu
    def test_what_it_cannot_send_is_refused(self, library: Library) -> None:
        import cupy  # noqa: PLC0415

        communicator = nccl.NCCLCommunicator(SingleProcess())
        for x in (cupy.zeros(3, "int16"), cupy.zeros((3, 4), "float32").T):
            with pytest.raises(gn.errors.DTypeError, match="in C order, of uint8, int64"):
                communicator.allreduce(x)

    def test_it_belongs_to_its_process(self, library: Library) -> None:
        with pytest.raises(gn.errors.StateError, match="cannot be pickled"):
            pickle.dumps(nccl.NCCLCommunicator(SingleProcess()))
