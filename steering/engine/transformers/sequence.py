"""Sequence: the state of one request, from the queue to its last token. The only mutable noun."""

import asyncio
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from steering.engine.api import CaptureSpec, Reading, SamplingParams
from steering.plan.types import SteeringPlan
from steering.shapes import Tensor

NEVER = 1 << 30
"""`fired_at` of a condition that has not held yet."""
OPENING = -1
"""Stands where the number of a step would, for the adds that open a layer's program."""


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


@dataclass(slots=True)
class StepReport:
    """Sums over the tokens that one step of a plan has met so far."""

    dose: float = 0.0
    tokens: float = 0.0
    fired_at: int = NEVER

    def add(self, dose: float, tokens: float, fired_at: int) -> None:
        """Adds the sums over more tokens."""
        self.dose += dose
        self.tokens += tokens
        self.fired_at = min(self.fired_at, fired_at)


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
    cache_salt: str = ""
    block_keys: list[bytes] | None = None
    phase_tokens: list[int] = field(default_factory=lambda: [0, 0, 0])
    steps: dict[tuple[int, int], StepReport] = field(default_factory=dict)
    blocks: dict[tuple[int, int, int], StepReport] = field(default_factory=dict)
    opening_inverse: Mapping[int, tuple[float, ...]] = field(default_factory=dict)
    outbox: list[object] = field(default_factory=list)

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

    def report(self, layer: int, stage: int) -> StepReport:
        """The running sums of a step, made when first asked. Stage OPENING: over lent positions alone."""
        return self.steps.setdefault((layer, stage), StepReport())

    def block_report(self, block: int, layer: int, stage: int) -> StepReport:
        """The part of a step's sums that was met in one shared block of the prompt."""
        return self.blocks.setdefault((block, layer, stage), StepReport())
