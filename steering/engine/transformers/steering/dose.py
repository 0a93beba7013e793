"""DoseLedger: the relative dose of one request, its attribution to interventions, and the report.

The relative dose of a change at a token is |r' - r| / |r|. A ledger holds, per (layer, source, phase), sums over the
tokens computed so far:

- source n >= 0: call n of the layer (`LayerSteering.calls`): dose, tokens it acted on, and how many of them it changed.
- source STATIC: the static adds: 1 / |r| instead of a dose, which times the length of each add is its dose.
- source WHOLE: |r' - r| / |r| of all of them together, at layers where more than one of them acts, and the tokens that changed.
- source CLAMPED: tokens at which the dose guard scaled the change down.

`runs` cuts a range of positions into pieces whose sums are kept apart: by phase, and for prompts that may be shared by
KV block, whose sums another request takes over with it. `note` adds the sums of one run; `block_measures` and
`restore_block` move those of a block to a request that reuses its keys and values.
`reset` forgets everything, for a request that is computed again. The ledger knows positions only: not passes, nor where keys and values lie.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from typing import TypeAlias

import torch

from steering.engine.api import SteeringReport
from steering.engine.transformers.memory.block_pool import BLOCK
from steering.engine.transformers.steering.gather import Spread
from steering.plan.holds import HeldReadout
from steering.plan.order import acts_on_prompt
from steering.plan.types import SCOPE_PHASES, ConditionTree, Phase, SteeringPlan
from steering.shapes import Bool, Float, Int, Tensor

NO_BLOCK = -1
"""The block of positions that are never shared."""
STATIC, WHOLE, CLAMPED = -1, -2, -3
CHANGED = 1e-6
"""The relative dose from which on a token counts as changed: below it is rounding, as where the guard leaves nothing of a change."""
NEVER = 1 << 30
"""`fired_at` of an intervention that has not acted yet."""

Source: TypeAlias = tuple[int, int]
"""(layer, number of the call there, or STATIC, WHOLE, CLAMPED)."""


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring positions whose sums are kept together."""

    block: int
    phase: Phase
    length: int


@dataclass(slots=True)
class Sums:
    """Sums over tokens. changed: the tokens whose residual changed; a clamp leaves others as they are. fired_at: index of the first
    generated token among them, -1 for a prompt position."""

    dose: float = 0.0
    tokens: float = 0.0
    changed: float = 0.0
    fired_at: int = NEVER

    def add(self, dose: float, tokens: float, changed: float, fired_at: int) -> None:
        """Adds the sums over more tokens."""
        self.dose += dose
        self.tokens += tokens
        self.changed += changed
        self.fired_at = min(self.fired_at, fired_at)


