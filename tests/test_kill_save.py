"""A process that is killed while it saves leaves the old file or the new one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "bench" / "kill_save.py"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the script forks")
def test_twenty_kills_lose_nothing() -> None:
    command = [sys.executable, str(SCRIPT), "--kills", "20", "--parameters", "100000"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603
    assert done.returncode == 0, done.stderr
    survived = re.match(r"20 kills survived: the old file (\d+) times", done.stdout)
    assert survived is not None
