"""SteeringError -> status and error body: one table. Every answer that is not a success is written here."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from steering import errors
from steering.errors import InternalError, InvalidRequest, NotFound, SteeringError

QUOTE_LIMIT = 120
"""Characters of a caller's own words that an error repeats at most."""
FINDING_LIMIT = 300
"""Characters that one finding of a validation may take: the names of all known keys, where one is not known."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one class of error is answered. type: the OpenAI family of the error."""

    status: int
    type: str = "invalid_request_error"
    retry_after: int | None = None
    headers: tuple[tuple[str, str], ...] = ()


_NO_RETRY = (("x-should-retry", "false"),)

OUTCOMES: Mapping[type[SteeringError], Outcome] = {
    errors.InvalidRequest: Outcome(400),
    errors.NotFound: Outcome(404, "not_found_error"),
    errors.VectorInUse: Outcome(409, "conflict_error", headers=_NO_RETRY),
    errors.InvalidApiKey: Outcome(401, "authentication_error", headers=(("WWW-Authenticate", "Bearer"),)),
    errors.InsufficientScope: Outcome(403, "permission_error"),
    errors.HostRefused: Outcome(403, "permission_error"),
    errors.BodyTooLarge: Outcome(413),
    errors.UnsupportedMediaType: Outcome(415),
    errors.NonfiniteActivations: Outcome(422, headers=_NO_RETRY),
    errors.Overloaded: Outcome(429, "rate_limit_error", retry_after=1),
    errors.RateLimited: Outcome(429, "rate_limit_error", retry_after=10),
    errors.Unavailable: Outcome(503, "unavailable_error", retry_after=5),
    errors.OutOfMemory: Outcome(507, "server_error", headers=_NO_RETRY),
    errors.StorageFull: Outcome(507, "server_error", headers=_NO_RETRY),
    errors.Interrupted: Outcome(503, "unavailable_error", retry_after=5),
    errors.UnsupportedModel: Outcome(503, "unavailable_error", retry_after=60),
    errors.ModelLoadFailed: Outcome(503, "unavailable_error", retry_after=60),
    errors.StoreCorrupt: Outcome(500, "server_error", headers=_NO_RETRY),
    errors.SteeringError: Outcome(500, "server_error"),
}

_HTTP_CODES = {404: "not_found", 405: "method_not_allowed"}


def outcome_of(error: SteeringError) -> Outcome:
    """The row of the nearest class in the tree."""
    return next(OUTCOMES[kind] for kind in type(error).__mro__ if kind in OUTCOMES)


def error_body(message: str, kind: str, code: str, param: str | None = None) -> dict[str, Any]:
    """The one shape of an error on the wire."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def body_of(error: SteeringError) -> dict[str, Any]:
    """The error body of one error; also the data of an `error` event."""
    return error_body(error.message, outcome_of(error).type, error.code, error.param)


def json_response(body: Any, status: int, headers: Mapping[str, str] | None = None) -> Response:
    """JSON in ASCII, so that no text a caller sent (a lone surrogate, say) can break the answer about it."""
    content = json.dumps(body, ensure_ascii=True, allow_nan=False)
    return Response(content, status_code=status, headers=headers, media_type="application/json")


def response_of(error: SteeringError) -> Response:
    """The whole answer to one error."""
    outcome = outcome_of(error)
    headers = dict(outcome.headers)
    if outcome.retry_after is not None:
        headers["Retry-After"] = str(outcome.retry_after)
    return json_response(body_of(error), outcome.status, headers)


def hidden(error: BaseException) -> SteeringError:
    """What a caller may know of any exception: ours as it is, the rest as an internal error without particulars."""
    if isinstance(error, SteeringError) and type(error) is not SteeringError:
        return error
    return InternalError("something went wrong inside the server; the log has the particulars under this request id")


def _quoted(text: str, limit: int = QUOTE_LIMIT) -> str:
    return text if len(text) <= limit else text[:limit] + "..."


def _walk(finding: Mapping[str, Any], body: Any) -> tuple[str, ...]:
    """Where in the body a finding is: its location without the names of union members, which are in no body."""
    location = tuple(finding.get("loc", ()))
    unknown = (finding["ctx"]["key"],) if finding.get("type") == "unknown_key" else ()
    if location[:1] != ("body",):
        return (*(str(part) for part in location[1:]), *unknown)
    path: list[str] = []
    for part in location[1:]:
        if (isinstance(body, dict) and part in body) or (
            isinstance(body, list) and isinstance(part, int) and part < len(body)
        ):
            body = body[part]
        else:
            continue
        path.append(str(part))
    if finding.get("type") == "missing":
        path.append(str(location[-1]))
    return (*path, *unknown)


def invalid(error: RequestValidationError) -> InvalidRequest:
    """The deepest finding of a validation, in our shape: where a field has several forms, that is the one that was meant.

    The refused input itself is never repeated.
    """
    findings = [(_walk(finding, error.body), finding) for finding in error.errors()]
    path, finding = max(findings, key=lambda found: len(found[0]))
    where = _quoted(".".join(path)) or None
    message = str(finding.get("msg", "not valid")).removeprefix("Value error, ")
    return InvalidRequest(f"{where or 'the body'}: {_quoted(message, FINDING_LIMIT)}", param=where)


async def on_steering_error(_: Request, error: Exception) -> Response:
    """Every error of the tree."""
    return response_of(hidden(error))


async def on_invalid(_: Request, error: Exception) -> Response:
    """A body or query that its schema refuses: 400, in our shape, without the input."""
    assert isinstance(error, RequestValidationError)
    return response_of(invalid(error))


async def on_http_error(request: Request, error: Exception) -> Response:
    """No such route, or not with this method."""
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return response_of(NotFound(f"there is no route {_quoted(request.method)} {_quoted(request.scope['path'])}"))
    code = _HTTP_CODES.get(error.status_code, "invalid_request")
    body = error_body(_quoted(str(error.detail)), "invalid_request_error", code)
    return json_response(body, error.status_code, dict(error.headers or {}))
