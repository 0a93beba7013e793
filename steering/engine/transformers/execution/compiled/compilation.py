"""Compilation: compiles an engine's graphs in a worker process while the engine serves, or loads them from the cache folder."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog
import torch
import transformers

from steering.engine.transformers.execution.base import CompileRequest
from steering.engine.transformers.execution.compiled.artifacts import (
    UntrustedArtifact,
    check_trusted,
    open_log,
    private_folder,
    remove_abandoned,
    scratch_folder,
)
from steering.engine.transformers.execution.kernels.library import CompiledGraph, library_path, load, load_graph
from steering.engine.transformers.execution.kernels.processor import cpu_features

log = structlog.get_logger()
TRACED = (
    "engine/transformers/execution",
    "engine/transformers/attention",
    "engine/transformers/memory",
    "injection/dose.py",
    "model/hooks.py",
    "model/layout.py",
    "model/loading.py",
)
"""Sources, within the package, that decide what a graph computes."""
START_DELAY = 3.0
"""Seconds before the worker starts: a server measures its model's norms first, which is eight times slower next to a
compiler."""
POLL = 0.5
"""Seconds between two looks at the worker."""


def artifact_folder(request: CompileRequest) -> Path:
    """Where compiled artefacts of all models are kept."""
    return request.cache_dir / "compiled"


def graph_path(request: CompileRequest) -> Path:
    """The folder of the graph; its name is a digest of everything the graph depends on.

    One graph computes prompts and decodes. Measured on one core with AMX, SmolLM2-135M: compiled in 149 s, against 166 s and
    103 s for one graph each; tokens/s at 1, 8 and 32 requests differ by less than the noise of 30 %.
    """
    package = Path(__file__).parents[4]
    sources = [path for name in TRACED for path in sorted((package / name).rglob("*.py")) or [package / name]]
    facts = [
        request.content,
        request.info.dtype,
        torch.__version__,
        transformers.__version__,
        cpu_features(),
        library_path(artifact_folder(request), kernels=request.kernels).name,
        *(source.read_text() for source in sources),
    ]
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]
    return artifact_folder(request) / f"{key}-pass"


class Compilation(threading.Thread):
    """One attempt in the background. `ready` is called from this thread, once, with the graph.

    A failure is logged and leaves the engine eager: correct, and slower.
    """

    def __init__(self, request: CompileRequest, ready: Callable[[CompiledGraph], None]) -> None:
        super().__init__(name="compilation", daemon=True)
        self._request, self._ready = request, ready
        self._library = library_path(artifact_folder(request), kernels=request.kernels)
        self._closed = threading.Event()

    def close(self) -> None:
        """Ends the worker if it still runs. Harmless when repeated."""
        self._closed.set()
        if self.is_alive():
            self.join()

    def run(self) -> None:
        """Makes the attempt."""
        try:
            self._attempt()
        except UntrustedArtifact as error:
            log.error("compiled_artifacts_refused", reason=str(error), executor="eager")  # noqa: TRY400 - no defect of ours
        except (OSError, RuntimeError) as error:
            log.warning("compilation_failed", model=self._request.info.name, reason=str(error)[:300], executor="eager")

    def _attempt(self) -> None:
        private_folder(self._request.cache_dir)
        private_folder(artifact_folder(self._request))
        remove_abandoned(self._request.cache_dir)
        path = graph_path(self._request)
        if not self._complete(path):
            if self._closed.wait(START_DELAY):
                return
            self._compile(path)
        if self._closed.is_set():
            return
        graph = self._load(path)
        if not self._closed.is_set():
            self._ready(graph)

    def _complete(self, path: Path) -> bool:
        return self._library.exists() and path.exists()

    def _compile(self, path: Path) -> None:
        """Runs the worker to its end. Raises RuntimeError when it fails."""
        log.info("compiling", model=self._request.info.name)
        with compile_process(self._request, self._library, path) as process:
            while process.poll() is None and not self._closed.wait(POLL):
                pass
        if not self._closed.is_set() and not self._complete(path):
            raise RuntimeError(
                f"the compile worker ended with status {process.returncode}; see compile.log in the cache folder"
            )

    def _load(self, path: Path) -> CompiledGraph:
        """Loads the library and the graph. An unusable file is removed, so that the next start makes it again."""
        check_trusted(self._library)
        check_trusted(path)
        try:
            load(self._library)
        except OSError:
            self._library.unlink(missing_ok=True)
            raise
        try:
            return load_graph(path)
        except RuntimeError:
            shutil.rmtree(path, ignore_errors=True)
            raise


@contextmanager
def compile_process(request: CompileRequest, library: Path, path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Starts the worker with a scratch folder and a log; at the end kills it and everything that it started.

    Raises OSError where the cache folder cannot be written.
    """
    with scratch_folder(request.cache_dir) as scratch:
        work = {
            "content": request.content,
            "source": request.source,
            "revision": request.revision,
            "dtype": request.info.dtype,
            "kernels": request.kernels,
            "cache_dir": str(request.cache_dir),
            "scratch": str(scratch),
            "library": str(library),
            "path": str(path),
        }
        with open_log(request.cache_dir / "compile.log") as output:
            process = subprocess.Popen(  # noqa: S603 - our module
                [sys.executable, "-P", "-m", f"{__package__}.compile_worker", json.dumps(work)],
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "TMPDIR": str(scratch), "TORCHINDUCTOR_CACHE_DIR": str(scratch)},
                start_new_session=True,  # its compilers are ended with it
            )
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
