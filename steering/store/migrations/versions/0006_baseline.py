"""The oldest schema that is upgraded. A new database is made from the tables of the code, see steering/store/migrate.py."""

revision = "0006"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    raise NotImplementedError
