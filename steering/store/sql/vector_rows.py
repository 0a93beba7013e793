"""Converts vectors to rows of the database and back, and filters to conditions."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, and_, exists, func, not_, or_, select
from sqlalchemy.orm import aliased

from steering.namespaces import SHARED
from steering.store.base import VectorFilter
from steering.store.formats.stored_vector import StoredVector
from steering.store.rules import fold
from steering.store.sql.tables import VectorRow


def conditions_of(where: VectorFilter) -> list[ColumnElement[bool]]:
    """Expresses StoredVector.matches in SQL."""
    conditions: list[ColumnElement[bool]] = []
    if where.tag is not None:
        conditions.append(VectorRow.tags.contains(f" {where.tag} ", autoescape=True))
    if where.method is not None:
        conditions.append(VectorRow.method == where.method)
    if where.search is not None:
        text = fold(where.search)
        in_name = VectorRow.name.contains(text, autoescape=True)
        conditions.append(or_(in_name, VectorRow.searched.contains(text, autoescape=True)))
    return conditions


def join_tags(tags: tuple[str, ...]) -> str:
    """Writes tags so that each stands between spaces, where a search finds it."""
    return f" {' '.join(tags)} " if tags else ""


def to_row(stored: StoredVector) -> dict[str, Any]:
    """Returns the columns of a stored vector."""
    return {
        "namespace": stored.namespace,
        "name": stored.name,
        "version": stored.version,
        "method": stored.method,
        "description": stored.description,
        "tags": join_tags(stored.tags),
        "searched": fold(stored.description),
        "created_at": stored.created_at,
        "created_by": stored.created_by,
        "sha256": stored.sha256,
        "size": len(stored.content),
        "metadata_json": stored.metadata,
        "content": stored.content,
    }


LABELS = (
    VectorRow.namespace,
    VectorRow.name,
    VectorRow.version,
    VectorRow.method,
    VectorRow.description,
    VectorRow.tags,
    VectorRow.created_at,
    VectorRow.created_by,
    VectorRow.sha256,
)
"""Columns of a vector that are small and of bounded size."""
SUMMARY = (*LABELS, VectorRow.metadata_json)
"""Columns of a listing: everything but the directions."""


def from_row(row: Sequence[Any], *, metadata: str = "", content: bytes = b"") -> StoredVector:
    """Reads a stored vector from LABELS."""
    namespace, name, version, method, description, tags, created_at, created_by, sha256 = row
    return StoredVector(
        namespace=namespace,
        name=name,
        version=version,
        method=method,
        description=description,
        tags=tuple(tags.split()),
        created_at=created_at,
        created_by=created_by,
        sha256=sha256,
        metadata=metadata,
        content=content,
    )


def from_summary_row(row: Sequence[Any]) -> StoredVector:
    """Reads a stored vector from SUMMARY, without its content."""
    return from_row(row[:-1], metadata=row[-1])


_OTHER = aliased(VectorRow)
# The last number assigned may have been deleted, so the newest version is the highest one that is there.
NEWEST = VectorRow.version == (
    select(func.max(_OTHER.version))
    .where(_OTHER.namespace == VectorRow.namespace, _OTHER.name == VectorRow.name)
    .correlate(VectorRow)
    .scalar_subquery()
)


def is_visible(namespace: str) -> ColumnElement[bool]:
    """Selects what a namespace sees: its own vectors, and those of `shared` whose names it does not have itself."""
    own = VectorRow.namespace == namespace
    if namespace == SHARED:
        return own
    hidden = exists().where(_OTHER.namespace == namespace, _OTHER.name == VectorRow.name).correlate(VectorRow)
    return or_(own, and_(VectorRow.namespace == SHARED, not_(hidden)))
