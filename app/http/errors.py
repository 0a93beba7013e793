"""Maps errors to HTTP statuses and error bodies, in one table. Every error response is built and logged here."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import structlog
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from app import errors as http_errors
from app.http.validation import describe
from steering import errors
from steering.errors import InternalError, InvalidRequest, NotFound, SteeringError
from steering.schemas.base import ErrorDetail

log = structlog.get_logger(__name__)

QUOTE_LIMIT = 120
"""Characters of a caller's input that an error repeats at most."""
FINDING_LIMIT = 300
"""Characters of one validation message: it may list the known keys where one is unknown."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The response to one class of error. type: the OpenAI family of the error."""

    status: int
    type: str = "invalid_request_error"
    retry_after: int | None = None
    headers: tuple[tuple[str, str], ...] = ()


_NO_RETRY = (("x-should-retry", "false"),)

OUTCOMES: Mapping[type[SteeringError], Outcome] = {
    errors.InvalidRequest: Outcome(400),
    errors.NotFound: Outcome(404, "not_found_error"),
    errors.VectorInUse: Outcome(409, "conflict_error", headers=_NO_RETRY),
    http_errors.JobCancelled: Outcome(409, "conflict_error", headers=_NO_RETRY),
    http_errors.LastAdminKey: Outcome(409, "conflict_error", headers=_NO_RETRY),
    http_errors.PreconditionFailed: Outcome(412, headers=_NO_RETRY),
    http_errors.InvalidApiKey: Outcome(401, "authentication_error", headers=(("WWW-Authenticate", "Bearer"),)),
    http_errors.InsufficientScope: Outcome(403, "permission_error"),
    http_errors.HostRefused: Outcome(403, "permission_error"),
    http_errors.BodyTooLarge: Outcome(413),
    http_errors.UnsupportedMediaType: Outcome(415),
    errors.UnsupportedFormat: Outcome(415),
    errors.NonfiniteActivations: Outcome(422, headers=_NO_RETRY),
    errors.Overloaded: Outcome(429, "rate_limit_error", retry_after=1),
    http_errors.RateLimited: Outcome(429, "rate_limit_error", retry_after=10),
    errors.Unavailable: Outcome(503, "unavailable_error", retry_after=5),
    errors.OutOfMemory: Outcome(507, "server_error", headers=_NO_RETRY),
    errors.StorageFull: Outcome(507, "server_error", headers=_NO_RETRY),
    http_errors.PolicyInvalid: Outcome(503, "unavailable_error", headers=_NO_RETRY),  # until an admin sets another
    errors.Interrupted: Outcome(503, "unavailable_error", retry_after=5),
    errors.UnsupportedModel: Outcome(503, "unavailable_error", retry_after=60),
    errors.ModelLoadFailed: Outcome(503, "unavailable_error", retry_after=60),
    errors.StoreCorrupt: Outcome(500, "server_error", headers=_NO_RETRY),
    errors.SteeringError: Outcome(500, "server_error"),
}


def outcome_of(error: SteeringError) -> Outcome:
    """Returns the row of the nearest class in the hierarchy."""
    return next(OUTCOMES[kind] for kind in type(error).__mro__ if kind in OUTCOMES)


def status_of(error: Exception) -> int:
    """Returns the status of the response to an exception of a handler."""
    match error:
        case SteeringError():
            return outcome_of(error).status
        case HTTPException():
            return error.status_code
        case RequestValidationError():
            return 400
    return 500


