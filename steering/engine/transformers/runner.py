"""ModelRunner: a Batch -> next-token logits, readouts and captures. By which way a pass is computed is decided here."""

from collections.abc import Sequence as Rows
from dataclasses import dataclass, field
from typing import Any

import torch

from steering.engine.transformers.batch import decoding, packed
from steering.engine.transformers.execution import CompileRequest, ModelParts, PreparedPass, create_executor
from steering.engine.transformers.memory.slot_cache import BLOCK, SlotCache
from steering.engine.transformers.sequence import Sequence
from steering.engine.transformers.steering.readout import ReadoutCollector
from steering.engine.transformers.steering.steering_batch import SteeringRunner
from steering.engine.transformers.training.gradient_pass import GradientPass
from steering.model.hooks import ResidualHooks
from steering.model.layout import Layout
from steering.shapes import Logits


@dataclass(slots=True, eq=False)
class PassResult:
    """logits (row, vocab) for `sequences`, in order; readouts: sequence id -> name -> score."""

    sequences: tuple[Sequence, ...]
    logits: Logits
    readouts: dict[int, dict[str, float]] = field(default_factory=dict)


class ModelRunner:
    """Owns the model, its hooks, the slots, the bank and the decision state. One thread calls it.

    compile_request: how passes are compiled; None: they are eager.
    """

    def __init__(
        self, model: Any, layout: Layout, device: torch.device, compile_request: CompileRequest | None = None
    ) -> None:
        self._layout, self._device = layout, device
        self._own = layout.attention == "own"
        self.cache = SlotCache(layout.layer_count, own_attention=self._own)
        self._hooks = ResidualHooks(layout)
        self.gradients = GradientPass(model, layout, self._hooks, device)
        self.steering = SteeringRunner(layout.layer_count, layout.d_model, device)
        parts = ModelParts(model, layout, self._hooks, self.cache, self.steering.bank)
        self.executor = create_executor(parts, device, compile_request)

    @property
    def packs(self) -> bool:
        """Whether one pass computes the prompts of several sequences."""
        return not self._own

    def close(self) -> None:
        """Leaves the model without hooks and with its own attention."""
        self.executor.close()
        self._hooks.remove()

    def reserve(self, slots: int, length: int) -> None:
        """Makes room in the cache."""
        self.cache.reserve(slots, length)

    def place(self, sequence: Sequence) -> None:
        """A sequence takes its slot."""
        self.steering.admit(sequence)

    def release(self, sequence: Sequence, *, wipe: bool = False) -> None:
        """A sequence gives its slot back; its dose ledger is complete then."""
        self.steering.release(sequence)
        if wipe:
            self.cache.wipe(sequence.slot)

    def move(self, sequence: Sequence, target: int) -> None:
        """Carries a sequence to another slot."""
        self.cache.move(sequence.slot, target, sequence.computed)
        sequence.slot = target

    def prefill(self, work: list[tuple[Sequence, int]]) -> PassResult:
        """Computes the next `count` positions of each sequence; logits for those whose prompt is complete by it."""
        if self._own and len(work) > 1:
            return _joined([self.prefill([item]) for item in work])
        batch = packed(work, self._device)
        steering = self.steering.prepare(batch)
        steering.begin()
        readers = ReadoutCollector(batch, self._device)
        wants_all = any(s.capture is not None and s.capture.spec.logits for s in batch.sequences)
        ends = [seg for seg in batch.segments if _predicts(seg.sequence, seg.last_position)]
        captures_only = all(s.capture is not None for s in batch.sequences)
        stop_after = max(readers.layers, default=0) if captures_only and not wants_all else None
        kept = range(batch.tokens) if wants_all else [seg.end - 1 for seg in ends] or [0]
        keep = torch.tensor(kept, device=self._device)
        logits = self.executor.run(PreparedPass(batch, steering, readers, keep, stop_after))
        self.steering.finish(steering)
        if wants_all and logits is not None:
            for segment in batch.segments:
                if segment.sequence.capture is not None and segment.sequence.capture.spec.logits:
                    piece = logits[segment.start : segment.end].to(torch.float32)
                    segment.sequence.capture.logits.append(piece)
            logits = logits[[segment.end - 1 for segment in ends]]
        if logits is None or not ends:
            logits = torch.empty(0, self._layout.vocab_size, device=self._device)
        for segment in batch.segments:
            segment.sequence.borrowed = ()
            segment.sequence.computed += segment.length
        return PassResult(tuple(seg.sequence for seg in ends), logits, readers.readouts())

    def decode(self, rows: list[Sequence | None], idle: list[int]) -> PassResult:
        """One token for every sequence; row r is slot r."""
        present = [sequence for sequence in rows if sequence is not None]
        if self._own:
            return _joined([self.prefill([(sequence, 1)]) for sequence in present])
        longest = max(sequence.computed for sequence in present) + 1
        length = -(-longest // BLOCK) * BLOCK
        batch = decoding(rows, idle, length, self._device)
        steering = self.steering.prepare(batch)
        steering.begin()
        readers = ReadoutCollector(batch, self._device)
        keep = torch.arange(batch.tokens, device=self._device)
        logits = self.executor.run(PreparedPass(batch, steering, readers, keep))
        assert logits is not None
        self.steering.finish(steering)
        for sequence in present:
            sequence.computed += 1
        filled = [row for row, sequence in enumerate(rows) if sequence is not None]
        if len(filled) < len(rows):
            logits = logits[filled]
        return PassResult(tuple(present), logits, readers.readouts())


def _predicts(sequence: Sequence, last_position: int) -> bool:
    """Whether the pass computes the position from which the sequence's next token is chosen."""
    return sequence.capture is None and last_position == len(sequence.ids) - 1


def _joined(results: Rows[PassResult]) -> PassResult:
    return PassResult(
        tuple(sequence for result in results for sequence in result.sequences),
        torch.cat([result.logits for result in results]),
        {key: value for result in results for key, value in result.readouts.items()},
    )
