"""StoredVector: a vector as it rests, bytes and labels. Every store seals on the way in and restores on the way out."""

from dataclasses import dataclass, replace

from steering.errors import InvalidRequest, LimitExceeded, StoreCorrupt, UnsupportedMediaType, VectorNotFound
from steering.store.base import VectorFilter
from steering.store.formats.blob import OWN, decode, digest, encode
from steering.store.sql.labels import DESCRIPTION_LIMIT, check_tags, check_text, fold
from steering.vectors import ConceptVector


@dataclass(frozen=True, slots=True)
class StoredVector:
    """One version. `content` is what `encode(labels=False)` gave and `sha256` its digest; `method` is copied for filters."""

    name: str
    version: int
    method: str
    description: str
    tags: tuple[str, ...]
    created_at: str
    sha256: str
    content: bytes

    @property
    def id(self) -> str:
        return f"{self.name}@{self.version}"

    def matches(self, where: VectorFilter) -> bool:
        """The meaning of a filter, in plain words; a database has to agree with it."""
        sought = None if where.search is None else fold(where.search)
        return (
            (where.tag is None or where.tag in self.tags)
            and (where.method is None or where.method == self.method)
            and (sought is None or sought in self.name or sought in fold(self.description))
        )


VERSION_LIMIT = 999_999_999


def is_version(version: int) -> bool:
    """Whether the number could be a version at all: a database would choke on larger ones."""
    return 0 < version <= VERSION_LIMIT


def not_found(name: str, version: int | None) -> VectorNotFound:
    """The error for a vector that is not there; it says no more, so that nobody learns what else is."""
    return VectorNotFound(f"there is no vector {name if version is None else f'{name}@{version}'!r}", param="vector")


def seal(vector: ConceptVector) -> StoredVector:
    """The vector ready to rest, version 0 and no date yet. Raises InvalidRequest or LimitExceeded for what cannot rest.

    It is read back once, so nothing goes in that could not come out.
    """
    check_text(vector.description, "description", DESCRIPTION_LIMIT)
    check_tags(vector.tags)
    content = encode(vector, labels=False)
    decode(content, name=vector.name, limits=OWN)
    return StoredVector(vector.name, 0, vector.method, vector.description, vector.tags, "", digest(content), content)


KEPT = 128
"""Vectors that a store keeps decoded: traffic names the same few again and again, and decoding one takes milliseconds."""


def restore(stored: StoredVector) -> ConceptVector:
    """The vector itself. Raises StoreCorrupt when the bytes are not those that were stored."""
    if digest(stored.content) != stored.sha256:
        raise StoreCorrupt(f"the bytes of vector {stored.id} do not match their SHA-256; restore it or delete it")
    try:
        vector = decode(stored.content, name=stored.name, limits=OWN)
    except (InvalidRequest, LimitExceeded, UnsupportedMediaType) as error:
        raise StoreCorrupt(f"the bytes of vector {stored.id} cannot be read: {error.message}") from error
    return replace(
        vector,
        version=stored.version,
        description=stored.description,
        tags=stored.tags,
        sha256=stored.sha256,
        created_at=stored.created_at,
    )