def error_body(message: str, kind: str, code: str, param: str | None = None) -> dict[str, Any]:
    """Returns the body that every error has."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def body_of(error: SteeringError) -> dict[str, Any]:
    """Returns the body of one error; also the data of an `error` event."""
    return error_body(error.message, outcome_of(error).type, error.code, error.param)


def json_response(body: Any, status: int, headers: Mapping[str, str] | None = None) -> Response:
    """Returns JSON in ASCII, so that no text of the caller (a lone surrogate, say) can make the response fail."""
    content = json.dumps(body, ensure_ascii=True, allow_nan=False)
    return Response(content, status_code=status, headers=headers, media_type="application/json")


def response_of(error: SteeringError) -> Response:
    """Returns the response to one error."""
    outcome = outcome_of(error)
    headers = dict(outcome.headers)
    retry_after = getattr(error, "retry_after", outcome.retry_after)
    if retry_after is not None:
        headers["Retry-After"] = f"{max(retry_after, 0.1):.3g}"
    if getattr(error, "never", False):  # the request alone is beyond the limit
        headers |= _NO_RETRY
    return json_response(body_of(error), outcome.status, headers)


def public_error(error: BaseException) -> SteeringError:
    """Returns what a caller may know of an exception, and logs what is the server's fault (5xx), once and with its cause.

    Errors of our own classes are returned as they are; others become an internal error without details.
    """
    public: SteeringError = InternalError("an internal error occurred; the log has the details under this request id")
    if isinstance(error, SteeringError) and type(error) is not SteeringError:
        public = error
    if outcome_of(public).status >= 500:
        _log_failure(error, public)
    return public


def error_detail(error: SteeringError) -> ErrorDetail:
    """Returns an error as a part of a response that has others too; see `public_error`."""
    return ErrorDetail.model_validate(body_of(public_error(error))["error"])


def _log_failure(error: BaseException, public: SteeringError) -> None:
    request_id = structlog.contextvars.get_contextvars().get("request_id")
    logged: set[str | None] = error.__dict__.setdefault("_logged_for", set())
    if request_id in logged:  # a stream passes the same error through two handlers
        return
    logged.add(request_id)
    details: dict[str, Any] = {"code": public.code, "param": public.param, "error": str(error)[:500]}
    if (cause := error.__cause__) is not None:
        details["cause"] = f"{type(cause).__name__}: {cause}"[:500]
    if isinstance(public, InternalError):
        details["exc_info"] = error
    # The model is asked for during every start, and a stopping server during every restart, by probes above all: no failure.
    write = log.info if isinstance(public, errors.NotReady | http_errors.Draining) else log.error
    write("request_failed", **details)


def _quoted(text: str, limit: int = QUOTE_LIMIT) -> str:
    return text if len(text) <= limit else text[:limit] + "..."


def _walk(finding: Mapping[str, Any], body: Any) -> tuple[str, ...]:
    """Returns the path of a finding in the body: its location without the names of union members."""
    source, *location = finding.get("loc") or ("",)
    path: list[str] = []
    for part in location:
        if source == "body":
            inside = isinstance(body, list) and isinstance(part, int) and part < len(body)
            if not (inside or (isinstance(body, dict) and part in body)):
                continue
            body = body[part]
        path.append(str(part))
    match finding.get("type"):
        case "unknown_key":
            path.append(finding["ctx"]["key"])
        case "missing" if source == "body":
            path.append(str(finding["loc"][-1]))
        case "union_tag_invalid" | "union_tag_not_found" if source == "body":
            path.append(str(finding["ctx"]["discriminator"]).strip("'"))
    return tuple(path)


def invalid(error: RequestValidationError) -> InvalidRequest:
    """Reports the deepest findings of a validation: where a field has several forms, those are about the one that was meant."""
    findings = [(_walk(finding, error.body), finding) for finding in error.errors()]
    path = max((found for found, _ in findings), key=len)
    where = _quoted(".".join(path)) or None
    message = describe([finding for found, finding in findings if found == path])
    return InvalidRequest(f"{where or 'the body'}: {_quoted(message, FINDING_LIMIT)}", param=where)


def _wrong_method(request: Request, error: HTTPException) -> Response:
    """Lists every method of the path. Each has a route of its own, and the router knows only that of the first."""
    methods: Mapping[str, Sequence[str]] = request.app.state.methods
    given = (error.headers or {}).get("Allow", "")
    allowed = ", ".join(methods.get(getattr(request.scope.get("route"), "path", ""), ())) or given
    message = f"{_quoted(request.scope['path'])} takes {allowed}, got {_quoted(request.method)}"
    code = request.state.error_code = "method_not_allowed"
    return json_response(error_body(message, "invalid_request_error", code), 405, {"Allow": allowed})


async def on_error(request: Request, error: Exception) -> Response:
    """Answers errors of our own classes, a body or query that its schema refuses (without the input), an unknown route, and an
    unknown method of a route."""
    match error:
        case HTTPException(status_code=404):
            method, path = _quoted(request.method), _quoted(request.scope["path"])
            known: SteeringError = NotFound(f"there is no route {method} {path}")
        case HTTPException(status_code=405):
            return _wrong_method(request, error)
        case HTTPException():
            body = error_body(_quoted(str(error.detail)), "invalid_request_error", "invalid_request")
            return json_response(body, error.status_code, dict(error.headers or {}))
        case RequestValidationError():
            known = invalid(error)
        case _:
            known = public_error(error)
    request.state.error_code = known.code  # for the log line of the request
    request.state.limit = getattr(known, "limit", known.code)
    return response_of(known)
