"""Decides whether and when the client repeats a request that failed."""

import random
from dataclasses import dataclass

from steering.client.calls.errors import ApiError


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
