"""Compiles a model's graphs ahead of time. A process of its own, started by `compilation.compile_process`."""

import json
import os
import signal
import sys
import threading
import time
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch._inductor import aoti_compile_and_package

from steering.engine.cpu.graph_rewrites import rewrite
from steering.engine.cpu.graphs import PackedLinears, PassGraph
from steering.engine.cpu.kernels.library import build
from steering.engine.cpu.kernels.operations import AOTI_SHIMS
from steering.engine.transformers.paged_cache import probe_shapes
from steering.model.device import DTYPES, needs_kernels
from steering.model.fingerprint import content_digest
from steering.model.loading import load

OPTIONS = {
    # weights become constants, packed by oneDNN at compile time
    "freezing": True,
    # sines and cosines of positions are computed once per pass instead of in every layer
    "realize_cpu_opcount_threshold": 12,
    # fused or not, values are rounded where the model rounds them, so a row's bits do not depend on the graph
    "emulate_precision_casts": True,
    "aot_inductor.custom_ops_to_c_shims": AOTI_SHIMS,
    # a header that is compiled in advance pays for itself from the second graph on, and the worker compiles one
    "aot_inductor.precompile_headers": False,
}
USUAL_PRIORITY = "COMPILE_AT_USUAL_PRIORITY"
"""An environment variable that the tests set: beside busy processes, what takes idle processors only may not end for many minutes."""


def compile_graph(graph: Any, target: Path, scratch: Path) -> None:
    """Compiles a graph into the folder `target`, which appears complete or not at all.

    The package is unpacked once, here: torch's loader would unpack it at every start, and leave the copy when it is killed.
    """
    unfinished = scratch / target.name
    unfinished.mkdir(mode=0o700)
    package = unfinished / "package.pt2"
    # loops then take the number of threads that is set when they run, which ThreadCount may change
    options = {**OPTIONS, "cpp.dynamic_threads": graph.packed}
    with torch.no_grad():
        program = torch.export.export(graph, graph.example(), dynamic_shapes=graph.dynamic_shapes(), strict=False)
        aoti_compile_and_package(
            rewrite(program, kernels=graph.kernels), package_path=str(package), inductor_configs=options
        )
    with zipfile.ZipFile(package) as packed:
        packed.extractall(unfinished)
    package.unlink()
    with suppress(OSError):  # another process was first, with the same graph
        unfinished.rename(target)
    if not target.exists():
        raise OSError(f"{target} could not be written")


def end_with(parent: int) -> None:
    """Ends this process and everything it started once its parent has ended in any way."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os.killpg(0, signal.SIGKILL)


def run_on_idle_processors() -> None:
    """Gives this process and its children what others leave. A higher nice value still takes slices of a few milliseconds, and every
    parallel operation of the serving process waits for its slowest thread: measured, 40 times slower."""
    if USUAL_PRIORITY not in os.environ:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def main(request: str) -> None:
    """Builds what is missing. request: JSON, see `compilation.compile_process`."""
    work = json.loads(request)
    os.umask(0o077)
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    cache_dir, scratch, library = (Path(work[name]) for name in ("cache_dir", "scratch", "library"))
    kernels: bool = work["kernels"]
    dtype: str = work["info"]["dtype"]
    if not needs_kernels(DTYPES[dtype], torch.device("cpu")):
        run_on_idle_processors()
    if not library.exists():  # where passes are slow without the kernels, a busy server must not starve their compiler
        build(library, scratch, kernels=kernels)
    run_on_idle_processors()
    if work["path"] is None:
        return
    path = Path(work["path"])
    loaded = load(work["source"], cache_dir=cache_dir, device="cpu", dtype=dtype, revision=work["revision"])
    if loaded.folder is None or content_digest(loaded.folder) != work["content"]:
        raise RuntimeError("the files of the model have changed since the engine loaded them")
    shapes = probe_shapes(loaded.model, loaded.layout, torch.device("cpu"))
    if not path.exists():
        linears = PackedLinears.of(loaded.model, kernels=kernels, weights=work["weights"], folder=loaded.folder)
        if linears is not None:
            linears.attach(linears.placeholders())
        compile_graph(PassGraph(loaded.model, loaded.layout, shapes, linears, kernels=kernels).eval(), path, scratch)


if __name__ == "__main__":
    main(sys.argv[1])
