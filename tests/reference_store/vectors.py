"""ReferenceVectors: the VectorStore of the ReferenceStore."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TypeAlias, final

from cachetools import LRUCache

from steering.namespaces import SHARED, visible_from
from steering.spec import SteeringSpec, vector_names
from steering.store.base import JobRecord, Link, Profile, VectorFilter, VectorPage, VersionPage, Writer
from steering.store.formats.serialization import read_steering
from steering.store.formats.stored_vector import (
    DECODED_VECTORS,
    StoredVector,
    check_newest,
    check_quota,
    deserialize,
    not_found,
    serialize,
    summarize_valid,
    version_page,
)
from steering.store.rules import (
    OTHERS,
    check_filter,
    check_labels,
    check_page,
    make_cursor,
    now,
    pinned_vectors,
    read_cursor,
    refuse_if_used,
)
from steering.vectors import ConceptVector, VectorId, VectorSummary, check_name
from tests.reference_store.servers import Changes

Named: TypeAlias = tuple[str, str]
"""A namespace and a name."""


@dataclass(slots=True)
class Content:
    """What a ReferenceStore holds. jobs: by id, with their position in the listing; links: by position; insertion order is the order of creation."""

    vectors: dict[Named, dict[int, StoredVector]] = field(default_factory=dict)
    last_versions: dict[Named, int] = field(default_factory=dict)
    profiles: dict[Named, Profile] = field(default_factory=dict)
    defaults: dict[str, str] = field(default_factory=dict)
    documents: dict[str, str] = field(default_factory=dict)
    jobs: dict[str, tuple[int, JobRecord]] = field(default_factory=dict)
    last_job: int = 0
    links: dict[int, Link] = field(default_factory=dict)
    last_link: int = 0
    changes: Changes = field(default_factory=Changes)
    decoded: LRUCache[StoredVector, ConceptVector] = field(default_factory=lambda: LRUCache(DECODED_VECTORS))

    def decode(self, stored: StoredVector) -> ConceptVector:
        """Returns a vector, which is decoded once."""
        vector = self.decoded.get(stored)
        if vector is None:
            vector = self.decoded[stored] = deserialize(stored)
        return vector

    def seen(self, namespace: str, name: str) -> dict[int, StoredVector]:
        """Returns the versions of a name as a namespace sees them: its own, else those of `shared`."""
        for place in visible_from(namespace):
            if versions := self.vectors.get((place, name)):
                return versions
        return {}

    def require(self, namespace: str, names: Iterable[str]) -> None:
        """Raises VectorNotFound for a name that no vector has which the namespace sees."""
        for key in [VectorId.parse(name) for name in names]:
            versions = self.seen(namespace, key.name)
            if not versions or key.version not in (None, *versions):
                raise not_found(key.name, key.version)

    def stored_bytes(self, namespace: str, writer: Writer) -> int:
        """Returns the bytes of the writer's vectors and links in a namespace."""
        vectors = [one for (place, _), kept in self.vectors.items() if place == namespace for one in kept.values()]
        links = [link.size for link in self.links.values() if (link.namespace, link.owner) == (namespace, writer.key)]
        return sum(links) + sum(len(one.content) for one in vectors if one.created_by == writer.key)


def matches(stored: StoredVector, where: VectorFilter) -> bool:
    """Returns whether a vector passes a filter."""
    sought = None if where.search is None else where.search.casefold()
    return (
        (where.tag is None or where.tag in stored.tags)
        and (where.method is None or where.method == stored.method)
        and (sought is None or sought in stored.name or sought in stored.description.casefold())
    )


