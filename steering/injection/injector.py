"""Injector: steers the passes of one engine. Injection: everything that steers one pass.

At a layer, conditions are read first and set the weights; then the edits of each request change its residual; then the
controllers of strengths read the result.
"""

from collections.abc import Iterator, Sequence
from math import inf
from typing import TypeAlias

import torch

from steering.injection.apply import Edited, Index, LayerEdits, index_of, take
from steering.injection.conditions import Conditions
from steering.injection.controllers import Controllers, held_readouts
from steering.injection.pass_doses import PASSES, PassDoses
from steering.injection.rows import Segment, SteeredRow
from steering.injection.slots import UNSTEERED_SLOT, Slots, columns_of
from steering.plan.scope import is_constant_from, is_named, weights
from steering.shapes import Float, Int, Residual, Tensor

CHUNK_NUMBERS = 1 << 22
"""float32 numbers of gathered vectors that are worked on at once (16 MB): a pass needs no more, however many edits there are."""
KEPT_NUMBERS = 1 << 24
"""float32 numbers of gathered vectors that are kept between passes of the same decode tokens (64 MB)."""

_Group: TypeAlias = tuple[Index, LayerEdits, Float[Tensor, "token edit"] | None]
"""Edits with their tokens, and their weights where these are the same in every pass."""


