"""FileStream: sends a file whose pieces are produced one after the other, so that it is never in memory as a whole."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.http.sse import disconnected, ended
from app.state import AppState
from steering.threads import run_in_thread


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
        leaving = asyncio.ensure_future(disconnected(receive))
        sending = asyncio.ensure_future(self._send(send))
        awaited: set[asyncio.Future[Any]] = {leaving, sending, self._state.interrupted}
        try:
            seconds = self._state.settings.request_seconds
            await asyncio.wait(awaited, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        except (OSError, TimeoutError):
            return
        finally:
            await ended(leaving)
            await ended(sending)

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
