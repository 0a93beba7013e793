"""ApiError, the only exception of the client, the conversion of HTTP errors and broken connections into it, and Retries."""

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx2
from pydantic import ValidationError

RETRIED_STATUSES = frozenset({408, 429, 502, 503, 504})


@dataclass(eq=False, repr=False, kw_only=True)
class ApiError(Exception):
    """Raised when the server rejects a request, fails, or cannot be reached.

    status: HTTP status, 0 without a response. code: one of docs/api.md, or `connection_failed`, `stream_cut` or
    `unreadable_answer`, which the client sets itself. param: the field concerned. request_id: identifies the request in
    the server's log. retry_after: seconds to wait before another attempt. retryable: whether the same request may succeed
    later; true for statuses that pass and for refused connections, unless the server sends `x-should-retry: false`.
    """

    message: str = field(kw_only=False)
    status: int = 0
    code: str
    param: str | None = None
    request_id: str | None = None
    retry_after: float | None = None
    retryable: bool = False

    def __str__(self) -> str:
        parts = [str(self.status), self.code] if self.status else [self.code]
        if self.param:
            parts.append(f"param {self.param}")
        if self.request_id:
            parts.append(f"request {self.request_id}")
        return f"{self.message} ({', '.join(parts)})"


@dataclass(frozen=True, slots=True)
class Retries:
    """Repeats requests that the server rejected for a reason that passes, and connections that were refused.

    attempts: how often a request is sent at most. longest_wait: a `Retry-After` beyond it, in seconds, is raised at once.
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


NO_RETRIES = Retries(attempts=1)


def response_error(response: httpx2.Response) -> ApiError:
    """Returns the error of a response whose body was read. A body in another format (a proxy's) is reported by its status."""
    try:
        detail = response.json()["error"]
        message, code, param = str(detail["message"]), str(detail["code"]), detail.get("param")
    except (ValueError, LookupError, TypeError, AttributeError):
        message, code, param = f"the server answered {response.status_code}", "unreadable_answer", None
    error = _error(response, message, code, param)
    error.retry_after = _seconds(response.headers.get("retry-after"))
    error.retryable = response.status_code in RETRIED_STATUSES and response.headers.get("x-should-retry") != "false"
    return error


def _error(response: httpx2.Response, message: str, code: str, param: str | None = None) -> ApiError:
    request_id = response.headers.get("x-request-id")
    return ApiError(message, status=response.status_code, code=code, param=param, request_id=request_id)


def event_error(data: str, response: httpx2.Response) -> ApiError:
    """Returns the error in the data of an `error` event."""
    detail: Any = json.loads(data)["error"]
    return _error(response, detail["message"], detail["code"], detail.get("param"))


def truncated_stream(response: httpx2.Response) -> ApiError:
    """Returns the error of a stream that ended without its last event."""
    return _error(response, "the stream ended before the answer was complete", "stream_cut")


@contextmanager
def api_errors() -> Iterator[None]:
    """Converts errors of the HTTP library and of parsing into ApiError."""
    try:
        yield
    except httpx2.HTTPError as error:
        reason = str(error) or type(error).__name__
        refused = isinstance(error, httpx2.ConnectError)  # the request was not sent, so repeating it is safe
        raise ApiError(
            f"{_address(error)} could not be reached: {reason}", code="connection_failed", retryable=refused
        ) from error
    except (ValidationError, json.JSONDecodeError, LookupError) as error:
        raise ApiError(f"the server's answer cannot be read: {error}", code="unreadable_answer") from error


def _address(error: httpx2.HTTPError) -> str:
    """Returns where the request went, without a name and password of the address."""
    try:
        url = error.request.url
    except RuntimeError:  # raised outside a request
        return "the server"
    return f"the server at {url.scheme}://{url.netloc.decode()}"


def _seconds(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:  # HTTP allows a date here; this server never sends one
        return None
