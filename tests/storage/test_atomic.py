"""Write files and directories in one step."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from signal import SIGKILL
from typing import Any

import pytest

from storage import atomic
from storage.atomic import (
    PARTIAL_SUFFIX,
    atomic_directory,
    atomic_write,
    atomic_write_text,
    current_directory,
)
from storage.digest import sha256_bytes, sha256_file
from storage.version import installed_version


def is_killed_at(operation: int, write: Callable[[], object]) -> bool:
    """Run `write` in a process that is killed before its operation number `operation`.

    Operations flush, rename or remove, and count from 0. Return False if there were not so many.
    """
    process = os.fork()
    if process == 0:
        with pytest.MonkeyPatch.context() as patch:
            left = iter(range(operation))

            def die_when_none_is_left() -> None:
                if next(left, None) is None:
                    os.kill(os.getpid(), SIGKILL)

            for owner, name in ((os, "fsync"), (Path, "rename"), (shutil, "rmtree")):
                patch.setattr(owner, name, _after(die_when_none_is_left, getattr(owner, name)))
            try:
                write()
            finally:
                os._exit(0)
    return os.WIFSIGNALED(os.waitpid(process, 0)[1])


def _after(first: Callable[[], None], function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*given: Any, **named: Any) -> Any:
        first()
        return function(*given, **named)

    return call


def test_write_creates_the_folder_replaces_the_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.txt"
    atomic_write(path, b"old")
    atomic_write_text(path, "ü")
    assert path.read_bytes() == "ü".encode()
    assert [entry.name for entry in path.parent.iterdir()] == ["b.txt"]


def test_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    atomic_write(path, b"old")

    def fail(_: int) -> None:
        raise OSError("disk failure")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk failure"):
        atomic_write(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


def test_directory_appears_when_the_block_ends_and_replaces_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "run"
    for text in ("first", "second"):
        with atomic_directory(target) as folder:
            (folder / f"{text}.txt").write_text(text)
            assert not (target / f"{text}.txt").exists()
        assert [path.name for path in target.iterdir()] == [f"{text}.txt"]
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_directory_of_a_failed_block_never_appears(tmp_path: Path) -> None:
    target = tmp_path / "run"

    def fail() -> None:
        with atomic_directory(target) as folder:
            (folder / "a.txt").write_text("partial")
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        fail()
    assert not target.exists()
    with atomic_directory(target) as folder:
        assert folder.name.endswith(PARTIAL_SUFFIX)
        assert list(folder.iterdir()) == []  # what the failed block left is removed
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_writer_that_is_killed_anywhere_leaves_the_old_directory_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can_exchange: bool
) -> None:
    if not can_exchange:
        monkeypatch.setattr(atomic, "_exchange", lambda *_: False)
    target, found = tmp_path / "bundle", set()

    def write(text: str) -> None:
        with atomic_directory(target) as folder:
            for name in ("a", "b"):
                (folder / name).write_text(text)

    write("old")
    operation = 0
    while is_killed_at(operation, lambda: write("new")):
        folder = current_directory(target)
        contents = {(folder / name).read_text() for name in ("a", "b")}
        assert len(contents) == 1
        assert folder == target or not can_exchange
        found |= contents
        write("old")  # the next writer clears up what was left
        assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
        operation += 1
    assert found == {"old", "new"}
    assert (target / "a").read_text() == "new"


def test_files_and_the_folders_that_name_them_are_on_disk_before_a_write_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[Path] = []
    fsync = os.fsync

    def recorded(descriptor: int) -> None:
        flushed.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        fsync(descriptor)

    monkeypatch.setattr("os.fsync", recorded)
    atomic_write(tmp_path / "a" / "b" / "c.txt", b"text")
    assert {tmp_path, tmp_path / "a", tmp_path / "a" / "b"} <= set(flushed)
    assert flushed[-1] == tmp_path / "a" / "b"  # once the file has its name
    flushed.clear()
    with atomic_directory(tmp_path / "run") as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "x.txt").write_text("x")
    assert set(flushed) >= {folder, folder / "sub", folder / "sub" / "x.txt"}
    assert flushed[-1] == tmp_path


def test_a_folder_that_cannot_be_flushed_is_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def refuse(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").readlink().is_dir():
            raise OSError(errno.EINVAL, "as some network file systems answer")
        fsync(descriptor)

    monkeypatch.setattr("os.fsync", refuse)
    atomic_write(tmp_path / "a.txt", b"text")
    with atomic_directory(tmp_path / "run"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "run"]


def test_a_linked_directory_is_replaced_where_it_lies(tmp_path: Path) -> None:
    (tmp_path / "disk" / "v1").mkdir(parents=True)
    (tmp_path / "bundle").symlink_to(tmp_path / "disk" / "v1")
    with atomic_directory(tmp_path / "bundle") as folder:
        (folder / "a.txt").write_text("new")
    assert (tmp_path / "bundle").is_symlink()
    assert (tmp_path / "disk" / "v1" / "a.txt").read_text() == "new"
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["v1"]


def test_digests_of_files_and_bytes_agree(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_file(path) == sha256_bytes(b"abc") == expected
    with pytest.raises(FileNotFoundError, match="expected a regular file, got none"):
        sha256_file(tmp_path)


def test_version_of_a_package_that_is_not_installed_is_unreleased() -> None:
    assert installed_version("numpy")[0].isdigit()
    assert installed_version("no-such-package") == "unreleased"
