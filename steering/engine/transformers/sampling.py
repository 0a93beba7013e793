"""Chooses the next token of each row: adds penalties and bias, excludes what a grammar does not allow, divides by the temperature, applies
top_k, top_p and min_p, and takes the argmax after adding Gumbel noise; at temperature 0 the argmax of the logits.

The noise depends on the request's seed and the token's index alone: no generator has a state between steps, so a row's numbers depend
on no other row, and a row that is computed again gets the same ones. The number of times that the host waits for the device does not
grow with the rows.
"""

from collections.abc import Callable, Sequence
from math import inf, log
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from steering.engine import grammars
from steering.engine.answers import Sampled
from steering.engine.api import SamplingParams
from steering.engine.transformers.executor import SamplingKernel
from steering.engine.transformers.request import Request
from steering.shapes import Float, Int, Logits, Tensor
from steering.uploads import uploaded

TEMPERATURES = 1e-30, 1e30
"""Others are moved to the nearest of these: they are 0 or overflow in float32, and the argmax is the same."""
MOST_CANDIDATES = 1 << 24  # a larger top_k is moved here, which float32 represents exactly; no vocabulary is larger
WIDTHS = (2.0, 4.0, 8.0, 16.0)
"""Distances below the best token, in nats, that are searched for enough candidates before all tokens are taken."""
ENOUGH = 1.0 + 1e-5
"""Candidates hold a little more than top_p of the mass, because sums in another order round differently."""
RANKED = 8
"""Tokens of a row that the kernel offers to its grammar before the mask is computed. Measured in benchmarks/README.md: with
filters more of them take longer than the masks that they save."""
NONE = -1
Values: TypeAlias = Float[Tensor, "row token"]
Tokens: TypeAlias = Int[Tensor, "row token"]
Mass: TypeAlias = Float[Tensor, "row 1"]
Chooser: TypeAlias = Callable[[Logits, Sequence[Request]], Tensor]
LogProbs: TypeAlias = tuple[float | None, tuple[tuple[int, float], ...]]
_WORD = (1 << 64) - 1


def sample(logits: Logits, rows: Sequence[Request], kernel: SamplingKernel | None = None) -> list[Sampled]:
    """Chooses a token for each row of logits (row, vocab), any float dtype. Each result depends on its own row alone.

    kernel: see PassExecutor.sampling_kernel; used for the rows without penalties, bias and log-probabilities.
    """
    if not rows:
        logits.sum().item()  # waits for the device: the loop measures the time of passes that only read, too
        return []
    if logits.dtype != torch.bfloat16:
        kernel = None
    # Filters are relative to the tokens that a grammar allows, so torch needs the mask to apply them. Elsewhere few rows need one: the
    # best token that the grammar allows is mostly the best of all, or one of the first.
    masked = [row for row, request in enumerate(rows) if _filters_in_grammar(request) and not _takes(kernel, request)]
    chosen = _sampled_rows(logits, rows, sorted(set(range(len(rows))) - set(masked)), kernel)
    if masked := [*masked, *(row for row, one in chosen.items() if one.token_id == NONE)]:
        chosen |= _sampled_rows(logits, rows, masked, kernel, masked=True)
    return [chosen[row] for row in range(len(rows))]


def _rows(values: Tensor, rows: list[int]) -> Tensor:
    """Returns some rows of a matrix, in the order given; the matrix itself for all of them in theirs."""
    if rows == list(range(len(values))):
        return values
    if (
        values.device.type == "cpu"
    ):  # torch would wake OpenMP's threads for it, which then take a processor from the kernels' own
        return torch.from_numpy(values.view(torch.uint8).numpy()[rows]).view(values.dtype)
    return values.index_select(0, uploaded(rows, values.device))


def _filters_in_grammar(request: Request) -> bool:
    return request.matcher is not None and request.sampling.temperature > 0.0 and is_filtered(request.sampling)


def _takes(kernel: SamplingKernel | None, request: Request) -> bool:
    return kernel is not None and request.sampling.logprobs is None and not _is_adjusted(request.sampling)


def _first_allowed(request: Request, ranked: Sequence[int]) -> int:
    """Returns the first token that the grammar of a request allows; NONE where only the mask tells, as it does of ~token."""
    if request.matcher is None:
        return ranked[0]
    place = request.matcher.first_allowed([max(token, ~token) for token in ranked])
    return NONE if place is None else max(ranked[place], NONE)


