"""Client and AsyncClient: every route of the API as a method, over httpx2. Failures are raised as ApiError."""

import asyncio
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing
from typing import Self, TypeVar

import httpx2
from pydantic import BaseModel

from steering.client.api import Api
from steering.client.calls.base import Call, StreamCall
from steering.client.calls.errors import ApiError, api_errors, response_error, truncated_stream
from steering.client.retries import Retries
from steering.client.transport import auth_headers, parse_event, parse_response, request_arguments

__all__ = ["ApiError", "AsyncClient", "Client"]

T = TypeVar("T")
E = TypeVar("E", bound=BaseModel)

DEFAULT_URL = "http://127.0.0.1:8000"
DEFAULT_RETRIES = Retries()
LARGEST_EVENT = 256 << 20
"""Bytes of one event. The last event of a stream holds the whole response."""


class Client(Api):
    """The synchronous client. `http`: an own httpx2 client (transport, proxies); base_url and api_key still apply.

    `retries`: which failures are repeated; by default those that pass, three attempts, honouring `Retry-After`.
    `namespace`: whose vectors, profiles and jobs, for a key with the scope admin; by default those of the key.
    """

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        timeout: float = 600.0,
        http: httpx2.Client | None = None,
        retries: Retries = DEFAULT_RETRIES,
        namespace: str | None = None,
    ) -> None:
        self._retries, self._namespace = retries, namespace
        self._base, self._headers = base_url.rstrip("/"), auth_headers(api_key)
        self._http = http or httpx2.Client(timeout=httpx2.Timeout(timeout, connect=10.0))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def send(self, call: Call[T]) -> T:
        """Sends a Call and returns its parsed response. Raises ApiError."""
        attempt, arguments = 1, request_arguments(self._base, self._headers, self._namespace, call)
        while True:
            try:
                with api_errors():
                    return parse_response(call, self._http.request(**arguments))
            except ApiError as error:
                wait = self._retries.wait_after(error, attempt)
                if wait is None:
                    raise
            time.sleep(wait)
            attempt += 1

    def events(self, call: StreamCall[E]) -> Generator[E]:
        """Yields the events of a StreamCall. Raises ApiError, also in the middle of the stream."""
        attempt = 1
        while True:
            try:
                yield from self._events(call)
            except ApiError as error:  # not retryable once an event has arrived
                wait = self._retries.wait_after(error, attempt)
                if wait is None:
                    raise
            else:
                return
            time.sleep(wait)
            attempt += 1

    def _events(self, call: StreamCall[E]) -> Generator[E]:
        with (
            api_errors(),
            self._http.stream(**request_arguments(self._base, self._headers, self._namespace, call)) as response,
        ):
            if response.is_error:
                response.read()
                raise response_error(response)
            for event in httpx2.EventSource(response, max_event_size=LARGEST_EVENT):
                model = parse_event(call, event, response)
                if model is not None:
                    yield model
                if event.event == "done":
                    return
            raise truncated_stream(response)


class AsyncClient(Api):
    """The client for asyncio. It has the same methods and options; calls are awaited, streams are asynchronous generators."""

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        timeout: float = 600.0,
        http: httpx2.AsyncClient | None = None,
        retries: Retries = DEFAULT_RETRIES,
        namespace: str | None = None,
    ) -> None:
        self._retries, self._namespace = retries, namespace
        self._base, self._headers = base_url.rstrip("/"), auth_headers(api_key)
        self._http = http or httpx2.AsyncClient(timeout=httpx2.Timeout(timeout, connect=10.0))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    async def send(self, call: Call[T]) -> T:
        """Sends a Call and returns its parsed response. Raises ApiError."""
        attempt, arguments = 1, request_arguments(self._base, self._headers, self._namespace, call)
        while True:
            try:
                with api_errors():
                    return parse_response(call, await self._http.request(**arguments))
            except ApiError as error:
                wait = self._retries.wait_after(error, attempt)
                if wait is None:
                    raise
            await asyncio.sleep(wait)
            attempt += 1

    async def events(self, call: StreamCall[E]) -> AsyncGenerator[E]:
        """Yields the events of a StreamCall. Raises ApiError, also in the middle of the stream."""
        attempt = 1
        while True:
            try:
                async with aclosing(self._events(call)) as events:
                    async for event in events:
                        yield event
            except ApiError as error:  # not retryable once an event has arrived
                wait = self._retries.wait_after(error, attempt)
                if wait is None:
                    raise
            else:
                return
            await asyncio.sleep(wait)
            attempt += 1

    async def _events(self, call: StreamCall[E]) -> AsyncGenerator[E]:
        with api_errors():
            async with self._http.stream(
                **request_arguments(self._base, self._headers, self._namespace, call)
            ) as response:
                if response.is_error:
                    await response.aread()
                    raise response_error(response)
                async for event in httpx2.EventSource(response, max_event_size=LARGEST_EVENT):
                    model = parse_event(call, event, response)
                    if model is not None:
                        yield model
                    if event.event == "done":
                        return
                raise truncated_stream(response)
