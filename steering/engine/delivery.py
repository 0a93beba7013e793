"""What leaves the engine's thread: items for the event loops that wait for them, and errors a caller may be told."""

import asyncio
from collections.abc import Sequence as Rows
from traceback import format_exception

import structlog
import torch

from steering.engine.fitting import Fitting
from steering.engine.sequence import Sequence, Stream
from steering.errors import InternalError, OutOfMemory, SteeringError

log = structlog.get_logger()


def deliver(senders: Rows[Sequence | Fitting]) -> None:
    """Hands outboxes to their event loops: one wake-up a loop, however many rows."""
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
