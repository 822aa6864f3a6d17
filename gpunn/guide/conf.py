"""Sphinx's settings for the site: the guide in this folder, and a page for each public name.

`nox -s docs` copies this folder, lets `pages.py` add what is generated, and builds the copy.
"""

import inspect
from typing import Any

import gpunn

project = "gpunn"
author = "The gpunn developers"
release = version = gpunn.__version__

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.viewcode",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",
]
html_theme = "furo"
html_show_copyright = False
html_title = f"gpunn {release}"

myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
autosummary_generate = True
autodoc_default_options = {"members": True, "inherited-members": True, "member-order": "bysource"}
autodoc_typehints = "none"  # the docstrings say it in words
numpydoc_show_class_members = False  # autodoc has them
default_role = "py:obj"  # what stands in single backticks


def _skip(app: Any, what: str, name: str, item: Any, skip: bool, options: Any) -> bool | None:
    """Leave out what scikit-learn's base classes add to estimators."""
    module = getattr(inspect.unwrap(item) if callable(item) else item, "__module__", None)
    return True if str(module).startswith("sklearn") else None


def _find(app: Any, env: Any, node: Any, contnode: Any) -> Any:
    """Return a link to a public name that a docstring gives without its module."""
    name = node.get("reftarget", "")
    if node.get("refdomain") != "py":
        return None
    for full in (f"gpunn.{name}", f"gpunn.estimators.{name}"):
        arguments = env, node["refdoc"], app.builder, "obj", full, node, contnode
        found = env.get_domain("py").resolve_xref(*arguments)
        if found is not None:
            return found
    return None


def setup(app: Any) -> None:
    """Let Sphinx ask which members to leave out, and where names are."""
    app.connect("autodoc-skip-member", _skip)
    app.connect("missing-reference", _find)