class DoseLedger:
    """The sums of one request, by (layer, source, phase). Set when it ends: the last score of each threshold in `scores`, and in `held` what
    `held_readouts` says of its controllers. incomplete: set where sums were lost."""

    def __init__(self, plan: SteeringPlan, prompt_length: int) -> None:
        self._plan, self._prompt_length = plan, prompt_length
        self._by_block = plan.reusable and bool(plan.prompt_fingerprint)
        self.sums: dict[tuple[int, int, Phase], Sums] = {}
        self._blocks: dict[tuple[int, int, int], Sums] = {}
        self.scores: tuple[float, ...] = ()
        self.held: tuple[Mapping[int, HeldReadout], ...] = ()
        self.incomplete = False

    def runs(self, first: int, count: int) -> Iterator[Run]:
        """Cuts positions [first, first + count) where their sums are kept apart, in order."""
        end, last = first + count, self._prompt_length - 1
        while first < end:
            block = NO_BLOCK
            if first > last:
                phase, stop = Phase.GENERATED, end
            elif first == last:
                phase, stop = Phase.LAST, first + 1
            else:
                phase, stop = Phase.PROMPT, min(last, end)
                if self._by_block:
                    block = first // BLOCK
                    stop = min(stop, (block + 1) * BLOCK)
            yield Run(block, phase, stop - first)
            first = stop

    def note(self, source: Source, run: Run, dose: float, tokens: float, changed: float, fired_at: int = NEVER) -> None:
        """Adds what one source was measured to do at the tokens of a run."""
        self.sums.setdefault((*source, run.phase), Sums()).add(dose, tokens, changed, fired_at)
        if run.block != NO_BLOCK:
            self._blocks.setdefault((run.block, *source), Sums()).add(dose, tokens, changed, fired_at)

    def block_measures(self, block: int) -> Float[Tensor, "source 3"]:
        """Returns the sums of one block by source (dose, tokens, changed), for whoever reuses its KV. float64, on the host."""
        sums = [self._blocks.get((block, *source), Sums()) for source in self._prompt_sources()]
        return torch.tensor([[one.dose, one.tokens, one.changed] for one in sums], dtype=torch.float64).reshape(-1, 3)

    def restore_block(self, block: int, measures: Float[Tensor, "source 3"] | None) -> None:
        """Adds the measures of a block as if this request had computed it. None: nothing steers that block."""
        if measures is None:
            return
        for source, (dose, tokens, changed) in zip(self._prompt_sources(), measures.tolist(), strict=True):
            self.note(source, Run(block, Phase.PROMPT, BLOCK), dose, tokens, changed, -1 if tokens else NEVER)

    def reset(self) -> None:
        """Forgets all sums."""
        self.sums.clear()
        self._blocks.clear()
        self.incomplete = False

    def _prompt_sources(self) -> tuple[Source, ...]:
        """Everything that is measured at prompt positions before the last. Plans of one prompt fingerprint have as many,
        in one order, though a call may be numbered differently in each."""
        plan, found = self._plan, list[Source]()
        for layer in sorted(plan.layers):
            acting = self._acting(layer, Phase.PROMPT)
            found += acting
            if len(acting) > 1:
                found.append((layer, WHOLE))
            if acting and plan.dose_bound is not None:
                found.append((layer, CLAMPED))
        return tuple(found)

    def _acting(self, layer: int, phase: Phase) -> list[Source]:
        """What may change the residual at a layer in a phase, in the order in which it acts."""
        plan, steering = self._plan, self._plan.layers[layer]
        found: list[Source] = []
        if any(phase in self._phases(add.intervention) for add in steering.static_adds):
            found.append((layer, STATIC))
        for number, call in enumerate(steering.calls):
            in_scope = phase in self._phases(call.interventions[0])
            if in_scope and (phase is not Phase.PROMPT or acts_on_prompt(plan.intervention(call), plan.thresholds)):
                found.append((layer, number))
        return found

    def report(self) -> SteeringReport:
        """What was done so far: measured relative doses, and whether and when each intervention acted."""
        count = len(self._plan.interventions)
        doses: list[dict[int, float]] = [{} for _ in range(count)]
        tokens, first = [0.0] * count, [NEVER] * count
        for layer, steering in self._plan.layers.items():
            acted = [
                (add.intervention, add.length, self._total((layer, STATIC), self._phases(add.intervention)))
                for add in steering.static_adds
            ]
            for number, call in enumerate(steering.calls):
                sums = self._total((layer, number))
                acted += [(index, 1.0, sums) for index in call.interventions]
            for index, length, sums in acted:
                tokens[index] = max(tokens[index], sums.tokens)
                if sums.tokens:
                    doses[index][layer] = length * sums.dose / sums.tokens
                first[index] = min(first[index], sums.fired_at)
        return SteeringReport(
            doses=tuple(doses),
            fired=tuple(at != NEVER for at in first),
            fired_at=tuple(None if at == NEVER else at for at in first),
            tokens=tuple(int(one) for one in tokens),
            condition_scores=tuple(self._condition_score(one.condition) for one in self._plan.interventions),
            held=self.held,
            total=sum(self._whole(layer) for layer in self._plan.layers),
            clamped=int(sum(one.tokens for (_, number, _), one in self.sums.items() if number == CLAMPED)),
            incomplete=self.incomplete,
        )

    def _condition_score(self, condition: ConditionTree | None) -> float | None:
        """The score of a condition that is a single threshold."""
        if condition is None or condition.kind != "threshold" or condition.threshold >= len(self.scores):
            return None
        score = self.scores[condition.threshold]
        return None if isnan(score) else score

    def _phases(self, intervention: int) -> frozenset[Phase]:
        return SCOPE_PHASES[self._plan.interventions[intervention].spec.scope.tokens]

    def _total(self, source: Source, phases: frozenset[Phase] = frozenset(Phase)) -> Sums:
        total = Sums()
        for phase in phases:
            if (one := self.sums.get((*source, phase))) is not None:
                total.add(one.dose, one.tokens, one.changed, one.fired_at)
        return total

    def _whole(self, layer: int) -> float:
        """The mean dose of all that acted at a layer, over the tokens that changed."""
        whole = Sums()
        for phase in Phase:
            acting = self._acting(layer, phase)
            for source in acting if len(acting) == 1 else [(layer, WHOLE)]:
                if (sums := self.sums.get((*source, phase))) is not None:
                    length = self._plan.layers[layer].static_lengths[phase] if source[1] == STATIC else 1.0
                    whole.add(length * sums.dose, sums.tokens, sums.changed, NEVER)
        return whole.dose / whole.changed if whole.changed else 0.0


