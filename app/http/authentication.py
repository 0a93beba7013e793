"""Who is calling: Bearer keys, kept as SHA-256 only and compared in constant time over every key there is."""

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass

from starlette.datastructures import Headers

from app.settings import SCOPES
from steering.errors import InsufficientScope, InvalidApiKey


@dataclass(frozen=True, slots=True)
class Key:
    """A caller: a name safe to log (never the key), and what it may do."""

    name: str
    scopes: frozenset[str]

    def require(self, scope: str) -> None:
        """Raises InsufficientScope."""
        if scope not in self.scopes:
            raise InsufficientScope(f"this key may not {scope}; its scopes are {', '.join(sorted(self.scopes))}")


ANYONE = Key("anonymous", frozenset(SCOPES))
"""The caller of a server without keys, which only listens on a loopback address."""


class ApiKeys:
    """Every configured key. Entries are `key` (all scopes) or `key:read+generate`."""

    def __init__(self, entries: Sequence[str]) -> None:
        self._keys: list[tuple[bytes, Key]] = []
        for entry in entries:
            secret, _, scopes = entry.partition(":")
            digest = hashlib.sha256(secret.encode()).digest()
            granted = frozenset(scopes.split("+") if scopes else SCOPES)
            self._keys.append((digest, Key(f"key-{digest.hex()[:8]}", granted)))

    def identify(self, headers: Headers) -> Key:
        """The caller. Raises InvalidApiKey unless exactly one `Authorization: Bearer <key>` names a key."""
        if not self._keys:
            return ANYONE
        given = headers.getlist("authorization")
        if len(given) != 1:
            raise InvalidApiKey("send exactly one header 'Authorization: Bearer <key>'")
        scheme, _, secret = given[0].partition(" ")
        if scheme.lower() != "bearer":
            raise InvalidApiKey("the Authorization header must be 'Bearer <key>'")
        digest = hashlib.sha256(secret.encode()).digest()
        found: Key | None = None
        for known, key in self._keys:  # never left early: the time taken says nothing about which key came close
            if hmac.compare_digest(known, digest):
                found = key
        if found is None:
            raise InvalidApiKey("this key is not known")
        return found
