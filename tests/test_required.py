"""`--require-gpu`, `--require-torch`: nothing that should have run passes as skipped."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PLUGINS = ("-p", "tests.conftest", "-p", "no:cacheprovider")

#: Stands for a machine with a GPU, real or emulated, that lacks a package only some tests need.
MACHINE = """
import tests.conftest as ours

ours.get_place = lambda _: None
ours.on_device = lambda: not {emulated}
ours.counting = lambda: {counting}
ours.OPTIONAL = ("package_to_do_without",)
"""

#: Stands for a machine without PyTorch.
WITHOUT_TORCH = """
import sys

from tests.conftest import torch

sys.modules["torch"] = None
"""

MODULES = {
    "top_skip": """
        import pytest
        pytest.skip("does not run here", allow_module_level=True)
    """,
    "top_import": """
        import pytest
        pytest.importorskip("cupy_that_is_not_there")
    """,
    "top_optional": """
        import pytest
        pytest.importorskip("package_to_do_without", reason="package_to_do_without compiles them")
    """,
    "tests": """
        import gpunn as gn
        import pytest
        gpu = pytest.mark.gpu

        @gpu
        def test_passing():
            pass

        @gpu
        def test_skipping():
            pytest.skip("does not run here")

        @gpu
        @pytest.mark.skipif(True, reason="does not run here")
        def test_skipped_if():
            pass

        @gpu
        @pytest.mark.parametrize("x", [])
        def test_of_nothing(x):
            pass

        @pytest.fixture
        def missing():
            pytest.skip("does not run here")

        @gpu
        def test_fixture(missing):
            pass

        @gpu
        def test_optional():
            pytest.importorskip("package_to_do_without")

        @gpu
        def test_optional_library():
            raise gn.errors.BackendUnavailableError("package_to_do_without is not installed")

        @gpu
        def test_other_library():
            raise gn.errors.BackendUnavailableError("cupy_that_is_not_there is not installed")

        @gpu
        def test_import():
            pytest.importorskip("cupy_that_is_not_there")

        @gpu
        @pytest.mark.emulated
        def test_counted():
            pass

        @gpu
        @pytest.mark.xfail(strict=False)
        def test_expected_to_fail():
            assert False

        def test_of_the_host():
            pytest.skip("does not run here")
    """,
}

OF_TORCH = {
    "tests": """
        import pytest

        def test_compared(torch):
            pass

        def test_of_us():
            pytest.skip("does not run here")
    """,
}

MUST_RUN = {
    *("top_skip", "top_import", "test_skipping", "test_skipped_if", "test_of_nothing"),
    *("test_fixture", "test_import"),
}
MAY_SKIP = {"top_optional", "test_optional", "test_optional_library", "test_of_the_host"}


def outcomes(
    folder: Path, *, emulated: bool, counting: bool, required: bool = True
) -> dict[str, str]:
    """Return how each module and test ended on a machine with a GPU."""
    machine = MACHINE.format(emulated=emulated, counting=counting)
    return outcomes_of(folder, machine, MODULES, ["--require-gpu"] if required else [])


def outcomes_of(
    folder: Path, machine: str, modules: dict[str, str], options: list[str]
) -> dict[str, str]:
    """Return how each module and test ended; the name of a skipped one is found by its line."""
    (folder / "conftest.py").write_text(machine)
    for name, source in modules.items():
        lines = [line.removeprefix(" " * 8) for line in source.splitlines()]
        (folder / f"test_{name}.py").write_text("\n".join(lines))
    done = subprocess.run(  # noqa: S603 (our own tests)
        [sys.executable, "-m", "pytest", *PLUGINS, "-v", "-rA", "-W", "ignore", *options, folder],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    found = {}
    for line in done.stdout.splitlines():
        if match := re.match(r"\S*::(test_\w+)\S* ([A-Z]+)", line):
            found[match[1]] = match[2]
        elif match := re.match(r"(ERROR|SKIPPED)\b.*test_(top_\w+)\.py", line):
            found[match[2]] = match[1]
    return found


@pytest.mark.parametrize("emulated", [False, True])
def test_what_is_skipped(tmp_path: Path, emulated: bool) -> None:
    found = outcomes(tmp_path, emulated=emulated, counting=False)
    ran = {name for name, outcome in found.items() if outcome in ("FAILED", "ERROR")}
    # Only an emulator counts what a GPU does; under one, a count that is not made is a failure.
    counted = {"test_counted"}
    assert ran == MUST_RUN | {"test_other_library"} | (counted if emulated else set())
    skipped = {name for name, outcome in found.items() if outcome == "SKIPPED"}
    assert skipped == MAY_SKIP | (set() if emulated else counted)
    assert found["test_passing"] == "PASSED"
    assert found["test_expected_to_fail"] == "XFAIL"


def test_without_the_option_all_may_be_skipped(tmp_path: Path) -> None:
    found = outcomes(tmp_path, emulated=True, counting=True, required=False)
    assert found["test_counted"] == "PASSED"
    skipped = {name for name, outcome in found.items() if outcome == "SKIPPED"}
    assert skipped == MUST_RUN | MAY_SKIP


@pytest.mark.parametrize("required", [False, True])
def test_without_torch(tmp_path: Path, required: bool) -> None:
    options = ["--require-torch"] if required else []
    found = outcomes_of(tmp_path, WITHOUT_TORCH, OF_TORCH, options)
    assert found == {
        "test_compared": "ERROR" if required else "SKIPPED",
        "test_of_us": "SKIPPED",
    }


def test_a_test_that_asks_for_torch_is_marked_so(tmp_path: Path) -> None:
    options = ["--require-torch", "-m", "torch"]
    assert outcomes_of(tmp_path, WITHOUT_TORCH, OF_TORCH, options) == {"test_compared": "ERROR"}


def test_a_module_may_not_be_skipped_where_torch_is_required(tmp_path: Path) -> None:
    module = {"top_skip": MODULES["top_skip"]}
    found = outcomes_of(tmp_path, WITHOUT_TORCH, module, ["--require-torch"])
    assert found == {"top_skip": "ERROR"}
