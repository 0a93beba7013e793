"""Controllers: closed-loop control of strengths. The state of each request's controllers, and the step after every token."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from steering.injection.history import SteeringHistory
from steering.injection.rows import Segment, SteeredRow
from steering.injection.slots import Slots
from steering.plan.holds import HeldReadout, hold_columns
from steering.plan.scope import acting_positions
from steering.plan.types import ResolvedHold, SteeringPlan
from steering.rowwise import dot
from steering.shapes import Bool, Float, Residual, Tensor


@dataclass(frozen=True, slots=True, eq=False)
class _Place:
    """One controller of a request in a pass, at one token or, where positions are computed again, at neighbouring ones.

    hold: its number among those of the plan. owner: the intervention whose strength it sets.
    """

    segment: Segment[SteeredRow]
    layer: int
    hold: int
    owner: int
    tokens: range

    @property
    def weight(self) -> int:
        """Column of its weight."""
        return len(self.segment.row.plan.interventions) + self.hold

    @property
    def settings(self) -> ResolvedHold:
        """What it holds, and how."""
        return self.segment.row.plan.interventions[self.owner].holds[self.layer]

    @property
    def direction(self) -> Float[Tensor, "d_model"]:
        """What it reads: the direction of its add."""
        return next(one.write[0] for one in self.segment.row.plan.layers[self.layer] if one.owner == self.owner)

    def replayed(self, history: SteeringHistory) -> Float[Tensor, "token"]:
        """The strengths that it used at its tokens when they were computed first."""
        segment = self.segment
        return history.strengths_at(self.hold, segment.first + self.tokens.start - segment.start, len(self.tokens))


class Controllers:
    """The controllers of the segments of a pass. layers: where they act."""

    def __init__(self, segments: Sequence[Segment[SteeredRow]], slots: Slots) -> None:
        places = [place for segment in segments for place in _places(segment)]
        self._again = [
            (one, one.replayed(one.segment.row.history))
            for one in places
            if one.segment.replayed and one.segment.row.history
        ]
        by_layer: dict[int, list[_Place]] = {}
        for one in places:
            if one.segment.replayed is None:
                assert len(one.tokens) == 1, "the scheduler gives plans with `hold` one generated position at a time"
                by_layer.setdefault(one.layer, []).append(one)
        self._stacks = {layer: _Stack(found, slots) for layer, found in by_layer.items()}
        self.layers = frozenset(self._stacks)

    def __bool__(self) -> bool:
        return bool(self._stacks or self._again)

    def applied(self, weights: Float[Tensor, "token column"]) -> Float[Tensor, "token column"]:
        """Returns the weights with those of the controllers: of their interventions, times the share of the largest strength."""
        weights = weights.clone()
        for stack in self._stacks.values():
            weights[stack.tokens, stack.weights] = weights[stack.tokens, stack.owners] * stack.shares()
        for place, strengths in self._again:
            here = slice(place.tokens.start, place.tokens.stop)
            weights[here, place.weight] = weights[here, place.owner] * strengths / place.settings.limit
        return weights

    def step(self, layer: int, residual: Residual, weights: Float[Tensor, "token column"]) -> None:
        """residual (token, d_model): as it leaves the layer. weights: of the interventions; controllers of those that do not act
        keep still."""
        stack = self._stacks[layer]
        stack.step(residual[stack.tokens], weights[stack.tokens, stack.owners] != 0.0)


def _places(segment: Segment[SteeredRow]) -> list[_Place]:
    plan, found = segment.row.plan, []
    for (layer, owner), hold in hold_columns(plan).items():
        start, end = acting_positions(plan.interventions[owner], plan, segment.row.prompt_length)
        tokens = range(segment.start, segment.end) if segment.decodes else segment.tokens_in(start, end)
        if tokens:
            found.append(_Place(segment, layer, hold, owner, tokens))
    return found


class _Stack:
    """The controllers of one layer, each at one token. Proportional-integral control in velocity form.

    The strength is bounded by `limit`, and since the bound acts on u itself, the integral does not grow beyond it. The
    readout is taken after all steering of the layer, the dose guard included.
    """

    def __init__(self, places: Sequence[_Place], slots: Slots) -> None:
        self._slots, device = slots, slots.device
        table = [(one.tokens.start, one.owner, one.weight, one.segment.row.slot, one.hold) for one in places]
        self.tokens, self.owners, self.weights, *at = torch.tensor(table, device=device).unbind(1)
        self._at = (at[0], at[1])
        self._directions = torch.stack([one.direction for one in places]).to(device)
        holds = [one.settings for one in places]
        settings = [[h.score, h.integral_gain, h.proportional_gain, h.limit, h.middle, h.scale] for h in holds]
        values = torch.tensor(settings, device=device)
        self._score, self._integral, self._proportional, self._limit, self._middle, self._scale = values.unbind(1)

    def shares(self) -> Float[Tensor, "controller"]:
        """Returns the share of the largest strength that each token gets."""
        return self._slots.strengths[self._at] / self._limit

    def step(self, residual: Residual, acting: Bool[Tensor, "controller"]) -> None:
        """residual (controller, d_model): what left the layer at the token of each controller."""
        slots, at = self._slots, self._at
        readout = (dot(residual, self._directions) - self._middle) / self._scale
        error, used, before = self._score - readout, slots.strengths[at], slots.errors[at]
        change = error - torch.where(before.isnan(), error, before)
        strength = used + self._proportional * change + self._integral * error
        strength = torch.maximum(torch.minimum(strength, self._limit), -self._limit)
        sums = torch.stack([readout, used, torch.ones_like(used)], dim=1)
        slots.strengths[at] = torch.where(acting, strength, used)
        slots.errors[at] = torch.where(acting, error, before)
        slots.readout_sums[at] += torch.where(acting[:, None], sums, 0.0)


def held_readouts(slots: Slots, slot: int, plan: SteeringPlan) -> tuple[dict[int, HeldReadout], ...]:
    """Returns what the controllers of each intervention of a request did, by layer."""
    columns = hold_columns(plan)
    if not columns:
        return ()
    found: list[dict[int, HeldReadout]] = [{} for _ in plan.interventions]
    sums, strengths = slots.readout_sums[slot].tolist(), slots.strengths[slot].tolist()
    for (layer, owner), hold in columns.items():
        readout, strength, count = sums[hold]
        if count:
            found[owner][layer] = HeldReadout(readout / count, strength / count, strengths[hold])
    return tuple(found)
