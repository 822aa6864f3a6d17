"""The commands of ``python -m gpunn``."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from gpunn import __version__
from gpunn.arrays.backend import KNOWN
from gpunn.errors import SettingError
from gpunn.tools import doctor
from gpunn.tools.report import Report

#: The default time limit of `bench`, in seconds.
_LIMIT_S = 50.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; wrong usage exits with 2.

    Parameters
    ----------
    arguments : sequence of str, optional
        The words after ``python -m gpunn``; by default those of this process.

    Returns
    -------
    int
        0 if the requested backend works, or if there are measurements; else 1.
    """
    parser = argparse.ArgumentParser(prog="python -m gpunn", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, add in (("doctor", _add_doctor), ("bench", _add_bench)):
        add(commands, name)
    options = parser.parse_args(arguments)
    exit_code: int = options.run(options)
    return exit_code


def _add_doctor(commands: Any, name: str) -> None:
    command = commands.add_parser(
        name,
        help="report what is installed, and whether it works",
        description="Report what is installed, check a backend, and say how to fix it. "
        "The exit code is 0 if the backend works, 1 if not.",
        allow_abbrev=False,
    )
    command.add_argument(
        "--backend", default="auto", metavar="NAME", help=f"{', '.join(KNOWN)} (default: auto)"
    )
    command.add_argument("--json", action="store_true", help="print one JSON object")

    def run(options: argparse.Namespace) -> int:
        report = _examined(command, options.backend)
        sys.stdout.write(f"{report.to_json() if options.json else report}\n")
        return 0 if report.works else 1

    command.set_defaults(run=run)


def _add_bench(commands: Any, name: str) -> None:
    command = commands.add_parser(
        name,
        help="measure training steps per second on this machine",
        description="Train perceptrons from small to large for a minute, on the CPU and on a GPU "
        "if there is one, with gpunn, and with scikit-learn, PyTorch and JAX if they are "
        "installed, and print the steps per second of each. Add the output to a bug report, "
        "together with that of doctor.",
        allow_abbrev=False,
    )
    command.add_argument(
        "--seconds",
        type=_seconds,
        default=_LIMIT_S,
        metavar="N",
        help=f"the time limit (default: {_LIMIT_S:g}); smaller networks come first",
    )
    command.add_argument(
        "--json",
        nargs="?",
        const="",
        metavar="PATH",
        help="print one JSON object instead; with PATH, write it there and print the table",
    )

    def run(options: argparse.Namespace) -> int:
        path = Path(options.json) if options.json else None
        if path is not None:
            try:
                path.open("a").close()  # before measuring for a minute
            except OSError as error:
                command.error(f"--json: {path} cannot be written: {error.strerror}")
        # Imports much of the package, which `doctor` does not need.
        from gpunn.tools import bench  # noqa: PLC0415

        times = bench.measure(lambda: _examined(command, "auto"), options.seconds)
        sys.stdout.write(f"{times.to_json() if options.json == '' else times}\n")
        if path is not None:
            path.write_text(f"{times.to_json()}\n", encoding="utf-8")
        return 0 if times.rows else 1

    command.set_defaults(run=run)


def _seconds(text: str) -> float:
    """Parse a number of seconds above 0."""
    with suppress(ValueError):
        if 0.0 < (seconds := float(text)) < math.inf:
            return seconds
    raise argparse.ArgumentTypeError(f"must be a number of seconds above 0, got {text!r}")


def _examined(command: argparse.ArgumentParser, backend: str) -> Report:
    """Return the doctor's report."""
    try:
        return doctor.examine(backend, __version__)
    except SettingError as error:  # an unknown name, as an option or in GPUNN_BACKEND
        command.error(str(error))


if __name__ == "__main__":
    sys.exit(main())
