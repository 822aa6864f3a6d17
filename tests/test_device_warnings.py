"""Warnings are errors in the tests, except for CuPy's about the machine that it runs on."""

from __future__ import annotations

import warnings

import pytest

ABOUT_THE_MACHINE = [
    (UserWarning, "CuPy failed to preload library (/lib/libnccl.so.2): OSError (no such file)"),
    (UserWarning, "CuPy failed to load libnvToolsExt.so.1: OSError: no such file"),
    (UserWarning, "\nnccl library could not be loaded.\n\nReason: ImportError (libnccl.so.2)\n"),
    (UserWarning, "CUDA path could not be detected. Set CUDA_PATH environment variable if CuPy"),
    (
        UserWarning,
        f"\n{'-' * 80}\n\n  CuPy may not function correctly because multiple CuPy packages are",
    ),
    (RuntimeWarning, "CUB headers are not found."),
    (RuntimeWarning, "Using synchronous transfer as pinned memory (512 bytes) could not be"),
]


@pytest.mark.parametrize(("category", "text"), ABOUT_THE_MACHINE)
def test_a_warning_about_the_machine_fails_no_test(category: type[Warning], text: str) -> None:
    warnings.warn(text, category, stacklevel=1)


def test_a_warning_about_what_the_code_does_fails() -> None:
    text = "The device where the array resides (0) is different from the current device (1)."
    with pytest.raises(RuntimeWarning, match="is different"):
        warnings.warn(text, RuntimeWarning, stacklevel=1)
