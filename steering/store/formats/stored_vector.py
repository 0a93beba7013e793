"""StoredVector: one vector version as bytes and labels. Stores call `serialize` when writing and `deserialize` when reading."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from steering.errors import (
    InvalidRequest,
    LimitExceeded,
    NotNewest,
    StorageFull,
    StoreCorrupt,
    UnsupportedFormat,
    VectorNotFound,
)
from steering.store.base import VersionPage, Writer
from steering.store.formats.blob import OWN, decode, digest, encode
from steering.store.formats.metadata import read_stored_metadata, write_metadata
from steering.store.rules import check_labels, values_of
from steering.vectors import ConceptVector, VectorSummary, check_name

log = logging.getLogger(__name__)

DECODED_VECTORS = 128
"""Vectors that a store caches decoded: requests name the same few, and decoding one takes milliseconds."""
VERSION_LIMIT = 999_999_999
"""PostgreSQL raises for larger numbers."""


@dataclass(frozen=True, slots=True, eq=False)
class VectorVersion:
    """What names and describes one version of a vector."""

    namespace: str
    name: str
    version: int
    description: str
    tags: tuple[str, ...]
    created_at: str
    sha256: str

    @property
    def id(self) -> str:
        """Returns `name@version`."""
        return f"{self.name}@{self.version}"


@dataclass(frozen=True, slots=True)
class StoredVector(VectorVersion):
    """One version. `content` is the result of `encode(labels=False)`, `sha256` its digest.

    metadata: the metadata inside `content`, apart from it so that listings need not read it. created_by: a key.
    A store leaves `metadata` and `content` empty where it did not read them.
    """

    method: str
    created_by: str
    metadata: str = ""
    content: bytes = b""


def check_version(name: str, version: int | None) -> None:
    """Raises InvalidRequest for what is no name, VectorNotFound for a number that no version has."""
    check_name(name)
    if version is not None and not 0 < version <= VERSION_LIMIT:
        raise not_found(name, version)


def not_found(name: str, version: int | None) -> VectorNotFound:
    """Returns the error for a missing vector. It names nothing else, so that callers cannot learn other names."""
    return VectorNotFound(f"there is no vector {name if version is None else f'{name}@{version}'!r}", param="vector")


def check_newest(newest: VectorVersion | None, after: VectorSummary) -> None:
    """Raises VectorNotFound or NotNewest unless `after` is the newest version that is seen of its name."""
    if newest is None:
        raise not_found(after.name, None)
    if (newest.namespace, newest.version) != (after.namespace, after.version):
        given, where = f"{after.id} of namespace {after.namespace!r}", f"{newest.id} of namespace {newest.namespace!r}"
        raise NotNewest(f"the newest version is {where}, not {given}", param="version")


def serialize(vector: ConceptVector) -> StoredVector:
    """Returns the vector ready to be stored, with version 0 and no date. Raises InvalidRequest or LimitExceeded.

    The bytes are decoded once, so that nothing is stored that could not be read.
    """
    check_labels(vector.description, vector.tags)
    content = encode(vector, labels=False)
    decode(content, name=vector.name, limits=OWN)
    return StoredVector(
        namespace="",
        name=vector.name,
        version=0,
        method=vector.method,
        description=vector.description,
        tags=vector.tags,
        created_at="",
        created_by="",
        sha256=digest(content),
        metadata=write_metadata(vector, labels=False),
        content=content,
    )


def deserialize(stored: StoredVector) -> ConceptVector:
    """Returns the vector. Raises StoreCorrupt when the bytes are not those that were stored."""
    if digest(stored.content) != stored.sha256:
        raise StoreCorrupt(f"the bytes of vector {stored.id} do not match their SHA-256; restore it or delete it")
    try:
        vector = decode(stored.content, name=stored.name, limits=OWN)
    except (InvalidRequest, LimitExceeded, UnsupportedFormat) as error:
        raise StoreCorrupt(f"the bytes of vector {stored.id} cannot be read: {error.message}") from error
    return replace(vector, **values_of(stored, VectorVersion))


def summarize_valid(stored: Iterable[StoredVector]) -> tuple[tuple[VectorSummary, ...], tuple[str, ...]]:
    """Returns vectors without their directions, from their metadata alone, and the ids of those whose metadata is damaged.

    These are left out: one vector must not hide the others. Reading it by name raises the error.
    """
    valid, damaged = [], []
    for one in stored:
        try:
            metadata = read_stored_metadata(one.metadata)
        except InvalidRequest as error:
            log.warning("left out of a listing: the metadata of vector %s cannot be read: %s", one.id, error.message)
            damaged.append(one.id)
            continue
        layers = {int(layer): numbers for layer, numbers in metadata.layers.items()}
        valid.append(VectorSummary(**values_of(one, VectorVersion), **metadata.shared_fields(), layers=layers))
    return tuple(valid), tuple(damaged)


def version_page(stored: Sequence[StoredVector], limit: int) -> VersionPage:
    """Returns a page of at most `limit` versions of one name, which are given newest first."""
    if not stored:
        return VersionPage("", (), None)
    versions, damaged = summarize_valid(stored)
    oldest = stored[-1]
    more = len(stored) == limit and oldest.version > 1
    return VersionPage(oldest.namespace, versions, oldest.version if more else None, damaged)


def check_link_count(writer: Writer, count: int) -> None:
    """Raises StorageFull when a writer that has `count` links may not have one more."""
    if writer.max_links is not None and count >= writer.max_links:
        raise StorageFull(
            f"this key has {count} links; it may have {writer.max_links}: delete some first", param="max_links"
        )


def check_profile_count(writer: Writer, count: int) -> None:
    """Raises StorageFull when a namespace that has `count` profiles may not have one more."""
    if writer.max_profiles is not None and count >= writer.max_profiles:
        raise StorageFull(
            f"this namespace has {count} profiles; it may have {writer.max_profiles}: delete some first",
            param="max_profiles",
        )


def check_quota(writer: Writer, used: int, size: int) -> None:
    """Raises StorageFull when what a writer has stored, which takes `used` bytes, would take too much with `size` more."""
    if writer.max_bytes is not None and used + size > writer.max_bytes:
        raise StorageFull(
            f"the vectors, profiles and links of this key take {used} bytes and this one takes {size}; the key may store "
            f"{writer.max_bytes}: delete some first",
            param="storage_bytes",
        )
