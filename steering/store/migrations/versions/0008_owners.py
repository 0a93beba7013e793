"""The key of jobs and of their outputs, with their sizes, and the key before its rotation."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

NAME = sa.String(64).with_variant(sa.String(64, collation="C"), "postgresql")


def upgrade() -> None:
    for table in ("jobs", "job_outputs"):
        if table == "job_outputs":
            op.add_column(table, sa.Column("namespace", NAME, server_default="shared", nullable=False))
        op.add_column(table, sa.Column("created_by", sa.String(128), server_default="", nullable=False))
        op.add_column(table, sa.Column("size", sa.Integer(), server_default="0", nullable=False))
        op.create_index(f"ix_{table}_created_by", table, ["namespace", "created_by"])
    op.add_column("api_keys", sa.Column("previous_digest", sa.String(64), nullable=True))
    op.add_column("api_keys", sa.Column("previous_until", sa.String(32), nullable=True))
