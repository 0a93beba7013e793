"""Repetition, presence and frequency penalties, and logit bias."""

from collections.abc import Sequence as Rows
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from steering.engine.api import SamplingParams
from steering.engine.transformers.sequence import Sequence
from steering.shapes import Logits, Tensor


def is_adjusted(params: SamplingParams) -> bool:
    """Returns whether any penalty or bias is used."""
    return _is_penalized(params) or bool(params.logit_bias)


def adjusted(logits: Logits, rows: Rows[Sequence]) -> Logits:
    """Returns logits after penalties and bias; the same tensor where no row uses any."""
    if not any(is_adjusted(sequence.sampling) for sequence in rows):
        return logits
    result = logits.clone()
    penalized = [(row, sequence) for row, sequence in enumerate(rows) if _is_penalized(sequence.sampling)]
    if penalized:
        _penalize(result, penalized)
    biased = [(row, *one) for row, sequence in enumerate(rows) for one in sequence.sampling.logit_bias.items()]
    if biased:
        owners, tokens, values = zip(*biased, strict=True)
        places = _moved(np.array([owners, tokens]), logits)
        bias = _moved(np.array(values, dtype=np.float32), logits)
        result.index_put_((places[0], places[1]), bias, accumulate=True)
    return result


def _is_penalized(params: SamplingParams) -> bool:
    return params.repetition_penalty != 1.0 or params.presence_penalty != 0.0 or params.frequency_penalty != 0.0


def _penalize(logits: Logits, rows: Rows[tuple[int, Sequence]]) -> None:
    """Changes the logits of the tokens that each sequence contains; one copy to the device for all rows."""
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
