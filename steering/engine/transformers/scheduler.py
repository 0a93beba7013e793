"""Scheduler: which requests run, which blocks of the cache they hold, and what the next pass computes.

Who: `_admitted` and `_prompt_order`. How much: PrefillBudget and `_prompts`. Which blocks: `_take_blocks` and `_take_over`.
"""

from bisect import insort
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from itertools import count, takewhile
from math import ceil
from operator import attrgetter
from time import monotonic

from steering.engine.options import EngineLimits
from steering.engine.transformers.block_pool import BLOCK, BlockPool, blocks_for
from steering.engine.transformers.paged_cache import PrefixIndex
from steering.engine.transformers.request import Request

Work = list[tuple[Request, int]]  # requests, and how many of their next positions a pass computes
WINDOW = 10.0
"""Seconds for which a client counts after its last request came or ended: most people who read an answer ask again by then."""
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
LIVE_SECONDS, BACKGROUND_SECONDS = 0.25, 0.15
"""How long the prompt positions of a pass may take while streams run; background ones delay them less."""
IDLE_SECONDS, IDLE_BACKGROUND_SECONDS = 2.0, 0.5
"""The same while no stream runs: for so long a pass goes on after its client has left, and a request that comes waits for it. A pass
must end long before the watchdog takes it for one that hangs."""
LEAST, FIRST = 32, 64
"""Positions of a pass: at least, since a smaller one costs what its weights cost to read; and before the rate is known."""
MEMORY = 2048
"""The rate is a mean over about so many positions, in which larger passes count more, since positions of small ones take longer."""
SMOOTHING = 0.3
CALL_COST = 0.004  # what a call of an operation at a position costs, in positions, as long as nothing else was measured
CALL_PRIOR = 1e7
"""How much that counts: as much as a pass with the root of so many calls at its positions together. So plans of a few calls, whose cost is less
than passes differ by chance, teach nothing about it."""


class WaitingQueue:
    """First in, first out for each call of a client, its calls in turns, the clients in turns. Preempted requests come before everybody.

    A call is a cache salt: one of texts that are read has its own, the answers of a client have one.

    preempted: those that have run before, in the order of their first admission.
    jobs: how many of those that wait are of jobs (priority above 0).
    admitted: how many have got a row for the first time. wait_seconds: how long these had waited, together.
    """

    def __init__(self) -> None:
        self._clients: OrderedDict[str, OrderedDict[str, deque[Request]]] = OrderedDict()
        """Client -> its calls -> their requests; none is empty."""
        self.preempted: list[Request] = []
        self._count, self._waiting = 0, Counter[str]()
        self.jobs = 0
        self.admitted = 0
        self.wait_seconds = 0.0

    def __len__(self) -> int:
        """How many wait. Other threads ask, so it is a number and not a walk through queues that change meanwhile."""
        return self._count

    def waiting_of(self, client: str) -> int:
        """How many of a client's wait. Other threads ask, too."""
        return self._waiting[client]

    @property
    def clients(self) -> set[str]:
        """Whose requests wait."""
        return {*self._clients, *(request.client for request in self.preempted)}

    def put(self, request: Request) -> None:
        """Adds a request behind those of its call."""
        calls = self._clients.setdefault(request.client, OrderedDict())
        calls.setdefault(request.cache_salt, deque()).append(request)
        self._add(request, 1)

    def put_back(self, request: Request) -> None:
        """Adds a request that has run before, in the order of admission."""
        insort(self.preempted, request, key=attrgetter("order"))
        self._add(request, 1)

    def _add(self, request: Request, count: int) -> None:
        """Counts a request that comes (1) or goes (-1)."""
        self._count += count
        self.jobs += count * (request.priority > 0)
        self._waiting[request.client] += count
        if not self._waiting[request.client]:  # clients without a key have a new name for each call
            del self._waiting[request.client]

    def take(self, request: Request) -> None:
        """Removes a request that gets a row; the next turn is another client's, and this one's next turn is another call's."""
        self._remove(request)
        if not request.preemptions:
            self.admitted += 1
            request.scheduled = monotonic()
            self.wait_seconds += request.scheduled - request.arrived
        if (calls := self._clients.get(request.client)) is not None:
            self._clients.move_to_end(request.client)
            if request.cache_salt in calls:
                calls.move_to_end(request.cache_salt)

    def _remove(self, request: Request) -> None:
        self._add(request, -1)
        if request in self.preempted:
            self.preempted.remove(request)
            return
        calls = self._clients[request.client]
        calls[request.cache_salt].remove(request)
        if not calls[request.cache_salt]:
            del calls[request.cache_salt]
        if not calls:
            del self._clients[request.client]

    def in_turns(self) -> Iterator[Request]:
        """Yields all in the order in which they are to be admitted, as the queue is now."""
        yield from list(self.preempted)
        clients = [[list(queue) for queue in calls.values()] for calls in self._clients.values()]
        yield from _in_turns(map(_in_turns, clients))

    def drop_closed(self) -> list[Request]:
        """Removes and returns those whose reader has left."""
        queues = (queue for calls in self._clients.values() for queue in calls.values())
        gone = [request for queue in (self.preempted, *queues) for request in queue if request.stream.closed]
        for request in gone:
            self._remove(request)
        return gone


