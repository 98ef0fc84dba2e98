"""Folders and files that only this process's user may read, for images and records of patients.

A name in `/tmp` or `/dev/shm` can be guessed and created by any user of the machine before us. So
an existing name is checked: it must be a folder or file of this user, no link, and nobody else may
have been able to write to it.
"""

import os
import stat
from pathlib import Path

from storage.errors import StorageError

FOLDER_MODE, FILE_MODE = 0o700, 0o600
_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def private_folder(path: Path) -> Path:
    """Create a folder with mode 0700, or check an existing one. Returns the folder.

    Missing parents get the mode that the process's umask gives. A folder of ours that others can
    only read is closed to them. Raises StorageError for a link, a folder of another user and a
    folder that others can write to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.mkdir(mode=FOLDER_MODE)
    except FileExistsError:
        check_private(path)
    return path


def private_file(path: Path) -> Path:
    """Create an empty file with mode 0600, or check an existing one as `private_folder` does."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, FILE_MODE))
    except FileExistsError:
        check_private(path, folder=False)
    return path


def check_private(path: Path, *, folder: bool = True) -> None:
    """Close an existing folder or file of ours to others. Raises StorageError as above."""
    kind, wanted = ("folder", FOLDER_MODE) if folder else ("file", FILE_MODE)
    status = path.lstat()
    if not (stat.S_ISDIR if folder else stat.S_ISREG)(status.st_mode):
        got = "a link" if stat.S_ISLNK(status.st_mode) else "something else"
        raise StorageError(f"{path}: expected a {kind}, got {got}; remove it")
    if status.st_uid != os.geteuid():
        raise StorageError(
            f"{path}: expected a {kind} of user {os.geteuid()}, got one of user {status.st_uid}; "
            "remove it or name another place"
        )
    if status.st_mode & _OTHERS_WRITE:
        raise StorageError(
            f"{path}: expected a {kind} that only its owner can write to, got mode "
            f"{stat.S_IMODE(status.st_mode):04o}; check its content and run chmod {wanted:o} on it"
        )
    if status.st_mode & _OTHERS:
        path.chmod(wanted)
        if path.lstat().st_mode & _OTHERS:
            raise StorageError(
                f"{path}: expected a file system that keeps permissions, got one without; name a "
                f"place on another, or mount it so that a {kind} has mode {wanted:04o}"
            )
