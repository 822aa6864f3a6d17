"""Training that is killed at random instants, and resumed, ends with the same bits."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "bench" / "kill_resume.py"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the script forks")
def test_two_hundred_kills_change_no_bit() -> None:
    command = [sys.executable, str(SCRIPT), "--kills", "200"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603
    assert done.returncode == 0, done.stderr
    survived = re.match(r"(\d+) kills survived: (\d+) trainings ended", done.stdout)
    assert survived is not None
    assert int(survived[1]) >= 200
    assert int(survived[2]) >= 4  # streamed or not, compiled or not
