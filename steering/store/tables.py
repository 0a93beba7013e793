"""The tables of the database. One row of `vectors` is one version; its blob is in the row, so there is no half vector.
A change here needs a migration (migrations/versions); a test compares the two."""

from dataclasses import fields
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, InstrumentedAttribute, Mapped, mapped_column

from steering.namespaces import SHARED

NAMING = {
    "pk": "pk_%(table_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
    "uq": "uq_%(table_name)s_%(column_0_name)s",
    "ix": "ix_%(table_name)s_%(column_0_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
}
# Listings are ordered by code point everywhere; PostgreSQL would follow the language of its cluster.
Name = sa.String(64).with_variant(sa.String(64, collation="C"), "postgresql")


class Base(DeclarativeBase):
    """Root of the tables. table: the name of a table in the database."""

    metadata = sa.MetaData(naming_convention=NAMING)

    def __init_subclass__(cls, table: str | None = None, **options: Any) -> None:
        if table is not None:
            cls.__tablename__ = table
        super().__init_subclass__(**options)


def columns_of(row: type[Base], record: type[Any]) -> tuple[InstrumentedAttribute[Any], ...]:
    """Returns the columns that have the names of the fields of a dataclass, in their order."""
    return tuple(getattr(row, field.name) for field in fields(record))


class VectorNameRow(Base, table="vector_names"):
    """The highest version ever assigned to a name. The row outlives a delete, so no number is assigned twice."""

    namespace: Mapped[str] = mapped_column(Name, primary_key=True)
    name: Mapped[str] = mapped_column(Name, primary_key=True)
    last_version: Mapped[int]


