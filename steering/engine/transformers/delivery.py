"""What leaves the engine's thread: items for the event loops that wait for them, and errors a caller may be told."""

import asyncio
from collections.abc import Sequence as Rows
from traceback import format_exception
from typing import Protocol

import structlog
import torch

from steering.engine.transformers.sequence import Sequence, Stream
from steering.errors import InternalError, OutOfMemory, SteeringError

log = structlog.get_logger()
MANY = 16
"""Rows of a pass from which on not every token is told for itself."""
SHORT_SECONDS = 0.05
"""Of a pass that takes longer every token is told at once."""


class Sender(Protocol):
    """A request or background task: what it has for its caller, and the stream that carries it there."""

    outbox: list[object]

    @property
    def stream(self) -> Stream: ...


class Delivery:
    """Hands what passes yield to those who wait for it.

    To wake callers costs nearly as much for one token as for two, and where short passes follow one another that is a good
    part of the processors which compute them. So many rows are told after every second pass, of two tokens at a time; the
    first token of an answer and its end are told at once. The thought is that of vLLM's `--stream-interval`.
    """

    def __init__(self) -> None:
        self._held: list[Sequence] = []

    def after(self, sequences: Rows[Sequence], seconds: float) -> None:
        """What a pass yielded, which took so long."""
        hold = not self._held and len(sequences) >= MANY and seconds <= SHORT_SECONDS
        held = [one for one in sequences if one.going_on] if hold else []
        kept = {one.id for one in held}
        self.now([one for one in (*self._held, *sequences) if one.id not in kept])
        self._held = held

    def flush(self) -> None:
        """What was kept back, at once: something longer comes before the next pass."""
        self.now(self._held)
        self._held = []

    @staticmethod
    def now(senders: Rows[Sender]) -> None:
        """All that they have to say: one wake-up of each event loop, however many rows."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Stream, list[object]]]] = {}
        for sender in senders:
            if sender.outbox:
                items, sender.outbox = sender.outbox, []
                by_loop.setdefault(sender.stream.loop, []).append((sender.stream, items))
        for loop, parcels in by_loop.items():
            try:
                loop.call_soon_threadsafe(_receive, parcels)
            except RuntimeError:  # the loop is gone, and with it everyone who waited
                for stream, _ in parcels:
                    stream.closed = True


def _receive(parcels: list[tuple[Stream, list[object]]]) -> None:
    for stream, items in parcels:
        stream.receive(items)


def as_steering_error(error: Exception) -> SteeringError:
    """What a caller may be told of a failed pass. The traceback is dropped, since it keeps tensors alive."""
    if isinstance(error, SteeringError):
        return error
    text = str(error).lower()
    if (
        isinstance(error, torch.cuda.OutOfMemoryError | MemoryError)
        or "out of memory" in text
        or "can't allocate" in text
    ):
        return OutOfMemory("the pass did not fit into memory")
    # as text: renderers that show local variables would print prompts
    log.error("pass_failed", traceback="".join(format_exception(error)))
    return InternalError("the forward pass failed")
