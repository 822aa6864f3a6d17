"""Run scikit-learn's own tests of its networks with gpunn's classes in the place of theirs.

    python tests/drop_in.py [OPTIONS OF PYTEST]

The file is that of the installed version; nothing of it is copied. The tests in `PRIVATE` look into
what is no part of scikit-learn's interface: they have to fail, and all others to pass.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import sklearn.neural_network

import gpunn.estimators

#: What stands in the place of scikit-learn's classes of the same names.
OURS = ("MLPClassifier", "MLPRegressor")

#: Tests that look at private attributes, and at which.
PRIVATE = {
    "test_fit": "sets _coef_grads, _coef_velocity and others where there is no network yet",
    "test_gradient": "calls _loss_grad_lbfgs, with lists for what lies between the layers",
    "test_n_iter_no_change": "reads _no_improvement_count",
    "test_n_iter_no_change_inf": "reads _no_improvement_count",
}


class PrivateTests:
    """Expects the private tests to fail."""

    @pytest.hookimpl(tryfirst=True)  # before any is left out by an option
    def pytest_collection_modifyitems(self, items: list[pytest.Function]) -> None:
        """Mark the tests; refuse names of tests that do not exist."""
        for item in items:
            if item.originalname in PRIVATE:
                reason = PRIVATE[item.originalname]
                item.add_marker(pytest.mark.xfail(reason=reason, strict=True))
        missing = PRIVATE.keys() - {item.originalname for item in items}
        if missing:
            raise pytest.UsageError(f"there is no {', '.join(sorted(missing))}: see PRIVATE")


def main() -> int:
    """Run the tests; return pytest's exit status."""
    package = Path(sklearn.__file__).parent
    file = package / "neural_network" / "tests" / "test_mlp.py"
    # With the conftest of scikit-learn's, and without the settings of this project.
    apart = ("-c", os.devnull, f"--rootdir={package}", "-p", "no:cacheprovider")
    with pytest.MonkeyPatch.context() as patch:
        for name in OURS:
            patch.setattr(sklearn.neural_network, name, getattr(gpunn.estimators, name))
        return pytest.main([str(file), *apart, "-rxX", *sys.argv[1:]], plugins=[PrivateTests()])


if __name__ == "__main__":
    sys.exit(main())
