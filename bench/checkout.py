"""Makes this checkout's gpunn importable where none is installed, here and in child processes."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

_ROOT = str(Path(__file__).parents[1])
if find_spec("gpunn") is None:
    sys.path.append(_ROOT)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [os.getenv("PYTHONPATH"), _ROOT]))
