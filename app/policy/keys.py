"""Keys: identifies callers by keys of the environment, of a file and of the database, and knows what each may do."""

import hashlib
import hmac
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import structlog
from fastapi.security import HTTPBearer
from pydantic import ValidationError
from starlette.requests import Request

from app.errors import InsufficientScope, InvalidApiKey
from app.key_entries import SCOPES, KeyEntry, key_entries
from app.policy.changes import Changes
from app.settings import Settings
from steering.errors import NotReady
from steering.namespaces import SHARED
from steering.schemas.governance import KeyLimitsFields
from steering.store.base import Store
from steering.store.governance import KeyRecord
from steering.store.rules import now
from steering.vectors import check_name

log = structlog.get_logger(__name__)

BEARER = HTTPBearer(scheme_name="key", auto_error=False, description="An API key of this server.")
"""Reads the Authorization header; also describes it in the OpenAPI document."""


@dataclass(frozen=True, slots=True)
class Key:
    """A caller: a name that is safe to log (never the key), its scopes and limits. `admin` includes every other scope.

    namespace: of the vectors, profiles and jobs that it makes.
    """

    name: str
    scopes: frozenset[str]
    limits: KeyLimitsFields = field(default_factory=KeyLimitsFields)
    id: str = ""
    namespace: str = SHARED

    def namespace_for(self, asked: str | None) -> str:
        """Returns the namespace of a request, which an admin may name. Raises InsufficientScope, InvalidRequest.

        The answer to others does not depend on what is in the namespace that they named.
        """
        if asked is None or asked == self.namespace:
            return self.namespace
        if "admin" not in self.scopes:
            raise InsufficientScope("only a key with the scope 'admin' may name another namespace", param="namespace")
        return check_name(asked, "namespace")

    def require(self, scope: str) -> None:
        """Raises InsufficientScope unless the key has the scope, or is an admin's."""
        if scope not in self.scopes and "admin" not in self.scopes:
            raise InsufficientScope(
                f"this route needs the scope {scope!r}; this key has {', '.join(sorted(self.scopes))}"
            )


ANONYMOUS = Key("anonymous", frozenset(SCOPES))
"""The caller of a server without keys, which listens on a loopback address only."""


@dataclass(frozen=True, slots=True)
class _Known:
    digest: bytes
    key: Key
    expires_at: str | None = None


def digest_of(secret: str) -> str:
    """Returns the SHA-256 of a key in hexadecimal, the only form in which it is kept."""
    return hashlib.sha256(secret.encode()).hexdigest()


def new_key() -> tuple[str, str]:
    """Returns a new id and a new key of 256 random bits."""
    return f"key_{secrets.token_hex(8)}", f"sk-{secrets.token_urlsafe(32)}"


class ApiKeys:
    """Every key of this server. `refresh` reads the file and the database again, so keys change without a restart."""

    def __init__(self, settings: Settings) -> None:
        self._configured = _from_entries(settings.api_keys)
        self._file = settings.api_keys_file
        self._from_file: tuple[_Known, ...] = () if self._file is None else _from_entries(key_entries(self._file))
        self._stored: dict[str, _Known] | None = None
        self._used: dict[str, str] = {}
        self._changes = Changes()

    @property
    def empty(self) -> bool:
        """Whether there is no key at all, so that everybody on this machine may do everything. Raises NotReady."""
        return not self._all()

    @property
    def names(self) -> frozenset[str]:
        """The names of all keys, as metrics and the log have them. Raises NotReady."""
        return frozenset(known.key.name for known in self._all()) or frozenset({ANONYMOUS.name})

    def _all(self) -> tuple[_Known, ...]:
        return (*self._configured, *self._from_file, *self._read().values())

    def _read(self) -> dict[str, _Known]:
        """Returns the keys of the database. Raises NotReady before they were read: a server without keys is open to everybody."""
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
        records = await self._changes.read(store.keys.all)
        self._stored = {record.id: _from_record(record) for record in records}

    async def create(self, record: KeyRecord, store: Store) -> KeyRecord:
        """Stores a new key, which is known from now on."""
        async with self._changes.change():
            self._read()
            return self._changed(await store.keys.create(record))

    async def change(self, key_id: str, fields: Mapping[str, Any], store: Store) -> KeyRecord:
        """Stores some fields of a key, which hold from now on. Raises KeyNotFound."""
        async with self._changes.change():
            self._read()
            return self._changed(await store.keys.change(key_id, fields))

    async def delete(self, key_id: str, store: Store) -> None:
        """Deletes a key, which is unknown from now on. Raises KeyNotFound."""
        async with self._changes.change():
            self._read()
            await store.keys.delete(key_id)
            self._read().pop(key_id, None)

    def _changed(self, record: KeyRecord) -> KeyRecord:
        self._read()[record.id] = _from_record(record)
        return record

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
        if self.empty:
            return ANONYMOUS
        given = await BEARER(request)
        headers = request.headers.getlist("authorization")
        if given is None or len(headers) != 1 or headers[0].partition(" ")[2] != given.credentials:
            raise InvalidApiKey("send exactly one header 'Authorization: Bearer <key>'")
        digest = hashlib.sha256(given.credentials.encode()).digest()
        found: _Known | None = None
        for known in self._all():  # no early exit: the time must not depend on which key matches
            if hmac.compare_digest(known.digest, digest):
                found = known
        if found is None or (found.expires_at is not None and found.expires_at <= now()):
            raise InvalidApiKey("this key is not known")
        if found.key.id:
            self._used[found.key.id] = now()
        return found.key


def _from_entries(entries: Sequence[str]) -> tuple[_Known, ...]:
    return tuple(_from_entry(KeyEntry.parse(text)) for text in entries)


def _from_entry(entry: KeyEntry) -> _Known:
    digest = digest_of(entry.secret)
    key = Key(f"key-{digest[:8]}", frozenset(entry.scopes), namespace=entry.namespace)
    return _Known(bytes.fromhex(digest), key)


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
    return None if _stored_digest(record) else "its digest cannot be read"


def _stored_digest(record: KeyRecord) -> bytes:
    """Returns the digest of a key; where it is damaged one that no secret has."""
    try:
        digest = bytes.fromhex(record.digest)
    except ValueError:
        return b""
    return digest if len(digest) == hashlib.sha256().digest_size else b""


def _from_record(record: KeyRecord) -> _Known:
    held = readable(record)
    if damage := damage_of(record):
        log.warning("key_may_do_nothing", key=record.id, reason=damage)
    limits = KeyLimitsFields.model_validate(dict(held.limits))
    key = Key(record.id, frozenset(held.scopes), limits, record.id, record.namespace)
    return _Known(_stored_digest(record), key, record.expires_at)


def utc_text(moment: datetime) -> str:
    """Returns a time as the store writes it. Raises ValueError without a time zone."""
    if moment.tzinfo is None:
        raise ValueError("a time needs a time zone")
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
