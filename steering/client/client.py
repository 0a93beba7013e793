"""Client and AsyncClient: every route of the API as a method, over httpx2. Failures are raised as ApiError."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Generator
from typing import Any, Generic, Self, TypeVar

import httpx2
from pydantic import BaseModel

from steering.client.api import Api
from steering.client.calls.base import Call, StreamCall
from steering.client.calls.errors import ApiError, Retries, api_errors, event_error, response_error, truncated_stream

__all__ = ["ApiError", "AsyncClient", "Client"]

T = TypeVar("T")
E = TypeVar("E", bound=BaseModel)
H = TypeVar("H", httpx2.Client, httpx2.AsyncClient)

DEFAULT_URL = "http://127.0.0.1:8000"
DEFAULT_RETRIES = Retries()
LARGEST_EVENT = 256 << 20
"""Bytes of one event. The last event of a stream holds the whole response."""
WITHOUT_NAMESPACE = ("/v1/keys", "/v1/audit", "/v1/policy", "/v1/monitors")


class _Base(Api, Generic[H]):
    """The options of both clients, and what they send. Independent of how a connection waits."""

    _http_client: type[H]

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        timeout: float = 600.0,
        http: H | None = None,
        retries: Retries = DEFAULT_RETRIES,
        namespace: str | None = None,
    ) -> None:
        self._retries, self._namespace, self._base = retries, namespace, base_url.rstrip("/")
        self._headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self._http: H = http or self._http_client(timeout=httpx2.Timeout(timeout, connect=10.0))

    def _arguments(self, call: Call[T] | StreamCall[E]) -> dict[str, Any]:
        """Returns the arguments of `httpx2.Client.request` and `stream`."""
        content, query, headers = None, {}, dict(self._headers)
        if isinstance(call, Call):
            content, query = call.content, dict(call.query)
            headers.update(call.headers)
            if call.accept is not None:
                headers["Accept"] = call.accept
            if content is not None:
                headers["Content-Type"] = call.content_type
        if self._namespace is not None and not call.path.startswith(WITHOUT_NAMESPACE):
            query["namespace"] = self._namespace
        return {
            "method": call.method,
            "url": self._base + call.path,
            "params": query,
            "json": call.body,
            "content": content,
            "headers": headers,
        }

    def _wait_after(self, error: ApiError, attempt: int) -> float:
        """Returns seconds to wait before the next attempt. Raises the error when it is final."""
        wait = self._retries.wait_after(error, attempt)
        if wait is None:
            raise error
        return wait


def _parsed_response(call: Call[T], response: httpx2.Response) -> T:
    if response.is_error:
        raise response_error(response)
    return call.read(response.content)


def _parsed_event(call: StreamCall[E], event: httpx2.ServerSentEvent, response: httpx2.Response) -> E | None:
    """Returns the parsed event, or None for an event that this version does not know.

    Raises ApiError for an `error` event, except for one that ends a single arm of a comparison.
    """
    model = call.models.get(event.event)
    if event.event == "error" and (model is None or "arm" not in json.loads(event.data)):
        raise event_error(event.data, response)
    return None if model is None else model.model_validate_json(event.data)


class Client(_Base[httpx2.Client]):
    """The synchronous client. `http`: an own httpx2 client (transport, proxies); base_url and api_key still apply.

    `retries`: which failures are repeated; by default those that pass, three attempts, honouring `Retry-After`.
    `namespace`: whose vectors, profiles and jobs, for a key with the scope admin; by default those of the key.
    """

    _http_client = httpx2.Client

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def send(self, call: Call[T]) -> T:
        """Sends a Call and returns its parsed response. Raises ApiError."""
        attempt, arguments = 1, self._arguments(call)
        while True:
            try:
                with api_errors():
                    return _parsed_response(call, self._http.request(**arguments))
            except ApiError as error:
                wait = self._wait_after(error, attempt)
            time.sleep(wait)
            attempt += 1

    def events(self, call: StreamCall[E]) -> Generator[E]:
        """Yields the events of a StreamCall. Raises ApiError, also in the middle of the stream."""
        attempt, arguments = 1, self._arguments(call)
        while True:
            try:
                with api_errors(), self._http.stream(**arguments) as response:
                    if response.is_error:
                        response.read()
                        raise response_error(response)
                    for event in httpx2.EventSource(response, max_event_size=LARGEST_EVENT):
                        model = _parsed_event(call, event, response)
                        if model is not None:
                            yield model
                        if event.event == "done":
                            return
                    raise truncated_stream(response)
            except ApiError as error:  # not retryable once an event has arrived
                wait = self._wait_after(error, attempt)
            time.sleep(wait)
            attempt += 1


class AsyncClient(_Base[httpx2.AsyncClient]):
    """The client for asyncio. It has the same methods and options; calls are awaited, streams are asynchronous generators."""

    _http_client = httpx2.AsyncClient

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    async def send(self, call: Call[T]) -> T:
        """Sends a Call and returns its parsed response. Raises ApiError."""
        attempt, arguments = 1, self._arguments(call)
        while True:
            try:
                with api_errors():
                    return _parsed_response(call, await self._http.request(**arguments))
            except ApiError as error:
                wait = self._wait_after(error, attempt)
            await asyncio.sleep(wait)
            attempt += 1

    async def events(self, call: StreamCall[E]) -> AsyncGenerator[E]:
        """Yields the events of a StreamCall. Raises ApiError, also in the middle of the stream."""
        attempt, arguments = 1, self._arguments(call)
        while True:
            try:
                with api_errors():
                    async with self._http.stream(**arguments) as response:
                        if response.is_error:
                            await response.aread()
                            raise response_error(response)
                        async for event in httpx2.EventSource(response, max_event_size=LARGEST_EVENT):
                            model = _parsed_event(call, event, response)
                            if model is not None:
                                yield model
                            if event.event == "done":
                                return
                        raise truncated_stream(response)
            except ApiError as error:  # not retryable once an event has arrived
                wait = self._wait_after(error, attempt)
            await asyncio.sleep(wait)
            attempt += 1