@final
class ReferenceVectors:
    """See `steering.store.base.VectorStore`."""

    def __init__(self, content: Content, namespace: str, writer: Writer) -> None:
        self._content, self._namespace, self._writer = content, namespace, writer

    async def put(self, vector: ConceptVector, after: VectorSummary | None = None) -> ConceptVector:
        """See VectorStore.put."""
        serialized = serialize(vector)
        if after is not None:
            versions = self._content.seen(self._namespace, after.name)
            check_newest(versions[max(versions)] if versions else None, after)
        check_quota(self._writer, self._content.stored_bytes(self._namespace, self._writer), len(serialized.content))
        key = (self._namespace, serialized.name)
        version = self._content.last_versions.get(key, 0) + 1
        stored = replace(
            serialized,
            namespace=self._namespace,
            version=version,
            created_at=now(),
            created_by=self._writer.key,
        )
        self._content.last_versions[key] = version
        self._content.vectors.setdefault(key, {})[version] = stored
        return self._content.decode(stored)

    async def get(self, name: str, version: int | None = None) -> ConceptVector:
        """See VectorStore.get."""
        versions = self._content.seen(self._namespace, check_name(name))
        stored = versions.get(max(versions, default=0) if version is None else version)
        if stored is None:
            raise not_found(name, version)
        return self._content.decode(stored)

    async def find(self, where: VectorFilter, limit: int = 50, cursor: str | None = None) -> VectorPage:
        """See VectorStore.find."""
        check_filter(where)
        check_page(limit)
        after = "" if cursor is None else read_cursor("vector", cursor)
        newest = [
            versions[max(versions)]
            for name in self._names()
            if name > after and (versions := self._content.seen(self._namespace, name))
        ]
        found = [stored for stored in newest if matches(stored, where)]
        following = make_cursor("vector", found[limit - 1].name) if len(found) > limit else None
        vectors, damaged = summarize_valid(found[:limit])
        return VectorPage(vectors, following, damaged)

    async def describe(self, name: str, description: str | None, tags: tuple[str, ...] | None) -> ConceptVector:
        """See VectorStore.describe."""
        check_name(name)
        check_labels(description, tags)
        own = self._content.vectors.get((self._namespace, name))
        if own is None:
            raise not_found(name, None)
        for version, stored in own.items():
            own[version] = replace(
                stored,
                description=stored.description if description is None else description,
                tags=stored.tags if tags is None else tags,
            )
        return await self.get(name)

    async def versions(self, name: str, limit: int = 50, before: int | None = None) -> VersionPage:
        """See VectorStore.versions."""
        found = self._content.seen(self._namespace, check_name(name))
        check_page(limit)
        if not found and before is None:
            raise not_found(name, None)
        numbers = sorted((one for one in found if before is None or one < before), reverse=True)[:limit]
        return version_page([found[number] for number in numbers], limit)

    async def delete(self, name: str, force: bool = False, version: int | None = None) -> None:
        """See VectorStore.delete."""
        key = (self._namespace, check_name(name))
        found = self._content.vectors.get(key, {})
        if not force:
            self._refuse_if_used(name, version, only=len(found) == 1)
        if not found or (version is not None and version not in found):
            raise not_found(name, version)
        if version is None or len(found) == 1:
            del self._content.vectors[key]
        else:
            del found[version]

    def _names(self) -> list[str]:
        visible = visible_from(self._namespace)
        return sorted({name for namespace, name in self._content.vectors if namespace in visible})

    def _refuse_if_used(self, name: str, version: int | None, *, only: bool) -> None:
        users: list[tuple[str, Iterable[str]]] = []
        for namespace, user, steering in self._steerings():
            if namespace == self._namespace:
                users.append((user, vector_names(steering)))
            elif self._namespace == SHARED and (namespace, name) not in self._content.vectors:
                users.append((OTHERS, vector_names(steering)))
        if self._namespace == SHARED:
            users += [(f"the {of}", pinned_vectors(text)) for of, text in sorted(self._content.documents.items())]
        refuse_if_used(name, users, version, only=only)

    def _steerings(self) -> Iterator[tuple[str, str, SteeringSpec]]:
        """Yields (namespace, user, steering): profiles by name, then default steerings."""
        for (namespace, name), profile in sorted(self._content.profiles.items()):
            yield namespace, f"profile {name!r}", profile.steering
        for namespace, text in self._content.defaults.items():
            yield namespace, "the default steering", read_steering(text, "the default steering")
