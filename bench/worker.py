"""The process of one contender: it answers requests, one a line, until there are no more.

python bench/worker.py PACKAGE VARIANT DEVICE
"""

from __future__ import annotations

import importlib
import json
import sys
import time
import traceback
from typing import Any

from libraries import Refused
from workloads import Workload


class Desk:
    """Where requests are answered; one workload is prepared at a time."""

    def __init__(self, package: str, variant: str, device: str) -> None:
        self._package, self._variant, self._device = package, variant, device
        self._run: Any = None

    def version(self) -> str:
        """Return the versions that matter; the import may fail, so it is not done before."""
        self._adapter = importlib.import_module(f"libraries.with_{self._package}")
        return self._adapter.version(self._device)

    def prepare(self, work: dict[str, Any], steps: int) -> list[float] | None:
        """Make a workload ready, and return its losses, or None if it cannot be run."""
        self._run = None  # before the next one takes memory
        wanted = Workload(**{k: tuple(v) if isinstance(v, list) else v for k, v in work.items()})
        if not self._adapter.serves(wanted, self._variant):
            return None
        self._run, compared = self._adapter.prepare(wanted, steps, self._variant, self._device)
        return compared()

    def run(self) -> float:
        """Run a measurement, and return its seconds; all of it has been done when it returns."""
        start = time.perf_counter()
        self._run()
        return time.perf_counter() - start

    def note(self) -> str:
        """Return which way the workload has run, if the library tells."""
        return getattr(self._adapter, "note", str)()


def answer_to(desk: Desk, what: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the value that was asked for, or why there is none."""
    try:
        return {"value": getattr(desk, what)(**arguments)}
    except Refused as reason:
        return {"failed": str(reason), "refused": True}
    except Exception as error:  # noqa: BLE001 (of any library)
        traceback.print_exc()
        first = (str(error).strip() or "no reason given").splitlines()[0]
        return {"failed": f"{type(error).__name__}: {first}", "refused": False}


def main() -> None:
    """Answer."""
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever a library prints is no answer
    desk = Desk(*sys.argv[1:])
    for line in sys.stdin:
        print(json.dumps(answer_to(desk, *json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
