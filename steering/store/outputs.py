"""Protocol of outputs: the results of jobs that are too large for a job's record, as parts of text."""

from typing import Protocol


class OutputStore(Protocol):
    """Texts in numbered parts, written one after the other and deleted by age."""

    async def append(self, output_id: str, part: int, content: str) -> None:
        """Stores part `part` (0, 1, ...) of an output with the current time. A part is never changed."""
        ...

    async def read(self, output_id: str, part: int) -> str | None:
        """Returns one part, None where there is none."""
        ...

    async def prune(self, before: str) -> int:
        """Deletes parts older than a time; returns how many."""
        ...
