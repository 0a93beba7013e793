"""Scheduler: which sequences run, which blocks of the cache they hold, and what the next pass computes."""

from collections import Counter
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Rows
from itertools import count, takewhile
from math import ceil
from time import monotonic

from steering.engine.options import EngineLimits
from steering.engine.transformers.memory.block_pool import BLOCK, BlockPool, blocks_for
from steering.engine.transformers.memory.prefix_index import PrefixIndex
from steering.engine.transformers.prefill_budget import PrefillBudget
from steering.engine.transformers.sequence import Sequence
from steering.engine.transformers.waiting import ClientShare, WaitingQueue, by_client

Work = list[tuple[Sequence, int]]
"""Sequences, and how many of their next positions a pass computes."""
BACKGROUND_TURN = 4
"""Background prompts come first in every fourth pass with prompts, so that live traffic cannot starve them."""
LOOKAHEAD = 16
"""How many waiting requests that do not fit are passed over in one turn, in search of shorter ones that do."""
MOST_OVERTAKEN = 64
"""After so many admissions before it a request is overtaken no more: blocks are kept for it as they become free. Nor does background work
that was preempted yield to live requests then."""
RESERVED = 8
"""One in so many rows of background work is kept for texts that somebody waits for: those of jobs leave it free."""
RESUME_BLOCKS = 8
"""Free blocks for every running sequence that a preempted one waits for, or it would soon be preempted again."""


