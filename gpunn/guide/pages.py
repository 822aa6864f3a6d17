"""Write the pages that are generated: the reference, and each example with its output.

    python pages.py FOLDER EXAMPLES [NAME.py[,ARGUMENT...]]... [--only-code=NAME.py]...

FOLDER is a copy of the guide. EXAMPLES is the folder of the programs, which follow with their
arguments. Those that need what is not here are shown, and not run.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import gpunn
from gpunn import estimators

#: The headings of the reference, by the folder that a name lives in.
HEADINGS = {
    "nn": "Layers and activations",
    "losses": "Losses",
    "optim": "Optimizers and schedules",
    "training": "Training",
    "data": "Data",
    "distributed": "Several processes",
    "arrays": "Backends",
    "files": "Files",
    "tools": "Tools",
    "errors": "Errors",
}


#: What the page of a program says in the place of its output.
NOT_RUN = "It needs data or a cluster that are not here, so this page has the program alone.\n"


def reference() -> str:
    """Return the page that lists every public name, by subject."""
    names = defaultdict(list)
    for name, home in gpunn._HOMES.items():
        names[home.split(".")[1]].append(f"gpunn.{name}")
    lines = ["# Reference\n"]
    for folder, heading in HEADINGS.items():
        lines += [f"## {heading}\n", *_listed(names.pop(folder))]
    del names["estimators"]  # below
    assert not names, f"no heading for {names}"
    every = [f"gpunn.estimators.{name}" for name in estimators.__all__]
    return "\n".join([*lines, "## scikit-learn's interface\n", *_listed(every)])


def _listed(names: list[str]) -> list[str]:
    listed = [f"   {name}" for name in names]
    return ["```{eval-rst}", ".. autosummary::", "   :toctree: api\n", *listed, "```\n"]


def example(program: Path, arguments: list[str], folder: Path) -> str:
    """Run a program, and return its page: the code, what it prints, and its picture."""
    before = set(folder.glob("*.png"))
    done = subprocess.run(
        [sys.executable, str(program), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    command = " ".join(["python", f"examples/{program.name}", *arguments])
    pictures = sorted(path.name for path in set(folder.glob("*.png")) - before)
    printed = f"```console\n$ {command}\n{done.stdout}```\n"
    return page_of(program, printed + "".join(f"\n```{{image}} {name}\n```\n" for name in pictures))


def page_of(program: Path, printed: str) -> str:
    """Return the page of a program."""
    return f"# {program.name}\n\n{printed}\n```python\n{program.read_text('utf-8')}```\n"


def summary(program: Path) -> str:
    """Return what the first line of a program says it does."""
    return (ast.get_docstring(ast.parse(program.read_text("utf-8"))) or "").split("\n")[0]


def main() -> None:
    """Write all pages."""
    folder, programs, *wanted = sys.argv[1:]
    shown = {each.partition("=")[2] for each in wanted if each.startswith("--only-code=")}
    Path(folder, "reference.md").write_text(reference(), "utf-8")
    place = Path(folder, "examples")
    place.mkdir()
    names, lines = [], []
    for each in wanted:
        if each.startswith("--"):
            continue
        name, *arguments = each.split(",")
        program = Path(programs, name).resolve()
        text = page_of(program, NOT_RUN) if name in shown else example(program, arguments, place)
        Path(place, name).with_suffix(".md").write_text(text, "utf-8")
        names.append(Path(name).stem)
        lines.append(f"- [{name}]({Path(name).stem}.md): {summary(program)}")
    listed, hidden = "\n".join(lines), "\n".join(names)
    index = f"# Examples\n\n{listed}\n\n```{{toctree}}\n:hidden:\n\n{hidden}\n```\n"
    Path(place, "index.md").write_text(index, "utf-8")


if __name__ == "__main__":
    main()
