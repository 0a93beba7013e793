"""`steer keys` and `steer audit`: creates, lists and deletes API keys; shows who changed what."""

from typing import Annotated, Any

import typer

from app.cli.output.tables import text_table
from app.cli.output.terminal import LOCAL, AsJson, Key, Url, client_of, console, print_json, stderr

keys = typer.Typer(no_args_is_help=True, help="API keys: create, list, delete. Needs a key with the scope admin.")

KeyId = Annotated[str, typer.Argument(help="Id of the key.")]


@keys.command("create")
def create_key(  # noqa: PLR0913, PLR0917 - one option a field
    name: Annotated[str, typer.Argument(help="What the key is for.")],
    scope: Annotated[list[str], typer.Option(help="generate, read, write or admin; repeatable.")],
    requests_per_minute: Annotated[int | None, typer.Option(help="Requests that it may send a minute.")] = None,
    tokens_per_minute: Annotated[int | None, typer.Option(help="Tokens that it may use a minute.")] = None,
    concurrency: Annotated[int | None, typer.Option(help="Requests that it may run at once.")] = None,
    rows: Annotated[int | None, typer.Option(help="Rows of the batch that it may use at once.")] = None,
    jobs: Annotated[int | None, typer.Option(help="Unfinished jobs that it may have.")] = None,
    storage_bytes: Annotated[int | None, typer.Option(help="Bytes of the vectors and links that it may store.")] = None,
    namespace: Annotated[
        str | None, typer.Option(help="Namespace of what it makes; it sees that and shared. Default: shared.")
    ] = None,
    expires_at: Annotated[str | None, typer.Option(help="ISO 8601 time with a time zone.")] = None,
    as_json: AsJson = False,
    url: Url = LOCAL,
    key: Key = None,
) -> None:
    """Create a key and print it. It is not shown again."""
    limits: dict[str, Any] = {
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
        "concurrency": concurrency,
        "rows": rows,
        "jobs": jobs,
        "storage_bytes": storage_bytes,
    }
    given = {field: value for field, value in limits.items() if value is not None}
    with client_of(url, key) as client:
        created = client.create_key(name, scope, limits=given or None, expires_at=expires_at, namespace=namespace)
    if as_json:
        print_json(created.model_dump(mode="json", exclude_none=True))
        return
    stderr.print(f"{created.id}: the key is shown only here")
    console.print(created.key, soft_wrap=True)


@keys.command("list")
def list_keys(as_json: AsJson = False, url: Url = LOCAL, key: Key = None) -> None:
    """List the keys of the database."""
    with client_of(url, key) as client:
        found = client.list_keys().data
    if as_json:
        print_json([one.model_dump(mode="json", exclude_none=True) for one in found])
        return
    rows = [
        [one.id, one.name, one.namespace, "+".join(one.scopes), one.expires_at or "", one.last_used_at or "never"]
        for one in found
    ]
    console.print(text_table(("id", "name", "namespace", "scopes", "expires", "last used"), rows) if rows else "none")


@keys.command("delete")
def delete_key(key_id: KeyId, url: Url = LOCAL, key: Key = None) -> None:
    """Delete a key; it is refused from the next request on."""
    with client_of(url, key) as client:
        client.delete_key(key_id)


def audit(
    limit: Annotated[int, typer.Option(help="Entries to show.")] = 50,
    as_json: AsJson = False,
    url: Url = LOCAL,
    key: Key = None,
) -> None:
    """Show who changed what, newest first."""
    with client_of(url, key) as client:
        found = client.read_audit(limit=limit).data
    if as_json:
        print_json([one.model_dump(mode="json") for one in found])
        return
    rows = [[one.at.isoformat(timespec="seconds"), one.key, one.action, one.target] for one in found]
    console.print(text_table(("at", "key", "action", "on"), rows) if rows else "none")
