"""ApiKeys: the keys of a server and what each may do. /v1/keys creates, changes, rotates, lists and deletes them; /v1/audit lists who
changed what."""

import asyncio
import hashlib
import json
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

import structlog
from fastapi import APIRouter, Header, Query
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response

from app.api.jobs import Jobs
from app.core.admission import ANONYMOUS, Key, page_size
from app.core.errors import InvalidApiKey, LastAdminKey, PreconditionFailed
from app.core.requests import BEARER, ApiRoute, StateDep, needs
from app.core.settings import KeyEntry, Settings, key_entries
from app.core.state import ServerState
from app.core.synchronization import Changes
from steering.errors import InvalidRequest, NotReady, SteeringError
from steering.schemas import governance as schemas
from steering.schemas.base import PageQuery
from steering.schemas.governance import ChangeKeyRequest, CreateKeyRequest, KeyAnswer, KeyLimitsFields, NewKeyAnswer
from steering.store.records import KeyEdit, KeyRecord, now, utc_text
from steering.store.store import Store
from steering.vectors import VectorId

log = structlog.get_logger(__name__)

REQUIRED = "keys_required"
"""The document that says that this database has had a key."""
Force = Annotated[bool, Query(description="Also where no key with the scope admin would remain.")]
IfMatch = Annotated[
    str | None, Header(max_length=256, description="The etag of the key as it was read; 412 for another.")
]
ADMIN = needs("admin")
_CHANGEABLE = ("id", "name", "scopes", "digest", "expires_at", "namespace", "previous_until")
_TARGET_LIMIT = 256

router = APIRouter(route_class=ApiRoute, tags=["governance"])


@dataclass(frozen=True, slots=True)
class _Known:
    digest: bytes
    key: Key
    expires_at: str | None = None

    @property
    def valid(self) -> bool:
        return self.expires_at is None or self.expires_at > now()


def digest_of(secret: str) -> str:
    """Returns the SHA-256 of a key in hexadecimal, the only form in which it is kept."""
    return hashlib.sha256(secret.encode()).hexdigest()