def _sampled_rows(
    logits: Logits, rows: Sequence[Request], some: Sequence[int], kernel: SamplingKernel | None, *, masked: bool = False
) -> dict[int, Sampled]:
    """Chooses a token for some of the rows. masked: among those that its grammar allows; every row has one then. Otherwise the token
    is NONE where the mask is needed."""
    groups: dict[tuple[SamplingKernel | None, int], list[int]] = {}
    for row in some:
        own = kernel if _takes(kernel, rows[row]) else None
        ranked = RANKED if own is not None and rows[row].matcher is not None and not masked else 0
        groups.setdefault((own, ranked), []).append(row)
    chosen: dict[int, Sampled] = {}
    for (own, ranked), numbers in groups.items():
        part, members = _rows(logits, numbers), [rows[row] for row in numbers]
        if own is None:
            found = _sampled_by_torch(part, members, masked=masked)
        else:
            found = _sampled_by_kernel(part, members, own, masked=masked, ranked=ranked)
        chosen |= zip(numbers, found, strict=True)
    return chosen


def _sampled_by_kernel(
    logits: Logits, rows: Sequence[Request], kernel: SamplingKernel, *, masked: bool, ranked: int
) -> list[Sampled]:
    settings = []
    for request in rows:
        params = request.sampling
        _, top_p, least = bounds_of(params)
        temperature = _temperature(params) if params.temperature > 0.0 else 0.0
        settings.append((temperature, min(params.top_k, MOST_CANDIDATES), top_p, least))
    noisy = [row for row, request in enumerate(rows) if request.sampling.temperature > 0.0]
    generators = torch.zeros(len(rows), 4, dtype=torch.int64)
    if noisy:
        generators[noisy] = states(*_seeds([rows[row] for row in noisy]))
    allowed = torch.from_numpy(grammars.masks(_matchers(rows), logits.shape[1]).view(np.int32)) if masked else None
    chosen = kernel(logits, torch.tensor(settings, dtype=torch.float32), generators, ranked, allowed).tolist()
    return [
        Sampled(_first_allowed(request, tokens) if ranked and finite else tokens[0], bool(finite))
        for request, (*tokens, finite) in zip(rows, chosen, strict=True)
    ]


def _sampled_by_torch(logits: Logits, rows: Sequence[Request], *, masked: bool) -> list[Sampled]:
    raw = logits.to(torch.float32)
    # a maximum is not finite if any logit is NaN or infinite; -infinity is a mask
    finite = torch.isfinite(raw.amax(dim=1))
    # the host waits for the device here, so the loop measures the time of the device
    if not bool(finite.all()):
        raw = torch.where(finite[:, None], raw, 0.0)  # zeros cannot disturb the arithmetic of the other rows
    values = adjusted(raw, rows)
    if masked:
        values = grammars.allowed(_matchers(rows), values)
        finite = finite & torch.isfinite(values.amax(dim=1))  # not where no allowed token is left
    chosen = _chosen(values, rows)
    found = []
    for request, token, good, logprobs in zip(
        rows, chosen.tolist(), finite.tolist(), _logprobs(raw, chosen, rows), strict=True
    ):
        found.append(Sampled(_first_allowed(request, [token]) if good and not masked else token, good, *logprobs))
    return found


def _is_penalized(params: SamplingParams) -> bool:
    return params.repetition_penalty != 1.0 or params.presence_penalty != 0.0 or params.frequency_penalty != 0.0


def _is_adjusted(params: SamplingParams) -> bool:
    return _is_penalized(params) or bool(params.logit_bias)


def adjusted(logits: Logits, rows: Sequence[Request]) -> Logits:
    """Returns logits after penalties and bias; the same tensor where no row uses any."""
    if not any(_is_adjusted(request.sampling) for request in rows):
        return logits
    result = logits.clone()
    penalized = [(row, request) for row, request in enumerate(rows) if _is_penalized(request.sampling)]
    if penalized:
        _penalize(result, penalized)
    biased = [(row, *bias) for row, request in enumerate(rows) for bias in request.sampling.logit_bias.items()]
    if biased:
        owners, tokens, values = zip(*biased, strict=True)
        places = _moved(np.array([owners, tokens]), logits)
        bias = _moved(np.array(values, dtype=np.float32), logits)
        result.index_put_((places[0], places[1]), bias, accumulate=True)
    return result


