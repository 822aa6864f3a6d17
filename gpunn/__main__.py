"""The commands of ``python -m gpunn``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from gpunn import __version__
from gpunn.arrays.backend import KNOWN
from gpunn.errors import SettingError
from gpunn.tools import doctor


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; wrong usage exits with 2.

    Parameters
    ----------
    arguments : sequence of str, optional
        The words after ``python -m gpunn``; by default those of this process.

    Returns
    -------
    int
        0 if the requested backend works, else 1.
    """
    parser = argparse.ArgumentParser(prog="python -m gpunn", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    command = commands.add_parser(
        "doctor",
        help="report what is installed, and whether it works",
        description="Report what is installed, check a backend, and say how to fix it. "
        "The exit code is 0 if the backend works, 1 if not.",
        allow_abbrev=False,
    )
    command.add_argument(
        "--backend", default="auto", metavar="NAME", help=f"{', '.join(KNOWN)} (default: auto)"
    )
    command.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    try:
        report = doctor.examine(options.backend, __version__)
    except SettingError as error:  # an unknown name, as an option or in GPUNN_BACKEND
        command.error(str(error))
    sys.stdout.write(f"{report.to_json() if options.json else report}\n")
    return 0 if report.works else 1


if __name__ == "__main__":
    sys.exit(main())
