"""The progress bar of training."""

from __future__ import annotations

from typing import Any


def progress_bar(total: int, *, show: bool | None) -> Any:
    """Return a progress bar of `total` batches; ``show=None`` shows it only on a terminal."""
    from tqdm import tqdm  # noqa: PLC0415 (not needed to import gpunn)

    disable = None if show is None else not show
    return tqdm(total=total, disable=disable, unit="batch", leave=False)
