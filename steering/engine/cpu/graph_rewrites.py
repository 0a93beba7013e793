"""Rewrites of an exported graph that fuse operations and calls of our kernels. Where nothing matches, the computation stays as it is.

Patterns find root mean square norms, with the sum in front of them, and rotary embeddings, which attention applies where it reads
queries and keys.
"""

from collections.abc import Iterator
from itertools import chain
from operator import getitem
from typing import Any, cast

import torch
from torch._inductor.pattern_matcher import CallFunction, KeywordArg, Match

from steering.engine.cpu.kernels import operations

LINEAR = cast(Any, operations.packed_linear).default
SWIGLU = cast(Any, operations.packed_swiglu).default
STEER = cast(Any, operations.steer).default
ATTENTION = cast(Any, operations.paged_attention).default
RMS_NORM = cast(Any, operations.rms_norm).default
ADD_RMS_NORM = cast(Any, operations.add_rms_norm).default
PREFETCH = 4  # index of the argument of LINEAR and SWIGLU that holds the weights of the next call
LANES = 16  # widths of rows that RMS_NORM supports are multiples of it
ROW_DIMENSIONS = (3, 4)  # (1, token, width), and (1, head, token, width) of the norms of queries and keys
SCORED = 10  # arguments of ATTENTION before the cosines
END = 2**63 - 1  # where a slice ends that takes everything from its start on
ATEN = torch.ops.aten


def rewrite(program: torch.export.ExportedProgram, *, kernels: bool) -> torch.export.ExportedProgram:
    """Rewrites the program in place and returns it: norms and rotations use our kernels; linear layers with the same input become
    one call; SiLU-gated pairs write only their product; the sum that ends a block is computed by `steer`; each linear call
    prefetches the next weights. kernels: whether the pass has our kernels; without them norms stay."""
    graph = program.graph_module.graph
    for node in _calls(graph, ATEN._assert_tensor_metadata.default):
        graph.erase_node(node)  # the exporter's checks of dtypes hold for every pass, and use what patterns match
    if kernels:
        fuse_norms(graph)
    fuse_rotations(graph)
    graph.eliminate_dead_code()
    _merge_linears(graph)
    _fuse_swiglu(graph)
    _fuse_sum_into_steer(graph)
    _chain_prefetches(graph)
    graph.lint()
    program.graph_module.recompile()
    return program


def _calls(graph: torch.fx.Graph, *targets: Any) -> list[torch.fx.Node]:
    return [node for node in graph.nodes if node.target in targets]


def _insert(before: torch.fx.Node, target: Any, arguments: tuple[Any, ...], meta: dict[str, Any]) -> torch.fx.Node:
    """Inserts a call before a node, with the metadata of what it replaces."""
    with before.graph.inserting_before(before):
        call = before.graph.call_function(target, arguments)
    call.meta = dict(meta)
    return call


def _merge_linears(graph: torch.fx.Graph) -> None:
    by_rows: dict[Any, list[torch.fx.Node]] = {}
    for node in _calls(graph, LINEAR):
        by_rows.setdefault(node.args[0], []).append(node)
    for nodes in by_rows.values():
        _merge(graph, nodes)


def _merge(graph: torch.fx.Graph, nodes: list[torch.fx.Node]) -> None:
    """Replaces calls by one before the first; weights are inputs of the graph, so they are defined there."""
    first = nodes[0]
    arguments = [list(chain.from_iterable(group)) for group in zip(*(node.args[1:] for node in nodes), strict=True)]
    value = first.meta["val"].new_empty(*first.meta["val"].shape[:-1], sum(arguments[2]))
    whole = _insert(first, LINEAR, (first.args[0], *arguments), {**first.meta, "val": value})
    start = 0
    for node in nodes:
        end = start + sum(node.args[3])  # type: ignore[arg-type]  # whole numbers, as the operation's schema says
        meta = {**node.meta, "val": value[..., start:end]}
        node.replace_all_uses_with(_insert(first, ATEN.slice.Tensor, (whole, -1, start, end), meta))
        start = end
    for node in nodes:
        graph.erase_node(node)


