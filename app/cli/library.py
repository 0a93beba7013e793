"""`steer concepts`, `profiles`, `default`, `jobs`, `links`, `keys`, `audit`, `policy` and `monitors`: what a server stores besides
vectors, who changed it, and what holds for all traffic."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, BadParameter, Option, Typer

from app.cli.commands import (
    Output,
    Steer,
    Steering,
    SteerLayers,
    command,
    command_of,
    file_argument,
    file_option,
    steering_of,
    text_of,
    whole_list,
)
from app.cli.tables import dumped, follow, interventions_text, listing, text_table
from app.cli.terminal import console, print_json, print_warnings, shown, stderr
from steering.client import Client
from steering.client.packs import Pack, export_pack, import_pack, read_pack
from steering.client.routes import to_json
from steering.schemas.governance import KeyLimitsFields, MonitorAnswer, MonitorDetail, NewKeyAnswer
from steering.schemas.resources import JobSummary
from steering.strict_json import load_json

concepts = Typer(no_args_is_help=True, help="Concepts to extract or distil: list, show.")
profiles = Typer(no_args_is_help=True, help="Named lists of interventions: list, show, set, delete.")
default = Typer(no_args_is_help=True, help="Steering of requests that name none: show, set, clear.")
jobs = Typer(no_args_is_help=True, help="Long work: list, show, follow, cancel.")
links = Typer(no_args_is_help=True, help="Saved links to views of the playground: list, show, delete.")
keys = Typer(
    no_args_is_help=True, help="API keys: create, list, change, rotate, delete. Needs a key with the scope admin."
)
policy = Typer(no_args_is_help=True, help="What holds for all traffic: show, set, clear. Needs the scope admin.")

JobId = Annotated[str, "Id of the job."]
LinkId = Annotated[str, "Id of the link."]
KeyId = Annotated[str, "Id of the key."]
ProfileName = Annotated[str, "Name of the profile."]
POLICY = ("mandatory", "monitors", "limits")
LIMITS = ", ".join(KeyLimitsFields.model_fields)
Limit = Annotated[
    list[str] | None,
    Option(metavar="NAME=VALUE", help=f"A limit; repeatable. Names: {LIMITS}. Several vectors: vectors=a,b@2."),
]
SCOPE = "generate, read, write, metrics or admin; repeatable."
Expiry = Annotated[str | None, "ISO 8601 time with a time zone."]
Force = Annotated[bool, Option("--force", help="Also where no admin key would remain.")]


def _interventions(steer: list[str] | None, layers: str | None, steering: str | None) -> list[Any]:
    interventions = steering_of(steer, layers, steering=steering)
    if interventions is None:
        raise BadParameter("expected --steer NAME=STRENGTH or --steering JSON")
    return list(interventions)


@command_of(concepts, "list")
def list_concepts(
    client: Client,
    search: Annotated[str | None, "Words to look for; the best match first."] = None,
    kind: Annotated[
        str | None, "starter, persona, role, emotion, tone, style, register, trait, honesty, conduct or topic."
    ] = None,
) -> Output:
    """List the starter concepts, and those in words, whose pairs the model writes."""
    found = client.list_concepts(search, kind=kind).data
    rows = [
        [c.name, c.kind, str(c.pairs or ""), c.description, "\n".join(f"{m}: {line}" for m, line in c.measured.items())]
        for c in found
    ]
    return listing(found, ("concept", "kind", "pairs", "description", "measured"), rows)


@command_of(concepts, "show")
def show_concept(client: Client, name: Annotated[str, "Name of the concept."]) -> Output:
    """Show the poles of a concept, and the pairs of a starter concept."""
    concept = client.get_concept(name)
    rows = [
        [concept.positive, concept.negative],
        *([_text(pair.positive), _text(pair.negative)] for pair in concept.data),
    ]
    return dumped(concept), [text_table(("positive", "negative"), rows)]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "\n".join(f"{one.role}: {one.content}" for one in value)


@command_of(profiles, "list")
def list_profiles(client: Client) -> Output:
    """List the profiles."""
    found = whole_list(client.list_profiles)
    rows = [[one.name, interventions_text(one.interventions), one.description] for one in found]
    return listing(found, ("profile", "interventions", "description"), rows)


@command_of(profiles, "show")
def show_profile(client: Client, name: ProfileName) -> None:
    """Show a profile as JSON."""
    print_json(dumped(client.get_profile(name)))


@command_of(profiles, "set")
def set_profile(
    client: Client,
    name: ProfileName,
    steer: Steer = None,
    layers: SteerLayers = None,
    steering: Steering = None,
    description: Annotated[str, "Description of the profile."] = "",
) -> None:
    """Create or replace a profile."""
    stored = client.put_profile(name, _interventions(steer, layers, steering), description=description)
    console.print(shown(f"{stored.name}: {interventions_text(stored.interventions)}"))


@command_of(profiles, "delete")
def delete_profile(client: Client, name: ProfileName) -> None:
    """Delete a profile, not the vectors it names."""
    client.delete_profile(name)
    console.print(shown(f"deleted {name}"))


@command_of(default, "show")
def show_default(client: Client) -> Output:
    """Show the default steering."""
    stored = client.get_default_steering()
    print_warnings(stored.warnings)
    return dumped(stored), [shown("none" if stored.interventions is None else interventions_text(stored.interventions))]


@command_of(default, "set")
def set_default(client: Client, steer: Steer = None, layers: SteerLayers = None, steering: Steering = None) -> None:
    """Set the default steering."""
    stored = client.set_default_steering(_interventions(steer, layers, steering))
    print_warnings(stored.warnings)
    console.print(shown(interventions_text(stored.interventions)))


@command_of(default, "clear")
def clear_default(client: Client) -> None:
    """Remove the default steering."""
    client.clear_default_steering()
    console.print("no default steering")


@command_of(jobs, "list")
def list_jobs(
    client: Client, limit: Annotated[int | None, "Number of jobs; default: a page of the server."] = None
) -> Output:
    """List jobs, newest first."""
    page = client.list_jobs(limit=limit)
    print_warnings(page.warnings)
    rows = [[one.id, one.kind, one.status, _progress(one), one.created_at] for one in page.data]
    return listing(page.data, ("job", "kind", "status", "progress", "created"), rows)


def _progress(job: JobSummary) -> str:
    if job.error is not None:
        return job.error.message
    left = "" if job.progress.seconds_left is None else f", {job.progress.seconds_left:.0f} s left"
    return f"{job.progress.done}/{job.progress.total}{left}" if job.progress.total else ""


@command_of(jobs, "show")
def show_job(client: Client, job: JobId) -> None:
    """Show a job as JSON."""
    print_json(dumped(client.get_job(job)))


@command_of(jobs, "follow")
def follow_job(client: Client, job: JobId) -> None:
    """Wait for a job and print its result as JSON. Ctrl-C cancels the job."""
    print_json(follow(client, client.get_job(job)))


@command_of(jobs, "cancel")
def cancel_job(client: Client, job: JobId) -> None:
    """Cancel a job."""
    console.print(shown(client.cancel_job(job).status))


@command_of(links, "list")
def list_links(
    client: Client, limit: Annotated[int | None, "Number of links; default: a page of the server."] = None
) -> Output:
    """List the links of the namespace, newest first; in `shared` those of the key, for an admin all."""
    found = client.list_links(limit=limit).data
    rows = [[one.id, one.view, str(one.bytes), one.created_at, one.url] for one in found]
    return listing(found, ("link", "view", "bytes", "created", "address"), rows)


@command_of(links, "show")
def show_link(client: Client, link: LinkId) -> None:
    """Show a link with its state as JSON."""
    print_json(client.get_link(link))


@command_of(links, "delete")
def delete_link(client: Client, link: LinkId) -> None:
    """Delete a link."""
    client.delete_link(link)
    console.print(shown(f"deleted {link}"))


def _limits(texts: Sequence[str] | None, *, removes: bool = False) -> dict[str, Any] | None:
    """Returns limits from NAME=VALUE. removes: an empty value removes one. Raises BadParameter."""
    limits: dict[str, Any] = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        if name not in KeyLimitsFields.model_fields or not equals or not (value or removes):
            raise BadParameter(f"expected NAME=VALUE with one of {LIMITS}, got {text!r}", param_hint="--limit")
        if name in limits:
            raise BadParameter(f"{name} is given twice", param_hint="--limit")
        try:
            limits[name] = _limit(name, value)
        except ValueError:
            raise BadParameter(f"{name} is a number, got {value!r}", param_hint="--limit") from None
    return limits or None


def _limit(name: str, value: str) -> Any:
    if not value:
        return None
    if name in ("vectors", "own_steering"):
        return value.split(",") if name == "vectors" else value
    return float(value) if name == "max_relative_dose" else int(value)


@command_of(keys, "create")
def create_key(
    client: Client,
    name: Annotated[str, "What the key is for."],
    scope: Annotated[list[str], Option(help=SCOPE)],
    limit: Limit = None,
    namespace: Annotated[str | None, "Namespace of what it makes; it sees that and shared. Default: shared."] = None,
    expires_at: Expiry = None,
) -> Output:
    """Create a key and print it. It is not shown again."""
    return _secret(client.create_key(name, scope, limits=_limits(limit), expires_at=expires_at, namespace=namespace))


def _secret(created: NewKeyAnswer) -> Output:
    def printed() -> None:
        stderr.print(f"{created.id}: the key is shown only here")
        console.print(created.key, soft_wrap=True)

    return dumped(created), printed


@command_of(keys, "change")
def change_key(  # noqa: PLR0913, PLR0917 - one option a field
    client: Client,
    key_id: KeyId,
    name: Annotated[str | None, "What the key is for."] = None,
    scope: Annotated[list[str] | None, SCOPE] = None,
    limit: Limit = None,
    namespace: Annotated[str | None, "Namespace of what it makes from now on."] = None,
    expires_at: Expiry = None,
    never_expires: Annotated[bool, Option("--never-expires", help="Remove its expiry.")] = False,
    if_match: Annotated[str | None, "Only while this is its etag."] = None,
    force: Force = False,
) -> Output:
    """Change a key. What is not given stays, also each limit; `--limit NAME=` removes one."""
    if never_expires and expires_at is not None:
        raise BadParameter("give --expires-at or --never-expires, not both")
    fields: dict[str, Any] = {"name": name, "namespace": namespace, "expires_at": expires_at, "if_match": if_match}
    fields |= {"scopes": scope or None, "limits": _limits(limit, removes=True), "never_expires": never_expires}
    changed = client.change_key(key_id, force=force, **fields)
    line = f"{changed.id}: {'+'.join(changed.scopes)}, limits {changed.limits.model_dump(exclude_none=True)}"
    return dumped(changed), [line]


@command_of(keys, "rotate")
def rotate_key(
    client: Client,
    key_id: KeyId,
    old_valid_seconds: Annotated[int, "How long the old secret is valid beside the new one."] = 0,
) -> Output:
    """Give a key a new secret and print it. Its id, limits and what it has stored stay."""
    return _secret(client.rotate_key(key_id, old_valid_seconds=old_valid_seconds))


@command_of(keys, "list")
def list_keys(client: Client) -> Output:
    """List the keys of the database."""
    found = client.list_keys()
    print_warnings(found.warnings)  # --json prints the keys alone
    rows = []
    for one in found.data:
        times = _minute(one.expires_at), _minute(one.last_used_at, "never")
        rows.append([one.id, one.name, one.namespace, "+".join(one.scopes), *times])
    return listing(found.data, ("id", "name", "namespace", "scopes", "expires (UTC)", "last used (UTC)"), rows)


def _minute(at: str | None, absent: str = "") -> str:
    """Returns a time of the server, which is in UTC, to the minute: all columns fit the width without a break in an id."""
    return absent if at is None else f"{datetime.fromisoformat(at).astimezone(UTC):%Y-%m-%d %H:%M}"


@command_of(keys, "delete")
def delete_key(
    client: Client,
    key_id: KeyId,
    cancel_jobs: Annotated[bool, Option("--cancel-jobs", help="Cancel its unfinished jobs.")] = False,
    force: Force = False,
) -> None:
    """Delete a key; it is refused from the next request on, and its batches stop."""
    client.delete_key(key_id, force=force, cancel_jobs=cancel_jobs)


@command
def audit(
    client: Client, limit: Annotated[int | None, "Entries to show; default: a page of the server."] = None
) -> Output:
    """Show who changed what, newest first."""
    found = client.read_audit(limit=limit).data
    rows = [[one.at.isoformat(timespec="seconds"), one.key, one.action, one.target, str(one.status)] for one in found]
    return found, [text_table(("at", "key", "action", "on", "status"), rows, "none")]


@command_of(policy, "show")
def show_policy(client: Client) -> None:
    """Show the policy as JSON, in the form that `set` takes."""
    print_json(to_json(client.get_policy()))


@command_of(policy, "set")
def set_policy(
    client: Client, file: Annotated[Path, file_argument("A JSON file with mandatory, monitors and limits.")]
) -> None:
    """Set the policy to the content of a file. It replaces the policy as a whole."""
    content: Any = load_json(text_of(file), str(file), depth=64)
    if not isinstance(content, dict):
        raise BadParameter("expected an object with mandatory, monitors and limits", param_hint="FILE")
    unknown = sorted(set(content) - set(POLICY))
    if unknown:
        raise BadParameter(f"unknown: {', '.join(unknown)}; known are {', '.join(POLICY)}")
    for name in (name for name, value in content.items() if value is None):  # the client leaves out what is None
        raise BadParameter(f"{name} is null; leave it out to remove it", param_hint="FILE")
    stored = client.set_policy(**content)
    print_warnings(stored.warnings)
    print_json({name: value for name, value in to_json(stored).items() if name in POLICY})


@command_of(policy, "clear")
def clear_policy(client: Client) -> None:
    """Remove the policy."""
    client.clear_policy()


@command
def monitors(
    client: Client, name: Annotated[str | None, Argument(help="Name of a monitor; absent, all of them.")] = None
) -> Output:
    """Show what the monitors of the policy measured; for one monitor its distribution and latest raises."""
    found = client.list_monitors().data if name is None else [client.get_monitor(name)]
    headings = ("monitor", "vector", "bound", "at", "action", "scores", "raised", "answers", "mean")
    table = text_table(headings, [_monitor_row(one) for one in found], "none")
    details = [line for one in found if isinstance(one, MonitorDetail) for line in _monitor_lines(one)]
    return dumped(found if name is None else found[0]), [table, *details]


def _monitor_row(one: MonitorAnswer) -> list[str]:
    bound = f"above {one.above:g}" if one.above is not None else f"below {one.below:g}"
    counts = [str(one.scores), str(one.raised), str(one.answers)]
    mean = "" if one.mean is None else f"{one.mean:+.2f}"
    return [one.name, f"{one.vector} layer {one.layer}", bound, one.at, one.action, *counts, mean]


def _monitor_lines(one: MonitorDetail) -> Iterator[Any]:
    edges = [f"{edge:+.2f}" for edge in one.distribution.edges]
    ranges = [*(f"up to {edge}" for edge in edges), f"above {edges[-1]}"]
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


packs = Typer(no_args_is_help=True, help="Packs of vectors and profiles: export, import, verify.")

Public = Annotated[
    Path | None, file_option("Public key in PEM (Ed25519); the pack must be signed with it.", "--public-key")
]
Source = Annotated[Path, Argument(exists=True, help="A pack: a folder or a .zip archive.")]


@command_of(packs)
def export(
    client: Client,
    path: Annotated[Path, Argument(help="A new folder, or a new .zip archive.")],
    vector: Annotated[list[str] | None, Option(help="A vector, as name or name@version; repeatable.")] = None,
    profile: Annotated[list[str] | None, Option(help="A profile, with the vectors it names; repeatable.")] = None,
    description: Annotated[str, "What the pack is for."] = "",
    sign: Annotated[Path | None, file_option("Private key in PEM (Ed25519) to sign with.", "--sign")] = None,
) -> None:
    """Write vectors, their cards and profiles to a pack."""
    pack = export_pack(
        client, path, vectors=vector or (), profiles=profile or (), description=description, signing_key=sign
    )
    _print_contents(pack)


@command_of(packs)
def verify(path: Source, public_key: Public = None) -> None:
    """Check the digests of a pack and its signature. No server is asked."""
    _print_contents(read_pack(path, public_key))


@command_of(packs, "import")
def import_(
    client: Client,
    path: Source,
    public_key: Public = None,
    replace: Annotated[bool, Option("--replace", help="Replace profiles of the same names.")] = False,
) -> None:
    """Verify a pack and store what it contains. Vectors get new versions where their names are taken."""
    pack = read_pack(path, public_key)
    if public_key is None:
        stderr.print(shown(_origin(pack), "yellow"))
    for packed, stored in import_pack(client, pack, replace=replace).items():
        console.print(shown(packed if packed == stored else f"{packed} is {stored} here"))
    for profile in pack.manifest.profiles:
        console.print(shown(f"profile {profile.name}"))


def _print_contents(pack: Pack) -> None:
    manifest = pack.manifest
    names = [one.id for one in manifest.vectors] + [f"profile {one.name}" for one in manifest.profiles]
    console.print(shown(f"{pack.path.name}: {', '.join(names)}; for {manifest.model}"))
    console.print(shown(f"{len(manifest.files)} digests match; {_origin(pack)}"))


def _origin(pack: Pack) -> str:
    if pack.signer is None:
        return "not signed: the digests show damage, not who made the pack"
    return f"signed with the key {pack.signer}"
