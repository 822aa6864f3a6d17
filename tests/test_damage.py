"""Any byte of a model's file or a checkpoint may be flipped, and any end be missing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpunn as gn
from gpunn.errors import FileError
from gpunn.training.checkpoint import read
from tests.fuzzed import as_file, training


@pytest.fixture
def path() -> Path:
    return as_file(b"")  # in memory: there are thousands to write


def damaged(content: bytes) -> Iterator[bytes]:
    """Yield a file with a bit of each byte flipped, and each beginning of it."""
    rng = np.random.default_rng(16)
    for place, bit in enumerate(rng.integers(8, size=len(content)).tolist()):
        yield content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :]
    for length in range(len(content)):
        yield content[:length]


def check_all_refused(path: Path, load: Callable[[], Any], unchanged: Callable[[], Any]) -> None:
    before = unchanged()
    for content in damaged(path.read_bytes()):
        path.write_bytes(content)
        with pytest.raises(FileError, match=r"damaged|is of format"):
            load()
    assert unchanged() == before


@pytest.mark.parametrize("strict", [True, False])
def test_a_model(path: Path, strict: bool) -> None:
    gn.save(path, gn.Dense(3, 2, rng=0))
    model = gn.Dense(3, 2, rng=1)

    def state() -> Any:
        return {name: p.value.tobytes() for name, p in model.named_parameters().items()}

    check_all_refused(path, lambda: gn.load(path, model, strict=strict), state)


def test_a_checkpoint(path: Path) -> None:
    trainer, loader = training()
    trainer.fit(loader, 1, callbacks=[gn.Checkpoint(path)], progress=False)
    trainer, loader = training()

    check_all_refused(path, lambda: read(path), lambda: None)
    before = repr(trainer.state_dict())
    with pytest.raises(FileError, match="damaged"):  # `fit` reads it so
        trainer.fit(loader, 2, resume=path, progress=False)
    assert repr(trainer.state_dict()) == before
