"""Gumbel noise from (seed, index of the token, token id). No generator has a state, so no row's noise depends on another's."""

from math import ceil, log, log1p, sqrt

import torch

from steering.shapes import Float, Int, Tensor

RARE = 2.0**-8
"""Share of the tokens whose noise is the highest. Which they are is known without asking every token."""
COMMON_MOST = -log(-log1p(-RARE)) + 1e-3
"""No other token has as much noise as this, 5.54 and a little for rounding: one that lies further below cannot win."""

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_VALUES, _GAPS = 0, 1
"""Third word of the counter: what a random word is for."""


def _halves(multiplier: int, words: Tensor) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of a 32 x 32 bit product; int64 wraps around, which leaves the bits right."""
    product = words * multiplier
    return (product >> 32) & _WORD, product & _WORD


def philox(seed: Int[Tensor, "n"], index: Int[Tensor, "n"], number: Int[Tensor, "n"], purpose: int) -> Int[Tensor, "n"]:
    """First 32-bit word of Philox4x32-10 with key = seed (64 bits) and counter = (index, number, purpose, 0).

    Salmon et al., Parallel random numbers: as easy as 1, 2, 3 (SC 2011).
    """
    c0, c1 = index & _WORD, number & _WORD
    c2, c3 = torch.full_like(c0, purpose), torch.zeros_like(c0)
    k0, k1 = seed & _WORD, (seed >> 32) & _WORD
    for _ in range(10):
        high0, low0 = _halves(_MULTIPLIERS[0], c0)
        high1, low1 = _halves(_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _WORD, (k1 + _WEYL[1]) & _WORD
    return c0


def _uniform(word: Int[Tensor, "n"]) -> Float[Tensor, "n"]:
    """In (0, 1), float64, from the upper 24 bits."""
    return ((word >> 8).to(torch.float64) + 0.5) / float(1 << 24)


class RowNoise:
    """The noise of rows that each choose one token. seeds, indices: (row,) int64.

    Every token is rare with probability RARE, by itself: the gaps between rare tokens are geometric, so a few hundred
    random words name them all. A rare token's noise is from the upper RARE of the Gumbel distribution, any other's from
    the rest. Over all tokens that is Gumbel noise, independent, and needs computing only where it can decide.
    """

    def __init__(self, seeds: Int[Tensor, "row"], indices: Int[Tensor, "row"], vocab_size: int) -> None:
        self._seeds, self._indices = seeds, indices
        self._stride = 2 * vocab_size
        expected = RARE * vocab_size
        count = ceil(expected + 9.0 * sqrt(expected) + 16.0)  # more than this is beyond nine standard deviations
        numbers = torch.arange(count, device=seeds.device)
        words = philox(seeds[:, None], indices[:, None], numbers[None], _GAPS)
        gaps = 1 + (torch.log(_uniform(words)) / log1p(-RARE)).to(torch.int64)
        self.rare: Int[Tensor, "row rare"] = (gaps.cumsum(dim=1) - 1).clamp_max(vocab_size)
        """Ascending; filled up with vocab_size."""
        rows = torch.arange(len(seeds), device=seeds.device)[:, None]
        self._keys = (rows * self._stride + self.rare).flatten()

    def of(self, rows: Int[Tensor, "n"], tokens: Int[Tensor, "n"]) -> Float[Tensor, "n"]:
        """float32. Logs in float64, where u is never 0 or 1."""
        keys = rows * self._stride + tokens
        found = self._keys[torch.searchsorted(self._keys, keys).clamp_max(len(self._keys) - 1)]
        uniform = _uniform(philox(self._seeds[rows], self._indices[rows], tokens, _VALUES))
        logs = torch.where(found == keys, torch.log1p(-RARE * uniform), torch.log((1.0 - RARE) * uniform))
        return (-torch.log(-logs)).to(torch.float32)
