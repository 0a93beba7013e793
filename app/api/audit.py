"""The audit log: one entry for each request that changed something, or may have, and /v1/audit, which lists them."""

import asyncio
from collections.abc import Mapping
from typing import Annotated, Any

import structlog
from fastapi import APIRouter, Query

from app.core.admission import check_limit
from app.core.key import Key
from app.core.requests import ApiRoute, StateDep, needs
from steering.errors import SteeringError
from steering.schemas.base import PageQuery
from steering.schemas.governance import AuditPage
from steering.store.store import Store

log = structlog.get_logger(__name__)

_TARGET_LIMIT = 256

router = APIRouter(route_class=ApiRoute, tags=["governance"])


async def record(
    store: Store, key: Key, method: str, route: str, path: Mapping[str, Any], body: Any, request_id: str, status: int
) -> None:
    """Appends an entry. What fails is logged: a change that was made is not undone for it."""
    change = {"action": f"{method} {route}"[:128], "target": _target(path, body), "key": key.name}
    try:
        await store.audit.append(**change, request_id=request_id, status=status)
    except asyncio.CancelledError:
        log.error("audit_entry_lost", code="cancelled", **change)  # noqa: TRY400
        raise
    except SteeringError as error:
        log.error("audit_entry_lost", code=error.code, **change)  # noqa: TRY400


def _target(path: Mapping[str, Any], body: Any) -> str:
    """Returns the name in the path, else the name that the body gives."""
    if path:
        return ", ".join(f"{name}={value}" for name, value in path.items())[:_TARGET_LIMIT]
    name = body.get("name") if isinstance(body, dict) else None
    return f"name={name}"[:_TARGET_LIMIT] if isinstance(name, str) else ""


@router.get("/v1/audit", openapi_extra=needs("admin"))
async def audit(query: Annotated[PageQuery, Query()], state: StateDep) -> AuditPage:
    """Lists changes, newest first: when, by which key, which route, on what."""
    check_limit(query.limit, state.settings.max_page, "entries per page", "limit")
    entries, next_cursor = await state.store.audit.find(query.limit, query.cursor)
    return AuditPage(data=entries, next_cursor=next_cursor)
