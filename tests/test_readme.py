"""The README's code runs as it stands, from the first block to the last."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest

import gpunn as gn

README = Path(__file__).parents[1] / "README.md"


def test_the_blocks_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn", reason="the examples use scikit-learn's data")
    blocks = re.findall(
        r"^```python\n(.*?)^```$", README.read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    assert len(blocks) >= 5
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # such as that early stopping never came
        for block in blocks:
            exec(compile(block, str(README), "exec"), names)  # noqa: S102 (our own)
    assert names["history"]["validation_accuracy"][-1] > 0.95
    assert (tmp_path / "digits.safetensors").exists()


def test_all_layers_losses_and_optimizers_are_in_its_table() -> None:
    _, _, after = README.read_text("utf-8").partition("## What there is")
    named = set(re.findall(r"`(\w+)", after.partition("\n## ")[0]))
    bases = gn.Layer, gn.Loss, gn.Optimizer
    public = {
        name
        for name, item in ((name, getattr(gn, name)) for name in gn.__all__)
        if isinstance(item, type) and issubclass(item, bases)
    }
    assert len(public) > 60
    assert public - {"Layer", "Activation", "Loss", "Optimizer"} <= named
