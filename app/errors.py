"""Errors that only HTTP knows. The library's errors are in `steering.errors`; `app.http.errors` maps both to statuses."""

from steering.errors import NotFound, SteeringError, Unavailable


class InvalidApiKey(SteeringError):
    """The request has no key, several keys, or an unknown one."""

    code = "invalid_api_key"


class InsufficientScope(SteeringError):
    """The key is valid and lacks the scope of the route."""

    code = "insufficient_scope"


class HostRefused(SteeringError):
    """The Host header does not name this server."""

    code = "host_refused"


class BodyTooLarge(SteeringError):
    """The body is larger than the limit of the route."""

    code = "body_too_large"


class UnsupportedMediaType(SteeringError):
    """The body has another media type than the route accepts."""

    code = "unsupported_media_type"


class RateLimited(SteeringError):
    """A key has used up one of its limits. never: the request alone is beyond the limit, so that waiting does not help."""

    code = "rate_limited"

    def __init__(
        self, message: str, *, param: str | None = None, retry_after: float = 10.0, never: bool = False
    ) -> None:
        super().__init__(message, param=param)
        self.retry_after, self.never = retry_after, never


class RequestTimedOut(Unavailable):
    """The request ran longer than the server allows."""

    code = "request_timed_out"


class Draining(Unavailable):
    """The server is stopping and refuses new work."""

    code = "draining"


class PolicyInvalid(Unavailable):
    """The stored policy cannot be applied, and nothing that it should govern is answered."""

    code = "policy_invalid"


class TooManyConnections(Unavailable):
    """Every connection that the server allows is open and in use."""

    code = "too_many_connections"


class MonitorNotFound(NotFound):
    """The policy has no monitor of this name."""

    code = "monitor_not_found"


class KeyNotFound(NotFound):
    """There is no key with this id."""

    code = "key_not_found"
