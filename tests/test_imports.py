"""What an import of gpunn loads and costs, and from where names come."""

from __future__ import annotations

import importlib.machinery
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

import gpunn as gn
from gpunn.arrays import backend as module

#: The names that it asks for.
FIRST_PROGRAM = "Sequential Dense ReLU SoftmaxCrossEntropy SGD Loader Trainer"


def run(code: str) -> str:
    """Return what a fresh interpreter prints, which may keep compiled modules for the next."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    where = {"cwd": Path(gn.__file__).parents[1], "env": environment}
    return subprocess.check_output([sys.executable, "-c", code], text=True, **where)  # noqa: S603


def test_a_library_that_another_thread_imports_is_waited_for() -> None:
    half = ModuleType("half")
    half.__spec__ = importlib.machinery.ModuleSpec("half", None)
    half.__spec__._initializing = True  # type: ignore[attr-defined]
    place = gn.get_backend("numpy")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "array_api_compat.numpy", half)
        patch.setattr(
            module, "importlib", SimpleNamespace(import_module=lambda name: f"all {name}")
        )
        found = place.xp
    assert found == "all array_api_compat.numpy"


@pytest.mark.parametrize(
    ("names", "more"),
    [("", ""), (FIRST_PROGRAM, "numpy")],
    ids=["alone", "first program"],
)
def test_an_import_loads_nothing_that_it_does_not_need(names: str, more: str) -> None:
    asked = "".join(f"; gpunn.{name}" for name in names.split())
    tops = "print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = run(f"import sys, gpunn{asked}; {tops}")
    needless = "array_api_compat cupy matplotlib numba onnx safetensors scipy sklearn torch tqdm"
    watched = {"gpunn", "numpy", *needless.split()}
    assert watched & set(loaded.split()) == {"gpunn", *more.split()}


@pytest.mark.parametrize(
    ("names", "share"), [("", 0.1), (FIRST_PROGRAM, 0.4)], ids=["alone", "first program"]
)
def test_an_import_takes_little_longer_than_numpy(names: str, share: float) -> None:
    """The quickest of several runs each: what else the machine does only adds time."""
    clock = "; t.append(time.perf_counter()); "
    asked = "".join(f"; gpunn.{name}" for name in names.split())
    code = f"import time; t = []{clock}import numpy{clock}import gpunn{asked}{clock}"
    numpy_s = rest_s = float("inf")
    for rounds in range(1, 31):
        shown = run(code + "print(t[1] - t[0], t[2] - t[1])")
        numpy_s, rest_s = map(min, (numpy_s, rest_s), map(float, shown.split()))
        if rounds >= 5 and rest_s <= share * numpy_s:
            break
    assert rest_s <= share * numpy_s


@pytest.mark.parametrize("switch", ["enable", "disable"])
def test_garbage_is_not_collected_until_numba_has_started(switch: str) -> None:
    pytest.importorskip("numba")
    started = run(
        "import gc, gpunn.arrays, gpunn.kernels.start as start; phases = []; "
        f"gc.{switch}(); gc.callbacks.append(lambda phase, _: phases.append(phase)); "
        "start._numba(); gc.callbacks.clear(); print(phases.count('start'), gc.isenabled())"
    )
    collections, enabled = started.split()
    assert enabled == str(switch == "enable")
    assert int(collections) <= 1  # as soon as it is enabled again


def test_every_public_name_is_imported_from_its_home() -> None:
    assert {*gn.__all__} == {*gn._HOMES} - {"estimators"}
    assert all(getattr(gn, name) is not None for name in gn._HOMES)
