"""Processes without MPI that meet at an address, as torchrun starts them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gpunn.distributed import tcp
from gpunn.distributed.mpi import RANKS
from gpunn.errors import DistributedError

PROGRAM = Path(__file__).with_name("tcp_program.py")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.gpu
@pytest.mark.parametrize("size", [2, 3])
def test_processes_share_an_identifier(size: int) -> None:
    """Those that come before rank 0 wait for it."""
    plain = {name: value for name, value in os.environ.items() if name not in RANKS}
    plain |= {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    started = []
    for rank in reversed(range(size)):
        command = [sys.executable, str(PROGRAM)]
        environment = plain | {"RANK": str(rank)}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        started.append(subprocess.Popen(command, env=environment, **pipes))
        time.sleep(0.3)
    for rank, process in zip(reversed(range(size)), started, strict=True):
        out, _ = process.communicate(timeout=120)
        assert process.returncode == 0, out
        assert f"NCCLCommunicator(rank={rank}, size={size})" in out


@pytest.mark.gpu
def test_one_that_is_alone_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    values = ("1", "2", "127.0.0.1", str(free_port()))
    for name, value in zip(tcp.VARIABLES, values, strict=True):
        monkeypatch.setenv(name, value)
    store = pytest.importorskip("cupyx.distributed._store")
    monkeypatch.setattr(store.TCPStoreProxy, "MAX_NUM_RETRIES", 1)
    monkeypatch.setattr(store.TCPStoreProxy, "DELAY_FOR_RETRY", 0.01)
    monkeypatch.setattr(tcp, "_LIMIT_S", 0.2)
    with pytest.raises(DistributedError, match=r"rank 1 of 2 has waited for the others at 127"):
        tcp.Meeting().share(b"")