class Injection:
    """Steers the tokens of one pass, or of the passes that follow with the same requests at the same tokens.

    edited: layers where edits act. layers: those, and where conditions or controllers read.
    slots_of_tokens (token,): each token's slot. weights (token, column): of interventions and controllers, changed in place.
    left (token,): of the dose bound of each token. rows (layer, token, edit): of the edits at `edited`, in order.
    """

    def __init__(self, segments: Sequence[Segment[SteeredRow]], tokens: int, slots: Slots) -> None:
        self.segments, self.tokens, self._slots = segments, tokens, slots
        device = self._device = slots.device
        self._steered = [segment for segment in segments if segment.row.slot != UNSTEERED_SLOT]
        plans = {id(one.row.plan): one.row.plan for one in self._steered}.values()
        self.edited = tuple(sorted({layer for plan in plans for layer in plan.layers}))
        self.conditions = Conditions(self._steered, slots)
        self.controllers = Controllers(self._steered, slots)
        self.layers = self.conditions.layers.union(self.edited)
        self.decodes = all(segment.decodes for segment in segments)
        self._number_of = {layer: number for number, layer in enumerate(self.edited)}
        if not self._steered:
            self.slots_of_tokens = torch.zeros(tokens, dtype=torch.int64, device=device)
            self.weights, self.left = torch.zeros(tokens, 1, device=device), torch.zeros(tokens, device=device)
            return
        slot_of, last, bound = [UNSTEERED_SLOT] * tokens, [0] * tokens, [inf] * tokens
        for segment in self._steered:
            row, here = segment.row, slice(segment.start, segment.end)
            slot_of[here] = [row.slot] * segment.length
            last[here] = [row.prompt_length - 1] * segment.length
            bound[here] = [inf if row.plan.dose_bound is None else row.plan.dose_bound] * segment.length
        self.slots_of_tokens = torch.tensor(slot_of, device=device)
        self._last = torch.tensor(last, device=device)
        self.guarded = any(plan.dose_bound is not None for plan in plans)
        self._bound = torch.tensor(bound, device=device)
        self.left = self._bound.clone()
        self._interventions = max(len(plan.interventions) for plan in plans)
        self.weights = torch.zeros(tokens, max(columns_of(plan) for plan in plans), device=device)
        self._timings = slots.timings[self.slots_of_tokens, : self.weights.shape[1]]
        self._constant, self._begun = self._is_constant(), False
        self._base = self._acting = self.weights
        most = max(sum(len(one.kinds) for one in edits) for plan in plans for edits in plan.layers.values())
        by_layer = slots.rows[:, list(self.edited), :most].transpose(0, 1)
        self.rows: Int[Tensor, "layer token edit"] = by_layer[:, self.slots_of_tokens]
        passes = PASSES if self.decodes else 1
        self.doses = PassDoses(self._steered, tokens, self.edited, slots, self.rows, self._interventions, passes)
        keeps = self.decodes and 2 * self.rows.numel() * slots.vectors.shape[1] <= KEPT_NUMBERS
        self._kept: dict[int, list[_Group]] | None = {} if keeps else None

    def _is_constant(self) -> bool:
        """Whether the weights are the same in all passes that follow, and at all layers."""
        return self.decodes and all(
            one.condition is None
            and not one.holds
            and is_constant_from(one, segment.row.plan, segment.row.prompt_length, segment.first)
            for segment in self._steered
            for one in segment.row.plan.interventions
        )

    def begin(self, positions: Int[Tensor, "token"]) -> None:
        """Before each pass, on the host. positions: of its tokens."""
        if not self._steered:
            return
        if self.guarded:
            self.left.copy_(self._bound)
        self.doses.begin((positions - self._last).clamp_min_(-1))
        if self._constant and self._begun:
            return
        self._base, self._begun = weights(self._timings, positions) * self._named(), True
        self.weights.copy_(self._base)
        self.conditions.begin()
        self._weigh(0)

    def _named(self) -> Float[Tensor, "token column"] | float:
        """1 where a scope with token ids or roles names the token, 0 elsewhere. The one part of a weight that needs the ids."""
        naming = [one for one in self._steered if any(of.spec.scope.selects for of in one.row.plan.interventions)]
        if not naming:
            return 1.0
        named = torch.ones(self.weights.shape)
        for segment in naming:
            row, first = segment.row, segment.row.computed if segment.decodes else segment.first
            for number, one in enumerate(row.plan.interventions):
                scope = one.spec.scope
                if scope.selects:
                    found = [
                        is_named(scope, row.plan, row.ids, row.prompt_length, first + n) for n in range(segment.length)
                    ]
                    named[segment.start : segment.end, number] = torch.tensor(found, dtype=torch.float32)
        return named.to(self._device)

    def _weigh(self, layer: int) -> None:
        """Sets the weights for the edited layers from one on, by what conditions and controllers say now."""
        held = self.conditions.applied(self._base)
        self._acting = held
        self.doses.note_acting(layer, held[:, : self._interventions] != 0.0, every=self._constant)
        if held is not self._base or self.controllers:
            self.weights.copy_(self.controllers.applied(held) if self.controllers else held)

    def decide(self, layer: int, residual: Residual) -> None:
        """residual (token, d_model) float32, as it arrives: reads the conditions of a layer."""
        if layer in self.conditions.layers:
            self.conditions.read(layer, residual)
            self._weigh(sum(edited < layer for edited in self.edited))

    def apply(self, layer: int, residual: Residual) -> Residual:
        """residual (token, d_model) float32 as it arrives at the layer -> as it leaves."""
        self.decide(layer, residual)
        if layer in self._number_of:
            residual = self._edited(layer, residual)
        self.control(layer, residual)
        return residual

    def control(self, layer: int, residual: Residual) -> None:
        """residual (token, d_model) float32, as it leaves: the controllers of a layer set the strengths of the next token."""
        if layer in self.controllers.layers:
            self.controllers.step(layer, residual, self._acting)

    def _edited(self, layer: int, residual: Residual) -> Residual:
        after = None
        for tokens, edits, known in self._groups(layer):
            left = take(self.left, tokens) if self.guarded else None
            of_edits = edits.weights(take(self.weights, tokens)) if known is None else known
            found = edits.apply(take(residual, tokens), of_edits, left)
            if left is not None and not isinstance(tokens, slice):
                self.left[tokens] = left
            self._note(layer, tokens, found)
            if isinstance(tokens, slice) and found.after.shape == residual.shape:
                return found.after
            after = residual.clone() if after is None else after
            after[tokens] = found.after
        return residual if after is None else after

    def _note(self, layer: int, tokens: Index, found: Edited) -> None:
        doses, here = self.doses, (self.doses.passes - 1, self._number_of[layer], tokens)
        doses.edits[(*here, slice(found.doses.shape[1]))] = found.doses
        doses.changes[here] = found.change
        if found.share is not None:
            doses.scaled[here] = (found.share < 1.0).to(torch.float32)

    def _groups(self, layer: int) -> list[_Group]:
        """The edits of a layer, with their tokens: together for tokens of requests that decode, by itself for each piece of a
        prompt. Those of prompts are kept nowhere: the memory of one layer is free for the next."""
        if self._kept is None:
            return [(*pair, None) for pair in self._built(layer)]
        if layer not in self._kept:
            self._kept[layer] = [
                (tokens, edits, edits.weights(take(self.weights, tokens)) if self._constant else None)
                for tokens, edits in self._built(layer)
            ]
        return self._kept[layer]

    def _built(self, layer: int) -> Iterator[tuple[Index, LayerEdits]]:
        slots, number = self._slots, self._number_of[layer]
        acting = [(one, form) for one in self._steered if (form := slots.form(one.row.slot, layer)) is not None]
        decoding = [pair for pair in acting if pair[0].decodes]
        if decoding:
            widest = max(form.count for _, form in decoding)
            size = max(CHUNK_NUMBERS // (widest * slots.vectors.shape[1]), 1)
            for start in range(0, len(decoding), size):
                chunk = decoding[start : start + size]
                tokens = index_of([range(one.start, one.end) for one, _ in chunk], self._device)
                rows = take(self.rows[number], tokens)[:, :widest]
                yield tokens, LayerEdits.of(slots, rows, [form for _, form in chunk])
        for segment, form in acting:
            if not segment.decodes:
                rows = self.rows[number, segment.start, : form.count]
                yield slice(segment.start, segment.end), LayerEdits.of(slots, rows, [form])

    def noted(self) -> tuple[tuple[Tensor, Tensor, Tensor], int]:
        """Where a pass that applies the edits by itself notes doses: `edits`, `changes` and `scaled` of PassDoses, by pass and layer
        together, and the first of this pass."""
        if not self._steered:
            return (torch.zeros(1, self.tokens, 1), torch.zeros(1, self.tokens), torch.zeros(1, self.tokens)), 0
        doses = self.doses
        tables = doses.edits.flatten(0, 1), doses.changes.flatten(0, 1), doses.scaled.flatten(0, 1)
        return tables, (doses.passes - 1) * len(self.edited)

    def finish(self) -> None:
        """After each pass: decisions stay with their requests, and doses of prompts are summed, since block sharing needs them."""
        if self._steered:
            self.conditions.finish()
            if not self.decodes:
                self.doses.collect()

    def collect(self) -> None:
        """Adds the doses of the passes so far to the sums of the slots."""
        if self._steered:
            self.doses.collect()


class Injector:
    """Steers the passes of one engine. What steers decode tokens is built once for the passes with the same requests."""

    def __init__(self, layer_count: int, d_model: int, device: torch.device) -> None:
        self.slots = Slots(layer_count, d_model, device)
        self._key: tuple[object, ...] = ()
        self._kept: Injection | None = None

    def admit(self, row: SteeredRow) -> None:
        """Gives a request its slot."""
        row.slot = self.slots.allocate(row.plan, row.prompt_length)

    def release(self, row: SteeredRow) -> None:
        """Completes the doses of a request and takes its slot back."""
        slots, slot, own = self.slots, row.slot, row.doses
        if slot:
            self.flush()
            layers = list(own.layers)
            own.add(slots.doses[slot, layers], slots.totals[slot], slots.fired[slot].tolist())
            if count := len(row.plan.thresholds):
                own.scores = tuple(slots.scores[slot, :count].tolist())
            own.held = held_readouts(slots, slot, row.plan)
        self.discard(row)

    def abandon(self, row: SteeredRow) -> None:
        """Takes a request's slot back without its sums. Those of the passes that were not summed yet are lost for all requests
        in them, and their reports say so."""
        for one in (row, *(segment.row for segment in (self._kept.segments if self._kept else ()))):
            one.doses.incomplete = True
        self._kept, self._key = None, ()
        self.discard(row)

    def discard(self, row: SteeredRow) -> None:
        """Takes a request's slot back."""
        self.slots.release(row.slot)
        row.slot = UNSTEERED_SLOT

    def flush(self) -> None:
        """Sums all doses, and forgets what steers decode tokens."""
        if self._kept is not None:
            self._kept.collect()
        self._kept, self._key = None, ()

    def prepare(self, segments: Sequence[Segment[SteeredRow]], tokens: int) -> Injection:
        """Returns what steers a pass, ready to begin."""
        if not all(segment.decodes for segment in segments):
            self.flush()
            return Injection(segments, tokens, self.slots)
        key = (self.slots.layout, tokens, *((id(one.row), one.row.slot, one.start) for one in segments))
        if self._kept is None or key != self._key:
            self.flush()
            self._kept, self._key = Injection(segments, tokens, self.slots), key
        return self._kept