class VectorRow(Base, table="vectors"):
    """One version of a vector. tags: ` a b `, so that a tag is found between spaces. searched: the description, case-folded.
    size: bytes of `content`. metadata_json: the metadata inside `content`, apart from it for listings. created_by: a key."""

    __table_args__ = (
        sa.ForeignKeyConstraint(["namespace", "name"], ["vector_names.namespace", "vector_names.name"]),
        sa.Index("ix_vectors_created_by", "namespace", "created_by"),
    )

    namespace: Mapped[str] = mapped_column(Name, primary_key=True)
    name: Mapped[str] = mapped_column(Name, primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    method: Mapped[str] = mapped_column(sa.String(64))
    description: Mapped[str] = mapped_column(sa.Text)
    tags: Mapped[str] = mapped_column(sa.Text)
    searched: Mapped[str] = mapped_column(sa.Text)
    created_at: Mapped[str] = mapped_column(sa.String(32))
    created_by: Mapped[str] = mapped_column(sa.String(128))
    sha256: Mapped[str] = mapped_column(sa.String(64))
    size: Mapped[int]
    metadata_json: Mapped[str] = mapped_column(sa.Text)
    # Last, because SQLite reads a row from its front: a filter then never touches the pages of the blob.
    content: Mapped[bytes] = mapped_column(sa.LargeBinary)


class ProfileRow(Base, table="profiles"):
    """A named steering, as JSON. size: bytes of it. created_by: the key that stored it last."""

    __table_args__ = (sa.Index("ix_profiles_created_by", "namespace", "created_by"),)

    namespace: Mapped[str] = mapped_column(Name, primary_key=True)
    name: Mapped[str] = mapped_column(Name, primary_key=True)
    description: Mapped[str] = mapped_column(sa.Text)
    steering: Mapped[str] = mapped_column(sa.Text)
    created_at: Mapped[str] = mapped_column(sa.String(32))
    updated_at: Mapped[str] = mapped_column(sa.String(32))
    created_by: Mapped[str] = mapped_column(sa.String(128), server_default="")
    size: Mapped[int] = mapped_column(server_default="0")


class LinkRow(Base, table="links"):
    """A saved state of a view, as JSON; `position` grows with every new link and orders the listing. size: of `state`."""

    __table_args__ = (sa.Index("ix_links_namespace", "namespace", "position"),)

    position: Mapped[int] = mapped_column(primary_key=True)
    id: Mapped[str] = mapped_column(sa.String(16), unique=True)
    namespace: Mapped[str] = mapped_column(Name)
    view: Mapped[str] = mapped_column(sa.String(64))
    created_at: Mapped[str] = mapped_column(sa.String(32), index=True)
    created_by: Mapped[str] = mapped_column(sa.String(128))
    size: Mapped[int]
    state: Mapped[str] = mapped_column(sa.Text)


class DefaultSteeringRow(Base, table="default_steering"):
    """The steering of requests that name none: one row or no row for each namespace."""

    namespace: Mapped[str] = mapped_column(Name, primary_key=True)
    steering: Mapped[str] = mapped_column(sa.Text)
    updated_at: Mapped[str] = mapped_column(sa.String(32))


class JobRow(Base, table="jobs"):
    """A job record; `position` orders the listing. owner: the server that runs it. size: bytes of request and result."""

    __table_args__ = (
        sa.Index("ix_jobs_namespace", "namespace", "position"),
        sa.Index("ix_jobs_created_by", "namespace", "created_by"),
    )

    position: Mapped[int] = mapped_column(primary_key=True)
    id: Mapped[str] = mapped_column(sa.String(64), unique=True)
    kind: Mapped[str] = mapped_column(sa.String(64))
    status: Mapped[str] = mapped_column(sa.String(16), index=True)
    request: Mapped[str] = mapped_column(sa.Text)
    progress: Mapped[str] = mapped_column(sa.Text)
    result: Mapped[str | None] = mapped_column(sa.Text)
    error: Mapped[str | None] = mapped_column(sa.Text)
    created_at: Mapped[str] = mapped_column(sa.String(32))
    updated_at: Mapped[str] = mapped_column(sa.String(32))
    namespace: Mapped[str] = mapped_column(Name, server_default=SHARED)
    owner: Mapped[str] = mapped_column(sa.String(64), server_default="")
    cancel_requested: Mapped[bool] = mapped_column(server_default=sa.false())
    created_by: Mapped[str] = mapped_column(sa.String(128), server_default="")
    size: Mapped[int] = mapped_column(server_default="0")


class ServerRow(Base, table="servers"):
    """A server that runs on this database, and when its lease ends, in seconds since 1970 by the database's clock."""

    id: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    lease_until: Mapped[float] = mapped_column(sa.Double)
    started_at: Mapped[str] = mapped_column(sa.String(32))


class ChangeRow(Base, table="changes"):
    """How often something has changed that servers hold in memory."""

    topic: Mapped[str] = mapped_column(sa.String(32), primary_key=True)
    count: Mapped[int]


class JobOutputRow(Base, table="job_outputs"):
    """One part of the output of a job, such as a hundred lines of a batch. created_by: a key. size: bytes of `content`."""

    __table_args__ = (sa.Index("ix_job_outputs_created_by", "namespace", "created_by"),)

    output_id: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    part: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    created_at: Mapped[str] = mapped_column(sa.String(32), index=True)
    content: Mapped[str] = mapped_column(sa.Text)
    namespace: Mapped[str] = mapped_column(Name, server_default=SHARED)
    created_by: Mapped[str] = mapped_column(sa.String(128), server_default="")
    size: Mapped[int] = mapped_column(server_default="0")


class KeyRow(Base, table="api_keys"):
    """An API key as its SHA-256. `scopes` is separated by spaces, `limits` is JSON. previous_digest: of the key before its rotation."""

    id: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    name: Mapped[str] = mapped_column(sa.String(64))
    digest: Mapped[str] = mapped_column(sa.String(64), unique=True)
    scopes: Mapped[str] = mapped_column(sa.Text)
    limits: Mapped[str] = mapped_column(sa.Text)
    created_at: Mapped[str] = mapped_column(sa.String(32))
    expires_at: Mapped[str | None] = mapped_column(sa.String(32))
    last_used_at: Mapped[str | None] = mapped_column(sa.String(32))
    namespace: Mapped[str] = mapped_column(Name, server_default=SHARED)
    previous_digest: Mapped[str | None] = mapped_column(sa.String(64))
    previous_until: Mapped[str | None] = mapped_column(sa.String(32))


class AuditRow(Base, table="audit"):
    """One entry of the audit log."""

    position: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[str] = mapped_column(sa.String(32), index=True)
    key: Mapped[str] = mapped_column(sa.String(128))
    action: Mapped[str] = mapped_column(sa.String(128))
    target: Mapped[str] = mapped_column(sa.Text)
    request_id: Mapped[str] = mapped_column(sa.String(64))
    status: Mapped[int]


class DocumentRow(Base, table="documents"):
    """A named JSON document, such as the policy."""

    name: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    content: Mapped[str] = mapped_column(sa.Text)
    updated_at: Mapped[str] = mapped_column(sa.String(32))
