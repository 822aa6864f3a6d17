"""The guide's code runs as it stands, page by page, and its tables name what there is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import gpunn as gn
from gpunn import estimators

GUIDE = Path(gn.__file__).parent / "guide"
PAGES = sorted(GUIDE.glob("*.md"))


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_code_of_a_page_runs(page: Path) -> None:
    names: dict[str, Any] = {}
    for block in re.findall(
        r"^```python\n(.*?)^```$", page.read_text("utf-8"), re.DOTALL | re.MULTILINE
    ):
        exec(compile(block, str(page), "exec"), names)  # noqa: S102 (our own)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_names_on_a_page_are_there(page: Path) -> None:
    text = page.read_text("utf-8")
    for name in set(re.findall(r"\bgn\.(\w+)", text)):
        assert hasattr(gn, name), name
    for name in set(re.findall(r"\{py:obj\}`~?gpunn\.([\w.]+)`", text)):
        home: Any = estimators if name.startswith("estimators.") else gn
        assert hasattr(home, name.removeprefix("estimators.")), name


def test_every_page_is_in_the_contents() -> None:
    contents = (GUIDE / "index.md").read_text("utf-8")
    for page in PAGES:
        assert page.stem == "index" or f"\n{page.stem}\n" in contents
