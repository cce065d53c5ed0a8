"""Paths, URLs, patterns; retries that end; names that stay below their root."""

import logging
import os
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest

from vlalign.data import storage
from vlalign.data.record import BadRecord
from vlalign.errors import UserError


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that retries asked for, not taken."""
    asked: list[float] = []
    monkeypatch.setattr(storage.time, "sleep", asked.append)
    return asked


@pytest.fixture
def memory() -> fsspec.AbstractFileSystem:
    system = fsspec.filesystem("memory")
    system.store.clear()
    return system


def test_ranges_of_local_and_remote_files_are_equal(
    tmp_path: Path, memory: fsspec.AbstractFileSystem
) -> None:
    content = bytes(range(256)) * 5
    (tmp_path / "a").write_bytes(content)
    memory.pipe_file("/box/a", content)
    for path in (str(tmp_path / "a"), "memory://box/a"):
        assert storage.size(path) == len(content)
        assert storage.read(path) == content
        assert storage.read(path, 7, 20) == content[7:27]
        assert storage.read(path, 1270, 100) == content[1270:]
        assert storage.read(path, 2000) == b""
        assert storage.exists(path)
        assert not storage.exists(path + "x")
        with pytest.raises(ValueError, match="at least 0"):
            storage.read(path, -1)
    assert storage.normal(f"file://{tmp_path}/a") == str(tmp_path / "a")
    assert storage.local_copy(str(tmp_path / "a")) == str(tmp_path / "a")


def test_missing_files_are_named(tmp_path: Path, memory: fsspec.AbstractFileSystem) -> None:
    memory.pipe_file("/box/a", b"abc")
    (tmp_path / "b").write_bytes(b"ab")
    assert storage.sizes(["memory://box/a", str(tmp_path / "b")]) == [3, 2]
    with pytest.raises(UserError, match=r"1 of 2 files do not exist: memory://box/c"):
        storage.sizes(["memory://box/a", "memory://box/c"])
    with pytest.raises(FileNotFoundError):
        storage.read("memory://box/c", 0, 1)
    with pytest.raises(UserError, match="cannot open nowhere://x"):
        storage.size("nowhere://x")


@pytest.mark.parametrize("failures", [1, storage.ATTEMPTS - 1])
def test_a_store_that_recovers(
    failures: int, waits: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    left = [failures]

    def read() -> str:
        left[0] -= 1
        if left[0] >= 0:
            raise ConnectionError("503 slow down")
        return "done"

    with caplog.at_level(logging.WARNING):
        assert storage.retried(read, "read x") == "done"
    assert len(waits) == failures
    assert all(0.5 * 0.5 * 2**i <= wait <= 1.5 * 0.5 * 2**i for i, wait in enumerate(waits))
    assert "cannot read x: 503 slow down; attempt 1 of 6" in caplog.text


def test_a_store_that_does_not_recover_stops_clearly(waits: list[float]) -> None:
    def fail(error: Exception) -> Callable[[], None]:
        def action() -> None:
            raise error

        return action

    with pytest.raises(UserError, match=r"cannot read x \(6 attempts\): 503"):
        storage.retried(fail(RuntimeError("503")), "read x")
    assert len(waits) == storage.ATTEMPTS - 1
    with pytest.raises(UserError, match=r"cannot read x: .*denied"):
        storage.retried(fail(PermissionError(13, "denied")), "read x")
    assert len(waits) == storage.ATTEMPTS - 1  # and no wait for what does not change


def test_patterns(tmp_path: Path, memory: fsspec.AbstractFileSystem) -> None:
    assert storage.expand(["a/{008..010}.tar"]) == ("a/008.tar", "a/009.tar", "a/010.tar")
    assert storage.expand(["{x,y}{0..1}"]) == ("x0", "x1", "y0", "y1")
    assert len(storage.expand(["gs://box/{00000..00099}.tar"])) == 100
    for name in ("b.tar", "a.tar", "c.txt"):
        (tmp_path / name).touch()
        memory.pipe_file(f"/box/{name}", b"")
    assert storage.expand([f"{tmp_path}/*.tar"]) == (f"{tmp_path}/a.tar", f"{tmp_path}/b.tar")
    remote = storage.expand(["memory://box/*.tar"])
    assert [path.rpartition("/")[2] for path in remote] == ["a.tar", "b.tar"]
    assert storage.sizes(remote) == [0, 0]
    (tmp_path / "x[1].tar").touch()
    assert storage.expand([f"{tmp_path}/x[1].tar"]) == (f"{tmp_path}/x[1].tar",)
    for pattern, message in (
        ("{3..1}", "ascending"),
        ("{1}", "neither a range"),
        ("{1..2", "unbalanced"),
        (f"{tmp_path}/*.zip", "no file matches"),
        ("{0..99999999999}", "ascending"),
    ):
        with pytest.raises(UserError, match=message):
            storage.expand([pattern])


def test_walk_is_sorted_and_ends(tmp_path: Path, memory: fsspec.AbstractFileSystem) -> None:
    names = ["a.png", "a/b.png", "a/c/d.png", "b.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
        memory.pipe_file(f"/box/{name}", name.encode())
    os.symlink(tmp_path, tmp_path / "loop")
    expected = [(name, len(name)) for name in names]
    assert list(storage.walk(str(tmp_path))) == expected
    assert list(storage.walk("memory://box")) == expected


def test_writes_appear_when_complete(tmp_path: Path, memory: fsspec.AbstractFileSystem) -> None:
    def chunks() -> object:
        yield b"half"
        raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        storage.write_atomic(str(tmp_path / "a" / "b"), chunks())  # type: ignore[arg-type]
    assert list((tmp_path / "a").iterdir()) == []
    for path in (str(tmp_path / "a" / "b"), "memory://box/b"):
        storage.write_atomic(path, [b"one", b"two"])
        assert storage.read(path) == b"onetwo"


def test_common_folders() -> None:
    assert storage.common_folder(["/a/b/c.tar", "/a/b/d/e.tar"]) == "/a/b"
    assert storage.common_folder(["gs://box/x/c.tar"]) == "gs://box/x"
    assert storage.common_folder(["gs://box/c", "gs://other/c"]) == ""
    assert storage.common_folder(["/a", "/b"]) == "/"
    assert storage.common_folder(["a", "b/c"]) == ""
    assert [storage.join(root, "x") for root in ("/", "", "/a/")] == ["/x", "x", "/a/x"]


BAD_NAMES = ("", ".", "..", "/etc/passwd", "a/../../b", "..\\b", "C:/b", "~/x", "gs://x/y", "a\0b")


@pytest.mark.parametrize("name", [*BAD_NAMES, "a\nb", "\udcff", "x" * 300, "é" * 200, "d/" * 3000])
def test_unsafe_names(name: str) -> None:
    for check in (storage.check_name, lambda name: storage.below("/root/dir", name)):
        with pytest.raises(BadRecord, match="unsafe name"):
            check(name)


def test_safe_names() -> None:
    assert storage.check_name("./a/b..c.jpg") == "a/b..c.jpg"
    assert storage.below("/root/dir", "/root/dir/a.jpg") == "/root/dir/a.jpg"
    assert storage.below("gs://box", "gs://box/a.jpg") == "gs://box/a.jpg"
    with pytest.raises(BadRecord, match="unsafe name"):
        storage.below("/root/dir", "/root/dir/../a.jpg")
    with pytest.raises(BadRecord, match="unsafe name"):
        storage.below("/root/dir", "/root/dirty/a.jpg")