def _in_turns(queues: Iterable[Iterable[Request]]) -> Iterator[Request]:
    """Yields the first of every queue, then the second of every queue, and so on."""
    left = [iter(queue) for queue in queues]
    while left:
        turn = [(queue, request) for queue in left if (request := next(queue, None)) is not None]
        yield from [request for _, request in turn]
        left = [queue for queue, _ in turn]


def _from(turn: int, queues: Sequence[Iterable[Request]]) -> Iterator[Request]:
    """Yields requests in turns between queues, of which another one is the first in each turn."""
    begin = turn % len(queues)
    return _in_turns([*queues[begin:], *queues[:begin]])


class ClientShare:
    """How many rows one client may run: every row of a pass makes it longer, so one that fills the batch would slow all others.

    While requests of several clients are there, each may run `contended_running` rows; its other requests wait. Rows that run
    already are not stopped. docs/operating.md has what it gains. Switched off by `contended_running` = `max_running`.
    """

    def __init__(self, limits: EngineLimits, clock: Callable[[], float] = monotonic) -> None:
        self._alone, self._contended = limits.max_running, min(limits.contended_running, limits.max_running)
        self._clock = clock
        self._seen: dict[str, float] = {}

    def note(self, client: str) -> None:
        """Notes that a request of a client has come or ended."""
        self._seen[client] = self._clock()

    def most(self, clients: Set[str]) -> int:
        """Returns how many rows one client may run. clients: who has requests that run or wait."""
        since = self._clock() - WINDOW
        self._seen = {client: at for client, at in self._seen.items() if at > since}
        return self._contended if len(clients | self._seen.keys()) > 1 else self._alone


class PrefillBudget:
    """Gives a pass as many prompt positions as take the time they may, so that no running stream waits for long.

    It learns the seconds of a prompt position and of a call at one by least squares over earlier passes:
    seconds = position * positions + call * calls.
    """

    def __init__(self, limits: EngineLimits) -> None:
        self._limits = limits
        self._decode_seconds: float | None = None
        self._sums = [0.0] * 5
        self._position: float | None = None
        self._call = 0.0

    def positions(self, streams: int, *, background: bool) -> int:
        """Returns how many positions without calls the next pass may compute, for which `streams` wait; see `cost`."""
        most = self._limits.idle_prefill_tokens
        if streams:
            seconds = BACKGROUND_SECONDS if background else LIVE_SECONDS
            most = min(most, self._limits.prefill_tokens)
        else:
            seconds = IDLE_BACKGROUND_SECONDS if background else IDLE_SECONDS
        allowed = FIRST if self._position is None else max(int(seconds / self._position), LEAST)
        return min(allowed, most)

    def cost(self, calls: int) -> float:
        """Returns how many positions one with so many calls counts as."""
        return 1.0 + calls * (CALL_COST if self._position is None else self._call / self._position)

    def alone(self, positions: float) -> float:
        """Returns the seconds that so many positions of a prompt would take if no other was computed; 0 if not known yet."""
        return positions * self._position if self._position else 0.0

    def observe(self, positions: int, streams: int, seconds: float, *, calls: int = 0) -> None:
        """Notes how long a pass took with so many prompt positions, calls at them together, and decoding streams."""
        if not positions:
            before = self._decode_seconds
            self._decode_seconds = seconds if before is None else before + SMOOTHING * (seconds - before)
            return
        if streams:
            # where a slow pass has raised the mean of decode passes: a tenth, or the rate would be without bound
            seconds = max(seconds - (self._decode_seconds or 0.0), 0.1 * seconds)
        if positions - calls + calls * self.cost(1) < LEAST - 0.5:
            return
        kept = max(1.0 - positions / MEMORY, 0.0)
        new = (positions**2, positions * calls, calls**2, positions * seconds, calls * seconds)
        self._sums = [kept * before + now for before, now in zip(self._sums, new, strict=True)]
        self._position, self._call = _least_squares(*self._sums)


