"""Requests that wait for a row, in turns between API keys, and how many rows each key may run."""

from bisect import insort
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Set
from operator import attrgetter
from time import monotonic

from steering.engine.options import EngineLimits
from steering.engine.transformers.request import Request

WINDOW = 10.0
"""Seconds for which a key counts after its last request came or ended: most people who read an answer ask again by then."""


class WaitingQueue:
    """First in, first out for each client, the clients in turns. Preempted requests come before everybody.

    A client is a cache salt: each API key has its own. admitted: how many have got a row for the first time; wait_seconds:
    how long these had waited, together.
    """

    def __init__(self) -> None:
        self._clients: OrderedDict[str, deque[Request]] = OrderedDict()
        self._preempted: list[Request] = []
        self._count = 0
        self.admitted = 0
        self.wait_seconds = 0.0

    def __len__(self) -> int:
        """How many wait. Other threads ask, so it is a number and not a walk through queues that change meanwhile."""
        return self._count

    @property
    def clients(self) -> set[str]:
        """Whose requests wait."""
        return {*self._clients, *(one.cache_salt for one in self._preempted)}

    @property
    def preempted(self) -> list[Request]:
        """Those that have run before."""
        return list(self._preempted)

    def starved(self, most: int) -> Request | None:
        """Returns the first that has run before, if it was overtaken so often since."""
        first = self._preempted[0] if self._preempted else None
        return first if first is not None and first.overtaken >= most else None

    def put(self, request: Request) -> None:
        """Adds a request behind those of its client."""
        self._clients.setdefault(request.cache_salt, deque()).append(request)
        self._count += 1

    def put_back(self, request: Request) -> None:
        """Adds a request that has run before, in the order of admission."""
        insort(self._preempted, request, key=attrgetter("order"))
        self._count += 1

    def take(self, request: Request) -> None:
        """Removes a request that gets a row; the next turn is another client's."""
        self._remove(request)
        if not request.preemptions:
            self.admitted += 1
            request.scheduled = monotonic()
            self.wait_seconds += request.scheduled - request.arrived
        if request.cache_salt in self._clients:
            self._clients.move_to_end(request.cache_salt)

    def _remove(self, request: Request) -> None:
        self._count -= 1
        if request in self._preempted:
            self._preempted.remove(request)
            return
        queue = self._clients[request.cache_salt]
        queue.remove(request)
        if not queue:
            del self._clients[request.cache_salt]

    def in_turns(self) -> Iterator[Request]:
        """Yields all in the order in which they are to be admitted, as the queue is now."""
        yield from list(self._preempted)
        yield from _in_turns(self._clients.values())

    def drop_closed(self) -> list[Request]:
        """Removes and returns those whose reader has left."""
        gone = [one for queue in (self._preempted, *self._clients.values()) for one in queue if one.stream.closed]
        for one in gone:
            self._remove(one)
        return gone


class ClientShare:
    """Every row of a pass makes it longer for all others, so a key that fills the batch would slow the answers of every other key.

    While requests of several keys are there, a key may run `contended_running` rows; its other requests wait. Rows that run
    already are not stopped. docs/operating.md has what it gains: answers to another key take 1.6 instead of 4.6 times as long
    as without the flood.
    A turn with 256 held requests takes 0.07 ms longer. Switched off by `contended_running` = `max_running`. Not safe for threads: only the engine's thread uses it.
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


def by_client(requests: list[Request], turn: int) -> list[Request]:
    """Orders running requests in turns between clients, beginning with another client at every turn of the loop."""
    clients: dict[str, list[Request]] = {}
    for request in requests:
        clients.setdefault(request.cache_salt, []).append(request)
    queues = list(clients.values())
    begin = turn % len(queues) if queues else 0
    return list(_in_turns(queues[begin:] + queues[:begin]))


def _in_turns(queues: Iterable[Iterable[Request]]) -> Iterator[Request]:
    """Yields the first of every queue, none of which is empty, then the second of every queue, and so on."""
    left = [deque(queue) for queue in queues]
    while left:
        yield from [queue.popleft() for queue in left]
        left = [queue for queue in left if queue]
