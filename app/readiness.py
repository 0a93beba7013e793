"""announce_ready: says in the log when a server is ready, and until then why it is not."""

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from steering.errors import SteeringError

log = structlog.get_logger(__name__)

PAUSE_SECONDS = 0.5
"""Pause between two checks."""


async def announce_ready(check: Callable[[], Awaitable[None]], **details: str) -> None:
    """Logs `ready` with details once `check` passes, which raises why the server is not ready. Until then each new reason is logged."""
    logged = ""
    while True:
        try:
            await check()
        except SteeringError as error:
            if error.message != logged:
                log.warning("not_ready", code=error.code, reason=error.message)
                logged = error.message
        else:
            log.info("ready", **details)
            return
        await asyncio.sleep(PAUSE_SECONDS)
