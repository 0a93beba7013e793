"""Sends the calls of the API over httpx2, waiting or with asyncio. Failures are raised as ApiError."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Self, TypeVar

import httpx2
from pydantic import BaseModel

from steering.client.errors import ApiError, Retries, api_errors, event_error, response_error, truncated_stream

T = TypeVar("T")
H = TypeVar("H", httpx2.Client, httpx2.AsyncClient)

DEFAULT_URL = "http://127.0.0.1:8000"
DEFAULT_RETRIES = Retries()
LARGEST_EVENT = 256 << 20
"""Bytes of one event. The last event of a stream holds the whole response."""
WITHOUT_NAMESPACE = ("/v1/keys", "/v1/audit", "/v1/policy", "/v1/monitors")


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One request and how its response is parsed.

    arguments: method, url (a path), params, headers, and json or content, as `httpx2.Client.request` takes them.
    read: converts the body of the response. None for a stream.
    events: the type of each event of a stream by its name; `done` is the last.
    """

    arguments: Mapping[str, Any]
    read: Callable[[bytes], T] | None
    events: Mapping[str, type[BaseModel]]


class _Connection(Generic[H]):
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
        """Prepares a client. Nothing is sent.

        base_url: the address of the server.
        api_key: is sent as `Authorization: Bearer`.
        timeout: how many seconds an answer may take.
        http: another httpx2 client (transport, proxies); base_url and api_key still apply.
        retries: which failures are repeated; by default those that pass, three attempts, honouring `Retry-After`.
        namespace: whose vectors, profiles and jobs, for a key with the scope admin; by default those of the key.
        """
        self._retries, self._namespace, self._base = retries, namespace, base_url.rstrip("/")
        self._headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self._http: H = http or self._http_client(timeout=httpx2.Timeout(timeout, connect=10.0))

    def _arguments(self, call: Call[T]) -> dict[str, Any]:
        """Returns the arguments of `httpx2.Client.request` and `stream`, with address, key and namespace."""
        path, query, headers = call.arguments["url"], dict(call.arguments["params"]), call.arguments["headers"]
        if self._namespace is not None and not path.startswith(WITHOUT_NAMESPACE):
            query["namespace"] = self._namespace
        return {**call.arguments, "url": self._base + path, "params": query, "headers": self._headers | headers}

    def _wait_after(self, error: ApiError, attempt: int) -> float:
        """Returns seconds to wait before the next attempt. Raises the error when it is final."""
        wait = self._retries.wait_after(error, attempt)
        if wait is None:
            raise error
        return wait


def _parsed_response(call: Call[T], response: httpx2.Response) -> T:
    if response.is_error:
        raise response_error(response)
    assert call.read is not None
    return call.read(response.content)


def _parsed_event(call: Call[Any], event: httpx2.ServerSentEvent, response: httpx2.Response) -> Any:
    """Returns the parsed event, or None for an event that this version does not know.

    Raises ApiError for an `error` event, except for one that ends a single arm of a comparison.
    """
    model = call.events.get(event.event)
    if event.event == "error" and (model is None or "arm" not in json.loads(event.data)):
        raise event_error(event.data, response)
    return None if model is None else model.model_validate_json(event.data)


class Connection(_Connection[httpx2.Client]):
    """Sends calls and waits for their responses."""

    _http_client = httpx2.Client

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def send(self, call: Call[T]) -> T:
        """Sends a call and returns its parsed response. Raises ApiError."""
        attempt, arguments = 1, self._arguments(call)
        while True:
            try:
                with api_errors():
                    return _parsed_response(call, self._http.request(**arguments))
            except ApiError as error:
                wait = self._wait_after(error, attempt)
            time.sleep(wait)
            attempt += 1

    def events(self, call: Call[T]) -> Generator[T]:
        """Yields the events of a stream. Raises ApiError, also in the middle of the stream."""
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


class AsyncConnection(_Connection[httpx2.AsyncClient]):
    """Sends calls with asyncio."""

    _http_client = httpx2.AsyncClient

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    async def send(self, call: Call[T]) -> T:
        """Sends a call and returns its parsed response. Raises ApiError."""
        attempt, arguments = 1, self._arguments(call)
        while True:
            try:
                with api_errors():
                    return _parsed_response(call, await self._http.request(**arguments))
            except ApiError as error:
                wait = self._wait_after(error, attempt)
            await asyncio.sleep(wait)
            attempt += 1

    async def events(self, call: Call[T]) -> AsyncGenerator[T]:
        """Yields the events of a stream. Raises ApiError, also in the middle of the stream."""
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
