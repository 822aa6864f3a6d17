"""A process that trains alone, with the same interface as one of several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gpunn.data.loader import Loader
from gpunn.errors import SettingError
from gpunn.training.history import History
from gpunn.training.readings import Readings


class Ranks:
    """A process that trains alone, and so needs no agreement."""

    several = False
    writes = True

    def start(
        self,
        trainer: Any,  # noqa: ARG002
        facts: dict[str, str],  # noqa: ARG002
        loaders: Sequence[Loader],
    ) -> None:
        """Check that settings are the same; take rank 0's values and generators."""
        for loader in loaders:
            self.check_share(loader)

    def check_share(self, loader: Loader) -> None:
        """Check that a loader that shares its samples does so among the same processes."""
        if loader.share.size > 1:
            raise SettingError(
                f"Trainer: the loader shares its samples among {loader.share.size} processes, "
                "which would each train a model of its own; say gn.DataParallel(optimizer, "
                "communicator)"
            )

    def from_first(self, value: Any) -> Any:
        """Return rank 0's value."""
        return value

    def any(self, number: int) -> int:
        """Return the largest number of any rank."""
        return number

    def reason(self, reason: str) -> str:
        """Return the first non-empty reason of any rank."""
        return reason

    def gathered(self, readings: Readings) -> Readings:
        """Return the readings of all ranks so far."""
        return readings

    def unite(self, trainer: Any) -> None:
        """Unite the models of all ranks: average the buffers, and compare the rest."""

    def share_last(self, history: History) -> None:
        """Send rank 0's last row of the history, with columns from callbacks, to all ranks."""
