"""Alembic migrations, run from code by steering.store.sql.migrate: no ini file to keep."""
