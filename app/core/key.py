"""Key: who makes a request, and what that caller may do."""

from dataclasses import dataclass, field

from app.core.errors import InsufficientScope
from app.core.settings import SCOPES
from steering.namespaces import SHARED
from steering.schemas.governance import KeyLimitsFields
from steering.vectors import check_name


@dataclass(frozen=True, slots=True)
class Key:
    """A caller: a name that is safe to log (never the key), its scopes and limits. `admin` includes every other scope.

    namespace: the one whose vectors, profiles and jobs it makes.
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
"""The caller of a server that never had a key, which listens on a loopback address only."""


def foreign(kind: str, name: str, owner: str, own: str) -> InsufficientScope:
    """Returns the error for changing a thing that a key sees and that belongs to another namespace."""
    return InsufficientScope(
        f"{kind} {name[:80]!r} belongs to namespace {owner!r}; this key changes those of {own!r} only"
    )
