"""Deletes old records, and old versions of vectors that nothing stored refers to."""

from datetime import UTC, datetime, timedelta

from sqlalchemy import and_, delete, func, select, tuple_

from steering.schemas.resources import UNFINISHED
from steering.store.address import DatabaseAddress, transaction, translated
from steering.store.migrate import migrate
from steering.store.records import utc_text
from steering.store.references import pinned_vectors
from steering.store.tables import AuditRow, DefaultSteeringRow, DocumentRow, JobRow, LinkRow, ProfileRow, VectorRow
from steering.vectors import VectorId


def days_ago(days: int) -> str:
    """Returns the time so many days ago, as records have it. Raises OverflowError before the year 1."""
    return utc_text(datetime.now(UTC) - timedelta(days=days))


def prune_records(
    address: DatabaseAddress, *, jobs_before: str, audit_before: str, links_before: str, dry_run: bool = False
) -> dict[str, int]:
    """Deletes ended jobs that last changed before a time, older audit entries and links; returns how many, by table."""
    old = {
        JobRow: and_(JobRow.status.not_in(UNFINISHED), JobRow.updated_at < jobs_before),
        AuditRow: AuditRow.at < audit_before,
        LinkRow: LinkRow.created_at < links_before,
    }
    migrate(address)
    counts = {}
    with translated(), transaction(address, writes=True) as connection:
        for row, condition in old.items():
            counts[row.__tablename__] = connection.scalar(select(func.count()).select_from(row).where(condition)) or 0
            if not dry_run:
                connection.execute(delete(row).where(condition))
    return counts


def prune_versions(address: DatabaseAddress, keep: int, *, dry_run: bool = False) -> tuple[str, ...]:
    """Deletes all but the newest `keep` versions of each vector that no stored steering or document names, and returns
    them as `name@version`, the oldest first. Raises StoreUnavailable, StoreCorrupt."""
    migrate(address)
    identity = (VectorRow.namespace, VectorRow.name, VectorRow.version)
    by_version = func.row_number().over(partition_by=identity[:2], order_by=VectorRow.version.desc())
    ranked = select(*identity, by_version.label("rank")).subquery()
    order = (ranked.c.namespace, ranked.c.name, ranked.c.version)
    with translated(), transaction(address, writes=True) as connection:
        pinned = {
            vector
            for column in (ProfileRow.steering, DefaultSteeringRow.steering, DocumentRow.content)
            for text in connection.scalars(select(column))
            for vector in pinned_vectors(text)
        }
        beyond = connection.execute(select(*order).where(ranked.c.rank > keep).order_by(*order)).all()
        deleted = [row for row in beyond if str(VectorId(row.name, row.version)) not in pinned]
        if not dry_run:
            for row in deleted:
                connection.execute(delete(VectorRow).where(tuple_(*identity) == tuple(row)))
    return tuple(str(VectorId(row.name, row.version)) for row in deleted)
