"""Chooses the next token of each row: penalties, filters, then the argmax of logits / temperature plus Gumbel noise.

The number of times that the host waits for the device does not grow with the rows.
"""

from collections.abc import Sequence
from typing import TypeAlias

import torch

from steering.engine.answers import Sampled
from steering.engine.api import SamplingParams
from steering.engine.transformers.executor import SamplingKernel
from steering.engine.transformers.request import Request
from steering.engine.transformers.sampling.logits import adjusted, bounds_of, candidates, is_adjusted, is_filtered
from steering.engine.transformers.sampling.noise import gumbel, states, uniform
from steering.shapes import Float, Int, Logits, Tensor

TEMPERATURES = 1e-30, 1e30
"""Others are moved to the nearest of these: they are 0 or overflow in float32, and the argmax is the same."""
MOST_CANDIDATES = 1 << 24
"""A larger top_k is moved here, which float32 represents exactly; no vocabulary is larger."""
LogProbs: TypeAlias = tuple[float | None, tuple[tuple[int, float], ...]]


def sample(logits: Logits, rows: Sequence[Request], kernel: SamplingKernel | None = None) -> list[Sampled]:
    """Chooses a token for each row of logits (row, vocab), any float dtype. Each result depends on its own row alone.

    kernel: see PassExecutor.sampling_kernel; used for the rows without penalties, bias and log-probabilities.
    """
    plain = [row for row, one in enumerate(rows) if one.sampling.logprobs is None and not is_adjusted(one.sampling)]
    if kernel is None or not plain or logits.dtype != torch.bfloat16:
        return _sampled_by_torch(logits, rows)
    if len(plain) == len(rows):
        return _sampled_by_kernel(logits, rows, kernel)
    others = sorted(set(range(len(rows))) - set(plain))
    found = dict(zip(plain, _sampled_by_kernel(logits[plain], [rows[row] for row in plain], kernel), strict=True))
    found |= zip(others, _sampled_by_torch(logits[others], [rows[row] for row in others]), strict=True)
    return [found[row] for row in range(len(rows))]


def _sampled_by_kernel(logits: Logits, rows: Sequence[Request], kernel: SamplingKernel) -> list[Sampled]:
    settings = torch.tensor([_settings(one.sampling) for one in rows], dtype=torch.float32)
    noisy = [row for row, one in enumerate(rows) if one.sampling.temperature > 0.0]
    generators = torch.zeros(len(rows), 4, dtype=torch.int64)
    if noisy:
        generators[noisy] = states(*_seeds([rows[row] for row in noisy]))
    return [Sampled(token, bool(finite)) for token, finite in kernel(logits, settings, generators).tolist()]


def _settings(params: SamplingParams) -> tuple[float, float, float, float]:
    temperature = _temperature(params) if params.temperature > 0.0 else 0.0
    _, top_p, least = bounds_of(params)
    return temperature, min(params.top_k, MOST_CANDIDATES), top_p, least


def _temperature(params: SamplingParams) -> float:
    lowest, highest = TEMPERATURES
    return min(max(params.temperature, lowest), highest)


def _sampled_by_torch(logits: Logits, rows: Sequence[Request]) -> list[Sampled]:
    raw = logits.to(torch.float32)
    # a maximum is not finite if any logit is NaN or infinite; -infinity is a mask
    finite = torch.isfinite(raw.amax(dim=1))
    # the host waits for the device here in every pass, also without rows, so the loop measures the time of the device
    if not bool(finite.all()):
        raw = torch.where(finite[:, None], raw, 0.0)  # zeros cannot disturb the arithmetic of the other rows
    chosen = _chosen(adjusted(raw, rows), rows)
    logprobs = _logprobs(raw, chosen, rows)
    pairs = zip(chosen.tolist(), finite.tolist(), logprobs, strict=True)
    return [Sampled(token, good, *probabilities) for token, good, probabilities in pairs]


def _chosen(logits: Logits, rows: Sequence[Request]) -> Int[Tensor, "row"]:
    greedy = [row for row, request in enumerate(rows) if request.sampling.temperature == 0.0]
    plain = [row for row, one in enumerate(rows) if one.sampling.temperature > 0.0 and not is_filtered(one.sampling)]
    filtered = [row for row, one in enumerate(rows) if one.sampling.temperature > 0.0 and is_filtered(one.sampling)]
    chosen = torch.empty(len(rows), dtype=torch.int64, device=logits.device)
    for members, choose in ((greedy, _greedy), (plain, _sampled), (filtered, _sampled_of_filtered)):
        if len(members) == len(rows):
            return choose(logits, rows)
        if members:
            chosen[members] = choose(logits[members], [rows[row] for row in members])
    return chosen


def _greedy(logits: Logits, _rows: Sequence[Request]) -> Int[Tensor, "row"]:
    return _argmax(logits)


def _sampled(logits: Logits, rows: Sequence[Request]) -> Int[Tensor, "row"]:
    if logits.device.type == "cpu" and len(rows) > 1:
        # row by row, so that temporaries stay in the processor's cache: 32 rows take a third of the time
        return torch.cat([_sampled(logits[row : row + 1], rows[row : row + 1]) for row in range(len(rows))])
    # argmax(logits / T + noise), with the noise scaled instead, which cannot overflow
    return _argmax(gumbel(_uniform(logits, rows)).mul_(_temperatures(logits, rows)).add_(logits))


def _sampled_of_filtered(logits: Logits, rows: Sequence[Request]) -> Int[Tensor, "row"]:
    # the best token has 0, however small the temperature is
    scaled = (logits - logits.amax(dim=1, keepdim=True)).div_(_temperatures(logits, rows))
    values, tokens = candidates(scaled, [request.sampling for request in rows])
    noise = gumbel(_uniform(logits, rows).gather(1, tokens))
    return tokens.gather(1, _argmax(values + noise)[:, None])[:, 0]


def _temperatures(logits: Logits, rows: Sequence[Request]) -> Float[Tensor, "row 1"]:
    temperatures = torch.tensor([_temperature(request.sampling) for request in rows])
    return temperatures.to(logits.device, non_blocking=True)[:, None]


def _uniform(logits: Logits, rows: Sequence[Request]) -> Float[Tensor, "row vocab"]:
    return uniform(*_seeds(rows), logits.shape[1], logits.device)


def _seeds(rows: Sequence[Request]) -> tuple[list[int], list[int]]:
    return [one.sampling.seed for one in rows], [one.generated for one in rows]


def _argmax(logits: Logits) -> Int[Tensor, "row"]:
    """Returns the first token with the highest logit. numpy's argmax is ten times faster on a CPU."""
    if logits.device.type == "cpu":
        return torch.from_numpy(logits.numpy().argmax(axis=1))
    return logits.argmax(dim=1)


def _logprobs(raw: Logits, chosen: Int[Tensor, "row"], rows: Sequence[Request]) -> list[LogProbs]:
    """Returns log-probabilities under the model's own distribution, before temperature, penalties and filters."""
    results: list[LogProbs] = [(None, ())] * len(rows)
    members = [row for row, request in enumerate(rows) if request.sampling.logprobs is not None]
    if not members:
        return results
    values = torch.log_softmax(raw[members], dim=1)
    own = values.gather(1, chosen[members][:, None])[:, 0].tolist()
    counts = [rows[row].sampling.logprobs or 0 for row in members]
    best = values.topk(max(counts), dim=1)
    for row, logprob, count, ids, top in zip(
        members, own, counts, best.indices.tolist(), best.values.tolist(), strict=True
    ):
        results[row] = (logprob, tuple(zip(ids[:count], top[:count], strict=True)))
    return results
