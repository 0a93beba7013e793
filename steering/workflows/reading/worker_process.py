"""Runs work in a worker process next to the server: at a low priority, with one thread. Imports no torch, so that a worker
starts within a second."""

import os
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from anyio import to_process
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

T = TypeVar("T")
P = ParamSpec("P")
NICENESS = 10


async def run_in_worker(work: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """Runs work in a worker process and returns its result; cancelling kills the worker at once."""
    return await to_process.run_sync(_run, work, arguments, named, cancellable=True)


def _run(work: Callable[..., T], arguments: tuple[Any, ...], named: dict[str, Any]) -> T:
    """Gives the server and its model precedence: one thread, and a lower priority where the system supports it."""
    if hasattr(os, "setpriority"):
        os.setpriority(os.PRIO_PROCESS, 0, max(os.getpriority(os.PRIO_PROCESS, 0), NICENESS))
    os.environ["OMP_NUM_THREADS"] = "1"  # for libraries that are loaded later
    with threadpool_limits(limits=1):
        return work(*arguments, **named)
