"""Saved links."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

NAME = sa.String(64).with_variant(sa.String(64, collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "links",
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("id", sa.String(16), nullable=False),
        sa.Column("namespace", NAME, nullable=False),
        sa.Column("view", sa.String(64), nullable=False),
        sa.Column("created_at", sa.String(32), nullable=False),
        sa.Column("created_by", sa.String(128), nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("position", name="pk_links"),
        sa.UniqueConstraint("id", name="uq_links_id"),
    )
    op.create_index("ix_links_namespace", "links", ["namespace", "position"])
    op.create_index("ix_links_created_at", "links", ["created_at"])
