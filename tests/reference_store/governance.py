"""Keys, audit log, documents and outputs of the ReferenceStore."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, final

from steering.errors import InternalError
from steering.namespaces import SHARED
from steering.store.formats.serialization import key_not_found, read_record, write_record
from steering.store.governance import AuditEntry, KeyRecord
from steering.store.rules import check_page, make_cursor, now, pinned_vectors, read_position
from tests.reference_store.servers import Changes
from tests.reference_store.vectors import Content


@final
class ReferenceKeys:
    """See `steering.store.governance.KeyStore`."""

    def __init__(self, changes: Changes) -> None:
        self._changes = changes
        self._keys: dict[str, KeyRecord] = {}

    async def create(self, key: KeyRecord) -> KeyRecord:
        """See KeyStore.create."""
        if key.id in self._keys:
            raise InternalError("the store broke a rule of its own tables")
        self._keys[key.id] = replace(key, created_at=now())
        return await self.change(key.id, {"limits": key.limits})

    async def change(self, key_id: str, fields: Mapping[str, Any]) -> KeyRecord:
        """See KeyStore.change."""
        values = dict(fields)
        if "limits" in values:
            values["limits"] = read_record(write_record(values["limits"], "limits"), "a key") or {}
        if key_id not in self._keys:
            raise key_not_found(key_id)
        self._changes["keys"] += 1
        self._keys[key_id] = replace(self._keys[key_id], **values)
        return self._keys[key_id]

    async def all(self) -> tuple[KeyRecord, ...]:
        """See KeyStore.all."""
        return tuple(self._keys.values())

    async def delete(self, key_id: str) -> None:
        """See KeyStore.delete."""
        if self._keys.pop(key_id, None) is None:
            raise key_not_found(key_id)
        self._changes["keys"] += 1

    async def touch(self, used: Mapping[str, str]) -> None:
        """See KeyStore.touch."""
        for key_id, at in used.items():
            if key_id in self._keys:
                self._keys[key_id] = replace(self._keys[key_id], last_used_at=at)


@final
class ReferenceAudit:
    """See `steering.store.governance.AuditStore`."""

    def __init__(self) -> None:
        self._entries: dict[int, AuditEntry] = {}
        self._last = 0

    async def append(self, entry: AuditEntry) -> None:
        """See AuditStore.append."""
        self._last += 1
        self._entries[self._last] = replace(entry, at=now())

    async def find(self, limit: int = 50, cursor: str | None = None) -> tuple[tuple[AuditEntry, ...], str | None]:
        """See AuditStore.find."""
        before = self._last + 1 if cursor is None else read_position("audit", cursor)
        positions = [one for one in reversed(self._entries) if one < before]
        page = positions[: check_page(limit)]
        following = make_cursor("audit", str(page[-1])) if len(positions) > limit else None
        return tuple(self._entries[one] for one in page), following

    async def prune(self, before: str) -> int:
        """See AuditStore.prune."""
        old = [position for position, entry in self._entries.items() if entry.at < before]
        for position in old:
            del self._entries[position]
        return len(old)


@final
class ReferenceDocuments:
    """See `steering.store.governance.DocumentStore`."""

    def __init__(self, content: Content) -> None:
        self._content = content

    async def get(self, name: str) -> Mapping[str, Any] | None:
        """See DocumentStore.get."""
        return read_record(self._content.documents.get(name), f"document {name!r}")

    async def put(self, name: str, content: Mapping[str, Any] | None) -> None:
        """See DocumentStore.put."""
        text = write_record(content, name)
        if text is not None:
            self._content.require(SHARED, pinned_vectors(text))
        self._content.changes["documents"] += 1
        if text is None:
            self._content.documents.pop(name, None)
        else:
            self._content.documents[name] = text


@final
class ReferenceOutputs:
    """See `steering.store.governance.OutputStore`."""

    def __init__(self) -> None:
        self._parts: dict[tuple[str, int], tuple[str, str]] = {}

    async def append(self, output_id: str, part: int, content: str) -> None:
        """See OutputStore.append."""
        self._parts[output_id, part] = (now(), content)

    async def read(self, output_id: str, part: int) -> str | None:
        """See OutputStore.read."""
        found = self._parts.get((output_id, part))
        return None if found is None else found[1]

    async def prune(self, before: str) -> int:
        """See OutputStore.prune."""
        old = [key for key, (at, _) in self._parts.items() if at < before]
        for key in old:
            del self._parts[key]
        return len(old)
