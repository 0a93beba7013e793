"""ReportChannel: receives the messages of vLLM's workers and joins them with the tokens of their requests."""

import asyncio
import shutil
import tempfile
from pathlib import Path

import structlog
import zmq
import zmq.asyncio

from steering.engine.vllm.messages import FailureMessage, Message, ReportMessage, TokenMessage, TokenReadings, decode
from steering.errors import EngineDead, InternalError, NonfiniteActivations

log = structlog.get_logger()

REPORT_SECONDS = 300.0
"""A worker sends a token's message before the token, and a report with the next step. One that is missing for so long
will not come: that is longer than the server's watchdog lets a step take."""


class Mailbox:
    """The messages about one request, from every pipeline stage."""

    def __init__(self, stages: int) -> None:
        self._stages = stages
        self._tokens: dict[int, TokenReadings] = {}
        self._reports: list[ReportMessage] = []
        self._failed = False
        self._arrived = asyncio.Event()

    def receive(self, message: Message) -> None:
        """Takes a message."""
        if isinstance(message, TokenMessage):
            self._tokens.setdefault(message.index, TokenReadings()).add(message)
        elif isinstance(message, ReportMessage):
            self._reports.append(message)
        else:
            self._failed = True
        self._arrived.set()

    async def token(self, index: int) -> TokenReadings:
        """Waits for what every stage says of a token, and returns it.

        Raises NonfiniteActivations, InternalError where steering failed in a worker, EngineDead where nothing comes.
        """
        while (found := self._tokens.get(index)) is None or found.stages < self._stages:
            await self._wait()
        self._check()
        del self._tokens[index]
        if not found.finite:
            raise NonfiniteActivations(
                "steering drove the activations out of range: they are not finite; lower the strength"
            )
        return found

    async def reports(self) -> list[ReportMessage]:
        """Waits for the report of every stage. Raises as `token` does."""
        while len(self._reports) < self._stages:
            await self._wait()
        self._check()
        return self._reports

    def _check(self) -> None:
        """Also where all messages are there: a failure may have come with them."""
        if self._failed:
            raise InternalError("steering failed in the engine's worker")

    async def _wait(self) -> None:
        self._check()
        self._arrived.clear()
        try:
            async with asyncio.timeout(REPORT_SECONDS):
                await self._arrived.wait()
        except TimeoutError:
            raise EngineDead("a worker of the engine does not report") from None


class ReportChannel:
    """A socket that all workers send to. To be used on one event loop. address: what the workers connect to."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="steering-"))  # for this user only
        self.address = f"ipc://{self._folder / 'reports'}"
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.PULL)
        self._socket.bind(self.address)
        self._boxes: dict[str, Mailbox] = {}
        self._task = asyncio.create_task(self._receive())
        self.stages = 1

    def open(self, key: str) -> Mailbox:
        """Returns the mailbox of a new request."""
        box = self._boxes[key] = Mailbox(self.stages)
        return box

    def close_box(self, key: str) -> None:
        """Drops what still arrives for a request."""
        self._boxes.pop(key, None)

    async def _receive(self) -> None:
        while True:
            content = await self._socket.recv()
            try:
                messages = decode(content, list[Message])
            except ValueError:  # its requests end with EngineDead when nothing else comes
                log.exception("worker_message_unreadable")
                continue
            for message in messages:
                if isinstance(message, FailureMessage):
                    log.error("steering_failed_in_worker", key=message.key, traceback=message.reason)
                if message.key in self._boxes:
                    self._boxes[message.key].receive(message)

    def close(self) -> None:
        """Closes the socket."""
        self._task.cancel()
        self._context.destroy(linger=0)
        shutil.rmtree(self._folder, ignore_errors=True)