def _least_squares(pp: float, pc: float, cc: float, ps: float, cs: float) -> tuple[float, float]:
    """Returns the seconds of a position and of a call, from sums of products of positions, calls and seconds. Neither is negative."""
    prior = CALL_PRIOR * CALL_COST
    left, cross, right = pp + prior * CALL_COST, pc - prior, cc + CALL_PRIOR
    determinant = left * right - cross**2
    position, call = (ps * right - cs * cross) / determinant, (left * cs - cross * ps) / determinant
    if call < 0.0:
        return ps / pp, 0.0
    if position <= 0.0:
        position = (ps + CALL_COST * cs) / (pp + 2 * CALL_COST * pc + CALL_COST**2 * cc)
        return position, CALL_COST * position
    return position, call


class Scheduler:
    """Live requests and background work have queues and limits of their own, and share the blocks: live ones come first.

    A request is admitted when there are blocks for all its tokens and one more. When blocks run out while it decodes,
    the youngest request gives up its own (background first) and is computed again later, with the same result.

    release: ends what is kept for a running request outside the scheduler, and does not raise.
    logit_positions: how many positions of a pass may have all their logits returned.
    same_pass: whether a request may read blocks that another computes in the same pass.
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
        self._changed = False  # whether anything came or went since admission last found nothing that fits

    @property
    def busy(self) -> bool:
        """Whether a request runs or waits."""
        return bool(self.running or self.live or self.background)

    def waiting_of(self, request: Request) -> int:
        """How many requests wait that a new one would wait with: all live ones, or background ones of its client. May be called by any
        thread."""
        return self.background.waiting_of(request.client) if request.background else len(self.live)

    def running_of(self, *, background: bool) -> int:
        """How many requests of a kind run. May be called by any thread."""
        return sum(request.background == background for request in tuple(self.running.values()))

    def fits_alone(self, length: int) -> bool:
        """Whether a request of that length fits an empty cache."""
        return blocks_for(length) <= self.pool.count

    def enqueue(self, request: Request) -> None:
        """Adds a request to its queue."""
        self._queue_of(request).put(request)
        self._note(request)

    def _queue_of(self, request: Request) -> WaitingQueue:
        return self.background if request.background else self.live

    def _note(self, request: Request) -> None:
        self._changed = True
        if not request.background:
            self._share.note(request.client)

    def drop_closed(self) -> list[Request]:
        """Ends requests whose reader has left, and returns them."""
        gone = [request for request in self.running.values() if request.stream.closed]
        for request in gone:
            self.release(request, dirty=True)
        gone += [*self.live.drop_closed(), *self.background.drop_closed()]
        self._again.difference_update(request.id for request in gone)
        return gone

    def release(self, request: Request, *, dirty: bool = False) -> None:
        """Ends a request's run. dirty: what it computed may not be finite, or is not complete. Harmless when repeated."""
        if request.id in self.running:
            self._release(request)
            if not dirty:
                self.index.register_answer(request)
            self._take_back(request, dirty=dirty)
            self._again.discard(request.id)

    def preempt(self, request: Request, *, dirty: bool = False) -> None:
        """Takes the blocks from a request, which waits to be computed again. dirty: see `release`."""
        self._release(request)
        self._take_back(request, dirty=dirty or request.prefilling)
        request.restart()
        self._queue_of(request).put_back(request)
        self.preemptions += 1

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

    def admit(self) -> list[Request]:
        """Gives blocks to waiting requests, live ones first, and returns those who have them at the end."""
        if not self._changed:
            return []
        self._changed = False
        first: list[Request] = []
        preempted = self.background.preempted
        if preempted and preempted[0].overtaken >= MOST_OVERTAKEN:
            starved = preempted[0]
            first = list(self._admitted(self.background))
            if not starved.running and not self._is_full(background=True):
                return first  # blocks are kept for it as they become free; if it waits for a row, the others do not wait with it
        admitted = [*first, *self._admitted(self.live), *self._admitted(self.background)]
        # live requests may have preempted some of the first ones, of which some may have been admitted again
        return [request for request in dict.fromkeys(admitted) if request.running]

    def _is_full(self, *, background: bool) -> bool:
        """Whether all rows of a kind are taken."""
        return self.running_of(background=background) >= self._most[background]

    def _jobs_are_full(self) -> bool:
        """Whether all rows of background work are taken but those that jobs leave free."""
        most = self._most[True]
        return self.running_of(background=True) >= most - most // RESERVED

    def _admitted(self, queue: WaitingQueue) -> Iterator[Request]:
        """Chooses who of a queue runs: in turns, within the rows of its kind and client, if there are blocks."""
        passed: list[Request] = []
        jobs_wait = False  # whether all rows that jobs may have are taken, which they stay
        rows = Counter(request.client for request in self.running.values() if not request.background)
        most = self._share.most(rows.keys() | queue.clients)
        for request in queue.in_turns():
            if not request.background and rows[request.client] >= most:
                self._changed = True  # the other clients may stop asking, which is no event
                continue
            if self._again and len(self.running) >= self._rows_again:
                return
            if request.priority > 0 and request.overtaken < MOST_OVERTAKEN:
                jobs_wait = jobs_wait or self._jobs_are_full()
                if jobs_wait and queue.jobs == len(queue):
                    return  # the others are of jobs, too
                if jobs_wait:
                    continue
            full = self._is_full(background=request.background)
            if full or len(passed) > LOOKAHEAD or any(other.overtaken >= MOST_OVERTAKEN for other in passed):
                return
            if not self._take_blocks(request):
                passed.append(request)
                continue
            queue.take(request)
            request.running, request.order = True, request.order or next(self._orders)
            request.cache_epoch = self.index.epoch
            self.running[request.id] = request
            rows[request.client] += 1
            for overtaken in (*passed, *(() if request.background else self.background.preempted)):
                overtaken.overtaken += 1
            yield request

    def _take_blocks(self, request: Request) -> bool:
        """Takes the blocks of a request's tokens and one more position, if there are enough. A live request may preempt background
        work, the youngest first, if it fits then."""
        shared = self.index.find(request)
        self.pool.acquire(shared)
        needed = blocks_for(min(len(request.ids) + 1, request.max_length)) - len(shared)
        spare = 0
        if self.running:
            resumed = request.preemptions and request.overtaken < MOST_OVERTAKEN
            spare = RESUME_BLOCKS * len(self.running) if resumed else int(request.background)
        if not request.background and needed + spare > self.pool.available:
            yielding = sorted(filter(_yields, self.running.values()), key=attrgetter("order"), reverse=True)
            freed = self.pool.freed_by([each.block_table for each in yielding])
            if needed + spare <= self.pool.available + freed:
                for background in yielding:
                    if needed + spare <= self.pool.available:
                        break
                    self.preempt(background)
        own = self.pool.allocate(needed) if needed + spare <= self.pool.available else None
        if own is None:
            self.pool.release(shared)
            return False
        request.block_table = shared + own
        self._took_over(request, 0, len(shared))
        return True

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
        for request in sorted(self.running.values(), key=attrgetter("order")):
            while not request.prefilling and len(request.block_table) * BLOCK <= request.computed:
                block = self.pool.allocate(1)
                if block is not None:
                    request.block_table += block
                else:
                    self.preempt(max(self.running.values(), key=lambda other: (_yields(other), other.order)))
        return [(request, 1) for request in self.running.values() if not request.prefilling]

    def _prompt_order(self) -> list[Request]:
        """Chooses whose prompts come first: live ones before background ones, each kind in turns between clients and their calls. Of a
        call, those that would be done first if they had come alone: short ones overtake long ones, but none waits for ever."""

        def alone_finished(request: Request) -> tuple[float, int]:
            positions = request.remaining * self.budget.cost(request.prompt_calls)
            return request.arrived + self.budget.alone(positions), request.order

        pending = sorted((each for each in self.running.values() if each.prefilling), key=alone_finished)
        kinds: dict[bool, list[Request]] = {}
        for kind in (False, True):
            clients: dict[str, dict[str, list[Request]]] = {}
            for request in pending:
                if request.background == kind:
                    clients.setdefault(request.client, {}).setdefault(request.cache_salt, []).append(request)
            queues = [_from(self._turn // len(clients), list(calls.values())) for calls in clients.values()]
            kinds[kind] = list(_from(self._turn, queues)) if queues else []
        # texts that somebody waits for before those of jobs, which have every fourth round
        jobs_first = self._turn // BACKGROUND_TURN % BACKGROUND_TURN == BACKGROUND_TURN - 1
        background = sorted(kinds[True], key=lambda request: request.priority > 0, reverse=jobs_first)
        return (
            background + kinds[False] if background and self._turn % BACKGROUND_TURN == 0 else kinds[False] + background
        )

    def _prompts(self, streams: int) -> Work:
        """Chooses how much of each prompt the next pass computes."""
        left: dict[bool, float] = {kind: self.budget.positions(streams, background=kind) for kind in (False, True)}
        work: Work = []
        claimed: set[bytes] = set()  # hashes of the blocks that requests of this pass compute, in it or later
        computing: dict[bytes, int] = {}  # of those, what this pass completes and others may read in it: hash -> block
        logit_positions = self._logit_positions
        for request in self._prompt_order():
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
            left = {kind: rest - amount * cost - request.positions_to_choose for kind, rest in left.items()}
            first, end = request.computed // BLOCK, (request.computed + amount) // BLOCK
            if self._same_pass and not request.plan.prompt_fingerprint:
                computing.update(zip(keys[first:end], request.block_table[first:end], strict=False))
            claimed.update(keys[first:])
        return work


def _yields(request: Request) -> bool:
    """Whether a request gives its blocks to live ones."""
    return request.background and request.overtaken < MOST_OVERTAKEN
