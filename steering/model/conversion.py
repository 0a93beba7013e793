"""Converts a GGUF file to a folder of safetensors and a tokenizer, once; later starts read the folder."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from steering.errors import ModelLoadFailed

FORMAT = 1
"""Part of a folder's name: raised when what is written changes, so that old folders are not used."""
GIB = 1 << 30
SECONDS = 900
SECONDS_PER_GIB = 600
"""Processor time that a conversion may take; the largest models are read at more than 10 MB/s."""


def converted(gguf: Path, dtype: torch.dtype, cache_dir: Path, report: Callable[[str], None]) -> Path:
    """Returns the folder made from this file, converting it if need be. Raises ModelLoadFailed.

    dtype float32 keeps the exact values of the file: its 4-bit blocks are scale times integer plus offset in float32,
    which neither bfloat16 nor float16 can represent. Any other dtype gets a folder of its own, half the size, whose
    values are those float32 ones rounded once.
    """
    name = str(dtype).removeprefix("torch.")
    folder = cache_dir / f"gguf-{_digest(gguf, cache_dir)[:24]}-{name}-{FORMAT}"
    if folder.is_dir():
        return folder
    report(f"Converting {gguf.name} to {name} safetensors, once")
    cache_dir.mkdir(parents=True, exist_ok=True)
    working = Path(tempfile.mkdtemp(prefix=".converting-", dir=cache_dir))
    try:
        _convert_in_child(gguf, name, working)
        _publish(working, folder)
    except OSError as error:
        raise ModelLoadFailed(f"{gguf.name} could not be converted: {error}") from error
    finally:
        shutil.rmtree(working, ignore_errors=True)
    return folder


def _convert_in_child(gguf: Path, dtype: str, folder: Path) -> None:
    """Parses the file in a process with limits: a file from elsewhere may make a parser loop or ask for any memory."""
    size = gguf.stat().st_size
    seconds = SECONDS + SECONDS_PER_GIB * size // GIB
    command = [sys.executable, "-P", "-m", "steering.model.gguf_process", str(gguf), dtype, str(folder), str(seconds)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    try:
        child = subprocess.run(  # noqa: S603 - a module of this package
            command, capture_output=True, text=True, env=environment, timeout=2 * seconds, check=False
        )
    except subprocess.TimeoutExpired:
        raise ModelLoadFailed(f"{gguf.name} could not be converted within {2 * seconds} seconds") from None
    if child.returncode != 0:
        reason = child.stdout.strip() or f"the converter ended with status {child.returncode}"
        raise ModelLoadFailed(f"{gguf.name} could not be converted: {reason}")


def _publish(working: Path, folder: Path) -> None:
    """Renames the finished folder, which is atomic. Of two processes that convert at once, the second finds it made."""
    working.chmod(0o755)
    try:
        working.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise


def _digest(path: Path, cache_dir: Path) -> str:
    """Returns the SHA-256 of a file, cached for as long as its path, size and time of change stay the same."""
    status = path.stat()
    identity = json.dumps([str(path.resolve()), status.st_size, status.st_mtime_ns])
    cached = cache_dir / f"digest-{hashlib.sha256(identity.encode()).hexdigest()[:24]}.txt"
    if cached.is_file():
        return cached.read_text()
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    cache_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=cache_dir, prefix=".digest-", delete=False) as written:
        written.write(digest)
    Path(written.name).rename(cached)
    return digest
