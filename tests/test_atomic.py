"""Files are replaced whole or not at all, and what stands in the way is named."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gpunn.errors import PathError
from gpunn.files.atomic import remove_unfinished, replace_file

NOBODY = 65534


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


@contextmanager
def as_nobody(folder: Path) -> Iterator[None]:
    """Give up the rights of root, who may write anywhere."""
    if os.geteuid() != 0:
        yield
        return
    for part in (folder, *folder.parents):
        if not stat.S_IMODE(part.stat().st_mode) & 0o001:
            part.chmod(part.stat().st_mode | 0o011)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def failing(pieces: list[bytes], error: BaseException) -> Iterator[bytes]:
    yield from pieces
    raise error


class TestReplace:
    def test_pieces_are_put_together(self, path: Path) -> None:
        replace_file("save", path, [b"one ", memoryview(b"two"), b""])
        assert path.read_bytes() == b"one two"
        replace_file("save", path, [])
        assert path.read_bytes() == b""
        assert list(path.parent.iterdir()) == [path]

    @pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt, MemoryError])
    @pytest.mark.parametrize("before", [None, b"old"])
    def test_an_error_in_making_the_content_is_handed_on(
        self, path: Path, kind: type[BaseException], before: bytes | None
    ) -> None:
        if before is not None:
            path.write_bytes(before)
        with pytest.raises(kind, match="on the way"):
            replace_file("save", path, failing([bytes(100_000)], kind("on the way")))
        assert [p.read_bytes() for p in path.parent.iterdir()] == ([before] if before else [])

    def test_the_file_and_then_the_folder_are_flushed(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls: list[str] = []
        fsync, replace = os.fsync, os.replace

        def flushed(number: int) -> None:
            kind = os.fstat(number).st_mode
            calls.append("flush folder" if stat.S_ISDIR(kind) else "flush file")
            fsync(number)

        def renamed(*names: Any) -> None:
            calls.append("rename")
            replace(*names)

        monkeypatch.setattr(os, "fsync", flushed)
        monkeypatch.setattr(os, "replace", renamed)
        replace_file("save", path, [b"content"])
        assert calls == ["flush file", "rename", "flush folder"]

    @pytest.mark.parametrize("length", [229, 230, 231, 255])
    def test_a_long_name_is_no_obstacle(self, tmp_path: Path, length: int) -> None:
        path = tmp_path / ("m" * length)
        replace_file("save", path, [b"content"])
        assert path.read_bytes() == b"content"

    @pytest.mark.parametrize("name", ["model", "m" * 255])
    def test_what_a_killed_process_left_is_removed_and_nothing_else(
        self, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", lambda *_: None)  # as if killed before
            for each in (name, f"{name[:9]}.safetensors", "other"):
                replace_file("save", tmp_path / each, [b"unfinished"])
        others = [".model.part", ".model.0123.part", ".model.0123456789ab.part.gz"]
        for each in others:
            (tmp_path / each).write_bytes(b"")
        assert len(remove_unfinished(tmp_path / name)) == 1
        assert len(list(tmp_path.iterdir())) == 2 + len(others)
        assert remove_unfinished(tmp_path / name) == []


@pytest.mark.skipif(os.name != "posix", reason="links and owners are POSIX's")
class TestPlace:
    def test_a_link_stays_and_leads_to_the_new_file(self, tmp_path: Path) -> None:
        folder = tmp_path / "run"
        folder.mkdir()
        link = tmp_path / "latest"
        link.symlink_to("run/model")  # leads nowhere at first, as for `open`
        for content in (b"first", b"second"):
            replace_file("save", link, [content])
            assert link.is_symlink()
            assert (folder / "model").read_bytes() == content
        assert [p.name for p in folder.iterdir()] == ["model"]

    def test_links_that_lead_to_no_file(self, tmp_path: Path) -> None:
        for name, goal in {"round": "round", "away": "nowhere/model", "up": "."}.items():
            link = tmp_path / name
            link.symlink_to(goal)
            with pytest.raises(PathError, match=r"symbolic links|no folder .*nowhere|is a folder"):
                replace_file("save", link, [b""])
            assert link.is_symlink()
        assert len(list(tmp_path.iterdir())) == 3

    def test_what_is_no_file_is_left_alone(self, path: Path) -> None:
        os.mkfifo(path)
        with pytest.raises(PathError, match="is a device, a pipe or a socket; name a file"):
            replace_file("save", path, [b"content"])
        with pytest.raises(PathError, match=f"^save: {os.devnull} is a device"):
            replace_file("save", Path(os.devnull), [b"content"])
        assert path.is_fifo()
        assert Path(os.devnull).is_char_device()

    def test_a_folder_that_may_not_be_written_to(self, path: Path) -> None:
        path.write_bytes(b"old")
        path.chmod(0o666)
        path.parent.chmod(0o555)
        with as_nobody(path.parent), pytest.raises(PathError) as caught:
            replace_file("save", path, [b"content"])
        path.parent.chmod(0o755)
        assert str(caught.value) == (
            f"save: cannot write {path}: Permission denied; the folder {path.parent} must be "
            "writable as well, since a new file is written there and then renamed"
        )
        assert [p.read_bytes() for p in path.parent.iterdir()] == [b"old"]

    def test_a_folder_that_may_not_be_looked_into(self, tmp_path: Path) -> None:
        (tmp_path / "closed").mkdir(mode=0)
        with as_nobody(tmp_path), pytest.raises(PathError, match=r"cannot write .*Permission den"):
            replace_file("save", tmp_path / "closed" / "model", [b"content"])

    def test_a_file_that_is_protected(self, path: Path) -> None:
        path.write_bytes(b"old")
        path.chmod(0o444)
        path.parent.chmod(0o777)
        with as_nobody(path.parent), pytest.raises(PathError, match="may not be written to; allow"):
            replace_file("save", path, [b"content"])
        assert path.read_bytes() == b"old"

    def test_nobody_may_read_the_unfinished_file_who_may_not_read_the_old(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path.write_bytes(b"old")
        path.chmod(0o600)
        seen = []

        def looked_at(place: Path, mode: int, chmod: Any = Path.chmod) -> None:
            seen.append(stat.S_IMODE(place.stat().st_mode))
            chmod(place, mode)
            seen.append(stat.S_IMODE(place.stat().st_mode))

        monkeypatch.setattr(Path, "chmod", looked_at)
        replace_file("save", path, [b"new"])
        assert seen == [0o600, 0o600]

    @pytest.mark.skipif(
        os.name != "posix" or os.geteuid() != 0, reason="only root gives files away"
    )
    def test_root_leaves_a_file_to_its_owner(self, path: Path) -> None:
        path.write_bytes(b"old")
        os.chown(path, NOBODY, NOBODY)
        replace_file("save", path, [b"new"])
        assert (path.stat().st_uid, path.stat().st_gid) == (NOBODY, NOBODY)

    def test_other_places(self, path: Path) -> None:
        path.write_bytes(b"old")
        with pytest.raises(PathError, match=f"there is no folder {path} to write model into"):
            replace_file("save", path / "model", [b""])
        with pytest.raises(PathError, match=r"cannot write .*null"):
            replace_file("save", path.parent / "a\0b", [b""])
        with pytest.raises(PathError, match=r"cannot write .*too long"):
            replace_file("save", path.parent / ("m" * 300), [b""])


#: A program that may not write large files, saves a small model, and then a large one.
LIMITED = """
import resource, sys
from pathlib import Path
import gpunn as gn
path = Path(sys.argv[1])
gn.save(path, gn.Dense(3, 2, rng=0))
before = path.read_bytes()
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
try:
    gn.save(path, gn.Dense(300, 200, rng=1))