class ApiKeys:
    """Every key of this server. `refresh` reads the file and the database again, so keys change without a restart. A
    server is open to everybody on its machine until it has its first key, and never again: the database remembers that
    there was one."""

    def __init__(self, settings: Settings) -> None:
        self._configured = _from_entries(settings.api_keys)
        self._file = settings.api_keys_file
        self._from_file = [] if self._file is None else _from_entries(key_entries(self._file))
        self._stored: dict[str, KeyRecord] | None = None
        self._required = False
        self._by_digest: dict[bytes, _Known] = {}
        self._used: dict[str, str] = {}
        self._changes = Changes()

    @property
    def required(self) -> bool:
        """Whether a request needs a key. Raises NotReady before the keys were read: a server without keys is open to everybody."""
        self._read()
        return self._required or bool(self._by_digest)

    @property
    def names(self) -> frozenset[str]:
        """The names of all keys, as metrics and the log have them. Raises NotReady."""
        self._read()
        return frozenset(known.key.name for known in self._by_digest.values()) or frozenset({ANONYMOUS.name})

    def _read(self) -> dict[str, KeyRecord]:
        if self._stored is None:
            raise NotReady("the API keys have not been read yet")
        return self._stored

    async def refresh(self, store: Store) -> None:
        """Reads the keys again. A file that cannot be read is logged. Raises StoreUnavailable, StoreCorrupt; the keys stay as they are."""
        if self._file is not None:
            try:
                self._from_file = _from_entries(key_entries(self._file))
            except (OSError, ValueError) as error:
                log.warning("key_file_not_read", reason=str(error)[:200])

        async def read() -> tuple[Sequence[KeyRecord], bool]:
            return await store.keys.all(), await store.documents.get(REQUIRED) is not None

        records, required = await self._changes.read(read)
        if records and not required:
            await store.documents.put(REQUIRED, {})
        self._use({record.id: record for record in records}, required=required)

    def _use(self, stored: dict[str, KeyRecord], *, required: bool) -> None:
        """Holds the keys. They are found by their digest: the time of a look-up tells nothing of a secret whose digest is not known."""
        known = [*self._configured, *self._from_file]
        for record in stored.values():
            known += _from_record(record)
        self._required = self._required or required or bool(stored)
        self._stored, self._by_digest = stored, {one.digest: one for one in known if one.digest}

    async def create(self, record: KeyRecord, store: Store) -> KeyRecord:
        """Stores a new key, which is known from now on."""
        async with self._changing(store) as stored:
            created = stored[record.id] = await store.keys.create(record)
            if not self._required:
                await store.documents.put(REQUIRED, {})
        return created

    async def edit(self, key_id: str, edit: KeyEdit, store: Store, *, force: bool = False) -> KeyRecord | None:
        """Changes or deletes a key, see Keys.edit; it holds from now on. Raises KeyNotFound, LastAdminKey where no key
        with the scope `admin` would remain, unless that is forced."""

        def checked(record: KeyRecord, others: Sequence[KeyRecord]) -> Mapping[str, Any] | None:
            fields = edit(record, others)
            after = [*others] if fields is None else [*others, replace(record, **fields)]
            elsewhere = any("admin" in one.key.scopes for one in (*self._configured, *self._from_file))
            if not force and not elsewhere and _is_admin(record) and not any(map(_is_admin, after)):
                raise LastAdminKey(
                    f"key {key_id} is the last one with the scope 'admin': nobody could manage keys without it, and the server "
                    "asks for a key all the same. Create another admin key first, or repeat this with ?force=true",
                    param="force",
                )
            return fields

        async with self._changing(store) as stored:
            changed = await store.keys.edit(key_id, checked)
            stored.pop(key_id, None)
            if changed is not None:
                stored[key_id] = changed
        return changed

    @asynccontextmanager
    async def _changing(self, store: Store) -> AsyncIterator[dict[str, KeyRecord]]:
        """Surrounds a write, and then uses the stored keys as the caller has changed them. Another server may have changed
        some meanwhile: they are read again, where that fails by the next refresh."""
        async with self._changes.change():
            stored = dict(self._read())
            yield stored
            self._use(stored, required=True)
        with suppress(SteeringError):
            await self.refresh(store)

    def last_used_at(self, record: KeyRecord) -> str | None:
        """Returns when a key was last used, here or as it is stored."""
        return self._used.get(record.id, record.last_used_at)

    async def store_use(self, store: Store) -> None:
        """Stores when the keys were last used. Raises StoreUnavailable; the next call stores it then."""
        used = dict(self._used)
        await store.keys.touch(used)
        self._used = {key_id: at for key_id, at in self._used.items() if used.get(key_id) != at}

    async def identify(self, request: Request) -> Key:
        """Returns the caller. Raises InvalidApiKey unless exactly one `Authorization: Bearer <key>` has a known key, NotReady."""
        if not self.required:
            return ANONYMOUS
        given = await BEARER(request)
        headers = request.headers.getlist("authorization")
        if given is None or len(headers) != 1 or headers[0].partition(" ")[2] != given.credentials:
            raise InvalidApiKey("send the key once, in a header 'Authorization: Bearer <key>'")
        known = self._by_digest.get(hashlib.sha256(given.credentials.encode()).digest())
        if known is None or not known.valid:
            raise InvalidApiKey("this key is not known")
        if known.key.id:
            self._used[known.key.id] = now()
        return known.key

    def current(self, key: Key) -> Key:
        """Returns a key as it is now, for work that outlasts its request. Raises InvalidApiKey for one that is no longer known."""
        if key is ANONYMOUS and not self.required:
            return key
        known = next((one for one in self._by_digest.values() if one.key.name == key.name and one.valid), None)
        if known is None:
            raise InvalidApiKey("the key of this job is no longer known")
        return known.key


def _from_entries(entries: Sequence[str]) -> list[_Known]:
    known = []
    for entry in map(KeyEntry.parse, entries):
        digest = digest_of(entry.secret)
        key = Key(f"key-{digest[:8]}", frozenset(entry.scopes), namespace=entry.namespace)
        known.append(_Known(bytes.fromhex(digest), key))
    return known


def _from_record(record: KeyRecord) -> list[_Known]:
    """Returns a key, and the same key under the secret that it had before its rotation."""
    held = readable(record)
    if damage := damage_of(record):
        log.warning("key_may_do_nothing", key=record.id, reason=damage)
    limits = KeyLimitsFields.model_validate(dict(held.limits))
    key = Key(record.id, frozenset(held.scopes), limits, record.id, record.namespace)
    known = [_Known(_stored_digest(record.digest), key, record.expires_at)]
    if record.previous_digest and record.previous_until:
        until = min(record.previous_until, record.expires_at or record.previous_until)
        known.insert(0, _Known(_stored_digest(record.previous_digest), key, until))
    return known


