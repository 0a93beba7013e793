"""The operation `steering::act`, which vLLM calls behind each decoder layer, and at hook points inside it.

Its body is Python. On a CPU the library of `steering/engine/cpu/kernels` brings another, act.cpp: it applies the edits that `begin_pass`
has named, returns at once from points where nothing acts, and calls Python for what is left.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch

from steering.engine.vllm.messages import SPLITTING_OP
from steering.injection.injector import Injection
from steering.model.hook_points import KINDS, kind_of, layer_of
from steering.shapes import Int, Tensor

LEFT_TO_PYTHON, NOTHING = -1, -2
"""What act.cpp does at a point, where it is not the number of a layer among those that are edited."""


class Attached:
    """What acts in this worker process; vLLM has one model in each."""

    act: Callable[[int, Tensor, Tensor | None], None] | None = None


def act(hidden: Tensor, residual: Tensor | None, point: int) -> None:
    """Steers the stream hidden (+ residual) at a point by changing `hidden` in place."""
    if Attached.act is not None:
        Attached.act(point, hidden, residual)


# a call of torch.library.custom_op takes five times as long (benchmarks/README.md)
_untyped: Any = torch.library
LIBRARY = _untyped.Library(SPLITTING_OP.partition("::")[0], "FRAGMENT")
for name in (SPLITTING_OP.partition("::")[2], "act_in_python"):
    LIBRARY.define(f"{name}(Tensor(a!) hidden, Tensor? residual, int point) -> ()")
    LIBRARY.impl(name, act, dispatch_key="CompositeExplicitAutograd")
    LIBRARY._register_fake(name, lambda *_: None)
LIBRARY.define("begin_pass(Tensor[] tables, Tensor tasks, int first) -> ()")


@lru_cache(maxsize=256)
def _tasks(layer_count: int, edited: tuple[int, ...], *called: frozenset[int]) -> Int[Tensor, "kind layer"]:
    tasks = torch.full((KINDS, layer_count), NOTHING)
    for number, point in enumerate(edited):
        tasks[kind_of(point), layer_of(point)] = LEFT_TO_PYTHON if kind_of(point) else number
    for point in frozenset[int]().union(*called):
        tasks[kind_of(point), layer_of(point)] = LEFT_TO_PYTHON
    return tasks


def begin_pass(injection: Injection | None, read: frozenset[int], layer_count: int) -> None:
    """Tells act.cpp what to do in a pass, until `end_pass`. read: the points that are read beside those of the injection."""
    if injection is None:
        torch.ops.steering.begin_pass((), _tasks(layer_count, ()), 0)
        return
    tables, first = injection.tables()
    called = injection.conditions.layers, injection.controllers.layers, read
    tasks = _tasks(layer_count, injection.edited, *called)
    torch.ops.steering.begin_pass(tables if injection.edited else (), tasks, first)


def end_pass() -> None:
    """Has act.cpp leave every point to Python again: what vLLM runs beside the passes of requests is not steered."""
    torch.ops.steering.begin_pass((), torch.empty(0, 0, dtype=torch.int64), 0)
