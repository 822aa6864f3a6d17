"""What signals, other threads and a full disk leave of a training with checkpoints."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import gpunn as gn
from tests.test_resume import assert_same_bits, network, straight

ROOT = Path(__file__).parents[1]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "checkpoint.safetensors"


CHILD = """
import signal, sys
from pathlib import Path
import gpunn as gn
from tests.test_resume import network

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored

class Slow(gn.Checkpoint):
    def steps_until_due(self, step):
        if step == 9:
            print("ready", flush=True)
            sys.stdin.readline()
        return 9 - step if step < 9 else 1

last = Slow(sys.argv[1], 100, unit="steps")
trainer, loader = network()
history = trainer.fit(loader, 4, callbacks=[last], resume=last, progress=False)
print(history.stopped, flush=True)
"""


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_checkpoint_from_which_to_resume(path: Path, number: int) -> None:
    """In the middle of the second epoch."""
    child = subprocess.Popen(  # noqa: S603
        [sys.executable, "-c", CHILD, str(path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    child.send_signal(number)
    said, _ = child.communicate("go on\n")
    if number == signal.SIGINT:
        assert said == "interrupted in epoch 2\n"
        assert child.returncode == 0
    else:
        assert child.returncode == -signal.SIGTERM
    steps = straight(network, 1, resume=path)[0].optimizer.steps
    assert steps >= 9
    assert_same_bits(straight(network, 4), straight(network, 4, resume=path))


def test_other_threads_leave_signals_alone(path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    found: list[Any] = []

    def work() -> None:
        found.append(straight(network, 2, callbacks=[gn.Checkpoint(path)]))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert_same_bits(found[0], straight(network, 2))
    assert signal.getsignal(signal.SIGINT) is before


FULL = """
import resource, signal, sys
import gpunn as gn
from tests.test_resume import assert_same_bits, network, straight

class Full(gn.Checkpoint):
    def write(self, state, step):
        if step > 9:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
        super().write(state, step)

path = sys.argv[1]
whole = straight(network, 4)
trainer, loader = network()
try:
    trainer.fit(loader, 4, callbacks=[Full(path, 3, unit="steps")], progress=False)
except gn.errors.PathError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
history = trainer.fit(loader, 4, resume=path, progress=False)
assert_same_bits(whole, (trainer, history, loader))
print("the same bits")
"""


@pytest.mark.skipif(os.name != "posix", reason="limits of POSIX")
def test_a_full_disk_leaves_the_last_file_and_training_goes_on(path: Path) -> None:
    command = [sys.executable, "-c", FULL, str(path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)  # noqa: S603
    error, last = done.stdout.splitlines()
    assert error.startswith(f"Checkpoint: cannot write {path}: File too large")
    assert last == "the same bits"
    assert list(path.parent.iterdir()) == [path]
