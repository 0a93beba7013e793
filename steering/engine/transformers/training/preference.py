"""What a fitted direction is to achieve, as arithmetic: a loss over likelihoods, its slopes, and a step on the unit sphere."""

from dataclasses import dataclass

import torch
from torch.nn.functional import normalize, softplus

from steering.shapes import Direction, Float, Tensor

BETA = 0.1
"""The inverse temperature of the preference loss, as in DPO."""
NLL_WEIGHT = 0.3
"""Weight of the mean negative log-likelihood of the preferred text, which keeps it fluent."""
MOMENTUM, SPREAD = 0.9, 0.99


@dataclass(frozen=True, slots=True, eq=False)
class Likelihoods:
    """Of texts that alternate: preferred, rejected, preferred, ... steered, unsteered (text,): log-likelihoods of their
    scored tokens in nats; scored (text,): how many tokens those are."""

    steered: Float[Tensor, "text"]
    unsteered: Float[Tensor, "text"]
    scored: Float[Tensor, "text"]


def preference(found: Likelihoods) -> tuple[float, Float[Tensor, "text"]]:
    """(loss, its derivative by each steered likelihood (text,)).

    gain = (l_preferred - l0_preferred) - (l_rejected - l0_rejected);  loss = softplus(-beta gain) - lambda l_preferred / n,
    mean over the pairs.
    """
    gained = found.steered - found.unsteered
    gain = BETA * (gained[0::2] - gained[1::2])
    pull = BETA * torch.sigmoid(-gain)
    nll = NLL_WEIGHT / found.scored[0::2]
    pairs = len(gain)
    loss = softplus(-gain) - nll * found.steered[0::2]
    return float(loss.mean()), torch.stack([-pull - nll, pull], dim=1).reshape(-1) / pairs


class SphereOptimizer:
    """Gradient descent over unit directions with momentum; steps are of even length and shrink to nothing at the end."""

    def __init__(self, rate: float, steps: int) -> None:
        self._rate, self._steps, self._count = rate, steps, 0
        self._first = self._second = torch.zeros(())

    def step(self, direction: Direction, gradient: Direction) -> Direction:
        """direction (d_model,) unit -> unit, against the part of the gradient (d_model,) that turns it."""
        gradient = gradient - (gradient @ direction) * direction
        self._first = MOMENTUM * self._first + (1 - MOMENTUM) * gradient
        self._second = SPREAD * self._second + (1 - SPREAD) * gradient.square()
        share = 1 - self._count / self._steps
        self._count += 1
        first = self._first / (1 - MOMENTUM**self._count)
        second = self._second / (1 - SPREAD**self._count)
        turn = first / (second.sqrt() + 1e-12)
        return normalize(direction - self._rate * share * turn, dim=0)
