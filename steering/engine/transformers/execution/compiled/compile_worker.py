"""Compiles a model's steps ahead of time, in a process of its own: `python -m steering.engine.transformers.execution.compiled.compile_worker REQUEST`."""

import json
import os
import shutil
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

from steering.engine.transformers.execution.compiled.decode_graph import DecodeGraph
from steering.engine.transformers.execution.compiled.graph_rewrites import rewritten
from steering.engine.transformers.execution.compiled.packed_linears import PackedLinears
from steering.engine.transformers.execution.compiled.prompt_graph import PromptGraph
from steering.engine.transformers.execution.kernels.library import build
from steering.engine.transformers.execution.kernels.operations import GRAPH_ENTRIES
from steering.engine.transformers.execution.kernels.processor import packs_linears
from steering.model.loading import load

OPTIONS = {
    # weights become constants that are packed for the processor's matrix units once, at compile time
    "freezing": True,
    # angles of positions are computed once a pass and not again in every layer
    "realize_cpu_opcount_threshold": 12,
    # fused or not, numbers are rounded where the model rounds them: a row gets the same whichever graph its batch needs
    "emulate_precision_casts": True,
    "aot_inductor.custom_ops_to_c_shims": GRAPH_ENTRIES,
}


def step_of(kind: str, model: Any, layout: Any, linears: PackedLinears | None) -> DecodeGraph | PromptGraph:
    """The step of one of KINDS."""
    if kind == "prompt":
        return PromptGraph(model, layout, linears)
    return DecodeGraph(model, layout, linears)


def linears_of(model: Any) -> PackedLinears | None:
    """The model's linear layers, attached for tracing, where they run by our kernel."""
    weight = next(model.parameters())
    if not packs_linears(weight.dtype, weight.device):
        return None
    linears = PackedLinears(model)
    linears.weights = linears.placeholders()
    linears.attach()
    return linears


def compile_step(model: Any, layout: Any, linears: PackedLinears | None, target: Path, kind: str) -> None:
    """Writes one compiled step of a model to the folder `target`, whole or not at all.

    Unpacked here, once: torch's loader would unpack a package at every start, and leave it behind when it is killed.
    """
    step = step_of(kind, model, layout, linears).eval()
    unfinished = target.with_name(f"{os.getpid()}-{target.name}")
    unfinished.mkdir(parents=True)
    package = unfinished / "package.pt2"
    try:
        with torch.no_grad():
            program = torch.export.export(step, step.example(), dynamic_shapes=step.dynamic_shapes(), strict=False)
            aoti_compile_and_package(rewritten(program), package_path=str(package), inductor_configs=OPTIONS)
        with zipfile.ZipFile(package) as packed:
            packed.extractall(unfinished)
        package.unlink()
        with suppress(OSError):  # another process was first, with the same
            unfinished.rename(target)
    finally:
        step.close()
        shutil.rmtree(unfinished, ignore_errors=True)
    if not target.exists():
        raise OSError(f"{target} could not be written")


def end_with(parent: int) -> None:
    """Ends this process and all that it started when its parent has gone, however that went."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os.killpg(0, signal.SIGKILL)


def main(request: str) -> None:
    """request: JSON with source, revision, dtype, cache_dir, library (a path) and targets {kind: path}."""
    wanted = json.loads(request)
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    # Only where nobody else wants the processor. A mere nice value still takes slices of a few milliseconds, and every
    # parallel operation of the serving process waits for its slowest thread: measured, 40 times slower.
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    if not Path(wanted["library"]).exists():
        build(Path(wanted["library"]))
    loaded = load(
        wanted["source"],
        cache_dir=Path(wanted["cache_dir"]),
        device="cpu",
        dtype=wanted["dtype"],
        revision=wanted["revision"],
    )
    linears = linears_of(loaded.model)
    for kind, path in wanted["targets"].items():
        if not Path(path).exists():
            compile_step(loaded.model, loaded.layout, linears, Path(path), kind)


if __name__ == "__main__":
    main(sys.argv[1])
