"""Delivery: sends what passes yield to the event loops that wait for it, and turns errors into those a caller may see."""

import asyncio
from collections.abc import Callable, Sequence
from time import monotonic
from traceback import format_exception

import structlog
import torch

from steering.engine.stream import Stream
from steering.engine.transformers.request import BackgroundTask, Request
from steering.errors import EngineDead, InternalError, OutOfMemory, SteeringError

log = structlog.get_logger()
MANY = 16
"""Requests in a pass from which on their tokens may be held."""
INTERVAL_SECONDS = 0.04
"""How long tokens are held at most, and until the pass that runs then has ended."""


class Delivery:
    """Sends outboxes to their streams.

    Waking callers costs nearly as much for one token as for several, and with many short passes that takes a good part of the
    CPU that computes them. With MANY requests their tokens are therefore sent at intervals; the first token of an answer and
    its end are sent at once. The idea is that of vLLM's `--stream-interval`.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._held: dict[Request, None] = {}
        self._sent = -INTERVAL_SECONDS

    def after(self, requests: Sequence[Request]) -> None:
        """Sends what a pass yielded, or holds it until after a later one."""
        now = self._clock()
        due = len(requests) < MANY or now - self._sent >= INTERVAL_SECONDS
        if due:
            self._sent = now
        begun = dict.fromkeys([*self._held, *requests])
        self._held = {} if due else {one: None for one in begun if one.going_on}
        self.now([one for one in begun if one not in self._held])

    def flush(self) -> None:
        """Sends what was held: something longer comes before the next pass."""
        self.now(list(self._held))
        self._held = {}

    @staticmethod
    def now(senders: Sequence[Request | BackgroundTask]) -> None:
        """Sends outboxes, with one wake-up of each event loop, however many senders there are.

        Whatever is raised, an item is sent or still in its outbox.
        """
        by_loop: dict[asyncio.AbstractEventLoop, dict[Request | BackgroundTask, list[object]]] = {}
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
    """Returns the error that a caller may see. The traceback is dropped, since it keeps tensors alive.

    Raises EngineDead after an error of the device: its context computes nothing any more, as after an illegal memory access.
    """
    if isinstance(error, SteeringError):
        return error
    text, memory = str(error).lower(), isinstance(error, torch.OutOfMemoryError | MemoryError)
    if memory or "out of memory" in text or "can't allocate" in text:
        return OutOfMemory("the pass did not fit into memory")
    # as text: renderers that show local variables would print prompts
    log.error("pass_failed", traceback="".join(format_exception(error)))
    if isinstance(error, torch.AcceleratorError):
        raise EngineDead("the device has failed, and computes nothing for this process any more") from None
    return InternalError("the forward pass failed")
