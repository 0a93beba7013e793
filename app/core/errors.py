"""Errors of HTTP, and the one table that maps every error to a status and a body.

The library's errors are in `steering.errors`. Every error response is built and logged here. What a schema refuses is described in
plain words: the field, what was given, what is allowed, the nearest name.
"""

import json
import math
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import structlog
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from steering import errors
from steering.errors import InternalError, InvalidRequest, NotFound, SteeringError, Unavailable
from steering.registry import suggestion
from steering.schemas.base import ErrorDetail

log = structlog.get_logger(__name__)

QUOTE_LIMIT = 120  # characters of a caller's input that an error repeats at most
FINDING_LIMIT = 500  # characters of one validation message: it may list the known keys where one is unknown
GIVEN_LIMIT = 40  # characters of a refused text that are repeated
DIGITS_LIMIT = 8  # a longer number is not repeated: it may have thousands of digits, which are counted
_NO_RETRY = (("x-should-retry", "false"),)
_EXPECTED = {
    "string_type": "text",
    **dict.fromkeys(("int_type", "int_from_float", "int_parsing"), "a whole number"),
    "float_type": "a number",
    "finite_number": "a finite number",
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    **dict.fromkeys(("tuple_type", "list_type"), "a list"),
    **dict.fromkeys(("dict_type", "model_attributes_type"), "an object"),
}
_CONTENT = {
    "greater_than_equal": "must be at least {ge}, got {given}",
    "greater_than": "must be greater than {gt}, got {given}",
    "less_than_equal": "must be at most {le}, got {given}",
    "less_than": "must be less than {lt}, got {given}",
    **dict.fromkeys(("missing", "union_tag_not_found"), "is required"),
    **dict.fromkeys(("steering_form", "vector_form", "input_form"), "{message}, got {given}"),
    "string_pattern_mismatch": "must match {pattern}, got {given}",
    "string_too_short": "must not be empty",
    "string_too_long": "takes at most {max_length} characters",
    "too_short": "needs at least {min_length} items, got {actual_length}",
    "too_long": "takes at most {max_length} items",
}


class InvalidApiKey(SteeringError, code="invalid_api_key"):
    """The request has no key, several keys, or an unknown one."""


class InsufficientScope(SteeringError, code="insufficient_scope"):
    """The key is valid and lacks the scope of the route."""


class HostRefused(SteeringError, code="host_refused"):
    """The Host header does not name this server."""


class BodyTooLarge(SteeringError, code="body_too_large"):
    """The body is larger than the limit of the route."""


class UnsupportedMediaType(SteeringError, code="unsupported_media_type"):
    """The body has another media type than the route accepts."""


class RateLimited(SteeringError, code="rate_limited"):
    """A key has used up one of its limits.

    limit: which limit it is, for the metrics.
    never: the request alone is beyond the limit, so that waiting does not help.
    """

    def __init__(self, message: str, *, limit: str = "other", retry_after: float = 10.0, never: bool = False) -> None:
        super().__init__(message)
        self.limit, self.retry_after, self.never = limit, retry_after, never


class LastAdminKey(SteeringError, code="last_admin_key"):
    """Nobody could manage keys after this change."""


class PreconditionFailed(SteeringError, code="precondition_failed"):
    """What is to be changed is no longer what the caller has read."""


class JobCancelled(SteeringError, code="job_cancelled"):
    """Another caller cancelled the job that the request waited for."""


class RequestTimedOut(Unavailable, code="request_timed_out"):
    """The request ran longer than the server allows."""


class Draining(Unavailable, code="draining"):
    """The server is stopping and refuses new work."""


class PolicyInvalid(Unavailable, code="policy_invalid"):
    """The stored policy cannot be applied, and nothing that it should govern is answered."""


class TooManyConnections(Unavailable, code="too_many_connections"):
    """Every connection that the server allows is open and in use."""


class MonitorNotFound(NotFound, code="monitor_not_found"):
    """The policy has no monitor of this name."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The response to one class of error."""

    status: int
    type: str = "invalid_request_error"  # the family of the error in OpenAI's API
    retry_after: int | None = None
    headers: tuple[tuple[str, str], ...] = ()