class Scheduler:
    """Live requests and background work have queues and limits of their own, and share the blocks: live ones come first.

    A sequence is admitted when there are blocks for all its tokens and one more. When blocks run out while it decodes,
    the youngest sequence gives up its own (background first) and is computed again later, with the same result.
    """

    def __init__(
        self,
        limits: EngineLimits,
        pool: BlockPool,
        index: PrefixIndex,
        release: Callable[[Sequence], None],
        logit_positions: int = 1 << 30,
        clock: Callable[[], float] = monotonic,
        *,
        same_pass: bool = True,
    ) -> None:
        """release: ends what is kept for a running sequence outside the scheduler, and does not raise. logit_positions: how many
        positions of a pass may have all their logits returned. same_pass: whether a sequence may read blocks that another
        computes in the same pass."""
        self.pool, self.index, self._release = pool, index, release
        self._logit_positions, self._same_pass = logit_positions, same_pass
        self.live, self.background = WaitingQueue(), WaitingQueue()
        self.running: dict[int, Sequence] = {}
        self.budget = PrefillBudget(limits)
        self._share = ClientShare(limits, clock)
        self.preemptions = self.cached_tokens = 0
        self._most = {False: limits.max_running, True: limits.max_background}
        self._orders, self._turn = count(1), 0
        self._again: set[int] = set()
        self._rows_again = 1
        """While sequences are computed again that did not fit into memory together, so many rows run."""
        self._changed = False
        """Whether anything came or went since admission last found nothing that fits."""

    @property
    def busy(self) -> bool:
        """Whether a sequence runs or waits."""
        return bool(self.running or self.live or self.background)

    def enqueue(self, sequence: Sequence) -> None:
        """Adds a request to its queue."""
        self._queue_of(sequence).put(sequence)
        self._note(sequence)

    def _note(self, sequence: Sequence) -> None:
        self._changed = True
        if not sequence.background:
            self._share.note(sequence.cache_salt)

    def _queue_of(self, sequence: Sequence) -> WaitingQueue:
        return self.background if sequence.background else self.live

    def fits_alone(self, length: int) -> bool:
        """Whether a sequence of that length fits an empty cache."""
        return blocks_for(length) <= self.pool.count

    def drop_closed(self) -> list[Sequence]:
        """Ends sequences whose reader has left, and returns them."""
        gone = [sequence for sequence in self.running.values() if sequence.stream.closed]
        for sequence in gone:
            self.release(sequence, dirty=True)
        gone += [*self.live.drop_closed(), *self.background.drop_closed()]
        self._again.difference_update(sequence.id for sequence in gone)
        return gone

    def running_of(self, *, background: bool) -> int:
        """How many sequences of a kind run. May be called by any thread."""
        return sum(one.background == background for one in tuple(self.running.values()))

    def release(self, sequence: Sequence, *, dirty: bool = False) -> None:
        """Ends a sequence's run. dirty: what it computed may not be finite, or is not complete. Harmless when repeated."""
        if sequence.id in self.running:
            self._release(sequence)
            if not dirty:
                self.index.register_answer(sequence)
            self._take_back(sequence, dirty=dirty)
            self._again.discard(sequence.id)

    def _take_back(self, sequence: Sequence, *, dirty: bool) -> None:
        del self.running[sequence.id]
        sequence.running = False
        blocks, sequence.block_table, sequence.shared = sequence.block_table, [], 0
        self.pool.release(blocks, dirty=dirty)
        self._note(sequence)

    def compute_again(self, sequences: Rows[Sequence], rows: int) -> None:
        """Preempts sequences whose pass did not fit into memory. Until they have ended, at most so many rows run at once."""
        for sequence in sequences:
            sequence.computed_again = True
            self.preempt(sequence, dirty=True)
        self._again.update(sequence.id for sequence in sequences)
        self._rows_again = rows

    def preempt(self, sequence: Sequence, *, dirty: bool = False) -> None:
        """Takes the blocks from a sequence, which waits to be computed again. dirty: see `release`."""
        self._release(sequence)
        self._take_back(sequence, dirty=dirty or sequence.prefilling)
        sequence.restart()
        self._queue_of(sequence).put_back(sequence)
        self.preemptions += 1

    def admit(self) -> list[Sequence]:
        """Gives blocks to waiting sequences, live ones first, and returns those who got them."""
        if not self._changed:
            return []
        self._changed = False
        starved = self.background.starved(MOST_OVERTAKEN)
        first = list(self._admitted(self.background)) if starved else []
        if starved and not starved.running:
            return first  # blocks are kept for it as they become free
        return [*first, *self._admitted(self.live), *self._admitted(self.background)]

    def _is_full(self, *, background: bool, reserved: bool = False) -> bool:
        """Whether all rows of a kind are taken. reserved: with those that jobs leave free."""
        most = self._most[background]
        return self.running_of(background=background) >= most - (most // RESERVED if reserved else 0)

    def _admitted(self, queue: WaitingQueue) -> Iterator[Sequence]:
        passed: list[Sequence] = []
        rows = Counter(one.cache_salt for one in self.running.values() if not one.background)
        most = self._share.most(rows.keys() | queue.clients)
        for sequence in queue.in_turns():
            if not sequence.background and rows[sequence.cache_salt] >= most:
                self._changed = True  # the other clients may stop asking, which is no event
                continue
            if self._again and len(self.running) >= self._rows_again:
                return
            full = self._is_full(background=sequence.background)
            if full or len(passed) > LOOKAHEAD or any(one.overtaken >= MOST_OVERTAKEN for one in passed):
                return
            if sequence.priority > 0 and self._is_full(background=True, reserved=True):
                continue
            if not self._take_blocks(sequence):
                passed.append(sequence)
                continue
            queue.take(sequence)
            sequence.running, sequence.order = True, sequence.order or next(self._orders)
            sequence.cache_epoch = self.index.epoch
            self.running[sequence.id] = sequence
            rows[sequence.cache_salt] += 1
            for one in (*passed, *(() if sequence.background else self.background.preempted)):
                one.overtaken += 1
            yield sequence

    def _take_blocks(self, sequence: Sequence) -> bool:
        """Takes the blocks of a sequence's tokens and one more position, if there are enough."""
        found = self.index.find(sequence)
        self.pool.acquire(found)
        needed = blocks_for(min(len(sequence.ids) + 1, sequence.max_length)) - len(found)
        spare = 0
        if self.running:
            resumed = sequence.preemptions and sequence.overtaken < MOST_OVERTAKEN
            spare = RESUME_BLOCKS * len(self.running) if resumed else int(sequence.background)
        if not sequence.background:
            self._preempt_background(needed + spare)
        own = self.pool.allocate(needed) if needed + spare <= self.pool.available else None
        if own is None:
            self.pool.release(found)
            return False
        sequence.block_table = found + own
        self._took_over(sequence, 0, len(found))
        return True

    def _preempt_background(self, needed: int) -> None:
        """Preempts background work, the youngest first, if a live sequence fits then."""
        background = sorted((s for s in self.running.values() if _yields(s)), key=lambda one: -one.order)
        if needed > self.pool.available + sum(len(one.block_table) for one in background):
            return
        for sequence in background:
            if needed <= self.pool.available:
                return
            self.preempt(sequence)

    def _took_over(self, sequence: Sequence, first: int, end: int) -> None:
        """Blocks [first, end) of a table are those of others: their positions are not computed again."""
        self.index.restore(sequence, first, end)
        sequence.shared, sequence.computed = end, end * BLOCK
        if not sequence.preemptions:
            self.cached_tokens += (end - first) * BLOCK
            sequence.cached = sequence.computed

    def schedule(self) -> Work:
        """Chooses what the next pass computes: a token for every sequence that decodes, and prompts within the budget."""
        self._turn += 1
        decoding = self._decoding()
        return decoding + self._prompts(len(decoding))

    def _decoding(self) -> Work:
        """Sequences with one token to compute, each with a block for it; the youngest are preempted where blocks run out."""
        for sequence in sorted(self.running.values(), key=lambda one: one.order):
            while not sequence.prefilling and len(sequence.block_table) * BLOCK <= sequence.computed:
                block = self.pool.allocate(1)
                if block is not None:
                    sequence.block_table += block
                else:
                    self.preempt(max(self.running.values(), key=lambda one: (_yields(one), one.order)))
        return [(sequence, 1) for sequence in self.running.values() if not sequence.prefilling]

    def _prompts(self, streams: int) -> Work:
        pending = sorted((s for s in self.running.values() if s.prefilling), key=self._alone_finished)
        live, background = (
            by_client([s for s in pending if s.background == kind], self._turn) for kind in (False, True)
        )
        # texts that somebody waits for before those of jobs, which have every fourth round
        jobs_first = self._turn // BACKGROUND_TURN % BACKGROUND_TURN == BACKGROUND_TURN - 1
        background.sort(key=lambda one: one.priority > 0, reverse=jobs_first)
        turn = [*background, *live] if background and self._turn % BACKGROUND_TURN == 0 else [*live, *background]
        left: dict[bool, float] = {kind: self.budget.positions(streams, background=kind) for kind in (False, True)}
        work: Work = []
        claimed: set[bytes] = set()  # hashes of the blocks that sequences of this pass compute, in it or later
        computing: dict[bytes, int] = {}  # of those, what this pass completes and others may read in it: hash -> block
        logit_positions = self._logit_positions
        for sequence in turn:
            if (allowed := left[sequence.background]) <= 0:
                continue
            keys, coming = self.index.keys_of(sequence), list[int]()
            if sequence.computed <= sequence.shared * BLOCK:  # it has computed nothing itself
                self._take_over(sequence, self.index.find(sequence)[sequence.shared :])
                coming = [computing[key] for key in takewhile(computing.__contains__, keys[sequence.shared :])]
                following = sequence.shared + len(coming)
                if following < len(keys) and keys[following] in claimed:
                    continue  # another sequence will compute its next block
            skipped, cost = len(coming) * BLOCK, self.budget.cost(sequence.prompt_calls)
            amount = min(sequence.most_positions - skipped, ceil(allowed / cost))
            if sequence.capture is not None and sequence.capture.spec.logits:
                before = max(sequence.capture.first - sequence.computed - skipped, 0)  # positions without logits
                if (amount := min(amount, before + logit_positions)) == 0:
                    continue
                logit_positions -= max(amount - before, 0)
            # not before it is certain to be in the pass: if the pass fails, these blocks are never written, and it must fail too
            self._take_over(sequence, coming)
            work.append((sequence, amount))
            left = {kind: one - amount * cost for kind, one in left.items()}
            first, end = sequence.computed // BLOCK, (sequence.computed + amount) // BLOCK
            if self._same_pass and not sequence.plan.prompt_fingerprint:
                computing.update(zip(keys[first:end], sequence.block_table[first:end], strict=False))
            claimed.update(keys[first:])
        return work

    def _alone_finished(self, sequence: Sequence) -> tuple[float, int]:
        """When a prompt would be computed if it had come alone: short ones overtake long ones, but none waits for ever."""
        positions = sequence.remaining * self.budget.cost(sequence.prompt_calls)
        return sequence.arrived + self.budget.alone(positions), sequence.order

    def _take_over(self, sequence: Sequence, blocks: list[int]) -> None:
        """Puts blocks of others in the place of those of a sequence, behind what it shares already."""
        if not blocks:
            return
        first, end = sequence.shared, sequence.shared + len(blocks)
        self.pool.acquire(blocks)
        self.pool.release(sequence.block_table[first:end])
        sequence.block_table[first:end] = blocks
        self._took_over(sequence, first, end)
        self._changed = True


def _yields(sequence: Sequence) -> bool:
    """Whether a sequence gives its blocks to live ones."""
    return sequence.background and sequence.overtaken < MOST_OVERTAKEN
