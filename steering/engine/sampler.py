"""The next token of each row: penalties and filters on its logits, then the argmax of logits / temperature plus noise."""

from collections.abc import Sequence as Rows
from dataclasses import dataclass
from math import log

import torch

from steering.engine.base import SamplingParams
from steering.engine.noise import NOISE_SPAN, gumbel
from steering.engine.sequence import Sequence
from steering.shapes import Float, Int, Logits, Tensor


@dataclass(frozen=True, slots=True)
class Sampled:
    """One row's choice. finite: whether its logits were; where not, token_id means nothing."""

    token_id: int
    finite: bool
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()


def sample(logits: Logits, rows: Rows[Sequence]) -> list[Sampled]:
    """logits (row, vocab), any float dtype. Rows are independent: each result depends on its own row alone."""
    raw = logits.to(torch.float32)
    finite = torch.isfinite(raw).all(dim=1)
    # a non-finite row is sampled from zeros, so that its numbers cannot disturb the bookkeeping of the others
    raw = torch.where(finite[:, None], raw, 0.0)
    adjusted = _adjusted(raw, rows)
    chosen = adjusted.argmax(dim=1)
    noisy = [row for row, sequence in enumerate(rows) if sequence.sampling.temperature > 0.0]
    if noisy:
        picked = torch.tensor(noisy, device=raw.device)
        chosen[picked] = _noisy_choice(adjusted[picked], [rows[row] for row in noisy])
    logprobs = _logprobs(raw, chosen, rows)
    pairs = zip(chosen.tolist(), finite.tolist(), logprobs, strict=True)
    return [Sampled(token, good, *probabilities) for token, good, probabilities in pairs]


def _adjusted(raw: Logits, rows: Rows[Sequence]) -> Logits:
    """Logits after penalties and bias; the same tensor where nobody asked for any."""
    wanting = [(row, s) for row, s in enumerate(rows) if _adjusts(s.sampling)]
    if not wanting:
        return raw
    adjusted = raw.clone()
    for row, sequence in wanting:
        params = sequence.sampling
        if params.repetition_penalty != 1.0:
            seen = torch.tensor(sorted(set(sequence.ids)), device=raw.device)
            values = adjusted[row, seen]
            # Keskar et al., arXiv 1909.05858: dividing makes a negative logit more likely, so those are multiplied
            penalty = params.repetition_penalty
            adjusted[row, seen] = torch.where(values > 0, values / penalty, values * penalty)
        if params.presence_penalty or params.frequency_penalty:
            written = torch.tensor(sequence.ids[sequence.prompt_length :], dtype=torch.int64, device=raw.device)
            counts = torch.bincount(written, minlength=raw.shape[1]).to(raw.dtype)
            adjusted[row] -= params.frequency_penalty * counts + params.presence_penalty * (counts > 0)
        for token, bias in params.logit_bias.items():
            adjusted[row, token] += bias
    return adjusted


def _adjusts(params: SamplingParams) -> bool:
    return bool(
        params.repetition_penalty != 1.0 or params.presence_penalty or params.frequency_penalty or params.logit_bias
    )


def _noisy_choice(logits: Logits, rows: Rows[Sequence]) -> Int[Tensor, "row"]:
    """argmax of filtered logits / T plus Gumbel noise, the noise computed only where it could still decide."""
    device = logits.device
    temperature = torch.tensor([s.sampling.temperature for s in rows], device=device)
    scaled = _filtered(logits / temperature[:, None], rows)
    near = scaled >= scaled.amax(dim=1, keepdim=True) - NOISE_SPAN
    row, token = near.nonzero(as_tuple=True)
    seeds = torch.tensor([_signed(s.sampling.seed) for s in rows], device=device)
    indices = torch.tensor([s.generated for s in rows], device=device)
    noise = gumbel(seeds[row], indices[row], token)
    scores = torch.full_like(scaled, -torch.inf)
    scores[row, token] = scaled[row, token] + noise
    return scores.argmax(dim=1)


def _signed(seed: int) -> int:
    """The 64-bit pattern of a seed as int64 holds it."""
    seed &= (1 << 64) - 1
    return seed - (1 << 64) if seed >= 1 << 63 else seed


def _filtered(scaled: Logits, rows: Rows[Sequence]) -> Logits:
    """Tokens outside top-k, top-p or min-p become -inf; each row has its own."""
    for row, sequence in enumerate(rows):
        params = sequence.sampling
        if 0 < params.top_k < scaled.shape[1]:
            least = scaled[row].topk(params.top_k).values[-1]
            scaled[row] = scaled[row].masked_fill(scaled[row] < least, -torch.inf)
        if params.top_p < 1.0:
            scaled[row] = _nucleus(scaled[row], params.top_p)
        if params.min_p > 0.0:
            floor = scaled[row].max() + log(params.min_p)
            scaled[row] = scaled[row].masked_fill(scaled[row] < floor, -torch.inf)
    return scaled


def _nucleus(scaled: Float[Tensor, "vocab"], top_p: float) -> Float[Tensor, "vocab"]:
    """The smallest set of likeliest tokens whose probability reaches top_p (Holtzman et al., arXiv 1904.09751).

    All tokens below (1 - top_p) / vocab together weigh less than 1 - top_p, so only the others need sorting.
    """
    probabilities = torch.softmax(scaled, dim=0)
    candidates = (probabilities >= (1.0 - top_p) / probabilities.shape[0]).nonzero()[:, 0]
    ordered, order = probabilities[candidates].sort(descending=True, stable=True)
    kept = candidates[order[ordered.cumsum(0) - ordered < top_p]]
    filtered = torch.full_like(scaled, -torch.inf)
    filtered[kept] = scaled[kept]
    return filtered


def _logprobs(
    raw: Logits, chosen: Int[Tensor, "row"], rows: Rows[Sequence]
) -> list[tuple[float | None, tuple[tuple[int, float], ...]]]:
    """Log-probabilities under the model's own distribution, before temperature, penalties and filters."""
    results: list[tuple[float | None, tuple[tuple[int, float], ...]]] = [(None, ())] * len(rows)
    for row, sequence in enumerate(rows):
        wanted = sequence.sampling.logprobs
        if wanted is None:
            continue
        values = torch.log_softmax(raw[row], dim=0)
        best = values.topk(wanted) if wanted else None
        top = () if best is None else tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        results[row] = (float(values[chosen[row]]), top)
    return results
