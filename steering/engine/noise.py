"""Gumbel noise from (seed, index of the token, token id). No generator has a state, so no row's noise depends on another's."""

import torch

from steering.shapes import Float, Int, Tensor

NOISE_SPAN = 20.25
"""The largest noise minus the smallest (17.33 and -2.86 for 24-bit uniforms): a token further below the best cannot win."""

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def _halves(multiplier: int, words: Tensor) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of a 32 x 32 bit product; int64 wraps around, which leaves the bits right."""
    product = words * multiplier
    return (product >> 32) & _WORD, product & _WORD


def philox(seed: Int[Tensor, "n"], index: Int[Tensor, "n"], token: Int[Tensor, "n"]) -> Int[Tensor, "n"]:
    """First 32-bit word of Philox4x32-10 with key = seed (64 bits) and counter = (index, token, 0, 0).

    Salmon et al., Parallel random numbers: as easy as 1, 2, 3 (SC 2011).
    """
    c0, c1 = index & _WORD, token & _WORD
    c2, c3 = torch.zeros_like(c0), torch.zeros_like(c0)
    k0, k1 = seed & _WORD, (seed >> 32) & _WORD
    for _ in range(10):
        high0, low0 = _halves(_MULTIPLIERS[0], c0)
        high1, low1 = _halves(_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _WORD, (k1 + _WEYL[1]) & _WORD
    return c0


def gumbel(seed: Int[Tensor, "n"], index: Int[Tensor, "n"], token: Int[Tensor, "n"]) -> Float[Tensor, "n"]:
    """n = -log(-log u), u = ((philox >> 8) + 1/2) / 2^24, in float32. Logs in float64, where u is never 0 or 1."""
    uniform = ((philox(seed, index, token) >> 8).to(torch.float64) + 0.5) / float(1 << 24)
    return (-torch.log(-torch.log(uniform))).to(torch.float32)
