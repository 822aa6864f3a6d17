"""Names for the cases of parametrized tests."""

import re
from typing import Any


def label(value: Any) -> str:
    """Return a value's text without its address: workers must collect the same names."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))
