"""/v1/keys and /v1/audit: what an admin manages and reads."""

from typing import Annotated

from fastapi import APIRouter, Query

from app.http.dependencies import StateDep
from app.http.request_reading import ApiRoute, needs
from app.services import keys
from app.services.limits import check_limit
from steering.schemas.base import PageQuery
from steering.schemas.governance import (
    AuditEntryAnswer,
    AuditPage,
    ChangeKeyRequest,
    CreateKeyRequest,
    KeyAnswer,
    KeyList,
    NewKeyAnswer,
)

router = APIRouter(route_class=ApiRoute, tags=["governance"])


@router.post("/v1/keys", status_code=201, openapi_extra=needs("admin"))
async def create(body: CreateKeyRequest, state: StateDep) -> NewKeyAnswer:
    """Creates a key. The response is the only place where it is shown."""
    return await keys.create(state, body)


@router.get("/v1/keys", openapi_extra=needs("admin"))
async def find(state: StateDep) -> KeyList:
    """Lists the keys, with when each was last used."""
    return await keys.find(state)


@router.patch("/v1/keys/{key_id}", openapi_extra=needs("admin"))
async def change(key_id: str, body: ChangeKeyRequest, state: StateDep) -> KeyAnswer:
    """Changes name, scopes, limits expiry or namespace of a key."""
    return await keys.change(state, key_id, body)


@router.delete("/v1/keys/{key_id}", status_code=204, openapi_extra=needs("admin"))
async def delete(key_id: str, state: StateDep) -> None:
    """Deletes a key. It is refused from the next request on."""
    await keys.delete(state, key_id)


@router.get("/v1/audit", openapi_extra=needs("admin"))
async def audit(query: Annotated[PageQuery, Query()], state: StateDep) -> AuditPage:
    """Lists changes, newest first: when, by which key, which route, on what."""
    check_limit(query.limit, state.settings.max_page, "entries per page", "limit")
    entries, next_cursor = await state.store.audit.find(query.limit, query.cursor)
    data = [AuditEntryAnswer.model_validate(one, from_attributes=True) for one in entries]
    return AuditPage(data=data, next_cursor=next_cursor)
