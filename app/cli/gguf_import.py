"""Reads llama.cpp control vectors, in a process of its own under limits. app/services/gguf_export.py says what the file means.

A direction's length becomes its natural scale.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from steering.errors import InvalidRequest

SECONDS = 20.0
"""Longest time a file may take to read. The gguf package does not return from some damaged files."""


def read(path: Path, seconds: float = SECONDS) -> dict[str, list[float]]:
    """The directions in a file that may come from a stranger, by layer. Raises InvalidRequest for anything else.

    The parser runs in a child process that has so many seconds and limits itself in memory.
    """
    try:
        child = subprocess.run(  # noqa: S603 - our own module, and a path that is only opened
            [sys.executable, "-m", "app.cli.gguf_reader_process", str(path)],
            capture_output=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise InvalidRequest(f"{path.name}: reading it took longer than {seconds:g} s", param="file") from None
    if child.returncode != 0:
        reason = child.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["the reader ended without a word"]
        raise InvalidRequest(f"{path.name} is no control vector that can be read: {reason[0][:300]}", param="file")
    found: dict[str, Any] = json.loads(child.stdout)
    return found