class DoseSums:
    """Sums of one operation on the device, one for each (ledger, source, run), until they are collected.

    Tokens come in the order of the entries, as many for each as its run is long.
    """

    def __init__(self, entries: Sequence[tuple[DoseLedger, Source, Run]], device: torch.device) -> None:
        self._entries = entries
        self._spread = Spread([run.length for _, _, run in entries], device)
        self._dose = torch.zeros(len(entries), device=device)
        self._tokens = torch.zeros(len(entries), device=device)
        self._changed = torch.zeros(len(entries), device=device)
        self._fired = torch.full((len(entries),), NEVER, device=device)

    def add(
        self, changes: Float[Tensor, "token"], norms: Float[Tensor, "token"], acting: Bool[Tensor, "token"] | None
    ) -> None:
        """Adds the dose of each token, |r' - r| over |r|. acting: which were acted on; None: all."""
        if self._spread.one_each:  # no scatter needed
            self._dose.addcdiv_(changes, norms)
            self._tokens += 1.0 if acting is None else acting
            self._changed += changes > CHANGED * norms
        else:
            members = self._spread.members
            self._dose.index_add_(0, members, changes / norms)
            count = torch.ones_like(changes) if acting is None else acting.to(changes.dtype)
            self._tokens.index_add_(0, members, count)
            self._changed.index_add_(0, members, (changes > CHANGED * norms).to(changes.dtype))

    def add_first(self, generated: Int[Tensor, "token"]) -> None:
        """Remembers the lowest of the generated indices at which each entry acted; NEVER where it did not."""
        if self._spread.one_each:
            torch.minimum(self._fired, generated, out=self._fired)
        else:
            self._fired.scatter_reduce_(0, self._spread.members, generated, "amin")

    def collect(self) -> None:
        """Moves the sums to the ledgers, and starts again from zero. The only place where they leave the device."""
        sums = self._dose.tolist(), self._tokens.tolist(), self._changed.tolist(), self._fired.tolist()
        for (ledger, source, run), dose, tokens, changed, fired_at in zip(self._entries, *sums, strict=True):
            ledger.note(source, run, dose, tokens, changed, fired_at)
        for one in (self._dose, self._tokens, self._changed):
            one.zero_()
        self._fired.fill_(NEVER)
