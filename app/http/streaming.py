"""Starts the responses that are sent piece by piece: streams of events, and files that are never in memory as a whole."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import suppress
from functools import partial

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.errors import Draining, RequestTimedOut
from app.http.errors import body_of
from app.http.request_reading import while_connected
from app.http.sse import Event, EventStream, ended, error_events, next_event
from app.services.jobs import FINAL
from app.services.namespace_jobs import NamespaceJobs
from app.services.resources import job_answer
from app.state import AppState
from steering.errors import EngineDead, SteeringError
from steering.threads import run_in_thread

FIRST_EVENT_SECONDS = 0.1
"""How long the status of a response waits for the first event."""
_ENDED_EARLY = (ClientDisconnect, OSError, TimeoutError, RequestTimedOut, Draining, EngineDead)
"""What ends a file whose status has been sent: its client has disconnected (also OSError) or takes nothing (TimeoutError), it took
longer than `request_seconds`, or the server stops, by itself or with its engine (the errors of `AppState.interrupted`)."""


async def event_stream(
    state: AppState,
    events: AsyncGenerator[Event, None],
    on_failure: Callable[[SteeringError], tuple[Event, ...]] = error_events,
) -> EventStream:
    """Returns the response of a streaming request; failures are reported as an `error` event, or as `on_failure` says.

    Requests the first event. A failure within FIRST_EVENT_SECONDS (a full queue, say) is raised with its own status.
    """
    first = asyncio.ensure_future(next_event(events))
    try:
        await asyncio.wait({first}, timeout=FIRST_EVENT_SECONDS)
        if first.done():
            first.result()
    except BaseException:
        await ended(first)
        await events.aclose()
        raise
    return EventStream(events, state.settings, state.interrupted, first, on_failure)


openai_stream = partial(event_stream, on_failure=lambda error: (Event(body_of(error)), Event("[DONE]")))
"""Returns the response of an OpenAI streaming request; failures are reported as an error object, then [DONE]."""


async def job_events(jobs: NamespaceJobs, job_id: str) -> AsyncGenerator[Event, None]:
    """Yields `progress` for every change of a job, `done` for its last."""
    async for record in jobs.watch(job_id):
        name = "done" if record.status in FINAL else "progress"
        yield Event(job_answer(record).model_dump(mode="json"), name)


class FileStream(Response):
    """Sends the pieces of a file. length: of the whole file in bytes, where it is known beforehand.

    It ends early when the client disconnects, takes nothing for `stall_seconds`, when the response is older than
    `request_seconds` or the server stops; the client then sees that the body is incomplete.
    """

    def __init__(
        self,
        pieces: AsyncIterator[bytes],
        filename: str,
        state: AppState,
        *,
        length: int | None = None,
        media_type: str = "application/octet-stream",
    ) -> None:
        super().__init__(None, media_type=media_type)
        self.headers["Content-Disposition"] = f'attachment; filename="{filename}"'
        del self.headers["Content-Length"]
        if length is not None:
            self.headers["Content-Length"] = str(length)
        self._pieces, self._state = pieces, state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI
        """Sends the file as the response."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        with suppress(*_ENDED_EARLY):
            await while_connected(self._state, receive, self._send(send))

    async def _send(self, send: Send) -> None:
        """Raises TimeoutError when the client takes nothing for too long."""
        async for piece in self._pieces:
            async with asyncio.timeout(self._state.settings.stall_seconds):
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def in_thread(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    """Produces every piece in a thread."""
    while (piece := await run_in_thread(next, pieces, None)) is not None:
        yield piece


def accepts_json(request: Request) -> bool:
    """Returns whether the client asks for JSON and not for a file (`Accept: application/json`)."""
    given = {part.partition(";")[0].strip().lower() for part in request.headers.get("accept", "").split(",")}
    return "application/json" in given and "application/octet-stream" not in given
