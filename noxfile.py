"""What can be run here: `python -m nox -s demo`, or any other session that `--list` shows.

Each session makes its own virtual environment and installs what it needs; `-R` reuses the last
one, as it is. What comes after `--` is handed on to the session's program.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from itertools import chain
from pathlib import Path

import nox
from nox.command import CommandFailed

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "virtualenv"
nox.options.sessions = []  # without -s, nox lists them

PYTHONS = ["3.10", "3.11", "3.12", "3.13"]
EXTRAS = ("cuda12x", "cuda13x")
#: The version that the tests and the benchmark compare with.
TORCH = "torch==2.13.0"
#: Options that shorten examples that take minutes.
SHORTENED = {"char_transformer.py": ["--quick"], "digits_cnn.py": ["--seeds", "1"]}
#: Examples that need downloaded data, or packages that only the session `mpi` installs.
LEFT_OUT = ["fashion_mnist.py", "dask_search.py"]
#: The settings of processes that share this machine's cores.
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
#: The commands of the session `gpu`; the README has them for a machine without nox.
GPU = {
    "tests": ("-m", "pytest", "-m", "gpu", "--require-gpu", "tests"),
    "benchmark": ("bench/gpu_throughput.py", "--json", "bench/gpu_throughput.json"),
}
#: Options of pytest: a process per core, which takes tests from others when it runs out.
IN_PARALLEL = ("-n", "auto", "--maxprocesses", "4", "--dist", "worksteal")
#: What the session `races` runs, by whether steps are captured.
RACES = {
    "captured": ("test_graphs", "test_kept_factors", "test_program_staleness"),
    "readable": ("test_training", "test_streaming", "test_streams", "test_frozen"),
}
#: What is tested with MPI and Dask installed; the other tests of several processes need neither.
MPI_TESTS = ("tests/test_mpi.py", "tests/test_dask.py", "tests/test_zarr.py")
PYPROJECT = nox.project.load_toml("pyproject.toml")
TEST = nox.project.dependency_groups(PYPROJECT, "test")
DOCS = nox.project.dependency_groups(PYPROJECT, "docs")
LINT = nox.project.dependency_groups(PYPROJECT, "lint")
TYPES = nox.project.dependency_groups(PYPROJECT, "types")


def oldest() -> str | None:
    """Return the oldest supported Python that starts here; None is the one that runs nox."""
    for version in PYTHONS:
        name = f"python{version}"
        # On the path is not enough: version managers put names there that start nothing.
        if shutil.which(name) and subprocess.run([name, "-V"], capture_output=True).returncode == 0:
            return version
    return None


@nox.session
def demo(session: nox.Session) -> None:
    """Train a network on handwritten digits."""
    session.install(".[examples]")
    session.run("python", "examples/digits.py", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests on the Python that runs nox."""
    session.install("-e", ".", *TEST)
    session.run("python", "-m", "pytest", *IN_PARALLEL, *session.posargs)


@nox.session(python=PYTHONS)
def tests_all(session: nox.Session) -> None:
    """Run the tests on each supported Python."""
    tests(session)


@nox.session(python=oldest())
def lowest(session: nox.Session) -> None:
    """Run the tests with the lowest supported versions of what gpunn needs."""
    extras = PYPROJECT["project"]["optional-dependencies"]
    optional = [extras[name] for name in ("sklearn", "compiled")]
    wanted = chain(PYPROJECT["project"]["dependencies"], *optional)
    pins = [bound.replace(">=", "==") for bound in wanted]
    session.install("-e", ".", *pins, *TEST)
    session.run("python", "-m", "pytest", *IN_PARALLEL, *session.posargs)


@nox.session(python="3.11")
def oracles(session: nox.Session) -> None:
    """Compare layers, losses and optimizers with PyTorch's."""
    session.install("-e", ".", *TEST, TORCH)
    session.run("python", "-m", "pytest", "-m", "torch", "--require-torch", *session.posargs)


@nox.session
def drop_in(session: nox.Session) -> None:
    """Run scikit-learn's own tests of its networks on gpunn's."""
    session.install("-e", ".", *TEST)
    session.run("python", "tests/drop_in.py", *session.posargs)


@nox.session
def mpi(session: nox.Session) -> None:
    """Train on two to four processes of MPI, and with Dask on two workers; read arrays of Zarr."""
    session.install("-e", ".[mpi,dask,compiled]", "mpich", "zarr>=3", *TEST)
    session.run(
        "python", "-c", "import mpi4py.MPI, distributed, zarr"
    )  # else its tests would be skipped
    session.run("python", "-m", "pytest", *MPI_TESTS, *session.posargs)
    session.run("mpiexec", "-n", "2", "python", "examples/data_parallel.py", env=ONE_THREAD)
    session.run("python", "examples/dask_search.py")


# A CuPy that is installed already, by conda say, is seen; an extra's comes before it.
@nox.session(venv_params=["--system-site-packages"])
def gpu(session: nox.Session) -> None:
    """Test on a GPU, then time it: `-- cuda13x`, or with the CuPy that is installed.

    `-- here` installs nothing, and takes the Python that runs nox with what it has.
    """
    arguments = list(session.posargs)
    source = arguments.pop(0) if arguments and arguments[0] in (*EXTRAS, "here") else ""
    if source == "here":
        run = partial(session.run, sys.executable, external=True, env=in_checkout())
    else:
        session.install("-e", f".[{source}]" if source else ".", *TEST)
        run = partial(session.run, "python")
    more = {"tests": arguments, "benchmark": []}
    failed = [name for name in GPU if not succeeds(run, *GPU[name], *more[name])]
    if failed:  # only now: a failed test does not keep the benchmark from running
        session.error(f"failed: {', '.join(failed)}")


