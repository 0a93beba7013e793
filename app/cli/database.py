"""`steer db`: the schema of the database, looked at and brought up to date. The server does the same when it starts."""

from collections.abc import Callable
from typing import Annotated, Any

import typer

from app.cli.serve import settings_of
from app.cli.terminal import console
from steering.registry import Registry

database = typer.Typer(no_args_is_help=True, help="The database's schema: current, upgrade.")

# Migrations bring the database library, which other commands need not wait for.
MIGRATIONS: Registry[Callable[..., Any]] = Registry(
    "migration",
    {
        "address": "steering.store.sql.address:read_address",
        "current": "steering.store.sql.migrate:current",
        "upgrade": "steering.store.sql.migrate:migrate",
    },
)

Url = Annotated[
    str | None, typer.Option("--database", help="sqlite:///file or postgresql://...; else STEERING_DATABASE.")
]


def _address(url: str | None) -> Any:
    return MIGRATIONS["address"](url if url is not None else settings_of({}).database)


@database.command()
def current(url: Url = None) -> None:
    """Which schema the database has, and which this version knows."""
    found, newest = MIGRATIONS["current"](_address(url))
    console.print(f"database: {found or 'empty'}; this version: {newest}")


@database.command()
def upgrade(url: Url = None) -> None:
    """Bring the database to the schema of this version, in one transaction."""
    address = _address(url)
    MIGRATIONS["upgrade"](address)
    found, _ = MIGRATIONS["current"](address)
    console.print(f"database: {found}")
