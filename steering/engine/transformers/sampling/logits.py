"""Changes the logits of each row before its token is chosen: penalties and bias, then top_k, top_p and min_p, in this order."""

from collections.abc import Sequence
from math import inf, log
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from steering.engine.api import SamplingParams
from steering.engine.transformers.request import Request
from steering.shapes import Float, Int, Logits, Tensor

WIDTHS = (2.0, 4.0, 8.0, 16.0)
"""Distances below the best token, in nats, that are searched for enough candidates before all tokens are taken."""
ENOUGH = 1.0 + 1e-5
"""Candidates hold a little more than top_p of the mass, because sums in another order round differently."""
Values: TypeAlias = Float[Tensor, "row token"]
Tokens: TypeAlias = Int[Tensor, "row token"]
Mass: TypeAlias = Float[Tensor, "row 1"]


def is_adjusted(params: SamplingParams) -> bool:
    """Returns whether any penalty or bias is used."""
    return _is_penalized(params) or bool(params.logit_bias)


def adjusted(logits: Logits, rows: Sequence[Request]) -> Logits:
    """Returns logits after penalties and bias; the same tensor where no row uses any."""
    if not any(is_adjusted(request.sampling) for request in rows):
        return logits
    result = logits.clone()
    penalized = [(row, request) for row, request in enumerate(rows) if _is_penalized(request.sampling)]
    if penalized:
        _penalize(result, penalized)
    biased = [(row, *one) for row, request in enumerate(rows) for one in request.sampling.logit_bias.items()]
    if biased:
        owners, tokens, values = zip(*biased, strict=True)
        places = _moved(np.array([owners, tokens]), logits)
        bias = _moved(np.array(values, dtype=np.float32), logits)
        result.index_put_((places[0], places[1]), bias, accumulate=True)
    return result


def _is_penalized(params: SamplingParams) -> bool:
    return params.repetition_penalty != 1.0 or params.presence_penalty != 0.0 or params.frequency_penalty != 0.0


def _penalize(logits: Logits, rows: Sequence[tuple[int, Request]]) -> None:
    """Changes the logits of the tokens that each request contains; one copy to the device for all rows."""
    for _, one in rows:
        one.token_counts.update(one.ids, one.prompt_length)
    tokens = [one.token_counts.tokens() for _, one in rows]
    sizes = [len(one) for one in tokens]
    settings = [
        (one.sampling.repetition_penalty, one.sampling.presence_penalty, one.sampling.frequency_penalty)
        for _, one in rows
    ]
    each = np.repeat(np.array(settings, dtype=np.float32), sizes, axis=0)
    table = np.column_stack([each, np.concatenate([one.token_counts.generated() for _, one in rows])])
    repetition, presence, frequency, generated = _moved(table.T.copy(), logits)
    owners = np.repeat([row for row, _ in rows], sizes)
    places = _moved(np.stack([owners, np.concatenate(tokens)]), logits)
    values = logits[places[0], places[1]]
    # Keskar et al., arXiv 1909.05858; dividing a negative logit would make it more likely, so those are multiplied
    values = torch.where(values > 0, values / repetition, values * repetition)
    values = values - frequency * generated - presence * (generated > 0)
    # a penalty near 0 makes logits infinite
    logits[places[0], places[1]] = values.clamp(max=torch.finfo(logits.dtype).max)


def _moved(numbers: NDArray[Any], logits: Logits) -> Tensor:
    """Copies numbers to the device of the logits without waiting for it."""
    return torch.from_numpy(numbers).to(logits.device, non_blocking=True)


def is_filtered(params: SamplingParams) -> bool:
    """Returns whether any of the three filters is used."""
    return params.top_k > 0 or params.top_p < 1.0 or params.min_p > 0.0


