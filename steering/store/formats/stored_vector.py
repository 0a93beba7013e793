"""StoredVector: one vector version as bytes and labels. Stores call `serialize` when writing and `deserialize` when reading."""

from dataclasses import dataclass, replace

from steering.errors import InvalidRequest, LimitExceeded, StoreCorrupt, UnsupportedFormat, VectorNotFound
from steering.store.base import VectorFilter
from steering.store.formats.blob import OWN, decode, digest, encode
from steering.store.rules import DESCRIPTION_LIMIT, check_tags, check_text, fold
from steering.vectors import ConceptVector


@dataclass(frozen=True, slots=True)
class StoredVector:
    """One version. `content` is the result of `encode(labels=False)`, `sha256` its digest; `method` is a copy for filters."""

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
        """`name@version`."""
        return f"{self.name}@{self.version}"

    def matches(self, where: VectorFilter) -> bool:
        """Returns whether the vector passes a filter; SqlVectors must agree with it."""
        sought = None if where.search is None else fold(where.search)
        return (
            (where.tag is None or where.tag in self.tags)
            and (where.method is None or where.method == self.method)
            and (sought is None or sought in self.name or sought in fold(self.description))
        )


VERSION_LIMIT = 999_999_999


def is_version(version: int) -> bool:
    """Returns whether a version may have this number; PostgreSQL raises for larger ones."""
    return 0 < version <= VERSION_LIMIT


def not_found(name: str, version: int | None) -> VectorNotFound:
    """Returns the error for a missing vector. It names nothing else, so that callers cannot learn other names."""
    return VectorNotFound(f"there is no vector {name if version is None else f'{name}@{version}'!r}", param="vector")


def serialize(vector: ConceptVector) -> StoredVector:
    """Returns the vector ready to be stored, with version 0 and no date. Raises InvalidRequest or LimitExceeded.

    The bytes are decoded once, so that nothing is stored that could not be read.
    """
    check_text(vector.description, "description", DESCRIPTION_LIMIT)
    check_tags(vector.tags)
    content = encode(vector, labels=False)
    decode(content, name=vector.name, limits=OWN)
    return StoredVector(vector.name, 0, vector.method, vector.description, vector.tags, "", digest(content), content)


DECODED_VECTORS = 128
"""Vectors that a store caches decoded: requests name the same few, and decoding one takes milliseconds."""


def deserialize(stored: StoredVector) -> ConceptVector:
    """Returns the vector. Raises StoreCorrupt when the bytes are not those that were stored."""
    if digest(stored.content) != stored.sha256:
        raise StoreCorrupt(f"the bytes of vector {stored.id} do not match their SHA-256; restore it or delete it")
    try:
        vector = decode(stored.content, name=stored.name, limits=OWN)
    except (InvalidRequest, LimitExceeded, UnsupportedFormat) as error:
        raise StoreCorrupt(f"the bytes of vector {stored.id} cannot be read: {error.message}") from error
    return replace(
        vector,
        version=stored.version,
        description=stored.description,
        tags=stored.tags,
        sha256=stored.sha256,
        created_at=stored.created_at,
    )