def readable(record: KeyRecord) -> KeyRecord:
    """Returns a key as it holds: one whose limits this version cannot read has no scopes."""
    try:
        KeyLimitsFields.model_validate(dict(record.limits))
    except ValidationError:  # it stays a key, because a server without keys is open to everybody
        return replace(record, scopes=(), limits={})
    return record


def damage_of(record: KeyRecord) -> str | None:
    """Returns what of a stored key cannot be read, so that it may do nothing; None for a whole key."""
    if not readable(record).scopes:
        return "its limits cannot be read"
    return None if _stored_digest(record.digest) else "its digest cannot be read"


def _stored_digest(text: str) -> bytes:
    """Returns a digest; nothing where it is damaged, which no secret has."""
    try:
        digest = bytes.fromhex(text)
    except ValueError:
        return b""
    return digest if len(digest) == hashlib.sha256().digest_size else b""


def _is_admin(record: KeyRecord) -> bool:
    valid = record.expires_at is None or record.expires_at > now()
    return valid and "admin" in record.scopes and damage_of(record) is None


@router.post("/v1/keys", status_code=201, openapi_extra=ADMIN)
async def create(body: CreateKeyRequest, state: StateDep, response: Response) -> NewKeyAnswer:
    """Creates a key. The response is the only place where it is shown."""
    if not state[ApiKeys].required and "admin" not in body.scopes:
        raise InvalidRequest("the first key needs the scope 'admin', or no one could manage keys", param="scopes")
    if body.expires_at is not None and body.expires_at <= datetime.now(UTC):
        raise InvalidRequest(f"the key would be refused from the start: it is {now()} now", param="expires_at")
    secret = f"sk-{secrets.token_urlsafe(32)}"
    record = KeyRecord(id=f"key_{secrets.token_hex(8)}", digest=digest_of(secret), **_fields(body))
    answer = _answer(state, await state[ApiKeys].create(record, state.store), response)
    return NewKeyAnswer(**dict(answer), key=secret)


@router.get("/v1/keys", openapi_extra=ADMIN)
async def find(state: StateDep) -> schemas.KeyList:
    """Lists the keys, with when each was last used."""
    records = await state.store.keys.all()
    damaged = [(record.id, damage) for record in records if (damage := damage_of(record)) is not None]
    warnings = tuple(f"key {key_id} may do nothing: {damage}; restore or delete it" for key_id, damage in damaged)
    return schemas.KeyList(data=[_answer(state, record) for record in records], warnings=warnings)


@router.patch("/v1/keys/{key_id}", openapi_extra=ADMIN)
async def change(
    key_id: str,
    body: ChangeKeyRequest,
    state: StateDep,
    response: Response,
    if_match: IfMatch = None,
    force: Force = False,
) -> KeyAnswer:
    """Changes name, scopes, limits, expiry or namespace of a key. Limits that are not given stay; null removes one."""

    def edit(record: KeyRecord, _: Sequence[KeyRecord]) -> dict[str, Any]:
        _check_match(record, if_match)
        fields = _fields(body)
        if body.limits is not None:
            asked = body.limits.model_dump(mode="json", include=body.limits.model_fields_set)
            merged = {**readable(record).limits, **asked}
            fields["limits"] = {name: value for name, value in merged.items() if value is not None}
        elif "limits" in body.model_fields_set:
            fields["limits"] = {}
        return fields

    changed = await state[ApiKeys].edit(key_id, edit, state.store, force=force)
    assert changed is not None, "it was changed"
    return _answer(state, changed, response)


