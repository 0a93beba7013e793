"""Audit: the audit log. Entries are appended and pruned by age, never changed."""

from dataclasses import dataclass

from sqlalchemy import delete, insert, select

from steering.schemas.governance import AuditEntryAnswer
from steering.store.database import Database
from steering.store.records import now
from steering.store.tables import AuditRow

_COLUMNS = tuple(getattr(AuditRow, name) for name in AuditEntryAnswer.model_fields)


@dataclass(eq=False)
class Audit:
    """The audit log of one database."""

    database: Database

    async def append(self, *, key: str, action: str, target: str, request_id: str = "", status: int = 200) -> None:
        """Appends an entry with the current time: which key did what to which thing. status: of the HTTP response."""
        entry = {"key": key, "action": action, "target": target, "request_id": request_id, "status": status}
        await self.database.change(insert(AuditRow).values({**entry, "at": now()}))

    async def find(self, limit: int = 50, cursor: str | None = None) -> tuple[list[AuditEntryAnswer], str | None]:
        """Lists entries, newest first."""
        rows, following = await self.database.newest(select(*_COLUMNS), AuditRow.position, "audit", limit, cursor)
        return [AuditEntryAnswer.model_validate(row, from_attributes=True) for row in rows], following

    async def prune(self, before: str) -> int:
        """Deletes entries older than a time; returns how many."""
        return await self.database.change(delete(AuditRow).where(AuditRow.at < before), when_full=True)
