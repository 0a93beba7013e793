"""Namespaces: part of the identity of vectors, profiles, default steering and jobs. Existing rows belong to `shared`.

Also columns for listings without blobs: the size of a vector and the metadata inside its content.
"""

import json

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

NAME = sa.String(64).with_variant(sa.String(64, collation="C"), "postgresql")
SHARED = "shared"


def upgrade() -> None:
    _rebuild_vectors()
    _rebuild_profiles()
    _rebuild_default_steering()
    op.add_column("jobs", sa.Column("namespace", NAME, nullable=False, server_default=SHARED))
    op.create_index("ix_jobs_namespace", "jobs", ["namespace", "position"])
    op.add_column("api_keys", sa.Column("namespace", NAME, nullable=False, server_default=SHARED))


def _rebuild_vectors() -> None:
    """Copies both tables: SQLite changes no primary key in place, and the content must stay the last column of a row."""
    # A constraint's name is unique in a PostgreSQL schema, so the old ones give theirs up before the new tables take them.
    op.rename_table("vectors", "old_vectors")
    op.rename_table("vector_names", "old_vector_names")
    if op.get_bind().dialect.name == "postgresql":
        op.execute("ALTER TABLE old_vectors DROP CONSTRAINT fk_vectors_name_vector_names")
        op.execute("ALTER TABLE old_vectors DROP CONSTRAINT pk_vectors")
        op.execute("ALTER TABLE old_vector_names DROP CONSTRAINT pk_vector_names")
    op.create_table(
        "vector_names",
        sa.Column("namespace", NAME, nullable=False),
        sa.Column("name", NAME, nullable=False),
        sa.Column("last_version", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("namespace", "name", name="pk_vector_names"),
    )
    op.create_table(
        "vectors",
        sa.Column("namespace", NAME, nullable=False),
        sa.Column("name", NAME, nullable=False),
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("method", sa.String(64), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("tags", sa.Text(), nullable=False),
        sa.Column("searched", sa.Text(), nullable=False),
        sa.Column("created_at", sa.String(32), nullable=False),
        sa.Column("created_by", sa.String(128), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("metadata_json", sa.Text(), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["namespace", "name"],
            ["vector_names.namespace", "vector_names.name"],
            name="fk_vectors_namespace_vector_names",
        ),
        sa.PrimaryKeyConstraint("namespace", "name", "version", name="pk_vectors"),
    )
    op.create_index("ix_vectors_created_by", "vectors", ["namespace", "created_by"])
    op.execute(
        "INSERT INTO vector_names (namespace, name, last_version) "
        f"SELECT '{SHARED}', name, last_version FROM old_vector_names"
    )
    _copy_vectors()
    op.drop_table("old_vectors")
    op.drop_table("old_vector_names")


def _copy_vectors() -> None:
    """Copies row by row, each with the metadata read from the header of its content; no content enters this process."""
    kept = "method, description, tags, searched, created_at"
    copy = sa.text(
        f"INSERT INTO vectors (namespace, name, version, {kept}, created_by, sha256, size, metadata_json, content) "
        f"SELECT '{SHARED}', name, version, {kept}, '', sha256, length(content), :metadata, content "
        "FROM old_vectors WHERE name = :name AND version = :version"
    )
    bind = op.get_bind()
    for name, version in bind.execute(sa.text("SELECT name, version FROM old_vectors")).fetchall():
        bind.execute(copy, {"name": name, "version": version, "metadata": _metadata_of(bind, name, version)})


def _metadata_of(bind: sa.Connection, name: str, version: int) -> str:
    """Returns the metadata of a vector; "" for damaged content, which listings leave out."""

    def part(start: int, length: int) -> bytes:
        query = sa.text(f"SELECT substr(content, {start}, {length}) FROM old_vectors WHERE name = :n AND version = :v")
        return bytes(bind.execute(query, {"n": name, "v": version}).scalar() or b"")

    try:
        length = min(int.from_bytes(part(1, 8), "little"), 1 << 26)
        return str(json.loads(part(9, length))["__metadata__"]["steering_vector"])
    except (ValueError, LookupError, TypeError, RecursionError):
        return ""


def _rebuild_profiles() -> None:
    columns = "name, description, steering, created_at, updated_at"
    rows = op.get_bind().execute(sa.text(f"SELECT {columns} FROM profiles")).mappings().fetchall()
    op.drop_table("profiles")
    table = op.create_table(
        "profiles",
        sa.Column("namespace", NAME, nullable=False),
        sa.Column("name", NAME, nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("steering", sa.Text(), nullable=False),
        sa.Column("created_at", sa.String(32), nullable=False),
        sa.Column("updated_at", sa.String(32), nullable=False),
        sa.PrimaryKeyConstraint("namespace", "name", name="pk_profiles"),
    )
    op.bulk_insert(table, [{"namespace": SHARED, **row} for row in rows])


def _rebuild_default_steering() -> None:
    rows = op.get_bind().execute(sa.text("SELECT steering, updated_at FROM default_steering")).mappings().fetchall()
    op.drop_table("default_steering")
    table = op.create_table(
        "default_steering",
        sa.Column("namespace", NAME, nullable=False),
        sa.Column("steering", sa.Text(), nullable=False),
        sa.Column("updated_at", sa.String(32), nullable=False),
        sa.PrimaryKeyConstraint("namespace", name="pk_default_steering"),
    )
    op.bulk_insert(table, [{"namespace": SHARED, **row} for row in rows])
