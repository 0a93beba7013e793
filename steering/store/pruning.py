"""Deletes old records, and old versions of vectors that nothing stored refers to."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Literal, TypeAlias

from sqlalchemy import ColumnElement, delete, func, select, tuple_
from sqlalchemy.orm import aliased

from steering.schemas.resources import UNFINISHED
from steering.store.address import DatabaseAddress, transaction, translated
from steering.store.migrate import check_newest, migrate
from steering.store.records import utc_text
from steering.store.references import pinned_vectors
from steering.store.tables import (
    AuditRow,
    Base,
    DefaultSteeringRow,
    DocumentRow,
    JobOutputRow,
    JobRow,
    LinkRow,
    ProfileRow,
    VectorRow,
)
from steering.vectors import VectorId

Aging: TypeAlias = Literal["jobs", "job_outputs", "audit", "links"]
"""The tables whose rows are deleted by age."""


def days_ago(days: int) -> str:
    """Returns the time so many days ago, as records have it. Raises OverflowError before the year 1."""
    return utc_text(datetime.now(UTC) - timedelta(days=days))


def older(table: Aging, before: str) -> tuple[type[Base], ColumnElement[bool]]:
    """Selects the rows of a table from before a time: ended jobs that last changed before it, all parts of outputs whose last part
    was made before it, and audit entries and links that were made before it."""
    part = aliased(JobOutputRow)
    kept = select(part.output_id).where(part.created_at >= before)
    old: dict[Aging, tuple[type[Base], ColumnElement[bool]]] = {
        "jobs": (JobRow, JobRow.status.not_in(UNFINISHED) & (JobRow.updated_at < before)),
        "job_outputs": (JobOutputRow, (JobOutputRow.created_at < before) & JobOutputRow.output_id.not_in(kept)),
        "audit": (AuditRow, AuditRow.at < before),
        "links": (LinkRow, LinkRow.created_at < before),
    }
    return old[table]


def _open(address: DatabaseAddress, dry_run: bool) -> None:
    """Creates or upgrades the database. A dry run does neither, and raises InvalidRequest where that would be needed."""
    if dry_run:
        check_newest(address, "address")
    else:
        migrate(address)


def prune_records(address: DatabaseAddress, before: Mapping[Aging, str], *, dry_run: bool = False) -> dict[Aging, int]:
    """Deletes what is `older` than a time, which is given by table; returns how many rows, by table."""
    _open(address, dry_run)
    counts: dict[Aging, int] = {}
    with translated(), transaction(address, writes=not dry_run) as connection:
        for table, time in before.items():
            row, old = older(table, time)
            counts[table] = connection.scalar(select(func.count()).select_from(row).where(old)) or 0
            if not dry_run:
                connection.execute(delete(row).where(old))
    return counts


def prune_versions(address: DatabaseAddress, keep: int, *, dry_run: bool = False) -> tuple[str, ...]:
    """Deletes all but the newest `keep` versions of each vector that no stored steering or document names, and returns
    them as `name@version`, the oldest first. Raises StoreUnavailable, StoreCorrupt, InvalidRequest."""
    _open(address, dry_run)
    identity = (VectorRow.namespace, VectorRow.name, VectorRow.version)
    by_version = func.row_number().over(partition_by=identity[:2], order_by=VectorRow.version.desc())
    ranked = select(*identity, by_version.label("rank")).subquery()
    order = (ranked.c.namespace, ranked.c.name, ranked.c.version)
    with translated(), transaction(address, writes=not dry_run) as connection:
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
