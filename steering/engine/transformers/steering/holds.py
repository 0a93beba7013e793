"""Closed-loop control of strengths: the state of each request's controllers, and the step that follows every token."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from steering.engine.transformers.steering.bank import SteeringBank
from steering.plan.holds import HeldReadout, hold_columns
from steering.plan.types import ResolvedHold, SteeringPlan
from steering.rowwise import dot
from steering.shapes import Bool, Float, Residual, Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """Where one controller keeps its state, and what it reads and holds. replayed: the strengths that it used at the tokens of
    this pass, where their positions are computed again."""

    row: int
    column: int
    direction: Float[Tensor, "d_model"]
    hold: ResolvedHold
    replayed: Float[Tensor, "token"] | None = None


def held_readouts(bank: SteeringBank, row: int, plan: SteeringPlan) -> tuple[dict[int, HeldReadout], ...]:
    """Returns what the controllers of each intervention of a request did, by layer."""
    columns = hold_columns(plan)
    if not columns:
        return ()
    found: list[dict[int, HeldReadout]] = [{} for _ in plan.interventions]
    sums, strengths = bank.readout_sums[row].tolist(), bank.strengths[row].tolist()
    for (layer, number), column in columns.items():
        readout, strength, count = sums[column]
        (index,) = plan.layers[layer].calls[number].interventions
        if count:
            found[index][layer] = HeldReadout(readout / count, strength / count, strengths[column])
    return tuple(found)


class HoldControl:
    """The controllers of one operation stack: one for each of its members, which has one token in a pass. Those of tokens that are
    computed again, where a member may have several, act as they did and follow nothing. replayed: the weights of those; None: of the
    others.

    A step is that of a proportional-integral controller in velocity form, u' = u + k_p (e - e_before) + k_i e, bounded by
    the limit; since the bound acts on u itself, the integral does not grow beyond it. The readout is taken after all
    steering of the layer, the dose guard included.
    """

    def __init__(self, bank: SteeringBank, places: Sequence[Place]) -> None:
        self._bank, device = bank, bank.device
        self._rows = torch.tensor([place.row for place in places], device=device)
        self._columns = torch.tensor([place.column for place in places], device=device)
        self._directions = torch.stack([place.direction for place in places]).to(device)
        holds = [place.hold for place in places]
        settings = [[h.score, h.integral_gain, h.proportional_gain, h.limit, h.middle, h.scale] for h in holds]
        values = torch.tensor(settings, device=device)
        self._score, self._integral, self._proportional, self._limit, self._middle, self._scale = values.unbind(1)
        replayed = [place.replayed / place.hold.limit for place in places if place.replayed is not None]
        self.replayed = torch.cat(replayed) if replayed else None

    def weights(self) -> Float[Tensor, "token"]:
        """The share of the largest strength that each token gets."""
        if self.replayed is not None:
            return self.replayed
        return self._bank.strengths[self._rows, self._columns] / self._limit

    def step(self, residual: Residual, acting: Bool[Tensor, "token"] | None) -> None:
        """residual (token, d_model): the stack's tokens as they leave the layer. Controllers that did not act keep still."""
        if self.replayed is not None:
            return
        bank, at = self._bank, (self._rows, self._columns)
        readout = (dot(residual, self._directions) - self._middle) / self._scale
        error, used, before = self._score - readout, bank.strengths[at], bank.errors[at]
        change = error - torch.where(before.isnan(), error, before)
        strength = used + self._proportional * change + self._integral * error
        strength = torch.maximum(torch.minimum(strength, self._limit), -self._limit)
        sums = torch.stack([readout, used, torch.ones_like(used)], dim=1)
        if acting is not None:
            strength, error = torch.where(acting, strength, used), torch.where(acting, error, before)
            sums = torch.where(acting[:, None], sums, 0.0)
        bank.strengths[at], bank.errors[at] = strength, error
        bank.readout_sums[at] += sums
