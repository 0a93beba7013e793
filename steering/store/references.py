"""Which stored steerings and documents name which vectors, checked in the transaction that stores them or deletes a vector.
Writers take turns, so nothing that is stored names a deleted vector, and no vector is deleted while something names it."""

import re
from collections.abc import Iterable, Sequence

from sqlalchemy import ColumnElement, String, and_, cast, exists, func, or_, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.orm import aliased

from steering.errors import VectorInUse, VectorNotFound
from steering.namespaces import SHARED
from steering.store.database import seen_from
from steering.store.tables import DefaultSteeringRow, DocumentRow, ProfileRow, VectorRow
from steering.vectors import VectorId

OTHERS = "another namespace"
"""How a message names steerings of other namespaces; it is always the last."""
STEERING_KEYS = ("vector", "to")
"""Fields of a steering whose value names a vector."""
_PINNED = re.compile(r'"([a-z0-9][a-z0-9._-]{0,63}@[1-9][0-9]{0,8})"')  # names are ASCII, so JSON escapes none


def pinned_vectors(document: str) -> tuple[str, ...]:
    """Returns every `name@version` that is a text of its own in a JSON document such as the policy: vectors of `shared`."""
    return tuple(dict.fromkeys(_PINNED.findall(document)))


async def pinned_by_default(connection: AsyncConnection, namespace: str, name: str) -> int:
    """Returns the highest version of a name that the default steering of a namespace pins, 0 for none. It may be one of `shared`, which no
    own vector must take the place of."""
    text = await connection.scalar(select(DefaultSteeringRow.steering).filter_by(namespace=namespace))
    pins = map(VectorId.parse, pinned_vectors(text or ""))
    return max((pin.version or 0 for pin in pins if pin.name == name), default=0)


def names_in_steering(name: str, version: int | None, *, only: bool) -> list[str]:
    """Returns the texts of which a stored steering contains one if it names a version that is deleted, None for all.
    only: whether no other version remains for the name alone. Steering is stored without spaces, and names are ASCII."""
    ends = ['"', "@"] if version is None else [f'@{version}"', *(['"'] if only else [])]
    return [f'"{key}":"{name}{end}' for key in STEERING_KEYS for end in ends]


def vector_not_found(name: str, version: int | None) -> VectorNotFound:
    """Returns the error for a missing vector. It names nothing else, so that callers cannot learn other names."""
    return VectorNotFound(f"there is no vector {str(VectorId(name, version))!r}", param="vector")


async def require_vectors(connection: AsyncConnection, namespace: str, names: Iterable[str]) -> None:
    """Raises VectorNotFound for a `name` or `name@version` that the namespace sees no vector for."""
    wanted = dict.fromkeys(map(VectorId.parse, names))
    if not wanted:
        return
    seen = seen_from(VectorRow, namespace)
    newest = select(VectorRow.name).where(seen, VectorRow.name.in_({key.name for key in wanted})).distinct()
    there = {VectorId(name) for name in await connection.scalars(newest)}
    if pins := {(key.name, key.version) for key in wanted if key.version is not None}:
        version = (VectorRow.name, VectorRow.version)
        versions = select(*version).where(seen, tuple_(*version).in_(pins))
        there |= {VectorId(*row) for row in await connection.execute(versions)}
    for key in wanted:
        if key not in there:
            raise vector_not_found(key.name, key.version)


async def refuse_if_used(
    connection: AsyncConnection, namespace: str, name: str, version: int | None, *, only_documents: bool
) -> None:
    """Raises VectorInUse where a profile, a default steering or a document names a version that is deleted, None for all."""
    own = (VectorRow.namespace == namespace, VectorRow.name == name)
    count = await connection.scalar(select(func.count()).select_from(VectorRow).where(*own))
    texts = names_in_steering(name, version, only=count == 1)
    users: list[str] = []
    steerings = ((ProfileRow, ProfileRow.name), (DefaultSteeringRow, DefaultSteeringRow.namespace))
    for row, label in () if only_documents else steerings:
        query = select(row.namespace, label).where(_may_use(row, namespace, name, version, texts)).order_by(label)
        for user_namespace, user in await connection.execute(query):
            shown = f"profile {user!r}" if row is ProfileRow else "the default steering"
            users.append(shown if user_namespace == namespace else OTHERS)
    if namespace == SHARED:
        documents = select(DocumentRow.name, DocumentRow.content).order_by(DocumentRow.name)
        for document, content in await connection.execute(documents):
            pins = map(VectorId.parse, pinned_vectors(content))
            if any(pin.name == name and version in (None, pin.version) for pin in pins):
                users.append(f"the {document}")
    users = sorted(dict.fromkeys(users), key=lambda user: user == OTHERS)
    if users:
        listed = ", ".join(users[:5]) + (f" and {len(users) - 5} more" if len(users) > 5 else "")
        vector = str(VectorId(name, version))
        raise VectorInUse(f"vector {vector!r} is used by {listed}; change those first, or force the delete")


def _may_use(
    row: type[ProfileRow] | type[DefaultSteeringRow],
    namespace: str,
    name: str,
    version: int | None,
    texts: Sequence[str],
) -> ColumnElement[bool]:
    """Selects steerings with one of the texts that see the name as this vector: not those with an own one of that name. A default keeps the
    version of `shared` that it pins, also beside own ones; `pinned_by_default` gives those other numbers."""
    written = or_(*(row.steering.contains(text, autoescape=True) for text in texts))
    if namespace != SHARED:
        return and_(row.namespace == namespace, written)
    shared = aliased(VectorRow)
    own = exists().where(VectorRow.namespace == row.namespace, VectorRow.name == name).correlate(row, shared)
    used = and_((row.namespace == SHARED) | ~own, written)
    if row is ProfileRow:
        return used
    begins = [f'%"{key}":"{name.replace("_", "/_")}@' for key in STEERING_KEYS]
    pins = or_(*(row.steering.like(begin + cast(shared.version, String) + '"%', escape="/") for begin in begins))
    pinned = exists().where(
        shared.namespace == SHARED, shared.name == name, pins, ~own.where(VectorRow.version == shared.version)
    )
    return or_(used, pinned if version is None else pinned.where(shared.version == version))
