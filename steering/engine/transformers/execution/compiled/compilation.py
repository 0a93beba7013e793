"""Compilation: an engine's steps compiled in a process of its own while the engine serves, kept on disk, loaded when ready."""

import hashlib
import json
import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import structlog
import torch
import transformers

from steering.engine.transformers.execution.compiled.compile_process import CompileProcess
from steering.engine.transformers.execution.compiled.passes import KINDS
from steering.engine.transformers.execution.kernels.library import Compiled, compiled, library_path, load
from steering.model.info import ModelInfo

log = structlog.get_logger()
HERE = Path(__file__).parent
SOURCES = [
    *(HERE / f"{name}.py" for name in ("attachment", "attention", "compile_worker", "decode_step", "graph_calls")),
    *(
        HERE / f"{name}.py"
        for name in ("packed_linears", "prompt_step", "graph_attention", "graph_rewrites", "graph_bank")
    ),
    *(HERE.parent / name for name in ("model/hooks.py", "native/operations.py", "native/processor.py")),
]
"""What is in the graphs, and how they are made."""
START_FIRST = 3.0
"""Seconds before the worker begins: a server reads its model's norms first, eight times as slow beside a compiler."""
LOOK = 0.5
"""Seconds between two looks at what the worker has made."""


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
            self.library.name,
            *(source.read_text() for source in SOURCES),
        ]
        key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]
        return {kind: self.cache_dir / "compiled" / f"{key}-{kind}" for kind in KINDS}


class Compilation:
    """One attempt, in the background. From another thread `kernels` is called once our library is loaded, and then
    `ready` with each kind's callable as it comes.

    A failure is logged and leaves the engine as it is: eager, and right.
    """

    def __init__(
        self,
        request: CompileRequest,
        info: ModelInfo,
        kernels: Callable[[], None],
        ready: Callable[[str, Compiled], None],
    ) -> None:
        self._request, self._info, self._kernels, self._ready = request, info, kernels, ready
        self._loaded = False
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="compilation", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Ends the worker if it still runs. Harmless when repeated."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        try:
            self._attempt(self._request.targets(self._info))
        except (OSError, RuntimeError) as error:
            log.warning("steps_not_compiled", model=self._info.name, reason=str(error)[:300])

    def _attempt(self, targets: Mapping[str, Path]) -> None:
        """Takes what is there; what is not is compiled, and taken as it comes."""
        left = dict(targets)
        self._take(left)
        if not left:
            return
        if self._closed.wait(START_FIRST):
            return
        log.info("compiling_steps", model=self._info.name)
        request = {
            "source": self._request.source,
            "revision": self._request.revision,
            "dtype": self._request.dtype,
            "cache_dir": str(self._request.cache_dir),
            "library": str(self._request.library),
            "targets": {kind: str(path) for kind, path in targets.items()},
        }
        process = CompileProcess(request, self._request.cache_dir)
        try:
            while process.status is None and not self._closed.wait(LOOK):
                self._take(left)
        finally:
            process.close()
        self._take(left)
        if left and not self._closed.is_set():
            log.warning(
                "steps_not_compiled", model=self._info.name, status=process.status, see="compile.log in the cache"
            )

    def _take(self, left: dict[str, Path]) -> None:
        """Hands over the library, then every kind that is complete on disk. Raises RuntimeError or OSError for what cannot
        be used, which is removed, so that it is made anew at the next start."""
        self._take_library()
        for kind, path in list(left.items()):
            if self._closed.is_set() or not (path.exists() and self._loaded):
                continue
            try:
                step = compiled(path)
            except RuntimeError:
                shutil.rmtree(path, ignore_errors=True)
                raise
            del left[kind]
            self._ready(kind, step)

    def _take_library(self) -> None:
        library = self._request.library
        if self._loaded or self._closed.is_set() or not library.exists():
            return
        try:
            load(library)
        except OSError:
            library.unlink(missing_ok=True)
            raise
        self._kernels()
        self._loaded = True
