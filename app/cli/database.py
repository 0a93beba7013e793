"""`steer db`: schema, copies, backups and pruning of the database. None of them needs a server, and servers may be running."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.output.terminal import console
from app.cli.serve import settings_of

if TYPE_CHECKING:
    from steering.store.sql.address import DatabaseAddress

database = typer.Typer(no_args_is_help=True, help="The database: current, upgrade, migrate-to, backup, restore, prune.")

Url = Annotated[
    str | None, typer.Option("--database", help="sqlite:///file or postgresql://...; default: STEERING_DATABASE.")
]
Replace = Annotated[bool, typer.Option("--replace", help="Delete what the target contains.")]


@database.command()
def current(url: Url = None) -> None:
    """Show the schema of the database and the newest schema of this version."""
    from steering.store.sql import migrate  # noqa: PLC0415 - takes 1.4 s to import

    found, newest = migrate.current(_address(url))
    console.print(f"database: {found or 'empty'}; this version: {newest}")


@database.command()
def upgrade(url: Url = None) -> None:
    """Upgrade the database to the schema of this version, in one transaction."""
    from steering.store.sql import migrate  # noqa: PLC0415 - takes 1.4 s to import

    address = _address(url)
    migrate.migrate(address)
    found, _ = migrate.current(address)
    console.print(f"database: {found}")


@database.command("migrate-to")
def migrate_to(
    target: Annotated[str, typer.Argument(help="sqlite:///file or postgresql://...")],
    url: Url = None,
    replace: Replace = False,
) -> None:
    """Copy everything to another database, SQLite or PostgreSQL, in one transaction.

    The source is not changed. Stop its servers first: what they write after the copy has begun is not copied.
    """
    from steering.store.sql.maintenance.copying import copy_database  # noqa: PLC0415 - takes 1.4 s to import

    copy_database(_address(url), _address(target), replace=replace, report=_report)


@database.command()
def backup(file: Annotated[Path, typer.Argument(help="A new file.")], url: Url = None) -> None:
    """Write a snapshot of the database to one file, a SQLite database. Servers may be running."""
    from steering.store.sql.maintenance import backup as backups  # noqa: PLC0415 - takes 1.4 s to import

    backups.backup(_address(url), file, report=_report)
    console.print(f"wrote {file} ({file.stat().st_size:,} bytes)")


@database.command()
def restore(
    file: Annotated[Path, typer.Argument(help="A file that `steer db backup` wrote.")],
    url: Url = None,
    replace: Replace = False,
) -> None:
    """Copy a backup into an empty database, SQLite or PostgreSQL. With --replace the database may be in use."""
    from steering.store.sql.maintenance import backup as backups  # noqa: PLC0415 - takes 1.4 s to import

    backups.restore(file, _address(url), replace=replace, report=_report)


@database.command()
def prune(
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Age in days of ended jobs; default: STEERING_JOB_DAYS.")
    ] = None,
    audit: Annotated[
        int | None, typer.Option(min=1, help="Age in days of audit entries; default: STEERING_AUDIT_DAYS.")
    ] = None,
    links: Annotated[
        int | None, typer.Option(min=1, help="Age in days of saved links; default: STEERING_LINK_DAYS.")
    ] = None,
    keep_versions: Annotated[
        int | None, typer.Option(min=1, help="Versions of each vector to keep, the newest and those that are named.")
    ] = None,
    url: Url = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be deleted.")] = False,
) -> None:
    """Delete old jobs, audit entries and links, and with --keep-versions old versions of vectors.

    Versions that a profile, a default steering or the policy names as `name@version` are kept.
    """
    from steering.store.sql.maintenance import pruning  # noqa: PLC0415 - takes 1.4 s to import

    settings = settings_of({})
    address = _address(url)
    counts = pruning.prune_records(
        address,
        jobs_before=_days_ago(jobs or settings.job_days),
        audit_before=_days_ago(audit or settings.audit_days),
        links_before=_days_ago(links or settings.link_days),
        dry_run=dry_run,
    )
    verb = "would delete" if dry_run else "deleted"
    for name, count in counts.items():
        console.print(f"{verb} {count} rows of {name}")
    if keep_versions is not None:
        versions = pruning.prune_versions(address, keep_versions, dry_run=dry_run)
        console.print(f"{verb} {len(versions)} versions of vectors" + "".join(f"\n  {one}" for one in versions))


def _report(table: str, rows: int) -> None:
    console.print(f"copied {rows} rows of {table}")


def _days_ago(days: int) -> str:
    return (datetime.now(UTC) - timedelta(days=days)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _address(given: str | None) -> "DatabaseAddress":
    from steering.store.sql.address import read_address  # noqa: PLC0415 - takes 1.4 s to import

    return read_address(settings_of({}).database if given is None else given)
