"""Databases of earlier schemas, made by the migrations themselves."""

from pathlib import Path

from alembic import command
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from steering.store.sql.migrate import _config


def database_at(file: Path, revision: str) -> None:
    """Makes an empty database of an earlier revision."""
    config = _config()
    engine = create_engine(f"sqlite:///{file}", poolclass=NullPool)
    with engine.connect() as connection, connection.begin():
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
