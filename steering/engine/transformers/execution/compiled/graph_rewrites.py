"""Rewrites of an exported graph, by which our kernels do in one call what a model writes as several.

Each leaves what is computed as it was; a graph in which nothing matches stays as it is.
"""

from itertools import chain
from typing import Any, cast

import torch

from steering.engine.transformers.execution.kernels import operations

LINEARS = cast(Any, operations.linears).default
GATED = cast(Any, operations.gated_linears).default
STEER = cast(Any, operations.steer).default
FOLLOWING = 4
"""Which argument of LINEARS and of GATED says what the next call reads."""
ATEN = torch.ops.aten


def rewritten(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """The program, changed: linear layers on the same rows are one call; of a gate and what passes it only the product is
    written; the sum that ends a block is formed where it is steered; each call of linear layers knows the next."""
    graph = program.graph_module.graph
    _join(graph)
    _gate(graph)
    _sum(graph)
    _follow(graph)
    graph.lint()
    program.graph_module.recompile()
    return program


def _calls(graph: torch.fx.Graph, *targets: Any) -> list[torch.fx.Node]:
    return [node for node in graph.nodes if node.target in targets]


def _join(graph: torch.fx.Graph) -> None:
    by_rows: dict[Any, list[torch.fx.Node]] = {}
    for node in _calls(graph, LINEARS):
        by_rows.setdefault(node.args[0], []).append(node)
    for nodes in by_rows.values():
        _joined(graph, nodes)


def _joined(graph: torch.fx.Graph, nodes: list[torch.fx.Node]) -> None:
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
            part = graph.call_function(ATEN.slice.Tensor, (whole, -1, start, end))
        part.meta = {**node.meta, "val": whole.meta["val"][..., start:end]}
        node.replace_all_uses_with(part)
        start = end
    for node in nodes:
        graph.erase_node(node)


def _gate(graph: torch.fx.Graph) -> None:
    """SiLU(first half) * second half of a call with two layers, as Llama and its kin have it (Shazeer, arXiv 2002.05202)."""
    for call in _calls(graph, LINEARS):
        rows, packed, biases, columns, _ = cast(Any, call.args)
        if len(columns) != 2 or columns[0] != columns[1]:
            continue
        halves = sorted(call.users, key=lambda part: part.args[2])  # type: ignore[arg-type,return-value]  # where each begins
        gate = _only_user(halves[0], ATEN.silu.default)
        product = _only_user(gate, ATEN.mul.Tensor)
        if product is None or set(product.args) != {gate, halves[1]} or len(halves[1].users) != 1:
            continue
        with graph.inserting_before(product):
            whole = graph.call_function(GATED, (rows, packed, biases, columns[0], []))
        whole.meta = dict(product.meta)
        product.replace_all_uses_with(whole)
        for node in (product, gate, *halves, call):
            graph.erase_node(cast(torch.fx.Node, node))


def _only_user(node: torch.fx.Node | None, target: Any) -> torch.fx.Node | None:
    """Who alone uses a node, if it is such a call."""
    users = [] if node is None else list(node.users)
    return users[0] if len(users) == 1 and users[0].target is target else None


def _sum(graph: torch.fx.Graph) -> None:
    """steer([reshape(a + b)]) -> steer([reshape(a), reshape(b)]), where nobody else wants the sum."""
    for call in _calls(graph, STEER):
        (shaped,) = cast(Any, call.args[0])
        total = shaped.args[0] if shaped.target is ATEN.reshape.default and len(shaped.users) == 1 else None
        if (
            total is None
            or total.target is not ATEN.add.Tensor
            or len(total.users) != 1
            or total.kwargs.get("alpha", 1) != 1
        ):
            continue
        values = [getattr(part, "meta", {}).get("val") for part in total.args]
        if any(
            value is None or value.shape != total.meta["val"].shape or value.dtype != total.meta["val"].dtype
            for value in values
        ):
            continue
        with graph.inserting_before(call):
            parts = [graph.call_function(ATEN.reshape.default, (part, shaped.args[1])) for part in total.args]
        for part in parts:
            part.meta = dict(shaped.meta)
        call.update_arg(0, parts)
        graph.erase_node(shaped)
        graph.erase_node(total)


def _follow(graph: torch.fx.Graph) -> None:
    """Of a pair the gate is read first."""
    calls = _calls(graph, LINEARS, GATED)
    for call, following in zip(calls, (*calls[1:], *calls[:1]), strict=True):
        packed = cast(Any, following.args[1])
        call.update_arg(FOLLOWING, packed[:1] if following.target is GATED else packed)
