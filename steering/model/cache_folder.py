"""The cache folder: scratch folders of what is made in it, and the checks of compiled artefacts. Loading one of these runs its code, so
nobody else may be able to write their folder."""

import fcntl
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

COMPILING, CONVERTING = "compiling-", ".converting-"
"""What the names of scratch folders begin with."""
ABANDONED = 3600.0
"""Seconds after which an unlocked scratch folder is removed. A younger one may be between its creation and its lock, and on
some shared volumes locks of other machines are not visible."""


class UntrustedArtifact(PermissionError):
    """A file or folder of the cache could have been written by another user."""


def check_trusted(path: Path) -> None:
    """Raises UntrustedArtifact for a path, or anything in it, that is a link, belongs to another user than us or root, or is
    writable by others."""
    for each in (path, *path.rglob("*")) if path.is_dir() and not path.is_symlink() else (path,):
        status = each.lstat()
        if stat.S_ISLNK(status.st_mode):
            raise UntrustedArtifact(f"{each} is a symbolic link; compiled artefacts must be regular files")
        if status.st_uid not in {0, os.geteuid()}:
            raise UntrustedArtifact(f"{each} belongs to user {status.st_uid}, expected {os.geteuid()} or root")
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            mode = stat.S_IMODE(status.st_mode)
            raise UntrustedArtifact(f"{each} is writable by other users (mode {mode:04o}); run chmod go-w on it")


def private_folder(path: Path) -> None:
    """Creates a folder for this user alone. Raises UntrustedArtifact when it exists and others can write it."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = path.stat()
    if status.st_uid not in {0, os.geteuid()} or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        mode = stat.S_IMODE(status.st_mode)
        raise UntrustedArtifact(
            f"cache folder {path} must belong to user {os.geteuid()} or root and be writable by its owner alone, "
            f"got user {status.st_uid} and mode {mode:04o}"
        )


@contextmanager
def scratch_folder(cache_dir: Path, prefix: str = COMPILING) -> Iterator[Path]:
    """Yields a scratch folder of this process in the cache folder, locked while it is used, and removes it.

    It lies there since /tmp may be small, in memory, or mounted noexec, and so that results can be renamed into place.
    """
    path = Path(tempfile.mkdtemp(prefix=prefix, dir=cache_dir))
    lock = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system that locks no folders, where none is removed as abandoned
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


def remove_abandoned(cache_dir: Path) -> None:
    """Removes old scratch folders whose process has ended."""
    for path in (*cache_dir.glob(f"{COMPILING}*"), *cache_dir.glob(f"{CONVERTING}*")):
        with suppress(OSError):  # locked: still in use; of another user; or another process has just removed it
            if path.is_symlink() or not path.is_dir() or time.time() - path.stat().st_mtime < ABANDONED:
                continue
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(descriptor)


def artifact_folder(cache_dir: Path) -> Path:
    """Where compiled artefacts of all models are kept."""
    return cache_dir / "compiled"
