"""Client and AsyncClient: every route of the API as a method, over httpx2. Failures are raised as ApiError."""

import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from functools import wraps
from typing import Any, Generic, ParamSpec, Self, TypeVar, overload

import httpx2
from pydantic import BaseModel

from steering.client.calls import analysis, generation, server, vectors
from steering.client.calls.base import Call, StreamCall
from steering.client.calls.errors import ApiError, api_errors, event_error, response_error, truncated_stream

__all__ = ["ApiError", "AsyncClient", "Client"]

P = ParamSpec("P")
T = TypeVar("T")
E = TypeVar("E", bound=BaseModel)

DEFAULT_URL = "http://127.0.0.1:8000"
LARGEST_EVENT = 256 << 20
"""Bytes of one event. The last event of a stream holds the whole response."""


class _Method(Generic[P, T]):
    """Exposes a Call builder as a method of both clients: it returns the response, or an awaitable of it."""

    def __init__(self, build: Callable[P, Call[T]]) -> None:
        self._build = build
        self.__doc__ = build.__doc__

    @overload
    def __get__(self, client: None, owner: type) -> Self: ...
    @overload
    def __get__(self, client: "Client", owner: type) -> Callable[P, T]: ...
    @overload
    def __get__(self, client: "AsyncClient", owner: type) -> Callable[P, Awaitable[T]]: ...
    def __get__(self, client: "Client | AsyncClient | None", owner: type) -> Any:
        if client is None:
            return self

        @wraps(self._build)
        def method(*args: P.args, **kwargs: P.kwargs) -> Any:
            return client.send(self._build(*args, **kwargs))

        return method


class _Stream(Generic[P, E]):
    """Exposes a StreamCall builder as a method of both clients. It returns a generator; closing it cancels the request."""

    def __init__(self, build: Callable[P, StreamCall[E]]) -> None:
        self._build = build
        self.__doc__ = build.__doc__

    @overload
    def __get__(self, client: None, owner: type) -> Self: ...
    @overload
    def __get__(self, client: "Client", owner: type) -> Callable[P, Generator[E]]: ...
    @overload
    def __get__(self, client: "AsyncClient", owner: type) -> Callable[P, AsyncGenerator[E]]: ...
    def __get__(self, client: "Client | AsyncClient | None", owner: type) -> Any:
        if client is None:
            return self

        @wraps(self._build)
        def method(*args: P.args, **kwargs: P.kwargs) -> Any:
            return client.events(self._build(*args, **kwargs))

        return method


class _Api:
    """Every route as a method."""

    generate = _Method(generation.generate)
    generate_stream = _Stream(generation.generate_stream)
    compare = _Method(generation.compare)
    compare_stream = _Stream(generation.compare_stream)
    replay = _Method(generation.replay)
    tokenize = _Method(generation.tokenize)
    detokenize = _Method(generation.detokenize)
    register_vector = _Method(vectors.register_vector)
    extract_vector = _Method(vectors.extract_vector)
    start_extraction = _Method(vectors.start_extraction)
    combine_vectors = _Method(vectors.combine_vectors)
    import_vector = _Method(vectors.import_vector)
    list_vectors = _Method(vectors.list_vectors)
    get_vector = _Method(vectors.get_vector)
    get_directions = _Method(vectors.get_directions)
    export_vector = _Method(vectors.export_vector)
    export_control_vector = _Method(vectors.export_control_vector)
    export_vector_json = _Method(vectors.export_vector_json)
    similar_vectors = _Method(vectors.similar_vectors)
    describe_vector = _Method(vectors.describe_vector)
    delete_vector = _Method(vectors.delete_vector)
    readout = _Method(analysis.readout)
    latent_space = _Method(analysis.latent_space)
    logit_lens = _Method(analysis.logit_lens)
    layer_sweep = _Method(analysis.layer_sweep)
    dose_response = _Method(analysis.dose_response)
    start_evaluation = _Method(analysis.start_evaluation)
    put_profile = _Method(server.put_profile)
    list_profiles = _Method(server.list_profiles)
    get_profile = _Method(server.get_profile)
    delete_profile = _Method(server.delete_profile)
    set_default_steering = _Method(server.set_default_steering)
    get_default_steering = _Method(server.get_default_steering)
    clear_default_steering = _Method(server.clear_default_steering)
    list_jobs = _Method(server.list_jobs)
    get_job = _Method(server.get_job)
    cancel_job = _Method(server.cancel_job)
    job_events = _Stream(server.job_events)
    list_concepts = _Method(server.list_concepts)
    get_concept = _Method(server.get_concept)
    capabilities = _Method(server.capabilities)
    health = _Method(server.health)
    version = _Method(server.version)
    openapi = _Method(server.openapi)


