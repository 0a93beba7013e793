"""Injector: steers the passes of one engine. Injection: everything that steers one pass. PassDoses: what edits did, by slot.

At a layer, conditions are read first and set the weights; then the edits of each request change its residual; then the
controllers of strengths read the result.
"""

from collections.abc import Iterable, Iterator, Sequence
from math import inf
from typing import TypeAlias

import torch

from steering.injection.apply import TINY, Index, LayerEdits, index_of, summed, take
from steering.injection.conditions import Conditions, Controllers, held_readouts
from steering.injection.fused import edit
from steering.injection.rows import BLOCK, Doses, Segment, SteeredRow
from steering.injection.slots import DOSE, NEVER, NO_EDIT, UNSTEERED_SLOT, WEIGHT, LayerForm, Slots, rows_of
from steering.model.hook_points import in_order
from steering.plan.scope import is_constant_from, weights
from steering.shapes import Bool, Float, Int, Residual, Tensor
from steering.uploads import uploaded

CHUNK_NUMBERS = 1 << 22
"""float32 numbers of gathered vectors that are worked on at once (16 MB): a pass needs no more, however many edits there are."""
KEPT_NUMBERS = 1 << 24
"""float32 numbers of gathered vectors that are kept between passes of the same decode tokens (64 MB)."""
PASSES = 16
"""Passes of decode tokens whose doses are summed together, because a sum costs as many operations for one of them."""
CHANGED = 1e-6
"""The relative dose from which on a token counts as changed: below it is rounding, as where the guard leaves nothing."""
_DOSE_NUMBERS = 1 << 20
"""float32 numbers that passes note before they are summed."""

_Group: TypeAlias = tuple[Index, LayerEdits, Float[Tensor, "token edit"] | None]
"""Edits with their tokens, and their weights where these are the same in every pass."""


def _runs(segment: Segment[SteeredRow]) -> Iterator[tuple[int | None, int]]:
    """Cuts a segment into neighbouring tokens whose sums are kept apart: yields (block, number of tokens).

    The block is None for positions that are never shared.
    """
    row, first, end = segment.row, segment.first, segment.first + segment.length
    shared = row.prompt_length - 1 if row.doses.by_block and not segment.again else 0
    while first < end:
        block, stop = None, end
        if first < shared:
            block = first // BLOCK
            stop = min((block + 1) * BLOCK, shared, end)
        yield block, stop - first
        first = stop


