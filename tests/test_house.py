"""Imports run one way: each room may use those above it in the list, and no file is in a circle."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import gpunn as gn

PACKAGE = Path(gn.__file__).parent

#: The rooms, from the foundation up. A room imports itself and those before it.
ROOMS = (
    *("errors", "_typing", "arrays", "kernels", "nn", "files", "losses", "optim"),
    *("distributed", "data", "program", "training", "tools", "estimators"),
    *("__init__", "__main__", "layers"),
)


def modules() -> dict[str, Path]:
    """Return all files of the package by module name, without ``gpunn.``."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        if path.parent.name == "guide":  # no part of the program
            continue
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts)
        found[name.removesuffix(".__init__")] = path
    return found


MODULES = modules()


def imports_of(name: str) -> Iterator[tuple[str, int]]:
    """Yield the modules of the package that a module imports, within functions, too, by line."""
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            wanted = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}:{node.lineno}: imports are absolute"
            origin = node.module or ""
            wanted = [f"{origin}.{alias.name}" for alias in node.names]
        else:
            continue
        for each in wanted:
            if each.partition(".")[0] == "gpunn":
                yield resolved(each.removeprefix("gpunn").lstrip(".")), node.lineno


def resolved(name: str) -> str:
    """Return the module that a dotted name lies in: the longest part of it that is a file."""
    while name not in MODULES:
        name, dot, _ = name.rpartition(".")
        if not dot:
            return name if name in MODULES else "__init__"
    return name


def room_of(name: str) -> int:
    return ROOMS.index(name.partition(".")[0])


@pytest.mark.parametrize("name", sorted(MODULES))
def test_no_import_runs_up(name: str) -> None:
    for other, line in imports_of(name):
        assert room_of(other) <= room_of(name), f"{name}, line {line}: imports {other}"


def test_no_file_is_in_a_circle() -> None:
    graph = {name: {other for other, _ in imports_of(name)} - {name} for name in MODULES}
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> None:
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name in done:
            return
        for other in sorted(graph[name]):
            visit(other, [*path, name])
        done.add(name)

    for name in sorted(graph):
        if name != "__init__":
            visit(name, [])


def test_every_room_is_known() -> None:
    assert {name.partition(".")[0] for name in MODULES} <= set(ROOMS)


@pytest.mark.parametrize("name", sorted(MODULES))
def test_a_file_is_of_a_readable_size(name: str) -> None:
    assert len(MODULES[name].read_text(encoding="utf-8").splitlines()) <= 400


ROOT = PACKAGE.parent


def test_every_file_that_the_readme_names_is_there() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    named = re.findall(r"`([\w/]+\.py)`", readme)
    assert len(named) > 50
    known = {path.name for path in PACKAGE.rglob("*.py")}
    missing = [name for name in named if not (ROOT / name).exists() and name not in known]
    assert not missing


def test_the_hooks_before_a_commit_have_the_versions_of_nox() -> None:
    hooks = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for group in ("lint", "types"):
        (wanted,) = re.findall(rf"^{group} = \[(.*)\]$", project, flags=re.MULTILINE)
        for requirement in wanted.split(", "):
            assert requirement in hooks
