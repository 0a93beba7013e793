"""Errors that only HTTP knows. The library's errors are in `steering.errors`; `app.http.errors` maps both to statuses."""

from steering.errors import NotFound, SteeringError, Unavailable


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

    limit: which one, for the metrics. never: the request alone is beyond the limit, so that waiting does not help.
    """

    def __init__(
        self,
        message: str,
        *,
        limit: str = "other",
        param: str | None = None,
        retry_after: float = 10.0,
        never: bool = False,
    ) -> None:
        super().__init__(message, param=param)
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
