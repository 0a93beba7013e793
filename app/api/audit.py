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
from steering.schemas.governance import AuditEntryAnswer, AuditPage
from steering.store.base import Store
from steering.store.governance import AuditEntry

log = structlog.get_logger(__name__)

_TARGET_LIMIT = 256

router = APIRouter(route_class=ApiRoute, tags=["governance"])


async def record(
    store: Store, key: Key, method: str, route: str, path: Mapping[str, Any], body: Any, request_id: str, status: int
) -> None:
    """Appends an entry. What fails is logged: a change that was made is not undone for it."""
    entry = AuditEntry(key.name, f"{method} {route}"[:128], _target(path, body), request_id, status)
    lost = {"action": entry.action, "target": entry.target, "key": entry.key}
    try:
        await store.audit.append(entry)
    except asyncio.CancelledError:
        log.error("audit_entry_lost", code="cancelled", **lost)  # noqa: TRY400
        raise
    except SteeringError as error:
        log.error("audit_entry_lost", code=error.code, **lost)  # noqa: TRY400


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
    data = [AuditEntryAnswer.model_validate(one, from_attributes=True) for one in entries]
    return AuditPage(data=data, next_cursor=next_cursor)
