"""Sends the calls of the API over httpx2, waiting or with asyncio. Every failure is raised as ApiError."""

import asyncio
import json
import random
import time
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from typing import Any, Generic, Self, TypeVar

import httpx2
from pydantic import BaseModel, ValidationError

from steering.schemas.resources import UNFINISHED, JobAnswer

T = TypeVar("T")
H = TypeVar("H", httpx2.Client, httpx2.AsyncClient)

DEFAULT_URL = "http://127.0.0.1:8000"
LARGEST_EVENT = 256 << 20  # bytes; the last event of a stream holds the whole response
WITHOUT_NAMESPACE = (
    "/v1/keys", "/v1/audit", "/v1/policy", "/v1/monitors", "/v1/capabilities", "/v1/concepts", "/version", "/health", "/openapi.json",
)  # fmt: skip
LONGEST_POLL = 1.0  # seconds between two looks at a job
RETRIED_STATUSES = frozenset({408, 429, 503})
RETRIED_OF_GET = RETRIED_STATUSES | {502, 504}  # a proxy's: the server may have carried the request out


@dataclass(eq=False, repr=False, kw_only=True)
class ApiError(Exception):
    """Raised when the server rejects a request, fails, or cannot be reached, and for an argument that cannot be sent.

    status: HTTP status, 0 without a response.
    code: one of docs/api.md, or `connection_failed`, `stream_cut` or `unreadable_answer`, which the client sets itself,
        as it does `invalid_request` for an argument that cannot be sent.
    param: the field concerned.
    request_id: identifies the request in the server's log.
    retry_after: seconds to wait before another attempt.
    retryable: whether the same request may succeed later (passing statuses, refused connections; not with `x-should-retry: false`).
    """

    message: str = field(kw_only=False)
    status: int = 0
    code: str
    param: str | None = None
    request_id: str | None = None
    retry_after: float | None = None
    retryable: bool = False

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), code=self.code), (self.message,), self.__dict__

    def __str__(self) -> str:
        parts = [str(self.status), self.code] if self.status else [self.code]
        if self.param:
            parts.append(f"param {self.param}")
        if self.request_id:
            parts.append(f"request {self.request_id}")
        return f"{self.message} ({', '.join(parts)})"


@dataclass(frozen=True, slots=True)
class Retries:
    """Repeats requests that the server rejected for a reason that passes, connections that were refused, and a GET whose connection was
    lost or that a proxy answered with 502 or 504.

    attempts: how often a request is sent at most.
    longest_wait: a `Retry-After` beyond it, in seconds, is raised at once.
    first_wait: wait after the first failure without `Retry-After`; it doubles each time, with up to 25 % jitter.
    """

    attempts: int = 3
    longest_wait: float = 60.0
    first_wait: float = 0.5

    def wait_after(self, error: ApiError, attempt: int) -> float | None:
        """Returns seconds to wait before the next attempt, or None when the error is final. attempt: from 1 on."""
        if attempt >= self.attempts or not error.retryable:
            return None
        if error.retry_after is not None:
            return error.retry_after if error.retry_after <= self.longest_wait else None
        backoff = self.first_wait * 2.0 ** (attempt - 1)
        return min(backoff * (1.0 + 0.25 * random.random()), self.longest_wait)  # noqa: S311 - jitter


DEFAULT_RETRIES, NO_RETRIES = Retries(), Retries(attempts=1)


class _Attempts:
    """Counts the attempts of one call. Its block ends with ApiError, or is to be run again after `wait` seconds."""

    def __init__(self, retries: Retries, *, harmless: bool) -> None:
        self._retries, self._harmless, self._attempt, self.wait = retries, harmless, 0, 0.0

    def __enter__(self) -> None:
        self._attempt += 1

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> bool:
        failure = _api_error(error, self._harmless)
        if failure is None:
            return False
        wait = self._retries.wait_after(failure, self._attempt)
        if wait is None:
            raise failure from (None if failure is error else error)
        self.wait = wait
        return True


def _api_error(error: BaseException | None, harmless: bool) -> ApiError | None:
    """Returns errors of the HTTP library and of parsing as ApiError; None for what is no failure of a call. harmless: whether a request
    that was sent may be sent again."""
    match error:
        case ApiError():
            return error
        case httpx2.InvalidURL() | httpx2.UnsupportedProtocol():
            return ApiError(f"the address of the server is not valid: {error}", code="connection_failed")
        case httpx2.HTTPError():
            lost = harmless and isinstance(error, httpx2.NetworkError | httpx2.RemoteProtocolError)
            refused = isinstance(error, httpx2.ConnectError) or lost  # a refused request was not sent
            message = f"{_address(error)} could not be reached: {str(error) or type(error).__name__}"
            return ApiError(message, code="connection_failed", retryable=refused)
        case ValidationError() | json.JSONDecodeError() | LookupError():
            return unreadable(error)
    return None


