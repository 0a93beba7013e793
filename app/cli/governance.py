"""`steer keys`, `audit`, `policy` and `monitors`: API keys, who changed what, and what holds for all traffic of a server."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, BadParameter, Option, Typer

from app.cli.input.conversion import given, text_of
from app.cli.options import file_argument
from app.cli.output.tables import listing, text_table
from app.cli.output.terminal import (
    Output,
    client_command,
    console,
    print_json,
    print_warnings,
    shown,
    stderr,
    with_client,
)
from steering.client import Client
from steering.schemas.governance import MonitorAnswer, MonitorDetail
from steering.strict_json import load_json

keys = Typer(no_args_is_help=True, help="API keys: create, list, delete. Needs a key with the scope admin.")
policy = Typer(no_args_is_help=True, help="What holds for all traffic: show, set, clear. Needs the scope admin.")


@client_command(keys, "create")
def create_key(  # noqa: PLR0913, PLR0917 - one option a field
    client: Client,
    name: Annotated[str, Argument(help="What the key is for.")],
    scope: Annotated[list[str], Option(help="generate, read, write or admin; repeatable.")],
    requests_per_minute: Annotated[int | None, Option(help="Requests that it may send a minute.")] = None,
    tokens_per_minute: Annotated[int | None, Option(help="Tokens that it may use a minute.")] = None,
    concurrency: Annotated[int | None, Option(help="Requests that it may run at once.")] = None,
    rows: Annotated[int | None, Option(help="Rows of the batch that it may use at once.")] = None,
    jobs: Annotated[int | None, Option(help="Unfinished jobs that it may have.")] = None,
    storage_bytes: Annotated[int | None, Option(help="Bytes of the vectors and links that it may store.")] = None,
    namespace: Annotated[
        str | None, Option(help="Namespace of what it makes; it sees that and shared. Default: shared.")
    ] = None,
    expires_at: Annotated[str | None, Option(help="ISO 8601 time with a time zone.")] = None,
) -> Output:
    """Create a key and print it. It is not shown again."""
    limits = given(
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
        concurrency=concurrency,
        rows=rows,
        jobs=jobs,
        storage_bytes=storage_bytes,
    )
    created = client.create_key(name, scope, limits=limits or None, expires_at=expires_at, namespace=namespace)
    yield created.model_dump(mode="json", exclude_none=True)
    stderr.print(f"{created.id}: the key is shown only here")
    console.print(created.key, soft_wrap=True)


@client_command(keys, "list")
def list_keys(client: Client) -> Output:
    """List the keys of the database."""
    found = client.list_keys()
    print_warnings(found.warnings)  # --json prints the keys alone
    rows = [
        [
            one.id,
            one.name,
            one.namespace,
            "+".join(one.scopes),
            _minute(one.expires_at),
            _minute(one.last_used_at, "never"),
        ]
        for one in found.data
    ]
    yield from listing(found.data, ("id", "name", "namespace", "scopes", "expires (UTC)", "last used (UTC)"), rows)


def _minute(at: str | None, absent: str = "") -> str:
    """Returns a time of the server, which is in UTC, to the minute: all columns fit the width without a break in an id."""
    return absent if at is None else f"{datetime.fromisoformat(at).astimezone(UTC):%Y-%m-%d %H:%M}"


@client_command(keys, "delete")
def delete_key(client: Client, key_id: Annotated[str, Argument(help="Id of the key.")]) -> None:
    """Delete a key; it is refused from the next request on."""
    client.delete_key(key_id)


@with_client
def audit(client: Client, limit: Annotated[int, Option(help="Entries to show.")] = 50) -> Output:
    """Show who changed what, newest first."""
    found = client.read_audit(limit=limit).data
    yield found
    rows = [[one.at.isoformat(timespec="seconds"), one.key, one.action, one.target] for one in found]
    yield text_table(("at", "key", "action", "on"), rows, "none")


@client_command(policy, "show")
def show_policy(client: Client) -> None:
    """Show the policy as JSON, in the form that `set` takes."""
    print_json(client.get_policy().model_dump(mode="json", exclude_unset=True, by_alias=True))


@client_command(policy, "set")
def set_policy(
    client: Client,
    file: Annotated[Path, file_argument("A JSON file with mandatory, monitors and limits.")],
) -> None:
    """Set the policy to the content of a file. It replaces the policy as a whole."""
    content: Any = load_json(text_of(file), str(file), depth=64)
    if not isinstance(content, dict):
        raise BadParameter("expected an object with mandatory, monitors and limits", param_hint="FILE")
    unknown = sorted(set(content) - {"mandatory", "monitors", "limits"})
    if unknown:
        raise BadParameter(f"unknown: {', '.join(unknown)}; known are mandatory, monitors, limits")
    print_json(client.set_policy(**content).model_dump(mode="json", exclude_unset=True, by_alias=True))


@client_command(policy, "clear")
def clear_policy(client: Client) -> None:
    """Remove the policy."""
    client.clear_policy()


@with_client
def monitors(
    client: Client, name: Annotated[str | None, Argument(help="Name of a monitor; absent, all of them.")] = None
) -> Output:
    """Show what the monitors of the policy measured; for one monitor its distribution and latest raises."""
    found = client.list_monitors().data if name is None else [client.get_monitor(name)]
    values = [one.model_dump(mode="json", exclude_none=True) for one in found]
    yield values if name is None else values[0]
    headings = ("monitor", "vector", "bound", "at", "action", "scores", "raised", "answers", "mean")
    yield text_table(headings, [_row(one) for one in found], "none")
    for one in found:
        if isinstance(one, MonitorDetail):
            yield from _detail(one)


def _row(one: MonitorAnswer) -> list[str]:
    bound = f"above {one.above:g}" if one.above is not None else f"below {one.below:g}"
    counts = [str(one.scores), str(one.raised), str(one.answers)]
    mean = "" if one.mean is None else f"{one.mean:+.2f}"
    return [one.name, f"{one.vector} layer {one.layer}", bound, one.at, one.action, *counts, mean]


def _detail(one: MonitorDetail) -> Output:
    edges = [f"{edge:+.2f}" for edge in one.distribution.edges]
    ranges = [f"up to {edges[0]}", *(f"up to {edge}" for edge in edges[1:]), f"above {edges[-1]}"]
    counted = [pair for pair in zip(ranges, one.distribution.counts, strict=True) if pair[1]]
    if counted:
        most = max(count for _, count in counted)
        rows = [[label, str(count), "█" * max(round(30 * count / most), 1)] for label, count in counted]
        yield text_table(("score", "tokens" if one.at == "generated" else "prompts", ""), rows)
    for hour in one.hours:
        yield f"{hour.start:%Y-%m-%d %H:%M} mean {hour.mean:+.2f} of {hour.scores}, {hour.raised} raised"
    for latest in one.latest:
        where = "prompt" if latest.token is None else f"token {latest.token}"
        yield shown(f"{latest.at:%Y-%m-%d %H:%M:%S} {latest.request_id} {where} score {latest.score:+.2f}")