def _request(base: str, headers: dict[str, str], call: Call[T] | StreamCall[E]) -> dict[str, Any]:
    """Returns the arguments of `httpx2.Client.request` and `stream`."""
    content = call.content if isinstance(call, Call) else None
    query = call.query if isinstance(call, Call) else {}
    return {
        "method": call.method,
        "url": base + call.path,
        "params": {name: str(value).lower() if isinstance(value, bool) else value for name, value in query.items()},
        "json": call.body,
        "content": content,
        "headers": headers if content is None else {**headers, "Content-Type": "application/octet-stream"},
    }


def _headers(api_key: str | None) -> dict[str, str]:
    return {} if api_key is None else {"Authorization": f"Bearer {api_key}"}


def _answer(call: Call[T], response: httpx2.Response) -> T:
    if response.is_error:
        raise response_error(response)
    return call.read(response.content)


def _model_of(call: StreamCall[E], event: httpx2.ServerSentEvent, response: httpx2.Response) -> E | None:
    """Returns the parsed event, or None for an event that this version does not know.

    Raises ApiError for an `error` event, except for one that ends a single arm of a comparison.
    """
    model = call.models.get(event.event)
    if event.event == "error" and (model is None or "arm" not in json.loads(event.data)):
        raise event_error(event.data, response)
    return None if model is None else model.model_validate_json(event.data)


class Client(_Api):
    """The synchronous client. `http`: an own httpx2 client (transport, proxies); base_url and api_key still apply."""

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        timeout: float = 600.0,
        http: httpx2.Client | None = None,
    ) -> None:
        self._base, self._headers = base_url.rstrip("/"), _headers(api_key)
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
        with api_errors():
            response = self._http.request(**_request(self._base, self._headers, call))
            return _answer(call, response)

    def events(self, call: StreamCall[E]) -> Generator[E]:
        """Yields the events of a StreamCall. Raises ApiError, also in the middle of the stream."""
        with api_errors(), self._http.stream(**_request(self._base, self._headers, call)) as response:
            if response.is_error:
                response.read()
                raise response_error(response)
            for event in httpx2.EventSource(response, max_event_size=LARGEST_EVENT):
                model = _model_of(call, event, response)
                if model is not None:
                    yield model
                if event.event == "done":
                    return
            raise truncated_stream(response)


class AsyncClient(_Api):
    """The client for asyncio. It has the same methods, awaited; streams are asynchronous generators."""

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        timeout: float = 600.0,
        http: httpx2.AsyncClient | None = None,
    ) -> None:
        self._base, self._headers = base_url.rstrip("/"), _headers(api_key)
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
        with api_errors():
            response = await self._http.request(**_request(self._base, self._headers, call))
            return _answer(call, response)

    async def events(self, call: StreamCall[E]) -> AsyncGenerator[E]:
        """Yields the events of a StreamCall. Raises ApiError, also in the middle of the stream."""
        with api_errors():
            async with self._http.stream(**_request(self._base, self._headers, call)) as response:
                if response.is_error:
                    await response.aread()
                    raise response_error(response)
                async for event in httpx2.EventSource(response, max_event_size=LARGEST_EVENT):
                    model = _model_of(call, event, response)
                    if model is not None:
                        yield model
                    if event.event == "done":
                        return
                raise truncated_stream(response)