def bounds_of(params: SamplingParams) -> tuple[float, float, float]:
    """Returns top_k, top_p and log(min_p), each infinite where the filter is not used."""
    top_p = params.top_p if params.top_p < 1.0 else inf
    return params.top_k or inf, top_p, log(params.min_p) if params.min_p > 0.0 else -inf


def candidates(scaled: Logits, rows: Sequence[SamplingParams]) -> tuple[Values, Tokens]:
    """Returns values and ids of the tokens that may be chosen, best first; other values are -infinity.

    scaled: logits / temperature less their maximum, so that the best token of a row has 0.
    """
    # on a CPU few candidates are sorted instead of the vocabulary: 0.1 ms a row of 49,152 tokens instead of 3
    found = narrowed(scaled, rows) if scaled.device.type == "cpu" else every_token(scaled)
    return ranked(*found, rows)


def ranked(values: Values, tokens: Tokens, mass: Mass, rows: Sequence[SamplingParams]) -> tuple[Values, Tokens]:
    """Sorts candidates and applies the filters. mass: sum of exp over all tokens of the row.

    All arithmetic runs along a row, and running sums ignore what follows: no row depends on another one's length.
    """
    values, order = values.sort(dim=1, descending=True, stable=True)
    tokens = tokens.gather(1, order)
    bounds = torch.tensor([bounds_of(params) for params in rows], dtype=torch.float32)
    top_k, top_p, min_p = torch.split(bounds.to(values.device, non_blocking=True), 1, dim=1)
    values = values.masked_fill(torch.arange(values.shape[1], device=values.device) >= top_k, -inf)
    weights = values.exp()
    running = weights.cumsum(dim=1)
    mass = torch.where(torch.isfinite(top_k), running[:, -1:], mass)
    # the smallest set of most probable tokens whose mass reaches top_p (Holtzman et al., arXiv 1904.09751)
    excluded = (running - weights >= top_p * mass) | (values < min_p)
    return values.masked_fill(excluded, -inf), tokens


def every_token(scaled: Logits) -> tuple[Values, Tokens, Mass]:
    """Returns all tokens as candidates, and the mass."""
    tokens = torch.arange(scaled.shape[1], device=scaled.device).expand_as(scaled)
    return scaled, tokens, scaled.exp().sum(dim=1, keepdim=True)


def narrowed(scaled: Logits, rows: Sequence[SamplingParams]) -> tuple[Values, Tokens, Mass]:
    """Returns a superset of the tokens that may be chosen, in ascending order, padded with -infinity, and the mass.

    By numpy, row by row, where it is faster than torch and always adds in the same order.
    """
    matrix = scaled.numpy()
    needed = [params.top_k == 0 and params.top_p < 1.0 for params in rows]
    mass = [float(np.exp(row).sum()) if need else 1.0 for row, need in zip(matrix, needed, strict=True)]
    found = [_enough(row, total, params) for row, total, params in zip(matrix, mass, rows, strict=True)]
    longest = max(map(len, found))
    tokens = np.zeros((len(rows), longest), dtype=np.int64)
    values = np.full((len(rows), longest), -np.inf, dtype=np.float32)
    for row, ids in enumerate(found):
        tokens[row, : len(ids)] = ids
        values[row, : len(ids)] = matrix[row, ids]
    return torch.from_numpy(values), torch.from_numpy(tokens), torch.tensor(mass)[:, None]


def _enough(row: NDArray[np.float32], mass: float, params: SamplingParams) -> NDArray[np.intp]:
    """Returns the best tokens of one row: at least top_k of them, or top_p of the mass, or all that pass min_p."""
    if params.top_k == 0 and params.min_p > 0.0:
        return np.flatnonzero(row >= np.float32(log(params.min_p)))
    for width in WIDTHS:
        found = np.flatnonzero(row >= -width)
        if len(found) >= params.top_k > 0:
            return found
        if params.top_k == 0 and float(np.exp(row[found]).sum()) >= params.top_p * mass * ENOUGH:
            return found
    return np.arange(len(row))
