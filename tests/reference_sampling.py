"""The choice of a token in plain Python: the argmax of logits / T plus Gumbel noise."""

import math

import numpy as np
import torch


def gumbel(seed: int, index: int, vocab: int) -> list[float]:
    """Gumbel noise of every token, from a generator of its own for each seed and index."""
    words = np.random.SFC64(np.random.SeedSequence((seed, index))).random_raw(vocab)
    parts = [part for word in words.tolist() for part in (word & 0xFFFFFFFF, word >> 32)]
    return [-math.log(-math.log(u / 2**24)) if (u := part >> 8) else -math.inf for part in parts[:vocab]]


def choose(logits: torch.Tensor, temperature: float, seed: int, index: int) -> int:
    """Returns the argmax of logits / T + Gumbel noise."""
    if temperature == 0.0:
        return int(logits.argmax())
    noise = gumbel(seed, index, len(logits))
    scores = [logit + one for logit, one in zip((logits / temperature).tolist(), noise, strict=True)]
    return max(range(len(scores)), key=scores.__getitem__)
