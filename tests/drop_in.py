"""Run scikit-learn's own tests of its networks with gpunn's classes in the place of theirs.

    python tests/drop_in.py [OPTIONS OF PYTEST]

The file is the installed one, of whatever version; nothing of it is copied. The tests in `PRIVATE`
read what is no part of scikit-learn's interface, and are expected to fail. All others have to pass,
and so the run fails if one of these does.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sklearn.neural_network
from sklearn.neural_network.tests import __file__ as tests

import gpunn.estimators

#: What stands in the place of scikit-learn's classes of the same names.
OURS = ("MLPClassifier", "MLPRegressor")

#: Tests that read private attributes, and which.
PRIVATE = {
    "test_fit": "sets _coef_grads, _coef_velocity and the like before there is a network",
    "test_gradient": "calls _loss_grad_lbfgs, with lists for what lies between layers",
    "test_n_iter_no_change": "reads _no_improvement_count",
    "test_n_iter_no_change_inf": "reads _no_improvement_count",
}


class DropIn:
    """Marks the private tests, and notes which of them there are."""

    def __init__(self) -> None:
        self.missing = set(PRIVATE)

    def pytest_collection_modifyitems(self, items: list[pytest.Function]) -> None:
        """Expect the private tests to fail; that one passes is a failure."""
        for item in items:
            name = item.originalname
            self.missing.discard(name)
            if name in PRIVATE:
                item.add_marker(pytest.mark.xfail(reason=PRIVATE[name], strict=True))


@contextmanager
def replaced() -> Iterator[None]:
    """Put gpunn's classes where tests import scikit-learn's from."""
    with pytest.MonkeyPatch.context() as patch:
        for name in OURS:
            patch.setattr(sklearn.neural_network, name, getattr(gpunn.estimators, name))
        yield


def main() -> int:
    """Run the tests; return pytest's exit status, or 1 if a private test is not there."""
    file, drop_in = Path(str(tests)).with_name("test_mlp.py"), DropIn()
    package = Path(sklearn.__file__).parent  # its conftest is needed; this project's is not
    alone = ("-c", str(Path(__file__).with_suffix(".ini")), f"--rootdir={package}")
    settings = ("-p", "no:cacheprovider", "-W", "ignore::pytest.PytestConfigWarning", "-rxX")
    with replaced():
        status = pytest.main([str(file), *alone, *settings, *sys.argv[1:]], plugins=[drop_in])
    if drop_in.missing and len(sys.argv) == 1:
        print(f"not in {file}: {', '.join(sorted(drop_in.missing))}; take them out of PRIVATE")
        return 1
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
