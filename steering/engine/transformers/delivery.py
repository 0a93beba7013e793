"""Delivery: sends what passes yield to the event loops that wait for it, and turns errors into those a caller may see."""

import asyncio
from collections.abc import Sequence as Rows
from traceback import format_exception

import structlog
import torch

from steering.engine.transformers.sequence import BackgroundTask, Sequence, Stream
from steering.errors import InternalError, OutOfMemory, SteeringError

log = structlog.get_logger()
MANY = 16
"""Sequences in a pass from which on tokens are sent in pairs."""
SHORT_SECONDS = 0.05
"""After a pass that takes longer every token is sent at once."""


class Delivery:
    """Sends outboxes to their streams.

    Waking callers costs nearly as much for one token as for two, and with many short passes that takes a good part of the
    CPU that computes them. With MANY sequences their tokens are therefore sent after every second pass; the first token
    of an answer and its end are sent at once. The idea is that of vLLM's `--stream-interval`.
    """

    def __init__(self) -> None:
        self._held: list[Sequence] = []

    def after(self, sequences: Rows[Sequence], seconds: float) -> None:
        """Sends what a pass of that many seconds yielded, or holds it until after the next."""
        hold = not self._held and len(sequences) >= MANY and seconds <= SHORT_SECONDS
        held = [one for one in sequences if hold and one.going_on]
        self.now([*self._held, *(one for one in sequences if not (hold and one.going_on))])
        self._held = held

    def flush(self) -> None:
        """Sends what was held: something longer comes before the next pass."""
        self.now(self._held)
        self._held = []

    @staticmethod
    def now(senders: Rows[Sequence | BackgroundTask]) -> None:
        """Sends outboxes, with one wake-up of each event loop, however many senders there are.

        Whatever is raised, an item is sent or still in its outbox.
        """
        by_loop: dict[asyncio.AbstractEventLoop, dict[Sequence | BackgroundTask, list[object]]] = {}
        for sender in senders:
            if sender.outbox:
                by_loop.setdefault(sender.stream.loop, {})[sender] = []  # its next outbox
        for loop, empty in by_loop.items():
            try:
                loop.call_soon_threadsafe(_receive, [(sender.stream, sender.outbox) for sender in empty])
            except RuntimeError:  # the loop is gone, and with it everyone who waited
                for sender in empty:
                    sender.stream.closed = True
            for sender, outbox in empty.items():
                sender.outbox = outbox


def _receive(parcels: list[tuple[Stream, list[object]]]) -> None:
    for stream, items in parcels:
        stream.receive(items)


def as_steering_error(error: Exception) -> SteeringError:
    """Returns the error that a caller may see. The traceback is dropped, since it keeps tensors alive."""
    if isinstance(error, SteeringError):
        return error
    text, memory = str(error).lower(), isinstance(error, torch.cuda.OutOfMemoryError | MemoryError)
    if memory or "out of memory" in text or "can't allocate" in text:
        return OutOfMemory("the pass did not fit into memory")
    # as text: renderers that show local variables would print prompts
    log.error("pass_failed", traceback="".join(format_exception(error)))
    return InternalError("the forward pass failed")
