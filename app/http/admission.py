"""Admission control: rows of the batch and bytes of memory that requests may use. What does not fit is refused at once."""

from collections.abc import Callable

from anyio import CapacityLimiter, WouldBlock

from app.policy.rate_limits import KeyRows
from steering.errors import Overloaded


class MemoryBudget:
    """Bytes that all running requests together may reserve for bodies, activations, logits and files."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.reserved = 0
        self.of_jobs = 0

    def reserve(self, size: int) -> None:
        """Reserves bytes. Raises Overloaded when they do not fit."""
        if self.reserved + size > self.limit:
            raise Overloaded("the memory for running requests is in use; try again shortly")
        self.reserved += size

    def release(self, size: int) -> None:
        """Returns bytes."""
        self.reserved -= size

    def keep_for_job(self, size: int) -> None:
        """Counts reserved bytes as those of a job. Raises Overloaded when jobs would have more than half of the memory."""
        if self.of_jobs + size > self.limit // 2:
            raise Overloaded("the memory for jobs is in use; wait for one to end")
        self.of_jobs += size

    def release_job(self, size: int) -> None:
        """Returns the bytes of a job."""
        self.of_jobs -= size
        self.release(size)


class Admission:
    """The rows and the memory that one request has taken from its server."""

    def __init__(self, limiter: CapacityLimiter, memory: MemoryBudget) -> None:
        self._limiter, self._memory = limiter, memory
        self._rows: list[object] = []
        self._bytes = 0
        self._on_close: list[Callable[[], None]] = []
        self._of_key: KeyRows | None = None

    def count_for(self, rows: KeyRows) -> None:
        """Counts the rows of this request for its key too, from now on."""
        self._of_key = rows

    def on_close(self, callback: Callable[[], None]) -> None:
        """Calls something when the response has been sent."""
        self._on_close.append(callback)

    def take(self, rows: int) -> None:
        """Raises the number of rows this request has to `rows`.

        Raises Overloaded, or what KeyRows.take raises; then it keeps what it had.
        """
        taken: list[object] = []
        wanted = max(rows - len(self._rows), 0)
        if self._of_key is not None:
            self._of_key.take(wanted, rows)
        try:
            for _ in range(wanted):
                row = object()  # the limiter identifies its tokens by object
                self._limiter.acquire_on_behalf_of_nowait(row)
                taken.append(row)
        except WouldBlock:
            for row in taken:
                self._limiter.release_on_behalf_of(row)
            if self._of_key is not None:
                self._of_key.release(wanted)
            total = int(self._limiter.total_tokens)
            raise Overloaded(f"all {total} rows are in use or waiting; try again shortly") from None
        self._rows.extend(taken)

    def reserve(self, size: int) -> None:
        """Reserves memory until the response has been sent. One request alone may always have the whole budget."""
        size = min(size, self._memory.limit - self._bytes)
        self._memory.reserve(size)
        self._bytes += size

    def keep_for_job(self) -> Callable[[], None]:
        """Keeps the memory of this request for the job that it begins; the function returned gives it back
        and is called once.

        One job alone may always begin. Raises Overloaded when the jobs that wait and run have no memory left.
        """
        size = min(self._bytes, self._memory.limit // 2)
        self._memory.keep_for_job(size)
        self._bytes -= size
        return lambda: self._memory.release_job(size)

    def release_rows(self) -> None:
        """Returns every row, and keeps the memory."""
        if self._of_key is not None:
            self._of_key.release(len(self._rows))
        while self._rows:
            self._limiter.release_on_behalf_of(self._rows.pop())

    def close(self) -> None:
        """Returns everything. May be called more than once."""
        self.release_rows()
        self._memory.release(self._bytes)
        self._bytes = 0
        while self._on_close:
            self._on_close.pop()()
