"""Linear layers of an exported graph that take the same rows, as one call: fewer calls, and work for all threads in each."""

from itertools import chain
from typing import Any, cast

import torch

from steering.native import operations

LINEARS, FOLLOWING = cast(Any, operations.linears).default, 4
"""The operation, and which of its arguments says what the next call reads."""


def joined(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """The program, changed: calls of `linears` on the same rows are one, with the weights of all; each knows the next."""
    graph = program.graph_module.graph
    calls: dict[Any, list[torch.fx.Node]] = {}
    for node in graph.nodes:
        if node.target is LINEARS:
            calls.setdefault(node.args[0], []).append(node)
    whole = [_joined(graph, nodes) for nodes in calls.values()]
    for call, following in zip(whole, (*whole[1:], *whole[:1]), strict=True):
        call.update_arg(FOLLOWING, following.args[1])
    graph.lint()
    program.graph_module.recompile()
    return program


def _joined(graph: torch.fx.Graph, nodes: list[torch.fx.Node]) -> torch.fx.Node:
    """One call in place of several. Weights are inputs of the graph, so they are at hand where the first call stands."""
    first = nodes[0]
    arguments = [list(chain.from_iterable(group)) for group in zip(*(node.args[1:] for node in nodes), strict=True)]
    with graph.inserting_before(first):
        whole = graph.call_function(LINEARS, (first.args[0], *arguments))
    value = first.meta["val"]
    whole.meta = {**first.meta, "val": value.new_empty(*value.shape[:-1], sum(arguments[2]))}
    start = 0
    for node in nodes:
        end = start + sum(node.args[3])  # type: ignore[arg-type]  # whole numbers, as the operation's schema says
        with graph.inserting_before(first):
            part = graph.call_function(torch.ops.aten.slice.Tensor, (whole, -1, start, end))
        part.meta = {**node.meta, "val": whole.meta["val"][..., start:end]}
        node.replace_all_uses_with(part)
        start = end
    for node in nodes:
        graph.erase_node(node)
    return whole
