"""Admission control: rows of the batch and bytes of memory that requests may use. What does not fit is refused at once."""

from collections.abc import Callable
from contextlib import ExitStack

from app.policy.rate_limits import KeyRows
from steering.errors import OutOfMemory, Overloaded


class Budget:
    """Rows or bytes that all running requests together may reserve. refusal: the message where they do not suffice."""

    def __init__(self, limit: int, refusal: str) -> None:
        self.limit, self._refusal = limit, refusal
        self.reserved = 0

    def reserve(self, size: int) -> None:
        """Reserves rows or bytes. Raises Overloaded when they do not fit now."""
        if self.reserved + size > self.limit:
            raise Overloaded(self._refusal)
        self.reserved += size

    def release(self, size: int) -> None:
        """Returns rows or bytes."""
        self.reserved -= size


class Admission:
    """The rows and the memory that one request has taken from its server.

    of_key: what counts its rows for its key too, from when the key is known. closing: called when the response has been sent.
    """

    def __init__(self, rows: Budget, memory: Budget, job_memory: Budget) -> None:
        self._budget, self._memory, self._job_memory = rows, memory, job_memory
        self._rows = self._bytes = 0
        self.of_key: KeyRows | None = None
        self.closing = ExitStack()

    def take(self, rows: int) -> None:
        """Raises the number of rows this request has to `rows`.

        Raises Overloaded, or what KeyRows.take raises; then it keeps what it had.
        """
        wanted = max(rows - self._rows, 0)
        if self.of_key is not None:
            self.of_key.take(wanted, rows)
        try:
            self._budget.reserve(wanted)
        except Overloaded:
            if self.of_key is not None:
                self.of_key.release(wanted)
            raise
        self._rows += wanted

    def reserve(self, size: int) -> None:
        """Reserves memory until the response has been sent.

        Raises OutOfMemory where this request alone needs more than all requests may have, Overloaded where others have it.
        """
        wanted, limit = self._bytes + size, self._memory.limit
        if wanted > limit:
            raise OutOfMemory(
                f"this request needs {-(-wanted // 2**20)} MB of memory; running requests may have {limit >> 20} MB"
                " (STEERING_MEMORY_MEGABYTES)"
            )
        self._memory.reserve(size)
        self._bytes += size

    def keep_for_job(self) -> Callable[[], None]:
        """Keeps the memory of this request for the job that it begins; the function returned gives it back
        and is called once.

        Raises OutOfMemory where it needs more than all jobs may have, Overloaded where those that wait and run have it.
        """
        size, limit = self._bytes, self._job_memory.limit
        if size > limit:
            raise OutOfMemory(f"this job needs {-(-size // 2**20)} MB of memory; jobs may have {limit >> 20} MB")
        self._job_memory.reserve(size)
        self._bytes -= size

        def release() -> None:
            self._job_memory.release(size)
            self._memory.release(size)

        return release

    def release_rows(self) -> None:
        """Returns every row, and keeps the memory."""
        if self.of_key is not None:
            self.of_key.release(self._rows)
        self._budget.release(self._rows)
        self._rows = 0

    def close(self) -> None:
        """Returns everything. May be called more than once."""
        self.release_rows()
        self._memory.release(self._bytes)
        self._bytes = 0
        self.closing.close()
