"""/v1/keys and /v1/audit: what an admin manages and reads."""

from typing import Annotated, Literal, TypeVar

from fastapi import APIRouter, Header, Query
from starlette.responses import Response

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
    RotateKeyRequest,
)

router = APIRouter(route_class=ApiRoute, tags=["governance"])

Force = Annotated[bool, Query(description="Also where no key with the scope admin would remain.")]
IfMatch = Annotated[
    str | None, Header(max_length=256, description="The etag of the key as it was read; 412 for another.")
]
Tagged = TypeVar("Tagged", bound=KeyAnswer)


def _tagged(answer: Tagged, response: Response) -> Tagged:
    response.headers["ETag"] = answer.etag
    return answer


@router.post("/v1/keys", status_code=201, openapi_extra=needs("admin"))
async def create(body: CreateKeyRequest, state: StateDep, response: Response) -> NewKeyAnswer:
    """Creates a key. The response is the only place where it is shown."""
    return _tagged(await keys.create(state, body), response)


@router.get("/v1/keys", openapi_extra=needs("admin"))
async def find(state: StateDep) -> KeyList:
    """Lists the keys, with when each was last used."""
    return await keys.find(state)


@router.patch("/v1/keys/{key_id}", openapi_extra=needs("admin"))
async def change(
    key_id: str,
    body: ChangeKeyRequest,
    state: StateDep,
    response: Response,
    if_match: IfMatch = None,
    force: Force = False,
) -> KeyAnswer:
    """Changes name, scopes, limits, expiry or namespace of a key. Limits that are not given stay; null removes one."""
    return _tagged(await keys.change(state, key_id, body, if_match, force=force), response)


@router.post("/v1/keys/{key_id}/rotate", openapi_extra=needs("admin"))
async def rotate(
    key_id: str, body: RotateKeyRequest, state: StateDep, response: Response, if_match: IfMatch = None
) -> NewKeyAnswer:
    """Gives a key a new secret, shown here only. Its id, limits, links, jobs and counts stay."""
    return _tagged(await keys.rotate(state, key_id, body, if_match), response)


@router.delete("/v1/keys/{key_id}", status_code=204, openapi_extra=needs("admin"))
async def delete(
    key_id: str,
    state: StateDep,
    if_match: IfMatch = None,
    force: Force = False,
    jobs: Annotated[Literal["keep", "cancel"], Query(description="What becomes of its unfinished jobs.")] = "keep",
) -> None:
    """Deletes a key. It is refused from the next request on, and its batches stop; other jobs go on unless they are cancelled."""
    await keys.delete(state, key_id, if_match, force=force, cancel_jobs=jobs == "cancel")


@router.get("/v1/audit", openapi_extra=needs("admin"))
async def audit(query: Annotated[PageQuery, Query()], state: StateDep) -> AuditPage:
    """Lists changes, newest first: when, by which key, which route, on what."""
    check_limit(query.limit, state.settings.max_page, "entries per page", "limit")
    entries, next_cursor = await state.store.audit.find(query.limit, query.cursor)
    data = [AuditEntryAnswer.model_validate(one, from_attributes=True) for one in entries]
    return AuditPage(data=data, next_cursor=next_cursor)
