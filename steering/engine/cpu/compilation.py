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
from dataclasses import asdict
from pathlib import Path

import structlog
import torch
import transformers

from steering.engine.cpu.kernels.library import CompiledGraph, cpu_features, library_path, load, load_graph
from steering.engine.transformers.executor import CompileRequest
from steering.model.cache_folder import (
    UntrustedArtifact,
    artifact_folder,
    check_trusted,
    private_folder,
    remove_abandoned,
    scratch_folder,
)
from steering.model.device import DTYPES, takes_kernels

log = structlog.get_logger()
TRACED = (
    "engine/cpu",
    "engine/transformers/executor.py",
    "engine/transformers/attention.py",
    "engine/transformers/block_pool.py",
    "engine/transformers/paged_cache.py",
    "injection/rows.py",
    "model/blocks.py",
    "model/device.py",
    "model/hook_points.py",
    "model/hooks.py",
    "model/layout.py",
    "model/loading.py",
    "model/verification.py",
)
"""Sources, within the package, that decide what a graph computes."""
START_DELAY = 3.0
"""Seconds before the worker starts: a server measures its model's norms first, which a compiler would slow down."""
POLL = 0.5  # seconds between two looks at the worker


def graph_path(request: CompileRequest) -> Path:
    """The folder of the graph; its name is a digest of everything the graph depends on. One graph computes prompts and decodes."""
    package = Path(__file__).parents[2]
    sources = [path for name in TRACED for path in sorted((package / name).rglob("*.py")) or [package / name]]
    packed = request.kernels and takes_kernels(DTYPES[request.info.dtype], torch.device("cpu"))
    facts = [
        request.content,
        request.info.dtype,
        request.weights,
        torch.__version__,
        transformers.__version__,
        cpu_features(),
        None if packed else torch.get_num_threads(),  # a constant of graphs without packed weights, see compile_graph
        library_path(artifact_folder(request.cache_dir), kernels=request.kernels).name,
        *(source.read_text() for source in sources),
    ]
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]
    return artifact_folder(request.cache_dir) / f"{key}-pass"


class Compilation(threading.Thread):
    """One attempt in the background. From this thread, `loaded` is called once the library is loaded, then `ready` with the graph.

    A failure is logged, and the engine keeps the executor that it has: correct, and slower.
    """

    def __init__(
        self, request: CompileRequest, loaded: Callable[[], None], ready: Callable[[CompiledGraph], None]
    ) -> None:
        super().__init__(name="compilation", daemon=True)
        self.request, self._report_loaded, self._ready = request, loaded, ready
        self._library_loaded = False
        self.library = library_path(artifact_folder(request.cache_dir), kernels=request.kernels)
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
            log.error("compiled_artifacts_refused", reason=str(error))  # noqa: TRY400 - no defect of ours
        except (OSError, RuntimeError) as error:
            log.warning("compilation_failed", model=self.request.info.name, reason=str(error)[:300])

    def _attempt(self) -> None:
        private_folder(self.request.cache_dir)
        private_folder(artifact_folder(self.request.cache_dir))
        remove_abandoned(self.request.cache_dir)
        path = graph_path(self.request) if self.request.graph else None
        if not self._complete(path):
            if self._closed.wait(START_DELAY):
                return
            self._compile(path)
        self._load_library()
        if path is None or self._closed.is_set():
            return
        graph = self._load(path)
        if not self._closed.is_set():
            self._ready(graph)

    def _complete(self, path: Path | None) -> bool:
        return self.library.exists() and (path is None or path.exists())

    def _load_library(self) -> None:
        """Loads the library once it is there. An unusable file is removed, so that the next start makes it again."""
        if self._library_loaded or self._closed.is_set() or not self.library.exists():
            return
        check_trusted(self.library)
        try:
            load(self.library)
        except OSError:
            self.library.unlink(missing_ok=True)
            raise
        self._library_loaded = True
        self._report_loaded()

    def _compile(self, path: Path | None) -> None:
        """Runs the worker to its end. Raises RuntimeError when it fails."""
        log.info("compiling", model=self.request.info.name)
        with compile_process(self.request, self.library, path) as process:
            while process.poll() is None and not self._closed.wait(POLL):
                self._load_library()
        if not self._closed.is_set() and not self._complete(path):
            raise RuntimeError(
                f"the compile worker ended with status {process.returncode}; see compile.log in the cache folder"
            )

    def _load(self, path: Path) -> CompiledGraph:
        """Loads the graph. An unusable one is removed, so that the next start makes it again."""
        check_trusted(path)
        try:
            return load_graph(path)
        except RuntimeError:
            shutil.rmtree(path, ignore_errors=True)
            raise


@contextmanager
def compile_process(request: CompileRequest, library: Path, path: Path | None) -> Iterator[subprocess.Popen[bytes]]:
    """Starts the worker with a scratch folder and a log; at the end kills it and everything that it started. path: of the graph; None:
    only the library is wanted.

    Raises OSError where the cache folder cannot be written, or the log is a link.
    """
    with scratch_folder(request.cache_dir) as scratch:
        work = asdict(request) | {"scratch": scratch, "library": library, "path": path}
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
        with os.fdopen(os.open(request.cache_dir / "compile.log", flags, 0o600), "wb") as output:
            process = subprocess.Popen(  # noqa: S603 - our module
                [sys.executable, "-P", "-m", f"{__package__}.compile_worker", json.dumps(work, default=str)],
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
