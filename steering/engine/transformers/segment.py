"""Segment: a run of one sequence's tokens inside a packed pass."""

from dataclasses import dataclass

from steering.engine.transformers.sequence import Sequence


@dataclass(slots=True, eq=False)
class Segment:
    """Flat rows [start, end) of the pass, absolute positions from `first`."""

    sequence: Sequence
    first: int
    start: int
    end: int

    @property
    def decodes(self) -> bool:
        """Whether it is one position behind the prompt of a request that generates: the token of a decode pass."""
        return self.length == 1 and self.sequence.capture is None and self.first >= self.sequence.prompt_length

    @property
    def length(self) -> int:
        return self.end - self.start

    @property
    def last_position(self) -> int:
        return self.first + self.length - 1
