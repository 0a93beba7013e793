"""API keys: Bearer tokens, stored as SHA-256 only and compared in constant time with every configured key."""

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass

from fastapi.security import HTTPBearer
from starlette.requests import Request

from app.errors import InsufficientScope, InvalidApiKey
from app.settings import SCOPES

BEARER = HTTPBearer(scheme_name="key", auto_error=False, description="An API key of this server.")
"""Reads the Authorization header; also describes it in the OpenAPI document."""


@dataclass(frozen=True, slots=True)
class Key:
    """A caller: a name that is safe to log (never the key) and its scopes. The scope `admin` includes every other."""

    name: str
    scopes: frozenset[str]

    def require(self, scope: str) -> None:
        """Raises InsufficientScope unless the key has the scope, or is an admin's."""
        if scope not in self.scopes and "admin" not in self.scopes:
            raise InsufficientScope(
                f"this route needs the scope {scope!r}; this key has {', '.join(sorted(self.scopes))}"
            )


ANONYMOUS = Key("anonymous", frozenset(SCOPES))
"""The caller of a server without keys, which listens on a loopback address only."""


class ApiKeys:
    """Every configured key. Entries are `key` (every scope) or `key:read+generate`."""

    def __init__(self, entries: Sequence[str]) -> None:
        self._keys: list[tuple[bytes, Key]] = []
        for entry in entries:
            secret, colon, scopes = entry.partition(":")
            digest = hashlib.sha256(secret.encode()).digest()
            granted = frozenset(scopes.split("+") if colon else SCOPES)
            self._keys.append((digest, Key(f"key-{digest.hex()[:8]}", granted)))

    async def identify(self, request: Request) -> Key:
        """Returns the caller. Raises InvalidApiKey unless exactly one `Authorization: Bearer <key>` has a known key."""
        if not self._keys:
            return ANONYMOUS
        given = await BEARER(request)
        headers = request.headers.getlist("authorization")
        if given is None or len(headers) != 1 or headers[0].partition(" ")[2] != given.credentials:
            raise InvalidApiKey("send exactly one header 'Authorization: Bearer <key>'")
        digest = hashlib.sha256(given.credentials.encode()).digest()
        found: Key | None = None
        for known, key in self._keys:  # no early exit: the time must not depend on which key matches
            if hmac.compare_digest(known, digest):
                found = key
        if found is None:
            raise InvalidApiKey("this key is not known")
        return found