def _matchers(rows: Sequence[Request]) -> list[grammars.Matcher]:
    return [request.matcher for request in rows if request.matcher is not None]


def _penalize(logits: Logits, rows: Sequence[tuple[int, Request]]) -> None:
    """Changes the logits of the tokens that each request contains; one copy to the device for all rows."""
    settings = []
    for _, request in rows:
        request.token_counts.update(request.ids, request.prompt_length)
        params = request.sampling
        settings.append((params.repetition_penalty, params.presence_penalty, params.frequency_penalty))
    tokens = [request.token_counts.tokens() for _, request in rows]
    sizes = [len(own) for own in tokens]
    each = np.repeat(np.array(settings, dtype=np.float32), sizes, axis=0)
    table = np.column_stack([each, np.concatenate([request.token_counts.generated() for _, request in rows])])
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
    return uploaded(torch.from_numpy(numbers), logits.device)


def _chosen(logits: Logits, rows: Sequence[Request]) -> Int[Tensor, "row"]:
    members: dict[Chooser, list[int]] = {}
    for row, request in enumerate(rows):
        params = request.sampling
        sampled = _sampled_of_filtered if is_filtered(params) else _sampled
        members.setdefault(sampled if params.temperature > 0.0 else _argmax, []).append(row)
    chosen = torch.empty(len(rows), dtype=torch.int64, device=logits.device)
    for choose, own in members.items():
        if len(own) == len(rows):
            return choose(logits, rows)
        chosen[uploaded(own, logits.device)] = choose(_rows(logits, own), [rows[row] for row in own])
    return chosen


def _argmax(logits: Logits, _rows: Sequence[Request] = ()) -> Int[Tensor, "row"]:
    """Returns the first token with the highest logit. numpy's argmax is ten times faster on a CPU."""
    if logits.device.type == "cpu":
        return torch.from_numpy(logits.numpy().argmax(axis=1))
    return logits.argmax(dim=1)


def _sampled(logits: Logits, rows: Sequence[Request]) -> Int[Tensor, "row"]:
    if logits.device.type == "cpu" and len(rows) > 1:
        # row by row, so that temporaries stay in the processor's cache
        return torch.cat([_sampled(logits[row : row + 1], rows[row : row + 1]) for row in range(len(rows))])
    # argmax(logits / T + noise), with the noise scaled instead, which cannot overflow
    noise = gumbel(uniform(*_seeds(rows), logits.shape[1], logits.device))
    return _argmax(noise.mul_(_temperatures(logits, rows)).add_(logits))


def _sampled_of_filtered(logits: Logits, rows: Sequence[Request]) -> Int[Tensor, "row"]:
    # the best token has 0, however small the temperature is
    scaled = (logits - logits.amax(dim=1, keepdim=True)).div_(_temperatures(logits, rows))
    values, tokens = candidates(scaled, [request.sampling for request in rows])
    noise = gumbel(uniform(*_seeds(rows), logits.shape[1], logits.device).gather(1, tokens))
    return tokens.gather(1, _argmax(values + noise)[:, None])[:, 0]


def _temperature(params: SamplingParams) -> float:
    lowest, highest = TEMPERATURES
    return min(max(params.temperature, lowest), highest)


def _temperatures(logits: Logits, rows: Sequence[Request]) -> Float[Tensor, "row 1"]:
    return uploaded([_temperature(request.sampling) for request in rows], logits.device)[:, None]


def _logprobs(raw: Logits, chosen: Int[Tensor, "row"], rows: Sequence[Request]) -> list[LogProbs]:
    """Returns log-probabilities under the model's own distribution, before temperature, penalties and filters."""
    results: list[LogProbs] = [(None, ())] * len(rows)
    members = [row for row, request in enumerate(rows) if request.sampling.logprobs is not None]
    if not members:
        return results
    values = torch.log_softmax(_rows(raw, members), dim=1)
    own = values.gather(1, _rows(chosen[:, None], members))
    counts = [rows[row].sampling.logprobs or 0 for row in members]
    best = values.topk(max(counts), dim=1)
    numbers = torch.cat([own, best.values], dim=1).tolist()
    for row, count, ids, (logprob, *top) in zip(members, counts, best.indices.tolist(), numbers, strict=True):
        results[row] = (logprob, tuple(zip(ids[:count], top[:count], strict=True)))
    return results


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
    # on a CPU few candidates are sorted instead of the vocabulary
    values, tokens, mass = narrowed(scaled, rows) if scaled.device.type == "cpu" else every_token(scaled)
    return ranked(values, tokens, mass, rows)