@nox.session
def races(session: nox.Session) -> None:
    """Run the tests of training on an emulated GPU in 20 random orders; `-- 5`: in five.

    GPUNN_EMULATOR names the emulator's command; without it nothing is run. The command takes
    `--async random --seed N COMMAND`, and then runs what is queued on the device in an order drawn
    from those that CUDA allows. Steps are captured in the first half of the runs; in the second,
    with GPUNN_GRAPHS=0, they are not.
    """
    emulator = os.environ.get("GPUNN_EMULATOR")
    if not emulator:
        session.skip("GPUNN_EMULATOR does not name the command of an emulator of CUDA")
    seeds = int(session.posargs[0]) if session.posargs else 20
    session.install("-e", ".", *TEST)
    pytest = ("python", "-m", "pytest", "-q", *IN_PARALLEL, "-m", "gpu", "--require-gpu")
    failed = []
    for kind, names in RACES.items():
        graphs = {"GPUNN_GRAPHS": "0" if kind == "readable" else "1"}
        run = partial(session.run, external=True, env=graphs)
        files = [f"tests/{name}.py" for name in names]
        for seed in range(1, seeds + 1):
            order = (emulator, "--async", "random", "--seed", str(seed))
            if not succeeds(run, *order, *pytest, *files):
                failed.append(f"{kind}, seed {seed}")
    if failed:
        session.error(f"failed: {'; '.join(failed)}")


@nox.session(python="3.11")
def fuzz(session: nox.Session) -> None:
    """Fuzz each reader of files for a minute; `-- 10`: for ten.

    What is found goes to the session's folder `tmp`: inputs that reach new lines, to be added to
    `tests/corpus` in part, and the one that a reader failed on.
    """
    seconds = int(60 * float(session.posargs[0] if session.posargs else 1))
    session.install(".[onnx]", "atheris")
    for kept in sorted(Path("tests/corpus").iterdir()):
        found = Path(session.create_tmp(), kept.name)
        found.mkdir(exist_ok=True)
        limits = (f"-max_total_time={seconds}", "-timeout=10", "-rss_limit_mb=512")
        report = ("-print_final_stats=1", f"-artifact_prefix={found}.failed.")
        session.run("python", "bench/fuzz.py", kept.name, *limits, *report, str(found), str(kept))


@nox.session
def docs(session: nox.Session) -> None:
    """Build the site: the guide, every public name, every example; look at all pages.

    The pages are left in the session's folder `tmp`, in `site`. Chromium looks at them.
    """
    session.install(".[examples]", *DOCS)
    place = Path(session.create_tmp()).resolve()
    source, site = place / "source", place / "site"
    for folder in (source, site):
        shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree("gpunn/guide", source)
    programs = sorted(Path("examples").resolve().glob("*.py"))
    wanted = [",".join([p.name, *SHORTENED.get(p.name, [])]) for p in programs]
    left_out = [f"--only-code={name}" for name in LEFT_OUT]
    session.run("python", str(source / "pages.py"), str(source), "examples", *wanted, *left_out)
    session.run("sphinx-build", "-q", "-W", "-b", "html", str(source), str(site))
    opened = {"GPUNN_SITE": str(site)}
    session.run("python", "-m", "pytest", *IN_PARALLEL, "tests/test_site.py", env=opened)
    session.log(f"the site is in {site}")


def succeeds(run: Callable[..., object], *command: str) -> bool:
    """Run a command; return whether it succeeded."""
    try:
        run(*command)
    except CommandFailed:
        return False
    return True


def in_checkout() -> dict[str, str]:
    """Return the variable with which Python finds gpunn without installing it."""
    places = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    return {"PYTHONPATH": os.pathsep.join(filter(None, places))}


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and format."""
    session.install(*LINT)
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")


@nox.session
def types(session: nox.Session) -> None:
    """Check types."""
    session.install(".", *TYPES)
    session.run("mypy", *session.posargs)


@nox.session
def examples(session: nox.Session) -> None:
    """Run each example, the long ones shortened; each asserts its result."""
    session.install(".[examples]")
    programs = sorted(Path("examples").resolve().glob("*.py"))
    programs = [program for program in programs if program.name not in LEFT_OUT]
    with session.chdir(session.create_tmp()):  # for the files they write
        for program in programs:
            given = session.posargs or ["--backend", "numpy"]
            session.run("python", str(program), *given, *SHORTENED.get(program.name, []))


@nox.session
def bench(session: nox.Session) -> None:
    """Run the benchmarks of the CPU; `-- bench/old_new.py OLD NEW`: one, with arguments."""
    session.install(".[sklearn,plot,compiled]")
    if session.posargs:
        session.run("python", *session.posargs)
        return
    for name in ("kernels", "overhead", "growth", "step_time", "estimators", "startup"):
        session.run("python", f"bench/{name}.py")


@nox.session(python="3.11")
def peers(session: nox.Session) -> None:
    """Time a training step against PyTorch, JAX and scikit-learn, on the CPU."""
    session.install(".[sklearn,compiled]", TORCH, "jax")
    session.run("python", "bench/peers.py", *session.posargs)
