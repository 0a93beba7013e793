"""`steer keys`, `audit`, `policy` and `monitors`: API keys, who changed what, and what holds for all traffic of a server."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, BadParameter, Option, Typer

from app.cli.commands import Output, client_command, with_client
from app.cli.inputs import file_argument, text_of
from app.cli.tables import dumped, listing, text_table
from app.cli.terminal import console, print_json, print_warnings, shown, stderr
from steering.client import Client
from steering.schemas.governance import KeyLimitsFields, MonitorAnswer, MonitorDetail, NewKeyAnswer
from steering.strict_json import load_json

keys = Typer(
    no_args_is_help=True, help="API keys: create, list, change, rotate, delete. Needs a key with the scope admin."
)
policy = Typer(no_args_is_help=True, help="What holds for all traffic: show, set, clear. Needs the scope admin.")


Limit = Annotated[
    list[str] | None,
    Option(
        metavar="NAME=VALUE",
        help=f"A limit; repeatable. Names: {', '.join(KeyLimitsFields.model_fields)}. Several vectors: vectors=a,b@2.",
    ),
]
ScopeOption = Option(help="generate, read, write, metrics or admin; repeatable.")


def _limits(given: Sequence[str] | None) -> dict[str, Any] | None:
    """Returns limits from NAME=VALUE; an empty value removes one. Raises BadParameter."""
    limits: dict[str, Any] = {}
    for text in given or ():
        name, equals, value = text.partition("=")
        if name not in KeyLimitsFields.model_fields or not equals:
            names = ", ".join(KeyLimitsFields.model_fields)
            raise BadParameter(f"expected NAME=VALUE with one of {names}, got {text!r}", param_hint="--limit")
        if not value:
            limits[name] = None
        elif name == "vectors":
            limits[name] = value.split(",")
        elif name == "own_steering":
            limits[name] = value
        else:
            try:
                limits[name] = float(value) if name == "max_relative_dose" else int(value)
            except ValueError:
                raise BadParameter(f"{name} is a number, got {value!r}", param_hint="--limit") from None
    return limits or None


@client_command(keys, "create")
def create_key(
    client: Client,
    name: Annotated[str, Argument(help="What the key is for.")],
    scope: Annotated[list[str], ScopeOption],
    limit: Limit = None,
    namespace: Annotated[
        str | None, Option(help="Namespace of what it makes; it sees that and shared. Default: shared.")
    ] = None,
    expires_at: Annotated[str | None, Option(help="ISO 8601 time with a time zone.")] = None,
) -> Output:
    """Create a key and print it. It is not shown again."""
    return _secret(client.create_key(name, scope, limits=_limits(limit), expires_at=expires_at, namespace=namespace))


def _secret(created: NewKeyAnswer) -> Output:
    def printed() -> None:
        stderr.print(f"{created.id}: the key is shown only here")
        console.print(created.key, soft_wrap=True)

    return dumped(created), printed


@client_command(keys, "change")
def change_key(  # noqa: PLR0913, PLR0917 - one option a field
    client: Client,
    key_id: Annotated[str, Argument(help="Id of the key.")],
    name: Annotated[str | None, Option(help="What the key is for.")] = None,
    scope: Annotated[list[str] | None, ScopeOption] = None,
    limit: Limit = None,
    namespace: Annotated[str | None, Option(help="Namespace of what it makes from now on.")] = None,
    expires_at: Annotated[str | None, Option(help="ISO 8601 time with a time zone.")] = None,
    if_match: Annotated[str | None, Option(help="Only while this is its etag.")] = None,
    force: Annotated[bool, Option("--force", help="Also where no admin key would remain.")] = False,
) -> Output:
    """Change a key. What is not given stays, also each limit; `--limit NAME=` removes one."""
    changed = client.change_key(
        key_id,
        name=name,
        scopes=scope or None,
        limits=_limits(limit),
        namespace=namespace,
        expires_at=expires_at,
        if_match=if_match,
        force=force,
    )
    line = f"{changed.id}: {'+'.join(changed.scopes)}, limits {changed.limits.model_dump(exclude_none=True)}"
    return dumped(changed), [line]


@client_command(keys, "rotate")
def rotate_key(
    client: Client,
    key_id: Annotated[str, Argument(help="Id of the key.")],
    old_valid_seconds: Annotated[int, Option(help="How long the old secret is valid beside the new one.")] = 0,
) -> Output:
    """Give a key a new secret and print it. Its id, limits and what it has stored stay."""
    return _secret(client.rotate_key(key_id, old_valid_seconds=old_valid_seconds))


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
    return listing(found.data, ("id", "name", "namespace", "scopes", "expires (UTC)", "last used (UTC)"), rows)


def _minute(at: str | None, absent: str = "") -> str:
    """Returns a time of the server, which is in UTC, to the minute: all columns fit the width without a break in an id."""
    return absent if at is None else f"{datetime.fromisoformat(at).astimezone(UTC):%Y-%m-%d %H:%M}"


@client_command(keys, "delete")
def delete_key(
    client: Client,
    key_id: Annotated[str, Argument(help="Id of the key.")],
    cancel_jobs: Annotated[bool, Option("--cancel-jobs", help="Cancel its unfinished jobs.")] = False,
    force: Annotated[bool, Option("--force", help="Also where no admin key would remain.")] = False,
) -> None:
    """Delete a key; it is refused from the next request on, and its batches stop."""
    client.delete_key(key_id, force=force, cancel_jobs=cancel_jobs)


@with_client
def audit(client: Client, limit: Annotated[int, Option(help="Entries to show.")] = 50) -> Output:
    """Show who changed what, newest first."""
    found = client.read_audit(limit=limit).data
    rows = [[one.at.isoformat(timespec="seconds"), one.key, one.action, one.target] for one in found]
    return found, [text_table(("at", "key", "action", "on"), rows, "none")]


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
    headings = ("monitor", "vector", "bound", "at", "action", "scores", "raised", "answers", "mean")
    table = text_table(headings, [_row(one) for one in found], "none")
    details = [line for one in found if isinstance(one, MonitorDetail) for line in _detail(one)]
    return dumped(found if name is None else found[0]), [table, *details]


def _row(one: MonitorAnswer) -> list[str]:
    bound = f"above {one.above:g}" if one.above is not None else f"below {one.below:g}"
    counts = [str(one.scores), str(one.raised), str(one.answers)]
    mean = "" if one.mean is None else f"{one.mean:+.2f}"
    return [one.name, f"{one.vector} layer {one.layer}", bound, one.at, one.action, *counts, mean]


def _detail(one: MonitorDetail) -> Iterator[Any]:
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