def ranked(values: Values, tokens: Tokens, mass: Mass, rows: Sequence[SamplingParams]) -> tuple[Values, Tokens]:
    """Sorts candidates and applies the filters. mass: sum of exp over all tokens of the row.

    All arithmetic runs along a row, and running sums ignore what follows: no row depends on another one's length.
    """
    values, order = values.sort(dim=1, descending=True, stable=True)
    tokens = tokens.gather(1, order)
    bounds = uploaded([bounds_of(params) for params in rows], values.device, torch.float32)
    top_k, top_p, min_p = torch.split(bounds, 1, dim=1)
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
    masses, kept = [], []
    for row, params in zip(matrix, rows, strict=True):
        masses.append(float(np.exp(row).sum()) if params.top_k == 0 and params.top_p < 1.0 else 1.0)
        kept.append(_enough(row, masses[-1], params))
    longest = max(map(len, kept))
    tokens = np.zeros((len(rows), longest), dtype=np.int64)
    values = np.full((len(rows), longest), -np.inf, dtype=np.float32)
    for number, ids in enumerate(kept):
        tokens[number, : len(ids)] = ids
        values[number, : len(ids)] = matrix[number, ids]
    return torch.from_numpy(values), torch.from_numpy(tokens), torch.tensor(masses)[:, None]


def _enough(row: NDArray[np.float32], mass: float, params: SamplingParams) -> NDArray[np.intp]:
    """Returns the best tokens of one row: at least top_k of them, or top_p of the mass, or all that pass min_p."""
    if params.top_k == 0 and params.min_p > 0.0:
        return np.flatnonzero(row >= np.float32(log(params.min_p)))
    for width in WIDTHS:
        best = np.flatnonzero(row >= -width)
        if len(best) >= params.top_k > 0:
            return best
        if params.top_k == 0 and float(np.exp(row[best]).sum()) >= params.top_p * mass * ENOUGH:
            return best
    return np.arange(len(row))


def _seeds(rows: Sequence[Request]) -> tuple[list[int], list[int]]:
    return [request.sampling.seed for request in rows], [request.generated for request in rows]


def _mixed(seed: int, index: int) -> np.random.SeedSequence:
    return np.random.SeedSequence((seed & _WORD, index))


def uniform(
    seeds: Sequence[int], indices: Sequence[int], vocab_size: int, device: torch.device
) -> Float[Tensor, "row vocab"]:
    """Returns numbers in [0, 1), float32, one for each token of each row."""
    numbers = torch.empty(len(seeds), vocab_size, device=device)
    for row, seed, index in zip(numbers, seeds, indices, strict=True):
        mixed = _mixed(seed, index)
        if device.type == "cpu":  # a tenth of the time of torch's generator
            words = np.random.SFC64(mixed).random_raw(vocab_size // 2 + 1).view(np.uint32)[:vocab_size]
            np.multiply(words >> 8, 2.0**-24, out=row.numpy(), dtype=np.float32, casting="same_kind")
        else:
            state = int(mixed.generate_state(1, np.uint64)[0])
            row.uniform_(generator=torch.Generator(device).manual_seed(state))
    return numbers


def states(seeds: Sequence[int], indices: Sequence[int]) -> Int[Tensor, "row 4"]:
    """Returns the states of the generators that `uniform` uses on a CPU, for a kernel that draws the same numbers."""
    generators = [np.random.SFC64(_mixed(seed, index)) for seed, index in zip(seeds, indices, strict=True)]
    return torch.from_numpy(np.array([each.state["state"]["state"] for each in generators]).view(np.int64))


def gumbel(numbers: Float[Tensor, "row token"]) -> Float[Tensor, "row token"]:
    """Turns uniform numbers into Gumbel noise. 0 counts as half the step between them: -infinity would exclude its token, also
    one that is the only one allowed.

    argmax(logits / T + noise) is a sample of softmax(logits / T). As every token keeps its own noise, requests with one
    seed and similar distributions mostly choose the same token, which makes steered and plain answers comparable.
    """
    return numbers.clamp_min(2.0**-25).log_().neg_().log_().neg_()