def _fuse_swiglu(graph: torch.fx.Graph) -> None:
    """Fuses SiLU(first) * second of a call with two layers: SwiGLU (Shazeer, arXiv 2002.05202)."""
    for call in _calls(graph, LINEAR):
        rows, packed, biases, columns, _ = cast(Any, call.args)
        if len(columns) != 2 or columns[0] != columns[1]:
            continue
        parts = sorted(call.users, key=lambda part: part.args[2])  # type: ignore[arg-type,return-value]  # by first column
        gate = _only_user(parts[0], ATEN.silu.default)
        product = _only_user(gate, ATEN.mul.Tensor)
        if product is None or set(product.args) != {gate, parts[1]} or len(parts[1].users) != 1:
            continue
        product.replace_all_uses_with(_insert(product, SWIGLU, (rows, packed, biases, columns[0], []), product.meta))
        for node in (product, gate, *parts, call):
            graph.erase_node(cast(torch.fx.Node, node))


def _only_user(node: torch.fx.Node | None, target: Any) -> torch.fx.Node | None:
    """The single user of a node, if it is a call of `target`."""
    users = [] if node is None else list(node.users)
    return users[0] if len(users) == 1 and users[0].target is target else None


def _fuse_sum_into_steer(graph: torch.fx.Graph) -> None:
    """steer([reshape(a + b)]) -> steer([reshape(a), reshape(b)]), where the sum has no other user."""
    for call in _calls(graph, STEER):
        (shaped,) = cast(Any, call.args[0])
        total = shaped.args[0] if shaped.target is ATEN.reshape.default and len(shaped.users) == 1 else None
        if total is None or len(total.users) != 1 or not is_sum(total):
            continue
        parts = [_insert(call, ATEN.reshape.default, (part, shaped.args[1]), shaped.meta) for part in total.args]
        call.update_arg(0, parts)
        graph.erase_node(shaped)
        graph.erase_node(total)


def _chain_prefetches(graph: torch.fx.Graph) -> None:
    """Gives each call the weights of the next one; SwiGLU reads its gate projection first."""
    calls = _calls(graph, LINEAR, SWIGLU)
    for call, following in zip(calls, (*calls[1:], *calls[:1]), strict=True):
        weights = cast(Any, following.args[1])
        call.update_arg(PREFETCH, weights[:1] if following.target is SWIGLU else weights)


def _norms() -> Iterator[tuple[CallFunction, bool]]:
    """The norm of `rows` as Llama and as Gemma write it, and whether its weight is zero-centered."""
    wide = CallFunction(ATEN.to.dtype, KeywordArg("rows"), torch.float32, _users=2)
    mean = CallFunction(ATEN.mean.dim, CallFunction(ATEN.pow.Tensor_Scalar, wide, 2), [-1], True)
    inverse = CallFunction(ATEN.rsqrt.default, CallFunction(ATEN.add.Tensor, mean, KeywordArg("epsilon")))
    scaled = CallFunction(ATEN.mul.Tensor, wide, inverse)
    weight = KeywordArg("weight")
    yield CallFunction(ATEN.mul.Tensor, weight, CallFunction(ATEN.to.dtype, scaled, torch.bfloat16)), False
    shifted = CallFunction(ATEN.add.Tensor, CallFunction(ATEN.to.dtype, weight, torch.float32), 1.0)
    yield CallFunction(ATEN.type_as.default, CallFunction(ATEN.mul.Tensor, scaled, shifted), KeywordArg("rows")), True


