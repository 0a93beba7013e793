"""Converts vectors to rows of the database and back, and filters to conditions."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, or_

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
        "name": stored.name,
        "version": stored.version,
        "method": stored.method,
        "description": stored.description,
        "tags": join_tags(stored.tags),
        "searched": fold(stored.description),
        "created_at": stored.created_at,
        "sha256": stored.sha256,
        "content": stored.content,
    }


def from_row(row: Sequence[Any]) -> StoredVector:
    """Reads a stored vector from its columns."""
    name, version, method, description, tags, created_at, sha256, content = row
    return StoredVector(name, version, method, description, tuple(tags.split()), created_at, sha256, bytes(content))
