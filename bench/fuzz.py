"""Feed a reader of files with bytes that reach new lines of it, by atheris (libFuzzer).

    python bench/fuzz.py TARGET [OPTION OF LIBFUZZER | FOLDER]...

The targets are those of `tests/fuzzed.py`. `nox -s fuzz` runs all of them.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[1]))

import gpunn

gpunn.Dense  # noqa: B018 (imports what is not to be looked into)

# JSON in Python, whose lines are seen.
sys.modules["_json"] = None  # type: ignore[assignment]
for loaded in [name for name in sys.modules if name.partition(".")[0] == "json"]:
    del sys.modules[loaded]

with atheris.instrument_imports(include=["gpunn", "json"]):
    for wanted in (
        "json.decoder",
        "gpunn.data.idx",
        "gpunn.files.weights",
        "gpunn.files.onnx.reading",
    ):
        import_module(wanted)

from tests.fuzzed import TARGETS  # noqa: E402

if __name__ == "__main__":
    target = TARGETS[sys.argv.pop(1)]
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()
