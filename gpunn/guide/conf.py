"""Sphinx's settings for the site: the guide in this folder, and a page for each public name.

`nox -s docs` copies this folder, lets `pages.py` add what is generated, and builds the copy.
"""

import inspect
from collections.abc import Iterator
from typing import Any

from sphinx.pycode import ModuleAnalyzer

import gpunn
from gpunn import estimators

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
# A hundred columns of code fit beside the contents.
html_theme_options = {"light_css_variables": {"code-font-size": "75%"}}
html_show_copyright = False
html_title = f"gpunn {release}"

myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
autosummary_generate = True
templates_path = ["_templates"]
#: What a class has from one of these is listed on its page, and described on the page of these.
BASES = {"Layer", "Activation", "Loss", "Optimizer", "Metric"}
#: What a class has from one of these is not described.
PYTHONS = {"tuple", "BaseException", "OSError", "ImportError"}
#: Functions of public modules that serve the library itself.
HIDDEN = {"moved", "as_schedule", "load_schedule_state", "observe", "schedule_state"}
HIDDEN |= {"as_generator", "draw", "fans", "get_initializer"}
autodoc_default_options = {
    "members": True,
    "inherited-members": ",".join(sorted(BASES | PYTHONS)),
    "member-order": "bysource",
}
autodoc_typehints = "none"  # the docstrings say it in words
numpydoc_show_class_members = False  # autodoc has them
default_role = "py:obj"  # what stands in single backticks


def _is_foreign(item: Any) -> bool:
    """Return whether a member is what Python's or scikit-learn's base classes add."""
    module = str(getattr(inspect.unwrap(item) if callable(item) else item, "__module__", None))
    return module.startswith("sklearn") or str(item.__doc__).startswith("Alias for field number")


def _skip(app: Any, what: str, name: str, item: Any, skip: bool, options: Any) -> bool | None:
    """Leave out what a reader of the reference does not need."""
    return True if _is_foreign(item) or (what == "module" and name in HIDDEN) else None


def _described(kind: type) -> list[str]:
    """Return the members of a class that its page or that of a base describes."""
    found = set()
    for base in inspect.getmro(kind):
        if base.__module__.startswith("gpunn"):
            comments = ModuleAnalyzer.for_module(base.__module__).find_attr_docs()
            found |= {name for owner, name in comments if owner == base.__name__}
            members = {name: item for name, item in vars(base).items() if inspect.getdoc(item)}
            callables = (property, staticmethod, classmethod)
            found |= {
                name
                for name, item in members.items()
                if (isinstance(item, callables) or inspect.isfunction(item))
                and not _is_foreign(item)
            }
    return sorted(name for name in found if not name.startswith("_"))


_public = {f"gpunn.{name}": getattr(gpunn, name) for name in gpunn.__all__}
_public |= {f"gpunn.estimators.{n}": getattr(estimators, n) for n in estimators.__all__}
#: What the templates need to know.
autosummary_context = {
    "described": {
        name: _described(kind) for name, kind in _public.items() if inspect.isclass(kind)
    },
    "hidden": sorted(HIDDEN),
}


def _describe(app: Any, what: str, name: str, item: Any, options: Any, lines: list[str]) -> None:
    """Describe a constant by its comment, and each entry of a table."""
    home = gpunn._HOMES.get(name.removeprefix("gpunn."))
    if what == "data" and home:
        constant = name.rpartition(".")[2]
        lines[:] = ModuleAnalyzer.for_module(home).find_attr_docs()["", constant]
        for key, made in item.items() if isinstance(item, dict) else ():
            lines += [f"- ``{key!r}``: `{getattr(made, 'func', made).__name__}`"]


def _name_bases(app: Any, what: str, name: str, item: Any, options: Any, lines: list[str]) -> None:
    """Say on the page of a class which public class it inherits from."""
    if what == "class":
        base = next((each for each in inspect.getmro(item)[1:] if each.__name__ in BASES), None)
        lines += ["", f"Inherits from `gpunn.{base.__name__}`.", ""] if base else []


def _candidates(name: str) -> Iterator[str]:
    """Yield the full names that a name may stand for: public ones, and those of the bases."""
    yield from (f"gpunn.{name}", f"gpunn.estimators.{name}", f"gpunn.{name.rpartition('.')[2]}")
    owner, _, member = name.removeprefix("gpunn.").rpartition(".")
    kind = getattr(gpunn, owner, None) if owner in gpunn.__all__ else None
    for base in inspect.getmro(kind) if inspect.isclass(kind) else ():
        yield f"gpunn.{base.__name__}.{member}"


def _find(app: Any, env: Any, node: Any, contnode: Any) -> Any:
    """Return a link to a public name that a docstring gives without its module."""
    if node.get("refdomain") != "py":
        return None
    for full in _candidates(node.get("reftarget", "")):
        arguments = env, node["refdoc"], app.builder, "obj", full, node, contnode
        found = env.get_domain("py").resolve_xref(*arguments)
        if found is not None:
            return found
    return None


def setup(app: Any) -> None:
    """Let Sphinx ask which members to leave out, and where names are."""
    app.connect("autodoc-skip-member", _skip)
    app.connect("missing-reference", _find)
    app.connect("autodoc-process-docstring", _describe)
    app.connect("autodoc-process-docstring", _name_bases, priority=900)  # after numpydoc
