"""ApiError: the one exception of the client, and how refusals and broken connections become it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
from pydantic import ValidationError


class ApiError(Exception):
    """The server refused, failed, or could not be reached.

    status: HTTP status, 0 where no answer came. code: stable, as docs/api.md lists it; `connection_failed`,
    `stream_cut` and `unreadable_answer` are the client's own. param: the field it is about. request_id: what the
    server's log calls the request. retry_after: seconds after which another attempt makes sense.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 0,
        code: str,
        param: str | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message, self.status, self.code, self.param = message, status, code, param
        self.request_id, self.retry_after = request_id, retry_after

    def __str__(self) -> str:
        words = [str(self.status) if self.status else "no answer", self.code]
        if self.param:
            words.append(f"param {self.param}")
        if self.request_id:
            words.append(f"request {self.request_id}")
        return f"{self.message} ({', '.join(words)})"


def error_of(response: httpx2.Response) -> ApiError:
    """The error of an answer that has been read; one that is not in our shape (a proxy's) is told by its status."""
    try:
        detail = response.json()["error"]
        message, code, param = str(detail["message"]), str(detail["code"]), detail.get("param")
    except (ValueError, LookupError, TypeError, AttributeError):
        message, code, param = f"the server answered {response.status_code}", "unreadable_answer", None
    return ApiError(
        message,
        status=response.status_code,
        code=code,
        param=param,
        request_id=response.headers.get("x-request-id"),
        retry_after=_seconds(response.headers.get("retry-after")),
    )


def error_of_event(data: str, response: httpx2.Response) -> ApiError:
    """The error that an `error` event tells."""
    detail: Any = json.loads(data)["error"]
    return ApiError(
        detail["message"],
        status=response.status_code,
        code=detail["code"],
        param=detail.get("param"),
        request_id=response.headers.get("x-request-id"),
    )


def stream_cut(response: httpx2.Response) -> ApiError:
    """A stream that ended without its last event is no answer."""
    return ApiError(
        "the stream ended before the answer was complete",
        status=response.status_code,
        code="stream_cut",
        request_id=response.headers.get("x-request-id"),
    )


@contextmanager
def told() -> Iterator[None]:
    """What the HTTP library and the reader of answers raise, as ApiError."""
    try:
        yield
    except httpx2.HTTPError as error:
        reason = str(error) or type(error).__name__
        raise ApiError(f"the server could not be reached: {reason}", code="connection_failed") from error
    except (ValidationError, json.JSONDecodeError, LookupError) as error:
        raise ApiError(f"the server's answer cannot be read: {error}", code="unreadable_answer") from error


def _seconds(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:  # a date: allowed by HTTP, never sent by this server
        return None
