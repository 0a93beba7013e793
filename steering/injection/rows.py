"""SteeredRow: what steering needs to know of one running request. Segment: the tokens of one request in a pass.
Doses: what steering was measured to do to one request.

The relative dose of an edit at a token is |c| |u| / |r|, r as it arrives at the edit. Edits of one intervention are added as if
they were orthogonal, which they are in all operations where several act. The dose of everything at a layer is |r' - r| / |r|.
Passes measure them on the device (`PassDoses`). Prompt positions that another request may share are also summed by block,
so that a report does not depend on who computed a prompt.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import inf, isnan
from typing import Generic, TypeVar

import torch

from steering.errors import InternalError
from steering.injection.readings import NO_MONITORS, MonitorSet, Reading
from steering.injection.slots import NEVER
from steering.model.hook_points import layer_of
from steering.model.phases import PhaseTracker
from steering.plan.scope import is_named
from steering.plan.types import ConditionTree, HeldReadout, SteeringPlan
from steering.shapes import Float, Int, Tensor
from steering.spec import PhaseName

BLOCK = 16
"""Positions whose sums are kept together, and of a block of keys and values."""


@dataclass(frozen=True, slots=True)
class SteeringReport:
    """The steering that was applied, for each intervention of the plan.

    doses: measured |r' - r| / |r| by layer, averaged over the steered tokens.
    fired: whether its condition held at any token (True where there is none and a position was in scope).
    fired_at: index of the first generated token for which it held, -1 for a prompt position, None if never.
    tokens: positions acted on, at the layer with the most.
    condition_scores: the score that decided its condition last; None without one, for a combination, where none was decided.
    held: by layer, for `hold`.
    total: the dose of all together, summed over the layers.
    clamped: how often the dose guard scaled the change down, over tokens and layers.
    incomplete: some measurements were lost, because memory was short.
    """

    doses: tuple[Mapping[int, float], ...] = ()
    fired: tuple[bool, ...] = ()
    fired_at: tuple[int | None, ...] = ()
    tokens: tuple[int, ...] = ()
    condition_scores: tuple[float | None, ...] = ()
    held: tuple[Mapping[int, HeldReadout], ...] = ()
    total: float = 0.0
    clamped: int = 0
    incomplete: bool = False


class Doses:
    """The sums of one request, on the host.

    doses (layer, intervention, 2), totals (3,), fired: as in `Slots`; layers are those of the plan, in order.
    scores: the last score of each threshold.
    held: see `held_readouts`.
    incomplete: set where sums were lost.
    """

    def __init__(self, plan: SteeringPlan) -> None:
        self._plan, self.layers = plan, tuple(plan.layers)
        self.scores: tuple[float, ...] = ()
        self.held: tuple[Mapping[int, HeldReadout], ...] = ()
        layers, count = len(self.layers), len(self._plan.interventions)
        self.doses = torch.zeros(layers, count, 2, dtype=torch.float64)
        self.totals = torch.zeros(3, dtype=torch.float64)
        self.reset()

    def reset(self) -> None:
        """Forgets all sums. Allocates no tensor: it is called where memory has run out."""
        self.doses.zero_()
        self.totals.zero_()
        self.fired = [NEVER] * len(self._plan.interventions)
        self._blocks: dict[int, Float[Tensor, number]] = {}
        self.incomplete = False

    def add(self, doses: Float[Tensor, "layer column 2"], totals: Float[Tensor, "3"], fired: Sequence[int]) -> None:
        """Adds the sums over more tokens."""
        self.doses += doses[:, : self.doses.shape[1]].cpu()
        self.totals += totals.cpu()
        self.fired = [min(pair) for pair in zip(self.fired, fired, strict=False)]

    @property
    def by_block(self) -> bool:
        """Whether what is measured on the prompt is kept by block, for requests that share it."""
        return self._plan.reusable and bool(self._plan.prompt_fingerprint)

    def add_block(self, block: int, doses: Float[Tensor, "layer column 2"], totals: Float[Tensor, "3"]) -> None:
        """Keeps the sums over positions of a block, which are among those of the request."""
        numbers = torch.cat([totals, doses[self._on_prompt].flatten()]).to("cpu", torch.float64)
        before = self._blocks.get(block)
        self._blocks[block] = numbers if before is None else before + numbers

    def block_measures(self, block: int) -> Float[Tensor, "number"]:
        """Returns the sums of one block, for whoever reuses its keys and values. Plans with one prompt fingerprint have equally
        many, in one order, however they number their interventions."""
        found = self._blocks.get(block)
        return torch.zeros(3 + 2 * len(self._on_prompt[0]), dtype=torch.float64) if found is None else found

    def restore_block(self, block: int, measures: Float[Tensor, "number"] | None) -> None:
        """Adds the measures of a block as if this request had computed it. None: nothing steers that block."""
        if measures is None:
            return
        rows, owners = self._on_prompt
        doses = measures[3:].view(-1, 2)
        self.doses[rows, owners] += doses
        self.totals += measures[:3]
        for owner, (_, tokens) in zip(owners, doses.tolist(), strict=True):
            self.fired[owner] = -1 if tokens else self.fired[owner]
        self._blocks[block] = measures

    @cached_property
    def _on_prompt(self) -> tuple[list[int], list[int]]:
        """Returns what acts on prompt positions before the last: numbers of layers, and of interventions."""
        acting = [
            (row, one.owner) for row, edits in enumerate(self._plan.layers.values()) for one in edits if one.prompt_key
        ]
        return [row for row, _ in acting], [owner for _, owner in acting]

    def report(self) -> SteeringReport:
        """Returns what was done so far: measured relative doses, and whether and when each intervention acted."""
        count = len(self._plan.interventions)
        doses: list[dict[int, float]] = [{} for _ in range(count)]
        tokens, first = [0.0] * count, [NEVER] * count
        dose, changed, scaled = self.totals.tolist()
        for sums, (layer, edits) in zip(self.doses.tolist(), self._plan.layers.items(), strict=True):
            for one in edits:
                summed, acted = sums[one.owner]
                for index in one.interventions if acted else ():
                    doses[index][layer_of(layer)] = summed / acted
                    tokens[index] = max(tokens[index], acted)
                    first[index] = min(first[index], self.fired[one.owner])
        return SteeringReport(
            doses=tuple(doses),
            fired=tuple(at != NEVER for at in first),
            fired_at=tuple(None if at == NEVER else at for at in first),
            tokens=tuple(int(one) for one in tokens),
            condition_scores=tuple(self._condition_score(one.condition) for one in self._plan.interventions),
            held=self.held,
            total=dose / changed if changed else 0.0,
            clamped=int(scaled),
            incomplete=self.incomplete,
        )

    def _condition_score(self, condition: ConditionTree | None) -> float | None:
        if condition is None or condition.kind != "threshold" or condition.threshold >= len(self.scores):
            return None
        score = self.scores[condition.threshold]
        return None if isnan(score) else score


@dataclass(slots=True, eq=False)
class CaptureState:
    """What a text that is read has gathered.

    index: its place in the call.
    layers: that are read.
    window: half-open range of the positions that are read.
    first: position from which on logits are read.
    reduce: whether one mean row is kept, or every row.
    phrase: positions of a phrase whose most attending token in the window is the only one that is read.
    attending: that token at each of these layers; empty until it is found.
    """

    index: int
    layers: tuple[int, ...]
    window: tuple[int, int]
    first: int
    reduce: bool
    wants_logits: bool = False
    wants_embeddings: bool = False
    phrase: tuple[int, int] | None = None
    attending: tuple[int, ...] = ()
    pieces: dict[int, list[Tensor]] = field(default_factory=dict)
    logits: list[Tensor] = field(default_factory=list)

    @property
    def chooses(self) -> bool:
        """Whether it is not known yet which tokens are read."""
        return self.phrase is not None and not self.attending

    def window_at(self, layer: int) -> tuple[int, int]:
        """Returns the positions that are read at one of these layers."""
        if not self.attending:
            return self.window
        place = self.attending[self.layers.index(layer)]
        return place, place + 1


@dataclass(slots=True, eq=False)
class SteeringHistory:
    """What decided the steering of one request at the positions computed so far, so that they can be computed again.

    An engine that computes positions again together, as vLLM does after a preemption, cannot decide again what depends on
    the token before: a held readout, or a condition that is read behind the layer at which it acts. It replays this.
    Each pass adds a copy, so that the tensors of the pass, which hold all requests, are not kept.
    """

    prompt_length: int
    _verdicts: list[Int[Tensor, "token threshold"]] = field(default_factory=list)
    _strengths: list[Float[Tensor, "token column"]] = field(default_factory=list)

    def add_verdicts(self, verdicts: Int[Tensor, "token threshold"]) -> None:
        """Adds the next positions, as `Conditions` left them."""
        self._verdicts.append(verdicts.clone())

    def add_strengths(self, strengths: Float[Tensor, "token column"]) -> None:
        """Adds what the controllers acted with at the next positions, the first of which is the last of the prompt."""
        self._strengths.append(strengths.clone())

    def verdicts_before(self, first: int, count: int) -> Int[Tensor, "token threshold"]:
        """Returns what was decided when each of some neighbouring positions began: nothing in the prompt, then what the
        position before it had decided."""
        verdicts = _joined(self._verdicts)
        at = torch.arange(first, first + count, device=verdicts.device)
        return verdicts[(at - 1).clamp_min(0)] * (at >= self.prompt_length)[:, None]

    def verdicts_at(self, first: int, count: int) -> Int[Tensor, "token threshold"]:
        """Returns what was decided at each of some neighbouring positions in the end."""
        return _joined(self._verdicts)[first : first + count]

    def strengths_at(self, column: int, first: int, count: int) -> Float[Tensor, "token"]:
        """Returns the strength of a controller at each of some neighbouring positions, from the last of the prompt on."""
        start = first - (self.prompt_length - 1)
        return _joined(self._strengths)[start : start + count, column]


def _joined(pieces: list[Tensor]) -> Tensor:
    """Returns the rows of all pieces, which are one piece from then on."""
    if len(pieces) > 1:
        pieces[:] = [torch.cat(pieces)]
    return pieces[0]


@dataclass(slots=True, eq=False, kw_only=True)
class SteeredRow:
    """One request as steering sees it.

    ids: the prompt and what was generated.
    slot: its place in the tables of the device while it runs; 0 without steering.
    computed: positions below it were computed.
    doses: what was measured of it.
    history: for an engine that may compute positions again.
    phases: of its tokens, where a scope asks for them.
    """

    ids: list[int]
    prompt_length: int
    plan: SteeringPlan
    slot: int = 0
    computed: int = 0
    readings: tuple[Reading, ...] = ()
    monitors: MonitorSet = NO_MONITORS
    capture: CaptureState | None = None
    history: SteeringHistory | None = None
    phases: PhaseTracker | None = None
    doses: Doses = field(init=False)

    def __post_init__(self) -> None:
        self.doses = Doses(self.plan)

    @property
    def generated(self) -> int:
        """Returns the number of generated tokens."""
        return len(self.ids) - self.prompt_length

    @property
    def decoded(self) -> int:
        """Returns the position of the generated token that a pass computes, while it is computed."""
        return self.computed

    def named(self, first: int, count: int) -> list[list[bool]]:
        """Returns for each intervention whether its scope names the tokens at `count` positions from one on.

        Raises InternalError where a scope asks for phases, and the engine gave none.
        """
        plan, ids, length = self.plan, self.ids, self.prompt_length
        phases: list[PhaseName] = ["prompt"] * count
        if plan.needs_phases:
            if self.phases is None:
                raise InternalError("a scope asks for phases, which the engine did not provide")
            phases = self.phases.phases(ids, length, first, count)
        return [
            [is_named(scope, plan, ids, length, first + at, phase) for at, phase in enumerate(phases)]
            if scope.selects
            else [True] * count
            for scope in (one.spec.scope for one in plan.interventions)
        ]


Row_co = TypeVar("Row_co", bound=SteeredRow, covariant=True)


@dataclass(frozen=True, slots=True, eq=False)
class Segment(Generic[Row_co]):
    """Consecutive tokens of one request: flat tokens [start, end) of the pass, absolute positions from `first`.

    again: whether the positions were computed and measured before. They are steered as they were, and not measured again.
    """

    row: Row_co
    first: int
    start: int
    end: int
    again: bool = False

    @property
    def length(self) -> int:
        """Returns the number of tokens."""
        return self.end - self.start

    @property
    def last_position(self) -> int:
        """Returns the absolute position of the last token."""
        return self.first + self.length - 1

    def tokens_in(self, first: float, end: float = inf) -> range:
        """Returns the tokens of the pass that hold positions [first, end); empty where the segment has none of these."""
        low, high = (int(min(max(at - self.first, 0), self.length)) for at in (first, end))
        return range(self.start + low, self.start + max(low, high))

    @property
    def wants_logits(self) -> bool:
        """Whether a capture returns logits of the text."""
        return self.row.capture is not None and self.row.capture.wants_logits

    @property
    def logit_tokens(self) -> range:
        """Returns the tokens of the pass whose logits a capture returns."""
        capture = self.row.capture
        return self.tokens_in(capture.first) if capture is not None and capture.wants_logits else range(0)

    @property
    def predicts(self) -> bool:
        """Whether the request's next token is chosen from its last position."""
        return self.row.capture is None and not self.again and self.last_position == len(self.row.ids) - 1

    @property
    def decodes(self) -> bool:
        """Whether it is one token behind the prompt of a request that generates."""
        behind = self.first >= self.row.prompt_length
        return self.length == 1 and self.row.capture is None and not self.again and behind

    @property
    def replayed(self) -> SteeringHistory | None:
        """What decided its steering when its positions were computed before; None where that is decided now."""
        return self.row.history if self.again else None