OUTCOMES: Mapping[type[SteeringError], Outcome] = {
    errors.InvalidRequest: Outcome(400),
    errors.NotFound: Outcome(404, "not_found_error"),
    errors.VectorInUse: Outcome(409, "conflict_error", headers=_NO_RETRY),
    JobCancelled: Outcome(409, "conflict_error", headers=_NO_RETRY),
    LastAdminKey: Outcome(409, "conflict_error", headers=_NO_RETRY),
    PreconditionFailed: Outcome(412, headers=_NO_RETRY),
    InvalidApiKey: Outcome(401, "authentication_error", headers=(("WWW-Authenticate", "Bearer"),)),
    InsufficientScope: Outcome(403, "permission_error"),
    HostRefused: Outcome(403, "permission_error"),
    BodyTooLarge: Outcome(413),
    UnsupportedMediaType: Outcome(415),
    errors.UnsupportedFormat: Outcome(415),
    errors.NonfiniteActivations: Outcome(422, headers=_NO_RETRY),
    errors.Overloaded: Outcome(429, "rate_limit_error", retry_after=1),
    RateLimited: Outcome(429, "rate_limit_error", retry_after=10),
    errors.Unavailable: Outcome(503, "unavailable_error", retry_after=5),
    RequestTimedOut: Outcome(503, "unavailable_error", headers=_NO_RETRY),  # it would take as long again
    errors.OutOfMemory: Outcome(507, "server_error", headers=_NO_RETRY),
    errors.StorageFull: Outcome(507, "server_error", headers=_NO_RETRY),
    PolicyInvalid: Outcome(503, "unavailable_error", headers=_NO_RETRY),  # until an admin sets another
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


ErrorForm: TypeAlias = Callable[[dict[str, Any], int], dict[str, Any]]
"""Returns the body of an error in the form of another API, from our own body and the status."""


def formed(scope: MutableMapping[str, Any], body: dict[str, Any], status: int) -> dict[str, Any]:
    """Returns the body of an error in the form of the API that its path belongs to, also where no route has that path."""
    forms: Mapping[str, ErrorForm] = scope["app"].state.error_forms
    form = next((form for prefix, form in forms.items() if scope["path"].startswith(prefix)), None)
    return body if form is None else form(body, status)


def json_response(body: Any, status: int, headers: Mapping[str, str] | None = None) -> Response:
    """Returns JSON in ASCII, so that no text of the caller (a lone surrogate, say) can make the response fail."""
    content = json.dumps(body, ensure_ascii=True, allow_nan=False)
    return Response(content, status_code=status, headers=headers, media_type="application/json")


def response_of(error: SteeringError, scope: MutableMapping[str, Any]) -> Response:
    """Returns the response to one error of a request."""
    outcome = outcome_of(error)
    headers = dict(outcome.headers)
    retry_after = getattr(error, "retry_after", outcome.retry_after)
    if retry_after is not None:
        headers["Retry-After"] = str(math.ceil(max(retry_after, 1)))
    if getattr(error, "never", False):  # the request alone is beyond the limit
        headers |= _NO_RETRY
    return json_response(formed(scope, body_of(error), outcome.status), outcome.status, headers)


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
    # No failure: probes ask for the model during every start, and a stopping server is asked during every restart.
    write = log.info if isinstance(public, errors.NotReady | Draining) else log.error
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
    path = max((place for place, _ in findings), key=len)
    where = _quoted(".".join(path)) or None
    message = describe([finding for place, finding in findings if place == path])
    return InvalidRequest(f"{where or 'the body'}: {_quoted(message, FINDING_LIMIT)}", param=where)


def _wrong_method(request: Request, error: HTTPException) -> Response:
    """Lists every method of the path. Each has a route of its own, and the router knows only that of the first."""
    methods: Mapping[str, Sequence[str]] = request.app.state.methods
    given = (error.headers or {}).get("Allow", "")
    allowed = ", ".join(methods.get(getattr(request.scope.get("route"), "path", ""), ())) or given
    message = f"{_quoted(request.scope['path'])} takes {allowed}, got {_quoted(request.method)}"
    code = request.state.error_code = "method_not_allowed"
    body = formed(request.scope, error_body(message, "invalid_request_error", code), 405)
    return json_response(body, 405, {"Allow": allowed})


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
            body = formed(request.scope, body, error.status_code)
            return json_response(body, error.status_code, dict(error.headers or {}))
        case RequestValidationError():
            known = invalid(error)
        case _:
            known = public_error(error)
    request.state.error_code = known.code  # for the log line of the request
    request.state.limit = getattr(known, "limit", known.code)
    return response_of(known, request.scope)


def describe(findings: Sequence[Mapping[str, Any]]) -> str:
    """Describes findings about one place. Several come from a field that has several forms.

    Where one form fits and only its content is wrong, that is described; else all forms are listed.
    """
    content = next((finding for finding in findings if _expected(finding) is None), None)
    if content is not None:
        return _sentence(content)
    expected = list(dict.fromkeys(str(_expected(finding)) for finding in findings))
    value, hint = findings[0].get("input"), ""
    literals = " or ".join(str(_expected(one)) for one in findings if one.get("type") == "literal_error")
    if isinstance(value, str) and literals:
        hint = suggestion(value, literals.replace(" or ", ", ").replace("'", "").split(", "))
    if type(value) is int and abs(value) < 10**DIGITS_LIMIT and "a list" in expected:
        hint = f"; did you mean [{value}]?"
    return f"expected {_listed(expected)}, got {shown(value)}{hint}"


def shown(value: Any) -> str:
    """Names a refused value: short texts and numbers as they are, everything else by its kind."""
    if value is None or isinstance(value, dict):
        return "null" if value is None else "an object"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    if isinstance(value, str):
        return json.dumps(value) if len(value) <= GIVEN_LIMIT else f"a text of {len(value)} characters"
    if isinstance(value, int):
        return json.dumps(value) if abs(value) < 10**DIGITS_LIMIT else f"a number of {len(str(abs(value)))} digits"
    short = isinstance(value, float) and math.isfinite(value) and len(json.dumps(value)) <= DIGITS_LIMIT
    return json.dumps(value) if short else "a number"


def _expected(finding: Mapping[str, Any]) -> str | None:
    """Names the form that a finding misses; None where the form is right and the content is not."""
    kind, context = str(finding.get("type")), finding.get("ctx") or {}
    if kind == "literal_error":
        return str(context.get("expected", ""))
    return f"an object with {context.get('known')}" if kind == "object_type" else _EXPECTED.get(kind)


def _sentence(finding: Mapping[str, Any]) -> str:
    """Describes a finding about the content of a field."""
    kind, context = str(finding.get("type")), finding.get("ctx") or {}
    message = str(finding.get("msg", "not valid")).removeprefix("Value error, ")
    if kind == "unknown_key":
        return message + suggestion(str(context.get("key")), str(context.get("known", "")).split(", "))
    if kind == "union_tag_invalid":
        tag, known = str(context.get("tag")), str(context.get("expected_tags")).replace("'", "").split(", ")
        return f"expected {_listed([repr(one) for one in known])}, got {shown(tag)}{suggestion(tag, known)}"
    words = {**context, "message": message, "given": shown(finding.get("input"))}
    return _CONTENT[kind].format(**words) if kind in _CONTENT else message


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " or " + words[-1]
