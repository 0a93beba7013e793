"""Scheduler: which requests run, which blocks of the cache they hold, and what the next pass computes."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import count, takewhile
from math import ceil
from time import monotonic

from steering.engine.options import EngineLimits
from steering.engine.transformers.memory.block_pool import BLOCK, BlockPool, blocks_for
from steering.engine.transformers.memory.prefix_index import PrefixIndex
from steering.engine.transformers.prefill_budget import PrefillBudget
from steering.engine.transformers.request import Request
from steering.engine.transformers.waiting import ClientShare, WaitingQueue, by_client

Work = list[tuple[Request, int]]
"""Requests, and how many of their next positions a pass computes."""
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
"""Free blocks for every running request that a preempted one waits for, or it would soon be preempted again."""


class Scheduler:
    """Live requests and background work have queues and limits of their own, and share the blocks: live ones come first.

    A request is admitted when there are blocks for all its tokens and one more. When blocks run out while it decodes,
    the youngest request gives up its own (background first) and is computed again later, with the same result.
    """

    def __init__(
        self,
        limits: EngineLimits,
        pool: BlockPool,
        index: PrefixIndex,
        release: Callable[[Request], None],
        logit_positions: int = 1 << 30,
        clock: Callable[[], float] = monotonic,
        *,
        same_pass: bool = True,
    ) -> None:
        """release: ends what is kept for a running request outside the scheduler, and does not raise. logit_positions: how many
        positions of a pass may have all their logits returned. same_pass: whether a request may read blocks that another
        computes in the same pass."""
        self.pool, self.index, self._release = pool, index, release
        self._logit_positions, self._same_pass = logit_positions, same_pass
        self.live, self.background = WaitingQueue(), WaitingQueue()
        self.running: dict[int, Request] = {}
        self.budget = PrefillBudget(limits)
        self._share = ClientShare(limits, clock)
        self.preemptions = self.cached_tokens = 0
        self._most = {False: limits.max_running, True: limits.max_background}
        self._orders, self._turn = count(1), 0
        self._again: set[int] = set()
        self._rows_again = 1
        """While requests are computed again that did not fit into memory together, so many rows run."""
        self._changed = False
        """Whether anything came or went since admission last found nothing that fits."""

    @property
    def busy(self) -> bool:
        """Whether a request runs or waits."""
        return bool(self.running or self.live or self.background)

    def enqueue(self, request: Request) -> None:
        """Adds a request to its queue."""
        self._queue_of(request).put(request)
        self._note(request)

    def _note(self, request: Request) -> None:
        self._changed = True
        if not request.background:
            self._share.note(request.cache_salt)

    def _queue_of(self, request: Request) -> WaitingQueue:
        return self.background if request.background else self.live

    def fits_alone(self, length: int) -> bool:
        """Whether a request of that length fits an empty cache."""
        return blocks_for(length) <= self.pool.count

    def drop_closed(self) -> list[Request]:
        """Ends requests whose reader has left, and returns them."""
        gone = [request for request in self.running.values() if request.stream.closed]
        for request in gone:
            self.release(request, dirty=True)
        gone += [*self.live.drop_closed(), *self.background.drop_closed()]
        self._again.difference_update(request.id for request in gone)
        return gone

    def running_of(self, *, background: bool) -> int:
        """How many requests of a kind run. May be called by any thread."""
        return sum(one.background == background for one in tuple(self.running.values()))

    def release(self, request: Request, *, dirty: bool = False) -> None:
        """Ends a request's run. dirty: what it computed may not be finite, or is not complete. Harmless when repeated."""
        if request.id in self.running:
            self._release(request)
            if not dirty:
                self.index.register_answer(request)
            self._take_back(request, dirty=dirty)
            self._again.discard(request.id)

    def _take_back(self, request: Request, *, dirty: bool) -> None:
        del self.running[request.id]
        request.running = False
        blocks, request.block_table, request.shared = request.block_table, [], 0
        self.pool.release(blocks, dirty=dirty)
        self._note(request)

    def compute_again(self, requests: Sequence[Request], rows: int) -> None:
        """Preempts requests whose pass did not fit into memory. Until they have ended, at most so many rows run at once."""
        for request in requests:
            request.computed_again = True
            self.preempt(request, dirty=True)
        self._again.update(request.id for request in requests)
        self._rows_again = rows

    def preempt(self, request: Request, *, dirty: bool = False) -> None:
        """Takes the blocks from a request, which waits to be computed again. dirty: see `release`."""
        self._release(request)
        self._take_back(request, dirty=dirty or request.prefilling)
        request.restart()
        self._queue_of(request).put_back(request)
        self.preemptions += 1

    def admit(self) -> list[Request]:
        """Gives blocks to waiting requests, live ones first, and returns those who got them."""
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

    def _admitted(self, queue: WaitingQueue) -> Iterator[Request]:
        passed: list[Request] = []
        rows = Counter(one.cache_salt for one in self.running.values() if not one.background)
        most = self._share.most(rows.keys() | queue.clients)
        for request in queue.in_turns():
            if not request.background and rows[request.cache_salt] >= most:
                self._changed = True  # the other clients may stop asking, which is no event
                continue
            if self._again and len(self.running) >= self._rows_again:
                return
            full = self._is_full(background=request.background)
            if full or len(passed) > LOOKAHEAD or any(one.overtaken >= MOST_OVERTAKEN for one in passed):
                return
            if request.priority > 0 and self._is_full(background=True, reserved=True):
                continue
            if not self._take_blocks(request):
                passed.append(request)
                continue
            queue.take(request)
            request.running, request.order = True, request.order or next(self._orders)
            request.cache_epoch = self.index.epoch
            self.running[request.id] = request
            rows[request.cache_salt] += 1
            for one in (*passed, *(() if request.background else self.background.preempted)):
                one.overtaken += 1
            yield request

    def _take_blocks(self, request: Request) -> bool:
        """Takes the blocks of a request's tokens and one more position, if there are enough."""
        found = self.index.find(request)
        self.pool.acquire(found)
        needed = blocks_for(min(len(request.ids) + 1, request.max_length)) - len(found)
        spare = 0
        if self.running:
            resumed = request.preemptions and request.overtaken < MOST_OVERTAKEN
            spare = RESUME_BLOCKS * len(self.running) if resumed else int(request.background)
        if not request.background:
            self._preempt_background(needed + spare)
        own = self.pool.allocate(needed) if needed + spare <= self.pool.available else None
        if own is None:
            self.pool.release(found)
            return False
        request.block_table = found + own
        self._took_over(request, 0, len(found))
        return True

    def _preempt_background(self, needed: int) -> None:
        """Preempts background work, the youngest first, if a live request fits then."""
        background = sorted((s for s in self.running.values() if _yields(s)), key=lambda one: -one.order)
        if needed > self.pool.available + sum(len(one.block_table) for one in background):
            return
        for request in background:
            if needed <= self.pool.available:
                return
            self.preempt(request)

    def _took_over(self, request: Request, first: int, end: int) -> None:
        """Blocks [first, end) of a table are those of others: their positions are not computed again."""
        self.index.restore(request, first, end)
        request.shared, request.computed = end, end * BLOCK
        if not request.preemptions:
            self.cached_tokens += (end - first) * BLOCK
            request.cached = request.computed

    def schedule(self) -> Work:
        """Chooses what the next pass computes: a token for every request that decodes, and prompts within the budget."""
        self._turn += 1
        decoding = self._decoding()
        return decoding + self._prompts(len(decoding))

    def _decoding(self) -> Work:
        """Requests with one token to compute, each with a block for it; the youngest are preempted where blocks run out."""
        for request in sorted(self.running.values(), key=lambda one: one.order):
            while not request.prefilling and len(request.block_table) * BLOCK <= request.computed:
                block = self.pool.allocate(1)
                if block is not None:
                    request.block_table += block
                else:
                    self.preempt(max(self.running.values(), key=lambda one: (_yields(one), one.order)))
        return [(request, 1) for request in self.running.values() if not request.prefilling]

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
        claimed: set[bytes] = set()  # hashes of the blocks that requests of this pass compute, in it or later
        computing: dict[bytes, int] = {}  # of those, what this pass completes and others may read in it: hash -> block
        logit_positions = self._logit_positions
        for request in turn:
            if (allowed := left[request.background]) <= 0:
                continue
            keys, coming = self.index.keys_of(request), list[int]()
            if request.computed <= request.shared * BLOCK:  # it has computed nothing itself
                self._take_over(request, self.index.find(request)[request.shared :])
                coming = [computing[key] for key in takewhile(computing.__contains__, keys[request.shared :])]
                following = request.shared + len(coming)
                if following < len(keys) and keys[following] in claimed:
                    continue  # another request will compute its next block
            skipped, cost = len(coming) * BLOCK, self.budget.cost(request.prompt_calls)
            amount = min(request.most_positions - skipped, ceil(allowed / cost))
            if request.capture is not None and request.capture.wants_logits:
                before = max(request.capture.first - request.computed - skipped, 0)  # positions without logits
                if (amount := min(amount, before + logit_positions)) == 0:
                    continue
                logit_positions -= max(amount - before, 0)
            # not before it is certain to be in the pass: if the pass fails, these blocks are never written, and it must fail too
            self._take_over(request, coming)
            work.append((request, amount))
            left = {kind: one - amount * cost for kind, one in left.items()}
            first, end = request.computed // BLOCK, (request.computed + amount) // BLOCK
            if self._same_pass and not request.plan.prompt_fingerprint:
                computing.update(zip(keys[first:end], request.block_table[first:end], strict=False))
            claimed.update(keys[first:])
        return work

    def _alone_finished(self, request: Request) -> tuple[float, int]:
        """When a prompt would be computed if it had come alone: short ones overtake long ones, but none waits for ever."""
        positions = request.remaining * self.budget.cost(request.prompt_calls)
        return request.arrived + self.budget.alone(positions), request.order

    def _take_over(self, request: Request, blocks: list[int]) -> None:
        """Puts blocks of others in the place of those of a request, behind what it shares already."""
        if not blocks:
            return
        first, end = request.shared, request.shared + len(blocks)
        self.pool.acquire(blocks)
        self.pool.release(request.block_table[first:end])
        request.block_table[first:end] = blocks
        self._took_over(request, first, end)
        self._changed = True


def _yields(request: Request) -> bool:
    """Whether a request gives its blocks to live ones."""
    return request.background and request.overtaken < MOST_OVERTAKEN