def unreadable(error: Exception) -> ApiError:
    """Returns the error of an answer that this version of the client cannot read."""
    return ApiError(f"the server's answer cannot be read: {error}", code="unreadable_answer")


def _address(error: httpx2.HTTPError) -> str:
    """Returns where the request went, without a name and password of the address."""
    try:
        url = error.request.url
    except RuntimeError:  # raised outside a request
        return "the server"
    return f"the server at {url.scheme}://{url.netloc.decode()}"


def _failure(response: httpx2.Response, message: str, code: str, param: str | None = None) -> ApiError:
    request_id = response.headers.get("x-request-id")
    return ApiError(message, status=response.status_code, code=code, param=param, request_id=request_id)


def _response_error(response: httpx2.Response) -> ApiError:
    """Returns the error of a response whose body was read. A body in another format (a proxy's) is reported by its status."""
    try:
        detail = response.json()["error"]
        error = _failure(response, str(detail["message"]), str(detail["code"]), detail.get("param"))
    except (ValueError, LookupError, TypeError, AttributeError):
        error = _failure(response, f"the server answered {response.status_code}", "unreadable_answer")
    try:
        error.retry_after = float(response.headers["retry-after"])
    except (KeyError, ValueError):  # absent, or a date, which this server never sends
        error.retry_after = None
    repeated = RETRIED_OF_GET if response.request.method == "GET" else RETRIED_STATUSES
    error.retryable = response.status_code in repeated and response.headers.get("x-should-retry") != "false"
    return error


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One request and how its response is parsed.

    arguments: method, url (a path), params, headers, and json or content, as `httpx2.Client.request` takes them.
    read: converts the body of the response.
    events: the type of each event of a stream by its name; `done` is the last.
    """

    arguments: Mapping[str, Any]
    read: Callable[[bytes], T]
    events: Mapping[str, type[BaseModel]]

    def parsed(self, response: httpx2.Response) -> T:
        """Returns the parsed response. Raises ApiError for an error."""
        if response.is_error:
            raise _response_error(response)
        return self.read(response.content)

    def parsed_event(self, event: httpx2.ServerSentEvent, response: httpx2.Response) -> Any:
        """Returns the parsed event, or None for an event that this version does not know.

        Raises ApiError for an `error` event, except for one that ends a single arm of a comparison.
        """
        model = self.events.get(event.event)
        if event.event == "error" and (model is None or "arm" not in json.loads(event.data)):
            detail = json.loads(event.data)["error"]
            raise _failure(response, detail["message"], detail["code"], detail.get("param"))
        return None if model is None else model.model_validate_json(event.data)


def _job_call(method: str, job: JobAnswer) -> Call[JobAnswer]:
    arguments = {"method": method, "url": f"/v1/jobs/{job.id}", "params": {}, "headers": {}}
    return Call(arguments, JobAnswer.model_validate_json, {})


@contextmanager
def _naming(job: JobAnswer) -> Iterator[None]:
    """Adds to an ApiError which job could not be read."""
    try:
        yield
    except ApiError as error:
        if error.status != 404:  # there is no such job
            error.message += f"; job {job.id} may go on: GET /v1/jobs/{job.id}"
        raise


def _seconds_until_next(elapsed: float) -> float:
    """Returns how long to wait before a job is read again: a short one is not delayed by more than a tenth."""
    return min(LONGEST_POLL, 0.05 + 0.1 * elapsed)


def _result_of(job: JobAnswer) -> dict[str, Any]:
    """Returns the result of a job that has ended. Raises ApiError where it failed, was cancelled or was interrupted."""
    if job.status == "succeeded" and job.result is not None:
        return job.result
    code, message = (
        (job.error.code, job.error.message) if job.error else (f"job_{job.status}", f"the job was {job.status}")
    )
    raise ApiError(f"{message} (job {job.id})", code=code)


def _truncated(response: httpx2.Response) -> ApiError:
    return _failure(response, "the stream ended before the answer was complete", "stream_cut")


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
        on_progress: Callable[[JobAnswer], None] | None = None,
    ) -> None:
        """Prepares a client. Nothing is sent.

        base_url: the address of the server.
        api_key: is sent as `Authorization: Bearer`.
        timeout: how many seconds an answer may take.
        http: another httpx2 client (transport, proxies); base_url and api_key still apply.
        retries: which failures are repeated; by default those that pass, three attempts, honouring `Retry-After`.
        namespace: whose vectors, profiles and jobs, for a key with the scope admin; by default those of the key.
        on_progress: is called with each state of a job that a method waits for, such as `report`; `ProgressBar()` draws a bar.
        """
        self._on_progress = on_progress or (lambda _: None)
        self._retries, self._namespace, self._base = retries, namespace, base_url.rstrip("/")
        self._headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self._http: H = http or self._http_client(timeout=httpx2.Timeout(timeout, connect=10.0))

    def _begin(self, call: Call[T], *, stream: bool = False) -> tuple[_Attempts, dict[str, Any]]:
        """Returns the attempts of a call, and its arguments with address, key and namespace. A GET whose connection is lost is sent
        again; a stream is not."""
        path, query, headers = call.arguments["url"], dict(call.arguments["params"]), call.arguments["headers"]
        if self._namespace is not None and not path.startswith(WITHOUT_NAMESPACE):
            query["namespace"] = self._namespace
        own = {"url": self._base + path, "params": query, "headers": self._headers | headers}
        harmless = call.arguments["method"] == "GET" and not stream
        return _Attempts(self._retries, harmless=harmless), {**call.arguments, **own}


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
        attempts, arguments = self._begin(call)
        while True:
            with attempts:
                return call.parsed(self._http.request(**arguments))
            time.sleep(attempts.wait)

    def wait_for_job(self, job: JobAnswer, on_progress: Callable[[JobAnswer], None] | None = None) -> dict[str, Any]:
        """Follows a job to its end, however long that takes, and returns its result. An interrupt (Ctrl-C) cancels the job.

        on_progress: instead of the client's. Raises ApiError, also where the job failed or was cancelled.
        """
        began, show = time.monotonic(), on_progress or self._on_progress
        try:
            show(job)
            while job.status in UNFINISHED:
                time.sleep(_seconds_until_next(time.monotonic() - began))
                with _naming(job):
                    job = self.send(_job_call("GET", job))
                show(job)
        except KeyboardInterrupt:
            with suppress(ApiError):
                self.send(_job_call("DELETE", job))
            raise
        return _result_of(job)

    def events(self, call: Call[T]) -> Generator[T]:
        """Yields the events of a stream. Raises ApiError, also in the middle of the stream."""
        attempts, arguments = self._begin(call, stream=True)
        while True:  # not repeated once an event has arrived: such failures are not retryable
            with attempts, self._http.stream(**arguments) as response:
                if response.is_error:
                    response.read()
                    raise _response_error(response)
                for event in httpx2.EventSource(response, max_event_size=LARGEST_EVENT):
                    model = call.parsed_event(event, response)
                    if model is not None:
                        yield model
                    if event.event == "done":
                        return
                raise _truncated(response)
            time.sleep(attempts.wait)


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
        attempts, arguments = self._begin(call)
        while True:
            with attempts:
                return call.parsed(await self._http.request(**arguments))
            await asyncio.sleep(attempts.wait)

    async def wait_for_job(
        self, job: JobAnswer, on_progress: Callable[[JobAnswer], None] | None = None
    ) -> dict[str, Any]:
        """Follows a job to its end, however long that takes, and returns its result. A cancelled caller cancels the job.

        on_progress: instead of the client's. Raises ApiError, also where the job failed or was cancelled.
        """
        began, show = time.monotonic(), on_progress or self._on_progress
        try:
            show(job)
            while job.status in UNFINISHED:
                await asyncio.sleep(_seconds_until_next(time.monotonic() - began))
                with _naming(job):
                    job = await self.send(_job_call("GET", job))
                show(job)
        except asyncio.CancelledError:
            with suppress(ApiError):
                await asyncio.shield(self.send(_job_call("DELETE", job)))
            raise
        return _result_of(job)

    async def events(self, call: Call[T]) -> AsyncGenerator[T]:
        """Yields the events of a stream. Raises ApiError, also in the middle of the stream."""
        attempts, arguments = self._begin(call, stream=True)
        while True:
            with attempts:
                async with self._http.stream(**arguments) as response:
                    if response.is_error:
                        await response.aread()
                        raise _response_error(response)
                    async for event in httpx2.EventSource(response, max_event_size=LARGEST_EVENT):
                        model = call.parsed_event(event, response)
                        if model is not None:
                            yield model
                        if event.event == "done":
                            return
                    raise _truncated(response)
            await asyncio.sleep(attempts.wait)


class ProgressBar:
    """Draws a bar for each job that a client waits for: `Client(on_progress=ProgressBar())`. Needs tqdm."""

    def __init__(self) -> None:
        """Raises ModuleNotFoundError without tqdm."""
        self._new = import_module("tqdm.auto").tqdm
        self._bars = dict[str, Any]()

    def __call__(self, job: JobAnswer) -> None:
        """Draws one state of a job; the bar of a job that has ended stays."""
        bar = self._bars.get(job.id)
        if bar is None:
            bar = self._bars[job.id] = self._new(total=job.progress.total or None)
        bar.total, bar.n = job.progress.total or None, job.progress.done
        bar.set_description_str(f"{job.kind}: {job.progress.message or job.status}")
        if job.status not in UNFINISHED:
            self._bars.pop(job.id).close()
