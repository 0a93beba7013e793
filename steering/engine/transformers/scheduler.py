"""Scheduler: waiting and running sequences; who gets a slot, whose prompt is computed next, which rows decode."""

from collections import deque

from steering.engine.options import EngineLimits
from steering.engine.transformers.memory.prefix_cache import PrefixCache
from steering.engine.transformers.memory.shared_prefixes import SharedPrefixes
from steering.engine.transformers.memory.slot_cache import BLOCK as LENGTH_STEP
from steering.engine.transformers.prefill_budget import PrefillBudget
from steering.engine.transformers.runner import ModelRunner
from steering.engine.transformers.sequence import Sequence
from steering.engine.transformers.steering.dose import BLOCK

ROW_BUCKETS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
BACKGROUND_TURN = 4
"""Background prompts come first in every fourth prefill pass, so that live traffic cannot starve them."""


def rows_for(count: int) -> int:
    """The row bucket that holds `count` rows: a pass comes in few sizes."""
    return next((bucket for bucket in ROW_BUCKETS if bucket >= count), count)


class Scheduler:
    """Slots are numbered from 0 and given out lowest first; a decode pass is the slots below the highest in use."""

    def __init__(self, runner: ModelRunner, limits: EngineLimits, position_bytes: int) -> None:
        self._runner, self._limits, self._position_bytes = runner, limits, position_bytes
        self._waiting: tuple[deque[Sequence], deque[Sequence]] = (deque(), deque())
        self.running: dict[int, Sequence] = {}
        self._turn = 0
        self.pace = PrefillBudget()
        self.prefix = PrefixCache(runner.cache, limits.prefix_bytes)

    @property
    def waiting(self) -> int:
        return sum(len(queue) for queue in self._waiting)

    @property
    def waiting_live(self) -> int:
        return len(self._waiting[0])

    @property
    def busy(self) -> bool:
        return bool(self.running) or self.waiting > 0

    def enqueue(self, sequence: Sequence) -> None:
        self._waiting[min(sequence.priority, 1)].append(sequence)

    def everyone(self) -> list[Sequence]:
        """Running and waiting."""
        return [*self.running.values(), *self._waiting[0], *self._waiting[1]]

    def drop_closed(self) -> None:
        """Rows and places in the queue of those whose reader has left."""
        for sequence in [s for s in self.running.values() if s.stream.closed]:
            # a steered prompt cut short may hold numbers that are not finite; nobody has looked at them
            self.release(sequence, wipe=sequence.prefilling and not sequence.plan.empty)
        for queue in self._waiting:
            if any(sequence.stream.closed for sequence in queue):
                kept = [sequence for sequence in queue if not sequence.stream.closed]
                queue.clear()
                queue.extend(kept)

    def release(self, sequence: Sequence, *, wipe: bool = False) -> None:
        """A row ends. Harmless for one that has no slot any more."""
        if self.running.get(sequence.slot) is sequence:
            if not wipe:
                self.prefix.publish(sequence, finished=True)
            self._runner.release(sequence, wipe=wipe)
            del self.running[sequence.slot]
            sequence.slot = -1

    def fits_alone(self, length: int) -> bool:
        """Whether a row of that length fits an empty cache."""
        return self._bytes(1, length) <= self._limits.cache_bytes

    def _bytes(self, slots: int, length: int) -> int:
        return rows_for(slots) * -(-length // LENGTH_STEP) * LENGTH_STEP * self._position_bytes

    def _reserve(self, length: int) -> None:
        """Room for that many positions in the slots in use. What was needed once and is not now is given back when both
        together would be more than the limit."""
        slots, length = rows_for(max(self.running) + 1), max(length, *(s.computed for s in self.running.values()))
        cache = self._runner.cache
        if self._bytes(max(slots, cache.slots), max(length, cache.capacity)) > self._limits.cache_bytes:
            cache.trim(slots, length)
        self._runner.reserve(slots, length)

    def admit(self) -> list[Sequence]:
        """Gives slots to those who wait, live traffic first, as far as rows and memory go."""
        admitted: list[Sequence] = []
        for queue in self._waiting:
            while queue and len(self.running) < self._limits.max_running:
                sequence = queue[0]
                slot = next(n for n in range(len(self.running) + 1) if n not in self.running)
                slots = max(slot, *self.running, 0) + 1 if self.running else slot + 1
                length = max([sequence.max_length, *(s.max_length for s in self.running.values())])
                if self.running and self._bytes(slots, length) > self._limits.cache_bytes:
                    return admitted
                queue.popleft()
                sequence.slot = slot
                self.running[slot] = sequence
                self._reserve(sequence.target)
                self._runner.place(sequence)
                admitted.append(sequence)
        return admitted

    def prompts(self) -> list[tuple[Sequence, int]]:
        """What the next prefill pass computes: sequences of one kind (live, or background) within the token budget."""
        pending = [s for s in self.running.values() if s.prefilling]
        if not pending:
            return []
        live = [s for s in pending if s.capture is None]
        background = [s for s in pending if s.capture is not None]
        self._turn += 1
        turn = background if background and (not live or self._turn % BACKGROUND_TURN == 0) else live
        # however many texts are to be read, nobody waits for them as for a first token
        budget = self.pace.budget(
            self._limits, 1 if turn is background else len(live), len(self.running) - len(pending)
        )
        work: list[tuple[Sequence, int]] = []
        promised: set[bytes] = set()
        beginnings = SharedPrefixes()
        for sequence in sorted(turn, key=lambda s: s.id):
            if budget <= 0:
                break
            if not self._may_start(sequence, promised):
                continue
            if self._runner.packs:
                beginnings.lend(sequence)
            count = min(sequence.target - sequence.computed, budget, _indivisible(sequence))
            work.append((sequence, count))
            beginnings.offer(sequence, count)
            budget -= count
            keys = self.prefix.keys_of(sequence)
            promised.update(keys[sequence.computed // BLOCK : (sequence.computed + count) // BLOCK])
        self._reserve(max(sequence.computed + count for sequence, count in work))
        return work

    def _may_start(self, sequence: Sequence, promised: set[bytes]) -> bool:
        """Lends a new prompt what is known of it. One whose next block this pass computes anyway waits for that."""
        if sequence.computed == 0:
            self.prefix.lend(sequence)
        return self.prefix.missing(sequence) not in promised

    def rows(self) -> tuple[list[Sequence | None], list[int]]:
        """(row -> sequence or None, row -> position an idle row may overwrite), compacted when that makes a smaller pass."""
        ready = [s for s in self.running.values() if not s.prefilling and s.capture is None]
        if not ready:
            return [], []
        self._compact()
        highest = max(s.slot for s in ready)
        rows = rows_for(highest + 1)
        by_slot = {s.slot: s for s in ready}
        self._reserve(max(s.computed for s in ready) + 1)
        capacity = self._runner.cache.capacity
        idle = [min(self.running[r].computed, capacity - 1) if r in self.running else 0 for r in range(rows)]
        return [by_slot.get(row) for row in range(rows)], idle

    def _compact(self) -> None:
        """Moves the highest rows into holes when the pass would otherwise be a bucket larger than it need be."""
        while self.running and rows_for(max(self.running) + 1) > rows_for(len(self.running)):
            source = max(self.running)
            target = next(n for n in range(source) if n not in self.running)
            sequence = self.running.pop(source)
            self._runner.move(sequence, target)
            self.running[target] = sequence


def _indivisible(sequence: Sequence) -> int:
    """A plan that hears of a decision one token later must take generated positions one by one when they are re-read."""
    if sequence.computed < sequence.prompt_length:
        return sequence.prompt_length - sequence.computed if reads_condition_late(sequence) else 1 << 30
    return 1 if reads_condition_late(sequence) else 1 << 30


def reads_condition_late(sequence: Sequence) -> bool:
    """Whether a condition of the plan is read at a later layer than one where it acts."""
    plan = sequence.plan
    return any(
        plan.thresholds[leaf].layer > layer
        for layer, steering in plan.layers.items()
        for call in steering.calls
        if (condition := plan.intervention(call).condition) is not None
        for leaf in condition.leaves()
    )
