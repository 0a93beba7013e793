"""HTTP/1.1 with bounds that uvicorn's parser lacks: head and trailer bytes, time for a head, idle, unread and open connections."""

import socket
from asyncio import TimerHandle
from collections import deque
from http import HTTPStatus
from math import inf
from typing import ClassVar, cast

from starlette.responses import Response
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from app.core.errors import TooManyConnections, body_of, json_response, outcome_of
from app.core.telemetry import new_request_id
from steering.errors import InvalidRequest

MAX_HEAD_BYTES = 64 * 1024  # of a request line and its headers
MAX_OVERHEAD_BYTES = 16 * 1024  # of chunk sizes and trailers of a body, besides OVERHEAD_RATIO for each byte of content
OVERHEAD_RATIO = 8
UNSENT_BYTES = 64 * 1024
"""The system takes more of an answer once fewer bytes of it have not been sent. By itself it takes megabytes ahead, and the next ones only
when a third of its buffer is free again, so that a slow reader seems to take nothing for a minute."""


class BoundedProtocol(HttpToolsProtocol):
    """Closes connections that send too much or too slowly outside of a body, whose bytes are bounded by its route, and those whose
    client takes nothing of what was written to it.

    Bounded are headers, chunk sizes, trailers, and the time that each may take: all that a client can send without a key.
    """

    head_seconds: ClassVar[float] = 10.0  # for a head to arrive, and how long a new connection may be idle
    linger_seconds: ClassVar[float] = 2.0  # for the rest of a request to arrive once its response is complete
    stall_seconds: ClassVar[float] = 60.0  # for a client to take something of what was written to it
    max_connections: ClassVar[int] = 1000  # when all are open, the one that is idle for longest is closed for a new one

    _in_head = _in_body = _half_closed = False
    _received = _content = 0
    _deadline: TimerHandle | None = None
    _unread_deadline: TimerHandle | None = None
    _idle_since: float | None = None

    def connection_made(self, transport) -> None:  # type: ignore[no-untyped-def]
        """Accepts the connection, unless too many are open and none of them is idle."""
        super().connection_made(transport)
        self._unanswered: deque[RequestResponseCycle] = deque()
        transport.set_write_buffer_limits(high=0)  # writing is paused as long as any byte has not been sent
        sock, limit = transport.get_extra_info("socket"), getattr(socket, "TCP_NOTSENT_LOWAT", None)
        if limit is not None and getattr(sock, "family", None) in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, limit, UNSENT_BYTES)
        self._idle_since = self.loop.time()
        if len(self.connections) > self.max_connections and not self._close_idle_connection():
            error = TooManyConnections(f"the server has {self.max_connections} open connections; try again shortly")
            self._end(json_response(body_of(error), outcome_of(error).status, {"Retry-After": "1"}))
            return
        self._set_deadline(self.head_seconds)

    def eof_received(self) -> bool:  # type: ignore[override]
        """Keeps a connection whose client has finished sending while a whole request is being answered, for `linger_seconds`.

        A client that left looks the same until something is sent to it, and its request must end: so the time is short.
        """
        answering = self.cycle is not None and not self.cycle.response_complete
        self._half_closed = answering and not self._in_head and not self._in_body
        if self._half_closed:
            self._set_deadline(self.linger_seconds)
        return self._half_closed

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops the timers, and tells every request that its client is gone; uvicorn tells the last one."""
        self._set_deadline(None)
        self._stop_waiting()
        for cycle in self._unanswered:
            cycle.disconnected = True
            cycle.message_event.set()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Waits for the client to take what was written, also where the connection is closed meanwhile: it stays open until then."""
        super().pause_writing()
        self._await_reader()

    def resume_writing(self) -> None:
        """Goes on: everything has been sent."""
        self._stop_waiting()
        super().resume_writing()

    def on_message_begin(self) -> None:
        """Starts counting a new request."""
        self._in_head, self._in_body, self._received, self._content = True, False, 0, 0
        self._idle_since = None
        self._set_deadline(self.head_seconds)
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Drops trailers: uvicorn would append them to the headers of the request."""
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Ends the head; the body has a time limit of its own (`read_body`)."""
        self._in_head, self._in_body, self._received = False, True, 0
        self._set_deadline(None)
        super().on_headers_complete()
        self._unanswered.append(self.cycle)

    def on_body(self, body: bytes) -> None:
        """Counts the content of the body."""
        self._content += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Ends the request; its response may still be running."""
        self._in_body = False
        self._set_deadline(None)
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Gives the rest of an unread body a little time, since its response has already been sent."""
        super().on_response_complete()
        self._unanswered.popleft()
        if self._unanswered:  # another request, which was sent before this response, is answered now
            return
        if self._half_closed:
            self.transport.close()
        elif self._in_body:
            self._set_deadline(self.linger_seconds)
        elif not self._in_head:
            self._idle_since = self.loop.time()

    def data_received(self, data: bytes) -> None:
        """Counts bytes outside of bodies. The bounds are exact to one read of the socket."""
        if self._idle_since is not None and not self._in_head:
            self._set_deadline(self.head_seconds)
        super().data_received(data)
        if self.transport.is_closing():
            return
        self._received += len(data)
        if self._in_head and self._received > MAX_HEAD_BYTES:
            self.send_400_response("The request head is too large.")
        elif self._in_body and self._received > MAX_HEAD_BYTES + MAX_OVERHEAD_BYTES + OVERHEAD_RATIO * self._content:
            self.transport.close()

    def _set_deadline(self, seconds: float | None) -> None:
        """Closes the connection after so many seconds, unless called again; None: not at all."""
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = None if seconds is None else self.loop.call_later(seconds, self.transport.close)

    def _await_reader(self, unread: float = inf) -> None:
        """Aborts the connection where its client has taken nothing of `unread` bytes; else waits on for `stall_seconds`."""
        left = self.transport.get_write_buffer_size()
        if left >= unread:
            self.transport.abort()
        else:
            self._unread_deadline = self.loop.call_later(self.stall_seconds, self._await_reader, left)

    def _stop_waiting(self) -> None:
        if self._unread_deadline is not None:
            self._unread_deadline.cancel()

    def _close_idle_connection(self) -> bool:
        """Closes the other connection that has been idle for longest. Returns False when none is idle."""
        others = [cast(BoundedProtocol, one) for one in self.connections if one is not self]
        idle = [one for one in others if one._idle]
        if idle:
            min(idle, key=lambda one: one._idle_since or 0.0).transport.close()
        return bool(idle)

    @property
    def _idle(self) -> bool:
        """Whether nothing is received, answered or sent."""
        return self._idle_since is not None and not self.flow.write_paused and not self.transport.is_closing()

    def send_400_response(self, msg: str) -> None:
        """Answers what is no HTTP request with the body of every error; uvicorn answers with plain text."""
        self._end(json_response(body_of(InvalidRequest(msg)), 400))

    def _end(self, response: Response) -> None:
        """Sends a response without a request that an application could answer, and closes the connection."""
        response.headers.update({"Connection": "close", "X-Request-Id": new_request_id()})
        status = f"HTTP/1.1 {response.status_code} {HTTPStatus(response.status_code).phrase}".encode()
        head = [status, *(b"%b: %b" % header for header in response.raw_headers), b"", b""]
        self.transport.write(b"\r\n".join(head) + bytes(response.body))
        self.transport.close()
