"""Sequence: the state of one request, from the queue to its last token. The only mutable noun."""

import asyncio
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from steering.engine.api import CaptureSpec, Reading, SamplingParams
from steering.engine.transformers.sampling.token_counts import TokenCounts
from steering.engine.transformers.steering.dose import DoseLedger
from steering.plan.types import SteeringPlan
from steering.shapes import Tensor


class DecodeStream(Protocol):
    """Token ids in, whole characters out."""

    def step(self, token_id: int) -> str: ...

    def flush(self) -> str: ...


class Stream:
    """Carries what a sequence yields from the engine's thread to one waiting coroutine. Closing it is the cancel."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.closed = False
        self._items: deque[object] = deque()
        self._waiter: asyncio.Future[None] | None = None

    def receive(self, items: Iterable[object]) -> None:
        """On the event loop: hand over items and wake the reader."""
        self._items.extend(items)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def get(self) -> object:
        """The next item; an exception that was sent is raised."""
        while not self._items:
            self._waiter = self.loop.create_future()
            await self._waiter
        item = self._items.popleft()
        if isinstance(item, BaseException):
            raise item
        return item


@dataclass(slots=True, eq=False)
class CaptureState:
    """What a capture sequence has gathered. index: its place in the call. window: half-open range of positions; reduce: one mean row, or every row."""

    index: int
    spec: CaptureSpec
    window: tuple[int, int]
    reduce: bool
    pieces: dict[int, list[Tensor]] = field(default_factory=dict)
    logits: list[Tensor] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Sequence:
    """One row's life. `ids` is the prompt and what was generated; positions below `computed` have their KV in `slot`."""

    id: int
    ids: list[int]
    prompt_length: int
    plan: SteeringPlan
    sampling: SamplingParams
    stream: Stream
    readings: tuple[Reading, ...] = ()
    priority: int = 0
    capture: CaptureState | None = None
    decoder: DecodeStream | None = None
    slot: int = -1
    computed: int = 0
    cached: int = 0
    borrowed: tuple[int, ...] = ()
    """Slots from which the next pass copies positions 0, 1, ..., which others compute in it."""
    held_text: str = ""
    token_counts: TokenCounts | None = None
    cache_salt: str = ""
    block_keys: list[bytes] | None = None
    row: int = 0
    """Of the steering bank, from admission to release."""
    dose: DoseLedger = field(init=False)
    outbox: list[object] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.dose = DoseLedger(self.plan, self.prompt_length)

    @property
    def shares_prefix(self) -> bool:
        """Whether keys and values of its prompt may come from, and serve, other requests."""
        return self.capture is None and self.plan.reusable

    @property
    def generated(self) -> int:
        return len(self.ids) - self.prompt_length

    @property
    def going_on(self) -> bool:
        """Whether its answer has begun and has not ended."""
        return self.slot >= 0 and self.generated > 1

    @property
    def prefilling(self) -> bool:
        """Whether prompt positions are still to be computed before the next token can be chosen."""
        return self.computed < self.target

    @property
    def target(self) -> int:
        """How many positions prefill covers: the whole prompt."""
        return self.prompt_length if self.capture is None else len(self.ids)

    @property
    def max_length(self) -> int:
        """The most positions this row can come to need in the cache."""
        return len(self.ids) if self.capture is not None else self.prompt_length + self.sampling.max_tokens