def _rotation() -> CallFunction:
    """`states` rotated by cosines and sines, as `apply_rotary_pos_emb` of transformers writes it."""
    states, middle = KeywordArg("states"), KeywordArg("middle")
    low = CallFunction(ATEN.slice.Tensor, states, 3, 0, middle)
    high = CallFunction(ATEN.slice.Tensor, states, 3, middle, END)
    turned = CallFunction(ATEN.cat.default, [CallFunction(ATEN.neg.default, high), low], -1)
    return CallFunction(
        ATEN.add.Tensor,
        CallFunction(ATEN.mul.Tensor, states, KeywordArg("cosines")),
        CallFunction(ATEN.mul.Tensor, turned, KeywordArg("sines")),
    )


NORMS = tuple(_norms())
ROTATION = _rotation()


def fuse_norms(graph: torch.fx.Graph) -> None:
    """Replaces x / sqrt(mean of x^2 + epsilon) * weight in bfloat16, of rows (1, token, width) or (1, head, token, width)."""
    for node in list(graph.nodes):
        for pattern, zero_centered in NORMS:
            match = pattern.match(node)
            if isinstance(match, Match) and _supported(**match.kwargs):
                _replace_norm(node, match, zero_centered=zero_centered)


def _supported(rows: torch.fx.Node, weight: torch.fx.Node, epsilon: object) -> bool:
    value, factors = rows.meta["val"], weight.meta["val"]
    return (
        value.dtype == factors.dtype == torch.bfloat16
        and value.dim() in ROW_DIMENSIONS
        and value.shape[-1] % LANES == 0
        and weight.op == "placeholder"  # a parameter, which is there before all rows
        and factors.shape == value.shape[-1:]
        and isinstance(epsilon, float)
    )


def _replace_norm(node: torch.fx.Node, match: Match, *, zero_centered: bool) -> None:
    rows = match.kwargs["rows"]
    settings = match.kwargs["weight"], match.kwargs["epsilon"], zero_centered
    if not is_sum(rows):
        normed = _insert(node, RMS_NORM, (rows, *settings), node.meta)
    else:
        meta = {**rows.meta, "val": (rows.meta["val"], node.meta["val"])}
        both = _insert(rows, ADD_RMS_NORM, (*rows.args, *settings), meta)
        total = _insert(rows, getitem, (both, 0), rows.meta)
        normed = _insert(rows, getitem, (both, 1), node.meta)
        rows.replace_all_uses_with(total)
    node.replace_all_uses_with(normed)
    match.erase_nodes()


def is_sum(node: torch.fx.Node) -> bool:
    """Whether a node is the sum of two tensors of its own shape and dtype."""
    if node.target is not ATEN.add.Tensor or node.kwargs.get("alpha", 1) != 1:
        return False
    values = [getattr(part, "meta", {}).get("val") for part in node.args]
    total = node.meta["val"]
    return all(value is not None and value.shape == total.shape and value.dtype == total.dtype for value in values)


def fuse_rotations(graph: torch.fx.Graph) -> None:
    """Gives attention the states before rotation, and the cosines and sines, where queries and keys are rotated alike."""
    for call in [node for node in graph.nodes if node.target is ATTENTION]:
        matches = [ROTATION.match(cast(torch.fx.Node, states)) for states in call.args[:2]]
        rotations = [match for match in matches if isinstance(match, Match)]
        if len(rotations) < len(matches) or not _alike(*rotations):
            continue
        for index, match in enumerate(rotations):
            call.update_arg(index, match.kwargs["states"])
        call.args = (*call.args[:SCORED], *(rotations[0].kwargs[name] for name in ("cosines", "sines")))
        for match in rotations:
            match.erase_nodes()


def _alike(query: Match, key: Match) -> bool:
    """Whether both are rotated in full, by the same cosines and sines, one for each token."""
    if any(query.kwargs[name] is not key.kwargs[name] for name in ("cosines", "sines")):
        return False
    *_, tokens, width = query.kwargs["states"].meta["val"].shape
    expected = (1, 1, tokens, width)
    if any(tuple(query.kwargs[name].meta["val"].shape) != expected for name in ("cosines", "sines")):
        return False
    return bool(query.kwargs["middle"] == key.kwargs["middle"] == width // 2)
