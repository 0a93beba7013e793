"""The loss that a fitted direction minimises, and the optimizer."""

from dataclasses import dataclass

import torch
from torch.nn.functional import normalize, softplus

from steering.shapes import Direction, Float, Tensor

BETA = 0.1
"""Scale of the log-likelihood ratios, as in DPO (Rafailov et al., arXiv 2305.18290)."""
LIKELIHOOD_WEIGHT = 0.3
"""Weight of the mean log-likelihood of the preferred text, which keeps it fluent."""
BETAS = (0.9, 0.99)


@dataclass(frozen=True, slots=True, eq=False)
class Likelihoods:
    """Of texts that alternate: preferred, rejected, preferred, ... steered, unsteered (text,): log-likelihoods of their
    scored tokens in nats; scored (text,): how many tokens those are."""

    steered: Float[Tensor, "text"]
    unsteered: Float[Tensor, "text"]
    scored: Float[Tensor, "text"]


def preference_loss(found: Likelihoods) -> tuple[float, Float[Tensor, "text"]]:
    """Returns the loss and its derivative by each steered likelihood (text,).

    gain = (l_preferred - l0_preferred) - (l_rejected - l0_rejected);  loss = softplus(-beta gain) - lambda l_preferred / n,
    mean over the pairs.
    """
    gained = found.steered - found.unsteered
    gain = BETA * (gained[0::2] - gained[1::2])
    pull = BETA * torch.sigmoid(-gain)
    weight = LIKELIHOOD_WEIGHT / found.scored[0::2]
    loss = softplus(-gain) - weight * found.steered[0::2]
    return float(loss.mean()), torch.stack([-pull - weight, pull], dim=1).reshape(-1) / len(gain)


class SphereAdam:
    """Adam over unit directions, with a rate that falls to 0 linearly.

    Not torch.optim.Adam: its first use imports the compiler, which takes 1.1 s of the engine's thread.
    """

    def __init__(self, rate: float, steps: int) -> None:
        self._rate, self._steps, self._count = rate, steps, 0
        self._first = self._second = torch.zeros(())

    def step(self, direction: Direction, gradient: Direction) -> Direction:
        """Moves a unit direction (d_model,) against the part of the gradient that turns it."""
        gradient = gradient - (gradient @ direction) * direction
        self._first = BETAS[0] * self._first + (1 - BETAS[0]) * gradient
        self._second = BETAS[1] * self._second + (1 - BETAS[1]) * gradient.square()
        rate = self._rate * (1 - self._count / self._steps)
        self._count += 1
        first = self._first / (1 - BETAS[0] ** self._count)
        second = self._second / (1 - BETAS[1] ** self._count)
        return normalize(direction - rate * first / (second.sqrt() + 1e-12), dim=0)
