"""CompileProcess: the worker that compiles, its scratch folder, and what dead ones left behind."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SCRATCH = "compiling-"
LEFT_OVER = 3600.0
"""Seconds after which scratch files of a process that is gone are swept up. (A shared volume shows files of processes that
live elsewhere; those are younger, or written to.)"""


class CompileProcess:
    """Starts at once. Raises OSError where the cache folder cannot be written.

    Its scratch files lie beside what they are for: /tmp may be small, in memory, or closed to programs.
    """

    def __init__(self, request: Mapping[str, Any], cache_dir: Path) -> None:
        sweep(cache_dir)
        self._scratch = tempfile.TemporaryDirectory(
            prefix=f"{SCRATCH}{os.getpid()}-", dir=cache_dir, ignore_cleanup_errors=True
        )
        environment = {
            **os.environ,
            "TMPDIR": self._scratch.name,
            "TORCHINDUCTOR_CACHE_DIR": self._scratch.name,
        }
        command = [
            sys.executable,
            "-m",
            "steering.engine.transformers.execution.compiled.compile_worker",
            json.dumps(request),
        ]
        with cache_dir.joinpath("compile.log").open("wb") as output:
            # a session of its own, so that its compilers end with it
            self._process = subprocess.Popen(  # noqa: S603 - our module
                command, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )

    @property
    def status(self) -> int | None:
        """None while it runs."""
        return self._process.poll()

    def close(self) -> None:
        """Ends it, if it still runs, with all that it started."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._scratch.cleanup()


def sweep(cache_dir: Path) -> None:
    """Makes the folder if need be, and removes scratch of processes that were killed."""
    compiled = cache_dir / "compiled"
    compiled.mkdir(parents=True, exist_ok=True)
    for path in [*cache_dir.glob(f"{SCRATCH}*"), *compiled.glob("*-*")]:
        owner = path.name.removeprefix(SCRATCH).partition("-")[0]
        # finished ones are named by a hash, which is no number
        if owner.isdecimal() and not Path("/proc", owner).exists() and time.time() - path.stat().st_mtime > LEFT_OVER:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
