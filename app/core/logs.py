"""Configures logging: one JSON object per line on standard error. JSON escapes control characters, so no text can forge a line."""

import logging
import secrets
import sys

import structlog
from structlog.stdlib import ProcessorFormatter
from structlog.typing import Processor


def current_request_id() -> str:
    """Returns the id of the request that this coroutine answers; empty outside of one."""
    return str(structlog.contextvars.get_contextvars().get("request_id", ""))


def new_request_id() -> str:
    """Returns an id for a request that brings none of its own."""
    return f"req-{secrets.token_hex(8)}"


def configure_logging(level: str) -> None:
    """Routes structlog and the standard library's loggers through one JSON renderer."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    written: list[Processor] = [ProcessorFormatter.remove_processors_meta, structlog.processors.JSONRenderer()]
    handler.setFormatter(ProcessorFormatter(foreign_pre_chain=shared, processors=written))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    for verbose in ("alembic", "httpx2", "httpcore2"):
        logging.getLogger(verbose).setLevel(logging.WARNING)
