"""The nox sessions for a GPU, or an emulated one, and the README's commands without nox."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


class Session:
    """A session that notes what it is asked to run, and fails at some of it."""

    def __init__(self, *posargs: str, failing: tuple[str, ...] = ()) -> None:
        self.posargs, self.failing = list(posargs), failing
        self.installed: list[tuple[str, ...]] = []
        self.ran: list[tuple[str, ...]] = []
        self.settings: list[dict[str, Any]] = []

    def install(self, *packages: str) -> None:
        self.installed.append(packages)

    def run(self, *command: str, **settings: Any) -> None:
        self.ran.append(command)
        self.settings.append(settings)
        if any(word in " ".join(command) for word in self.failing):
            raise CommandFailed

    def error(self, message: str) -> None:
        raise AssertionError(message)

    def skip(self, message: str) -> None:
        raise Skipped(message)


class Skipped(Exception):  # noqa: N818
    pass


class CommandFailed(Exception):  # noqa: N818 (nox's name)
    pass


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the noxfile, with a stand-in for nox, which the tests do without."""
    nox = SimpleNamespace(
        options=SimpleNamespace(),
        project=SimpleNamespace(
            load_toml=lambda _: {}, dependency_groups=lambda _, name: [f"group {name}"]
        ),
        session=lambda *function, **_: function[0] if function else lambda f: f,
        Session=Session,
    )
    monkeypatch.setitem(sys.modules, "nox", nox)  # type: ignore[arg-type]
    command = SimpleNamespace(CommandFailed=CommandFailed)
    monkeypatch.setitem(sys.modules, "nox.command", command)  # type: ignore[arg-type]
    monkeypatch.chdir(ROOT)
    spec = importlib.util.spec_from_file_location("noxfile_of_gpunn", ROOT / "noxfile.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class TestGPU:
    @pytest.mark.parametrize("failing", [("pytest",), ("throughput",), ("pytest", "throughput")])
    def test_it_runs_both_and_fails_at_the_end(self, sessions: Any, failing: Any) -> None:
        session = Session(failing=failing)
        names = [{"pytest": "tests", "throughput": "benchmark"}[word] for word in failing]
        with pytest.raises(AssertionError, match=f"failed: {', '.join(names)}$"):
            sessions.gpu(session)
        assert len(session.ran) == 2

    @pytest.mark.parametrize(
        ("given", "extra", "rest"),
        [
            ((), ".", ()),
            (("-x",), ".", ("-x",)),
            (("cuda13x",), ".[cuda13x]", ()),
            (("cuda12x", "-k", "budget"), ".[cuda12x]", ("-k", "budget")),
        ],
    )
    def test_it_installs_what_it_is_told_to(
        self, sessions: Any, given: Any, extra: str, rest: Any
    ) -> None:
        session = Session(*given)
        sessions.gpu(session)
        assert session.installed == [("-e", extra, *sessions.TEST)]
        tests, benchmark = session.ran
        assert tests == ("python", *sessions.GPU["tests"], *rest)
        assert benchmark == ("python", *sessions.GPU["benchmark"])

    def test_it_takes_what_is_here(self, sessions: Any, monkeypatch: Any) -> None:
        monkeypatch.setenv("PYTHONPATH", "beside")
        session = Session("here", "-k", "budget")
        sessions.gpu(session)
        assert session.installed == []
        assert [command[0] for command in session.ran] == [sys.executable] * 2
        assert session.ran[0][-2:] == ("-k", "budget")
        for settings in session.settings:
            assert settings["external"] is True
            assert settings["env"]["PYTHONPATH"] == os.pathsep.join((str(ROOT), "beside"))

    def test_the_readme_has_its_commands(self, sessions: Any) -> None:
        readme = (ROOT / "README.md").read_text(encoding="utf-8")
        for command in sessions.GPU.values():
            assert f"\npython {' '.join(command)}\n" in readme


class TestRaces:
    def test_without_an_emulator(self, sessions: Any, monkeypatch: Any) -> None:
        monkeypatch.delenv("GPUNN_EMULATOR", raising=False)
        session = Session()
        with pytest.raises(Skipped, match="GPUNN_EMULATOR does not name"):
            sessions.races(session)
        assert not session.ran
        assert not session.installed

    @pytest.mark.parametrize(("given", "seeds"), [((), 20), (("3",), 3)])
    def test_each_seed_with_captured_steps_and_without(
        self, sessions: Any, monkeypatch: Any, given: Any, seeds: int
    ) -> None:
        monkeypatch.setenv("GPUNN_EMULATOR", "some/run")
        session = Session(*given, failing=("--seed 2 ",))
        with pytest.raises(AssertionError, match=r"failed: captured, seed 2; readable, seed 2$"):
            sessions.races(session)
        assert len(session.ran) == 2 * seeds
        assert session.ran[0][:5] == ("some/run", "--async", "random", "--seed", "1")
        assert [settings["env"]["GPUNN_GRAPHS"] for settings in session.settings] == (
            ["1"] * seeds + ["0"] * seeds
        )
        for names in sessions.RACES.values():
            assert all((ROOT / "tests" / f"{name}.py").exists() for name in names)