class PassDoses:
    """Notes the doses of the tokens of one pass, or of up to PASSES passes over the same requests, and sums them.

    layers: where anything acts, in order; tensors have a row for each.
    edits (pass, layer, token, edit): signed.
    changes (pass, layer, token): |r' - r| / |r|.
    scaled (pass, layer, token): 1 where the guard scaled the change down.
    acting (pass, layer, token, column): whether a weight was not 0.
    norms (pass, layer, token): |r| where what is added is `fixed`, the same in every pass; -1 elsewhere.
    """

    def __init__(
        self,
        segments: Sequence[Segment[SteeredRow]],
        tokens: int,
        layers: tuple[int, ...],
        slots: Slots,
        rows: Int[Tensor, "layer token edit"],
        columns: int,
        passes: int,
    ) -> None:
        """rows: of the edits of each token. columns: interventions of a plan, at most."""
        device = self._device = slots.device
        self._slots, self.layers, count = slots, layers, len(layers)
        self._blocks: list[tuple[int, int, Doses]] = []
        slot_of_run, run_of_token = [UNSTEERED_SLOT], torch.zeros(tokens, dtype=torch.int64)
        for segment in segments:
            token = segment.start
            for block, length in _runs(segment):
                if block is not None:
                    self._blocks.append((len(slot_of_run), block, segment.row.doses))
                run_of_token[token : token + length] = len(slot_of_run)
                slot_of_run.append(UNSTEERED_SLOT if segment.again else segment.row.slot)
                token += length
        self._run_of_token = uploaded(run_of_token, device)
        self._slot_of_run = uploaded(slot_of_run, device)
        self._places = uploaded([slots.place_of(layer) for layer in layers], device, torch.int64)
        size = max(count * tokens * (rows.shape[2] + columns), 1)
        self._most = min(passes, max(_DOSE_NUMBERS // size, 1))
        self.edits = torch.zeros(self._most, count, tokens, rows.shape[2], device=device)
        self.changes = torch.zeros(self._most, count, tokens, device=device)
        self.scaled = torch.zeros(self._most, count, tokens, device=device)
        self.acting = torch.zeros(self._most, count, tokens, columns, dtype=torch.bool, device=device)
        self._owners = slots.codes[:, DOSE][rows]
        present = torch.zeros(count, tokens, columns, device=device)
        present.scatter_add_(2, self._owners, (rows != NO_EDIT).to(torch.float32))
        self._present = present > 0.0
        self._firsts = torch.zeros(self._most, tokens, dtype=torch.int64, device=device)
        self.passes = 0
        self.norms = torch.full((self._most, count, tokens), -1.0, device=device)
        self._fixed: tuple[Tensor, Tensor] | None = None

    def begin(self, generated: Int[Tensor, "token"]) -> None:
        """Before each pass. generated: the index of each token among the generated ones, -1 in front of them."""
        if self.passes == self._most:
            self.collect()
        self._firsts[self.passes] = generated
        self.passes += 1

    def note_acting(self, layer: int, acting: Bool[Tensor, "token column"], *, every: bool) -> None:
        """Notes which interventions act, from the layer with a number on. every: in every pass that follows too."""
        self.acting[slice(None) if every else self.passes - 1, layer:] = acting

    def collect(self) -> None:
        """Adds what was noted to the sums of the slots, and to those of prompt blocks, and begins again."""
        if not self.passes:
            return
        here = slice(self.passes)
        edits, changes = self._measured(here)
        squares = edits.square()
        by_column = torch.zeros_like(self.acting[here], dtype=torch.float32)
        by_column.scatter_add_(3, self._owners.expand_as(squares), squares)
        acted = self.acting[here] & self._present
        first = torch.where(acted.any(1), self._firsts[here, :, None], NEVER).amin(0)
        doses = torch.stack([by_column.sqrt_().sum(0), acted.sum(0, dtype=torch.float32)], dim=-1)
        changed = (changes > CHANGED).any(1).sum(0, dtype=torch.float32)
        totals = torch.stack([changes.sum((0, 1)), changed, self.scaled[here].sum((0, 1))], dim=-1)
        self.passes = 0
        runs, columns = len(self._slot_of_run), doses.shape[2]
        doses = doses.new_zeros(doses.shape[0], runs, columns, 2).index_add_(1, self._run_of_token, doses)
        totals = totals.new_zeros(runs, 3).index_add_(0, self._run_of_token, totals)
        slots = self._slots
        at = self._slot_of_run[self._run_of_token]
        slots.fired.scatter_reduce_(0, at[:, None].expand_as(first), first, "amin")
        places = (self._slot_of_run[None, :] * slots.doses.shape[1] + self._places[:, None]).flatten()
        slots.doses.flatten(0, 1)[:, :columns].index_add_(0, places, doses.flatten(0, 1))
        slots.totals.index_add_(0, self._slot_of_run, totals)
        if self._blocks:  # waits for the device once
            numbers = torch.cat([doses.flatten(), totals.flatten()]).cpu()
            doses, totals = numbers[: doses.numel()].view(doses.shape), numbers[doses.numel() :].view(totals.shape)
            numbers_of = {layer: number for number, layer in enumerate(self.layers)}
            for run, block, own in self._blocks:
                rows = [numbers_of[layer] for layer in own.layers]
                own.add_block(block, doses[rows, run], totals[run])

    def note(
        self, number: int, coefficients: Float[Tensor, "token edit"], change: Residual, residual: Residual
    ) -> None:
        """Notes what the edits of a layer added. number: of the layer. coefficients: of their unit vectors."""
        at = self.passes - 1, number
        norms = torch.linalg.vector_norm(residual, dim=-1, dtype=torch.float32).clamp_min_(TINY)
        torch.div(coefficients, norms[:, None], out=self.edits[at])
        torch.linalg.vector_norm(change, dim=-1, out=self.changes[at]).div_(norms)

    def note_norms(self, number: int, residual: Residual) -> None:
        """Notes what the doses of a layer with fixed edits depend on."""
        torch.linalg.vector_norm(residual, dim=-1, dtype=torch.float32, out=self.norms[self.passes - 1, number])

    def fix(self, number: int, coefficients: Float[Tensor, "token edit"], change: Residual) -> None:
        """Notes what the edits of a layer add in each pass of which `norms` has the norms of its residuals."""
        if self._fixed is None:
            self._fixed = torch.zeros_like(self.edits[0]), torch.zeros_like(self.changes[0])
        self._fixed[0][number] = coefficients
        self._fixed[1][number] = torch.linalg.vector_norm(change, dim=-1)

    def _measured(
        self, here: slice
    ) -> tuple[Float[Tensor, "pass layer token edit"], Float[Tensor, "pass layer token"]]:
        """Returns the doses of edits, and of everything at a layer: fixed ones from the norms of all passes at once."""
        edits, changes, norms = self.edits[here], self.changes[here], self.norms[here]
        if self._fixed is not None:
            noted, sizes = norms != -1.0, norms.clamp_min(TINY)
            edits = torch.where(noted[..., None], self._fixed[0] / sizes[..., None], edits)
            changes = torch.where(noted, self._fixed[1] / sizes, changes)
            self.norms.fill_(-1.0)
        return edits, changes


class Injection:
    """Steers the tokens of one pass, or of the passes that follow with the same requests at the same tokens.

    edited: layers, or rather points, where edits act, in order.
    layers: those, and where conditions or controllers read.
    slots_of_tokens (token,): each token's slot.
    weights (token, column): of interventions and controllers, changed in place.
    left (token,): what is left of each token's dose bound.
    rows (layer, token, edit): of the edits at `edited`.
    constant: whether the weights are the same in all passes that follow, and at all layers.
    fused: the layers at which one kernel does what edits do. alone: those of them where nothing decides or controls, so that `edit` is all.
    additive: other layers, at which `addition` says what edits do, which there does not depend on the residual.
    """

    def __init__(self, segments: Sequence[Segment[SteeredRow]], tokens: int, slots: Slots) -> None:
        self.segments, self.tokens, self._slots = segments, tokens, slots
        device = self._device = slots.device
        self._steered = [segment for segment in segments if segment.row.slot != UNSTEERED_SLOT]
        plans = {id(one.row.plan): one.row.plan for one in self._steered}.values()
        self.edited = tuple(sorted({layer for plan in plans for layer in plan.layers}, key=in_order))
        self.conditions = Conditions(self._steered, slots)
        self.controllers = Controllers(self._steered, slots)
        self.layers = self.conditions.layers.union(self.edited)
        self.decodes = all(segment.decodes for segment in segments)
        self._number_of = {layer: number for number, layer in enumerate(self.edited)}
        self._steady = self._is_steady()
        self.constant, self.additive = self._steady and not self._decides(), frozenset[int]()
        self.fused = frozenset(one for one in self.edited if slots.fuses(one))
        self.alone = self.fused - self.conditions.layers - self.controllers.layers
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
        self.slots_of_tokens = uploaded(slot_of, device)
        self._last = uploaded(last, device)
        self.guarded = any(plan.dose_bound is not None for plan in plans)
        self._bound = uploaded(bound, device)
        self.left = self._bound.clone()
        self._interventions = max(len(plan.interventions) for plan in plans)
        self.weights = torch.zeros(tokens, max(plan.columns for plan in plans), device=device)
        self._timings = slots.timings[self.slots_of_tokens, : self.weights.shape[1]]
        self._naming = [one for one in self._steered if any(of.spec.scope.selects for of in one.row.plan.interventions)]
        self._begun = False
        self._base = self._acting = self.weights
        self._widths = dict.fromkeys(self.edited, 0)
        for plan in plans:
            for layer, edits in plan.layers.items():
                self._widths[layer] = max(self._widths[layer], sum(len(one.kinds) for one in edits))
        places = uploaded([slots.place_of(layer) for layer in self.edited], device, torch.int64)
        by_layer = slots.rows[:, places, : max(self._widths.values())].transpose(0, 1)
        self.rows: Int[Tensor, "layer token edit"] = by_layer[:, self.slots_of_tokens]
        passes = PASSES if self.decodes else 1
        self.doses = PassDoses(self._steered, tokens, self.edited, slots, self.rows, self._interventions, passes)
        keeps = self.decodes and 2 * self.rows.numel() * slots.vectors.shape[1] <= KEPT_NUMBERS
        self._kept: dict[int, list[_Group]] | None = {} if keeps else None
        if not self.guarded:
            depends = self.fused.union(
                self.conditions.layers,
                self.controllers.layers,
                *(slots.depending(one.row.slot) for one in self._steered),
            )
            # the tables of doses and the indices are on one device: layers on others take `apply`
            self.additive = frozenset(
                one for one in self.edited if one not in depends and slots.device_of(one) == device
            )
        if self.additive:
            numbers, codes = rows_of(slots.numbers, self.rows), rows_of(slots.codes, self.rows)
            self._biases, self._scales, self._columns = numbers[..., 0], numbers[..., 2], codes[..., WEIGHT]
        self._coefficients: Float[Tensor, "layer token edit"] | None = None
        keeps = self.constant and len(self.edited) * tokens * slots.vectors.shape[1] <= KEPT_NUMBERS
        self._fixed: dict[int, Residual] | None = {} if keeps else None

    def _is_steady(self) -> bool:
        """Whether scopes and schedules give the same weights in all passes that follow."""
        return self.decodes and all(
            is_constant_from(one, segment.row.plan, segment.row.prompt_length, segment.first)
            for segment in self._steered
            for one in segment.row.plan.interventions
        )

    def _decides(self) -> bool:
        """Whether conditions or controllers set weights between layers."""
        return any(one.condition or one.holds for segment in self._steered for one in segment.row.plan.interventions)

    def begin(self, positions: Int[Tensor, "token"]) -> None:
        """Before each pass, on the host. positions: of its tokens."""
        if not self._steered:
            return
        if self.guarded:
            self.left.copy_(self._bound)
        self.doses.begin((positions - self._last).clamp_min_(-1))
        if self.constant and self._begun:
            return
        if not (self._steady and self._begun):
            self._base, self._begun = weights(self._timings, positions) * self._named(), True
        self.weights.copy_(self._base)
        self.conditions.begin()
        self._weigh(0)

    def _named(self) -> Float[Tensor, "token column"] | float:
        """Returns 0 where a scope with token ids, roles or phases does not name the token, 1 elsewhere."""
        if not self._naming:
            return 1.0
        tokens, columns = self.weights.shape
        named = [[1.0] * columns for _ in range(tokens)]
        for segment in self._naming:
            # what steers decode tokens is kept between passes
            found = segment.row.named(segment.row.decoded if segment.decodes else segment.first, segment.length)
            for token, values in enumerate(zip(*found, strict=True), segment.start):
                named[token][: len(found)] = map(float, values)
        return uploaded(named, self._device, torch.float32)

    def _weigh(self, layer: int) -> None:
        """Sets the weights for the edited layers from one on, by what conditions and controllers say now."""
        self._coefficients = None
        held = self.conditions.applied(self._base)
        self._acting = held
        self.doses.note_acting(layer, held[:, : self._interventions] != 0.0, every=self.constant)
        if held is not self._base or self.controllers:
            self.weights.copy_(self.controllers.applied(held) if self.controllers else held)

    def decide(self, layer: int, residual: Residual) -> None:
        """residual (token, d_model) float32, as it arrives: reads the conditions of a layer."""
        if layer in self.conditions.layers:
            self.conditions.read(layer, residual)
            self._weigh(sum(in_order(edited) < in_order(layer) for edited in self.edited))

    def apply(self, layer: int, residual: Residual) -> Residual:
        """residual (token, d_model) float32 as it arrives at the layer -> as it leaves."""
        self.decide(layer, residual)
        if layer in self._number_of:
            residual = self._edited(layer, residual)
        self.control(layer, residual)
        return residual

    def addition(self, layer: int, residual: Residual) -> Residual:
        """Returns what is added at an additive layer, float32, and notes the doses, for which alone the residual is needed.

        residual (token, d_model), of any dtype, as it arrives. Decode tokens with the same weights in every pass take two operations
        of the device, with the addition.
        """
        number, doses = self._number_of[layer], self.doses
        if self._fixed is None or layer not in self._fixed:
            if self._coefficients is None:
                weights = self.weights.expand(len(self.edited), -1, -1).gather(2, self._columns) * self._scales
                # 0 where the weight is 0, even if the numbers overflow
                self._coefficients = (self._biases * weights).masked_fill_(weights == 0.0, 0.0)
            coefficients, width = self._coefficients[number], self._widths[layer]
            change = summed(self._slots.vectors, self.rows[number, :, :width], coefficients[:, :width])
            if self._fixed is None:
                doses.note(number, coefficients, change, residual)
                return change
            self._fixed[layer] = change
            doses.fix(number, coefficients, change)
        doses.note_norms(number, residual)
        return self._fixed[layer]

    def control(self, layer: int, residual: Residual) -> None:
        """residual (token, d_model) float32, as it leaves: the controllers of a layer set the strengths of the next token."""
        if layer in self.controllers.layers:
            self.controllers.step(layer, residual, self._acting)

    def edit(self, layer: int, residual: Residual) -> Residual:
        """Returns what leaves a fused layer, of the dtype of the residual (token, d_model) that arrives; one launch of the device."""
        tables, first = self.tables()
        return edit(residual, *tables, self._slots.place_of(layer), first + self._number_of[layer])

    def _edited(self, layer: int, residual: Residual) -> Residual:
        if layer in self.fused:
            return self.edit(layer, residual)
        after, home = None, self._device
        for tokens, edits, known in self._groups(layer):
            left = take(self.left, tokens).to(residual.device) if self.guarded else None
            of_edits = edits.weights(take(self.weights, tokens)) if known is None else known
            found = edits.apply(take(residual, tokens), of_edits, left)
            if left is not None and (residual.device != home or not isinstance(tokens, slice)):  # not a view
                self.left[tokens] = left.to(home)
            doses, here = self.doses, (self.doses.passes - 1, self._number_of[layer], tokens)
            doses.edits[(*here, slice(found.doses.shape[1]))] = found.doses.to(home)
            doses.changes[here] = found.change.to(home)
            if found.share is not None:
                doses.scaled[here] = (found.share < 1.0).to(home, torch.float32)
            if isinstance(tokens, slice) and found.after.shape == residual.shape:
                return found.after
            after = residual.clone() if after is None else after
            after[tokens if isinstance(tokens, slice) else tokens.to(after.device)] = found.after
        return residual if after is None else after

    def _groups(self, layer: int) -> Iterable[_Group]:
        """Returns the edits of a layer: together for tokens of requests that decode, by itself for each piece of a prompt.

        Those of prompts are not kept: the memory of one layer is free for the next.
        """
        if self._kept is None:
            return ((*pair, None) for pair in self._built(layer))
        if layer not in self._kept:
            self._kept[layer] = [
                (tokens, edits, edits.weights(take(self.weights, tokens)) if self.constant else None)
                for tokens, edits in self._built(layer)
            ]
        return self._kept[layer]

    def _built(self, layer: int) -> Iterator[tuple[Index, LayerEdits]]:
        slots, number = self._slots, self._number_of[layer]
        acting = [(one, form) for one in self._steered if (form := slots.form(one.row.slot, layer)) is not None]
        for decodes in (True, False):
            pairs = [pair for pair in acting if pair[0].decodes == decodes]
            widest = max((form.count for _, form in pairs), default=1)
            size = max(CHUNK_NUMBERS // (widest * slots.vectors.shape[1]), 1)
            for start in range(0, len(pairs), size):
                chunk = pairs[start : start + size]
                forms = [form for _, form in chunk]
                if decodes:
                    tokens = index_of([range(one.start, one.end) for one, _ in chunk], self._device)
                    rows = take(self.rows[number], tokens)[:, :widest]
                    yield tokens, self._gathered(layer, rows, forms)
                    continue
                rows = torch.stack([self.rows[number, one.start, :widest] for one, _ in chunk])
                edits = self._gathered(layer, rows, forms)
                for row, (segment, form) in enumerate(chunk):
                    yield slice(segment.start, segment.end), edits.of_row(row, form)

    def _gathered(self, layer: int, rows: Int[Tensor, "*edit"], forms: Sequence[LayerForm]) -> LayerEdits:
        slots = self._slots
        return LayerEdits.of(slots.tables[:3], rows, forms, slots.head_count).to(slots.device_of(layer))

    def noted(self) -> tuple[tuple[Tensor, Tensor, Tensor], int]:
        """Returns where a compiled pass notes doses: `edits`, `changes` and `scaled` of PassDoses, with pass and layer as one
        dimension, and the first of this pass."""
        if not self._steered:
            return (torch.zeros(1, self.tokens, 1), torch.zeros(1, self.tokens), torch.zeros(1, self.tokens)), 0
        doses = self.doses
        tables = doses.edits.flatten(0, 1), doses.changes.flatten(0, 1), doses.scaled.flatten(0, 1)
        return tables, (doses.passes - 1) * len(self.edited)

    def tables(self) -> tuple[tuple[Tensor, ...], int]:
        """Returns what operations over all tokens steer a pass with, from `vectors` to `scaled` of `steer`, and what `noted` says is the
        first."""
        noted, first = self.noted()
        return (*self._slots.tables, self.slots_of_tokens, self.weights, self.left, *noted), first

    def finish(self) -> None:
        """After each pass: keeps decisions, and sums the doses of prompts, since block sharing needs them."""
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

    def __init__(self, slots: Slots) -> None:
        self.slots = slots
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
            places = [slots.place_of(layer) for layer in own.layers]
            own.add(slots.doses[slot, places], slots.totals[slot], slots.fired[slot].tolist())
            if count := len(row.plan.thresholds):
                own.scores = tuple(slots.scores[slot, :count].tolist())
            own.held = held_readouts(slots, slot, row.plan)
        self._free(row)

    def abandon(self, row: SteeredRow) -> None:
        """Takes a request's slot back without its sums. Sums that were not collected yet are lost for all requests of those
        passes, and their reports say so."""
        for one in (row, *(segment.row for segment in (self._kept.segments if self._kept else ()))):
            one.doses.incomplete = True
        self._kept, self._key = None, ()
        self._free(row)

    def _free(self, row: SteeredRow) -> None:
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
