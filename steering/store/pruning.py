"""Deletes old records, and old versions of vectors that nothing stored refers to."""

from collections.abc import Iterator, Sequence

from sqlalchemy import Connection, and_, delete, func, select, tuple_

from steering.store.address import DatabaseAddress
from steering.store.connections import transaction
from steering.store.database import AnyRow
from steering.store.failures import translated
from steering.store.migrate import migrate
from steering.store.records import UNFINISHED
from steering.store.references import pinned_vectors
from steering.store.tables import AuditRow, DefaultSteeringRow, DocumentRow, JobRow, LinkRow, ProfileRow, VectorRow


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
    with translated(), transaction(address, writes=True) as connection:
        counts = {}
        for row, condition in old.items():
            counts[row.__tablename__] = connection.scalar(select(func.count()).select_from(row).where(condition)) or 0
            if not dry_run:
                connection.execute(delete(row).where(condition))
    return counts


def prune_versions(address: DatabaseAddress, keep: int, *, dry_run: bool = False) -> tuple[str, ...]:
    """Deletes the versions of each vector but the newest `keep`, and returns them as `name@version`.

    Versions that a profile, a default steering or a document such as the policy names with their number are kept. Records
    for replay that clients hold are not known here: they can no longer be replayed. Raises StoreUnavailable, StoreCorrupt.
    """
    migrate(address)
    with translated(), transaction(address, writes=True) as connection:
        pinned = frozenset(_pinned(connection))
        deleted = [row for row in _beyond(connection, keep) if f"{row.name}@{row.version}" not in pinned]
        if not dry_run:
            identity = tuple_(VectorRow.namespace, VectorRow.name, VectorRow.version)
            for row in deleted:
                connection.execute(delete(VectorRow).where(identity == (row.namespace, row.name, row.version)))
    return tuple(f"{row.name}@{row.version}" for row in deleted)


def _beyond(connection: Connection, keep: int) -> Sequence[AnyRow]:
    """Returns the versions that are not among the newest `keep` of their vector, the oldest first."""
    vector, version = (VectorRow.namespace, VectorRow.name), VectorRow.version
    rank = func.row_number().over(partition_by=vector, order_by=version.desc()).label("rank")
    ranked = select(*vector, version, rank).subquery()
    beyond = select(ranked).where(ranked.c.rank > keep)
    return connection.execute(beyond.order_by(ranked.c.namespace, ranked.c.name, ranked.c.version)).all()


def _pinned(connection: Connection) -> Iterator[str]:
    """Yields every `name@version` in a stored JSON text, in any namespace."""
    for column in (ProfileRow.steering, DefaultSteeringRow.steering, DocumentRow.content):
        for (content,) in connection.execute(select(column)):
            yield from pinned_vectors(content)