@router.post("/v1/keys/{key_id}/rotate", openapi_extra=ADMIN)
async def rotate(
    key_id: str, body: schemas.RotateKeyRequest, state: StateDep, response: Response, if_match: IfMatch = None
) -> NewKeyAnswer:
    """Gives a key a new secret, shown here only. Its id, limits, links, jobs and counts stay."""
    secret = f"sk-{secrets.token_urlsafe(32)}"

    def edit(record: KeyRecord, _: Sequence[KeyRecord]) -> dict[str, Any]:
        _check_match(record, if_match)
        until = utc_text(datetime.now(UTC) + timedelta(seconds=body.old_valid_seconds))
        digest, until_then = (record.digest, until) if body.old_valid_seconds else (None, None)
        return {"digest": digest_of(secret), "previous_digest": digest, "previous_until": until_then}

    changed = await state[ApiKeys].edit(key_id, edit, state.store)
    assert changed is not None, "it was changed"
    return NewKeyAnswer(**dict(_answer(state, changed, response)), key=secret)


@router.delete("/v1/keys/{key_id}", status_code=204, openapi_extra=ADMIN)
async def delete(
    key_id: str,
    state: StateDep,
    if_match: IfMatch = None,
    force: Force = False,
    jobs: Annotated[Literal["keep", "cancel"], Query(description="What becomes of its unfinished jobs.")] = "keep",
) -> None:
    """Deletes a key. It is refused from the next request on, and its batches stop; other jobs go on unless they are cancelled."""
    await state[ApiKeys].edit(key_id, lambda record, _: _check_match(record, if_match), state.store, force=force)
    if jobs == "cancel":
        await state[Jobs].cancel_of(key_id)


def _check_match(record: KeyRecord, if_match: str | None) -> None:
    """Raises PreconditionFailed where the caller has read another version of a key."""
    if if_match is None or if_match.strip() == "*":
        return
    if etag_of(record) not in [one.strip() for one in if_match.split(",")]:
        raise PreconditionFailed(
            f"key {record.id} has changed since you read it (If-Match {if_match[:80]}, it is {etag_of(record)} now); read it again",
            param="If-Match",
        )


def etag_of(record: KeyRecord) -> str:
    """Returns the ETag of what can be changed of a key; its use changes nothing."""
    content = json.dumps([*(getattr(record, name) for name in _CHANGEABLE), dict(record.limits)], sort_keys=True)
    return f'"{hashlib.sha256(content.encode()).hexdigest()[:16]}"'


def _fields(body: CreateKeyRequest | ChangeKeyRequest) -> dict[str, Any]:
    fields = body.model_dump(include={"name", "namespace"}, exclude_none=True)
    if "scopes" in body.model_fields_set:
        fields["scopes"] = tuple(dict.fromkeys(body.scopes))
    if body.limits is not None:
        for name in body.limits.vectors or ():  # no vector has another name, so that nothing could be steered with
            VectorId.parse(name, "limits.vectors")
        fields["limits"] = body.limits.model_dump(mode="json", exclude_none=True)
    if "expires_at" in body.model_fields_set:
        fields["expires_at"] = None if body.expires_at is None else utc_text(body.expires_at)
    return fields


def _answer(state: ServerState, record: KeyRecord, response: Response | None = None) -> KeyAnswer:
    """Describes a key, and sets the ETag of a response about it alone."""
    shown, etag = replace(readable(record), last_used_at=state[ApiKeys].last_used_at(record)), etag_of(record)
    if response is not None:
        response.headers["ETag"] = etag
    return KeyAnswer.model_validate(shown, from_attributes=True).model_copy(update={"etag": etag})


@router.get("/v1/audit", openapi_extra=ADMIN)
async def audit(query: Annotated[PageQuery, Query()], state: StateDep) -> schemas.AuditPage:
    """Lists changes, newest first: when, by which key, which route, on what."""
    limit = page_size(query, state.settings.max_page)
    entries, next_cursor = await state.store.audit.find(limit, query.cursor)
    return schemas.AuditPage(data=entries, next_cursor=next_cursor)


async def record_change(
    store: Store, key: Key, method: str, route: str, target: Mapping[str, Any], request_id: str, status: int
) -> None:
    """Appends an entry to the audit log for a request that changed something, or may have. What fails is logged: a
    change that was made is not undone for it."""
    on = ", ".join(f"{name}={value}" for name, value in target.items())
    change = {"action": f"{method} {route}"[:128], "target": on[:_TARGET_LIMIT], "key": key.name}
    try:
        await store.audit.append(**change, request_id=request_id, status=status)
    except asyncio.CancelledError:
        log.error("audit_entry_lost", code="cancelled", **change)  # noqa: TRY400
        raise
    except SteeringError as error:
        log.error("audit_entry_lost", code=error.code, **change)  # noqa: TRY400
