"""Write files and directories in one step."""

from pathlib import Path

import pytest

from storage.atomic import PARTIAL_SUFFIX, atomic_directory, atomic_write, atomic_write_text
from storage.digest import sha256_bytes, sha256_file
from storage.version import installed_version


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
