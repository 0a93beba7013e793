"""Alembic migrations, run from code by steering.store.migrate: no ini file to keep."""
