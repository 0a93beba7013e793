"""Rewrites of an exported graph that replace what several operations of a model compute by one of our kernels: root mean square
norms, with the sum in front of them, and rotary embeddings, which attention applies where it reads queries and keys."""

from collections.abc import Iterator
from operator import getitem
from typing import Any, cast

import torch
from torch._inductor.pattern_matcher import CallFunction, KeywordArg, Match

from steering.engine.cpu.kernels import operations

ATTENTION = cast(Any, operations.paged_attention).default
RMS_NORM = cast(Any, operations.rms_norm).default
ADD_RMS_NORM = cast(Any, operations.add_rms_norm).default
LANES = 16
"""Widths of rows that RMS_NORM supports are multiples of it."""
ROW_DIMENSIONS = (3, 4)
"""(1, token, width), and (1, head, token, width) of the norms of queries and keys."""
ATEN = torch.ops.aten
SCORED = 10
"""Arguments of ATTENTION before the cosines."""
END = 2**63 - 1
"""Where a slice ends that takes everything from its start on."""


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
                _replace_norm(graph, node, match, zero_centered=zero_centered)


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


def _replace_norm(graph: torch.fx.Graph, node: torch.fx.Node, match: Match, *, zero_centered: bool) -> None:
    rows = match.kwargs["rows"]
    settings = match.kwargs["weight"], match.kwargs["epsilon"], zero_centered
    if not is_sum(rows):
        with graph.inserting_before(node):
            normed = graph.call_function(RMS_NORM, (rows, *settings))
    else:
        with graph.inserting_before(rows):
            both = graph.call_function(ADD_RMS_NORM, (*rows.args, *settings))
            total, normed = (graph.call_function(getitem, (both, index)) for index in range(2))
        both.meta = {**rows.meta, "val": (rows.meta["val"], node.meta["val"])}
        total.meta = dict(rows.meta)
        rows.replace_all_uses_with(total)
    normed.meta = dict(node.meta)
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
        found = [match for match in matches if isinstance(match, Match)]
        if len(found) < len(matches) or not _alike(*found):
            continue
        for index, match in enumerate(found):
            call.update_arg(index, match.kwargs["states"])
        call.args = (*call.args[:SCORED], found[0].kwargs["cosines"], found[0].kwargs["sines"])
        for match in found:
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
