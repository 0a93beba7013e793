"""Compilation: an engine's steps compiled in a process of its own while the engine serves, kept on disk, loaded when ready."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import structlog
import torch
import transformers

from steering.engine.compiled_model import Compiled, library_path, load
from steering.engine.compiled_passes import KINDS
from steering.model.info import ModelInfo

log = structlog.get_logger()
STEPS = ("decode_step.py", "prompt_step.py", "graph_calls.py", "attention.py", "kv_cache.py")
"""Sources of what is in the graphs."""


@dataclass(frozen=True, slots=True)
class CompileRequest:
    """How the worker finds the same model again, and where compiled steps are kept."""

    source: str | None
    revision: str | None
    dtype: str
    cache_dir: Path

    @property
    def library(self) -> Path:
        """What runs the compiled steps."""
        return library_path(self.cache_dir / "compiled")

    def targets(self, info: ModelInfo) -> dict[str, Path]:
        """One folder a kind, named by everything a compiled step depends on."""
        facts = [
            info.fingerprint,
            info.dtype,
            torch.__version__,
            transformers.__version__,
            torch.backends.cpu.get_cpu_capability(),
            *((Path(__file__).parent / name).read_text() for name in STEPS),
        ]
        key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]
        return {kind: self.cache_dir / "compiled" / f"{key}-{kind}" for kind in KINDS}


class Compilation:
    """One attempt, in the background. `ready` is called (from another thread) with each kind's callable as it comes.

    A failure is logged and leaves the engine as it is: eager, and right.
    """

    def __init__(self, request: CompileRequest, info: ModelInfo, ready: Callable[[str, Compiled], None]) -> None:
        self._request, self._info, self._ready = request, info, ready
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="compilation", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Ends the worker if it still runs. Harmless when repeated."""
        self._closed.set()
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        targets = self._request.targets(self._info)
        needed = [self._request.library, *targets.values()]
        if any(not path.exists() for path in needed) and not self._compile(targets):
            return
        for kind, path in targets.items():
            if self._closed.is_set():
                return
            try:
                loaded = load(self._request.library, path)
            except (RuntimeError, OSError) as error:
                log.warning("compiled_step_unusable", kind=kind, reason=str(error)[:300])
                shutil.rmtree(path, ignore_errors=True)
                return
            self._ready(kind, loaded)

    def _compile(self, targets: Mapping[str, Path]) -> bool:
        request = {
            "source": self._request.source,
            "revision": self._request.revision,
            "dtype": self._request.dtype,
            "cache_dir": str(self._request.cache_dir),
            "library": str(self._request.library),
            "targets": {kind: str(path) for kind, path in targets.items()},
        }
        log.info("compiling_steps", model=self._info.name)
        command = [sys.executable, "-m", "steering.engine.compile_worker", json.dumps(request)]
        # scratch files beside what they are for: /tmp may be small, in memory, or closed to programs
        scratch = tempfile.TemporaryDirectory(
            prefix="compiling-", dir=self._request.cache_dir, ignore_cleanup_errors=True
        )
        with scratch as folder, self._request.cache_dir.joinpath("compile.log").open("wb") as output:
            environment = {**os.environ, "TMPDIR": folder, "TORCHINDUCTOR_CACHE_DIR": folder}
            self._process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)  # noqa: S603 - our module
            if self._closed.is_set():
                self._process.kill()
            status = self._process.wait()
        if status != 0 and not self._closed.is_set():
            log.warning("steps_not_compiled", model=self._info.name, status=status, see="compile.log in the cache")
        return status == 0
