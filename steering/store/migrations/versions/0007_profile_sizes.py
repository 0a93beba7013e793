"""Sizes of profiles, and the keys that stored them."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("profiles", sa.Column("created_by", sa.String(128), nullable=False, server_default=""))
    op.add_column("profiles", sa.Column("size", sa.Integer(), nullable=False, server_default="0"))
    op.create_index("ix_profiles_created_by", "profiles", ["namespace", "created_by"])
    profiles = sa.table("profiles", sa.column("steering", sa.Text), sa.column("size", sa.Integer))
    op.execute(profiles.update().values(size=sa.func.length(profiles.c.steering)))