except gn.errors.PathError as error:
    print(error)
assert path.read_bytes() == before
assert list(path.parent.iterdir()) == [path]
gn.save(path, gn.Dense(3, 2, rng=1))
assert path.read_bytes() != before
"""

#: The same on a disk of 64 KB, which nobody but the program sees; exit code 77 without the right.
SMALL_DISK = f"""
import subprocess, sys
from pathlib import Path
mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(Path(sys.argv[1]).parent)]
if subprocess.run(mount).returncode:
    sys.exit(77)
{LIMITED.replace("20_000", "resource.RLIM_INFINITY")}"""


def output_of(path: Path, *command: str) -> str:
    """Run a program on a path; return what it says."""
    done = subprocess.run([*command, str(path)], check=False, capture_output=True, text=True)  # noqa: S603
    if done.returncode == 77:
        pytest.skip("no right to mount a disk")
    assert done.returncode == 0, done.stderr
    return done.stdout


class TestFullDisk:
    @pytest.mark.skipif(os.name != "posix", reason="limits are POSIX's")
    def test_a_limit_on_the_size_of_a_file(self, path: Path) -> None:
        assert output_of(path, sys.executable, "-c", LIMITED) == (
            f"save: cannot write {path}: File too large; raise the limit on the size of a file "
            "(ulimit -f), or write to another disk\n"
        )

    def test_a_disk_without_space(self, path: Path) -> None:
        unshare = shutil.which("unshare")
        if unshare is None or subprocess.run([unshare, "-rm", "true"], check=False).returncode:  # noqa: S603
            pytest.skip("no namespace of its own to mount a disk in")
        assert output_of(path, unshare, "-rm", sys.executable, "-c", SMALL_DISK) == (
            f"save: cannot write {path}: No space left on device; free some space, or write to "
            "another disk\n"
        )
