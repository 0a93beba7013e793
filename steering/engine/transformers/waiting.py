"""WaitingQueue: requests that wait for a row, in turns between API keys."""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from time import monotonic

from steering.engine.transformers.sequence import Sequence


class WaitingQueue:
    """First in, first out for each client, the clients in turns. Preempted sequences come before everybody.

    A client is a cache salt: each API key has its own. admitted: how many have got a row for the first time; wait_seconds:
    how long these had waited, together.
    """

    def __init__(self) -> None:
        self._clients: OrderedDict[str, deque[Sequence]] = OrderedDict()
        self._preempted: deque[Sequence] = deque()
        self._count = 0
        self.admitted = 0
        self.wait_seconds = 0.0

    def __len__(self) -> int:
        """How many wait. Other threads ask, so it is a number and not a walk through queues that change meanwhile."""
        return self._count

    def put(self, sequence: Sequence) -> None:
        """Adds a sequence behind those of its client."""
        self._clients.setdefault(sequence.cache_salt, deque()).append(sequence)
        self._count += 1

    def put_back(self, sequence: Sequence) -> None:
        """Adds a sequence that has run before, in the order of admission."""
        self._preempted.append(sequence)
        self._preempted = deque(sorted(self._preempted, key=lambda one: one.order))
        self._count += 1

    def take(self, sequence: Sequence) -> None:
        """Removes a sequence that gets a row; the next turn is another client's."""
        self._remove(sequence)
        if not sequence.preemptions:
            self.admitted += 1
            sequence.scheduled = monotonic()
            self.wait_seconds += sequence.scheduled - sequence.arrived
        if sequence.cache_salt in self._clients:
            self._clients.move_to_end(sequence.cache_salt)

    def _remove(self, sequence: Sequence) -> None:
        self._count -= 1
        if sequence in self._preempted:
            self._preempted.remove(sequence)
            return
        queue = self._clients[sequence.cache_salt]
        queue.remove(sequence)
        if not queue:
            del self._clients[sequence.cache_salt]

    def in_turns(self) -> Iterator[Sequence]:
        """Yields all in the order in which they are to be admitted, as the queue is now."""
        yield from list(self._preempted)
        queues = [deque(queue) for queue in self._clients.values()]
        while queues:
            for queue in queues:
                yield queue.popleft()
            queues = [queue for queue in queues if queue]

    def drop(self, closed: Callable[[Sequence], bool]) -> list[Sequence]:
        """Removes and returns those for which `closed` holds."""
        gone = [one for one in (*self._preempted, *self._everyone()) if closed(one)]
        for one in gone:
            self._remove(one)
        return gone

    def _everyone(self) -> list[Sequence]:
        return [one for queue in self._clients.values() for one in queue]


def by_client(sequences: list[Sequence], turn: int) -> list[Sequence]:
    """Orders running sequences in turns between clients, beginning with another client at every turn of the loop."""
    clients: OrderedDict[str, deque[Sequence]] = OrderedDict()
    for sequence in sequences:
        clients.setdefault(sequence.cache_salt, deque()).append(sequence)
    queues = list(clients.values())
    begin = turn % len(queues) if queues else 0
    queues = queues[begin:] + queues[:begin]
    ordered: list[Sequence] = []
    while queues:
        ordered.extend(queue.popleft() for queue in queues)
        queues = [queue for queue in queues if queue]
    return ordered
