"""`steer db`: shows and upgrades the schema of the database. The server upgrades it too when it starts."""

from typing import Annotated

import typer

from app.cli.output.terminal import console
from app.cli.serve import settings_of

database = typer.Typer(no_args_is_help=True, help="The database's schema: current, upgrade.")

Url = Annotated[
    str | None, typer.Option("--database", help="sqlite:///file or postgresql://...; default: STEERING_DATABASE.")
]


@database.command()
def current(url: Url = None) -> None:
    """Show the schema of the database and the newest schema of this version."""
    from steering.store.sql import migrate  # noqa: PLC0415 - takes 1.4 s to import
    from steering.store.sql.address import read_address  # noqa: PLC0415

    found, newest = migrate.current(read_address(_url(url)))
    console.print(f"database: {found or 'empty'}; this version: {newest}")


@database.command()
def upgrade(url: Url = None) -> None:
    """Upgrade the database to the schema of this version, in one transaction."""
    from steering.store.sql import migrate  # noqa: PLC0415 - takes 1.4 s to import
    from steering.store.sql.address import read_address  # noqa: PLC0415

    address = read_address(_url(url))
    migrate.migrate(address)
    found, _ = migrate.current(address)
    console.print(f"database: {found}")


def _url(given: str | None) -> str:
    return settings_of({}).database if given is None else given
