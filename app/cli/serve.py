"""`steer serve`, `demo` and `db`: runs a server; schema, copies, backups and pruning of its database, while servers may be running."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import BadParameter, Exit, Option, Typer

from app.cli.commands import command, command_of, given
from app.cli.tables import card_lines, comparison_table
from app.cli.terminal import console, settings_of, shown
from app.core.process_settings import prepare_for_torch
from app.core.settings import MAX_DAYS, Settings
from steering.cards import Recommended
from steering.client import Client
from steering.client.results import Vector
from steering.model.embedded import EMBEDDED_MODEL, embedded_gguf

if TYPE_CHECKING:
    from steering.store.address import DatabaseAddress

database = Typer(no_args_is_help=True, help="The database: current, upgrade, migrate-to, backup, restore, prune.")

DatabaseUrl = Annotated[
    str | None, Option("--database", help="sqlite:///file or postgresql://...; default: STEERING_DATABASE.")
]
Replace = Annotated[bool, Option("--replace", help="Delete what the target contains.")]


@command
def serve(  # noqa: PLR0913, PLR0917 - one option a setting
    model: Annotated[str | None, "The embedded model, a Hugging Face id, a folder, a GGUF path."] = None,
    model_revision: Annotated[str | None, "Pinned revision of a Hugging Face id."] = None,
    host: Annotated[str | None, "Address to listen on; other than loopback needs a key."] = None,
    port: Annotated[int | None, "Port to listen on."] = None,
    engine: Annotated[str | None, "transformers, or vllm where vLLM is installed."] = None,
    vllm_untested: Annotated[
        bool | None, Option("--vllm-untested", help="Start with a version of vLLM that the engine was not tested with.")
    ] = None,
    device: Annotated[str | None, "auto, cpu, cuda, cuda:1, mps, ..."] = None,
    device_map: Annotated[str | None, "auto spreads a model over all GPUs."] = None,
    dtype: Annotated[str | None, "auto, float32, bfloat16 or float16."] = None,
    quantization: Annotated[str | None, "bitsandbytes-8bit, bitsandbytes-4bit or torchao-int8."] = None,
    database: Annotated[str | None, "sqlite:///file, postgresql://... or memory://"] = None,
    cache_dir: Annotated[Path | None, "Folder of converted models."] = None,
    api_key: Annotated[
        list[str] | None, "A key that clients need; repeatable. STEERING_API_KEYS hides it from the process list."
    ] = None,
    allowed_host: Annotated[list[str] | None, "A name accepted in Host; repeatable."] = None,
    max_running: Annotated[int | None, "Sequences in one batch."] = None,
    max_waiting: Annotated[int | None, "Requests that may wait for the batch."] = None,
    log_level: Annotated[str | None, "debug, info, warning or error."] = None,
    other: Annotated[
        list[str] | None, Option("--set", metavar="NAME=VALUE", help="Any other setting; repeatable.")
    ] = None,
) -> None:
    """Serve a model. Every setting is also an environment variable: --port 8001 is STEERING_PORT=8001."""
    if not all(one.strip(" ,") for one in api_key or ()):  # it would take the place of keys in the environment
        raise BadParameter("expected a key, got an empty text", param_hint="--api-key")
    options = given(
        model=model, model_revision=model_revision, host=host, port=port, engine=engine, vllm_untested=vllm_untested,
        device=device, device_map=device_map, dtype=dtype, quantization=quantization, database=database, cache_dir=cache_dir,
        max_running=max_running, max_waiting=max_waiting, log_level=log_level,
        api_keys=",".join(api_key) if api_key else None, allowed_hosts=",".join(allowed_host) if allowed_host else None,
    )  # fmt: skip
    prepare_for_torch()
    settings = settings_of(options | _assignments(other or []))
    if settings.model == EMBEDDED_MODEL:
        embedded_gguf()  # raises with the command that installs it, before torch is loaded
    from app.server import serve as run_server  # noqa: PLC0415 - imports torch, after the settings above

    raise Exit(run_server(settings))


def _assignments(texts: list[str]) -> dict[str, str]:
    """Parses NAME=VALUE of --set. Raises BadParameter for an unknown setting."""
    assigned = {}
    for text in texts:
        name, equals, value = text.partition("=")
        name = name.strip().lower().removeprefix("steering_").replace("-", "_")
        if not equals or name not in Settings.model_fields:
            known = ", ".join(sorted(Settings.model_fields))
            raise BadParameter(f"{text!r} is not NAME=VALUE of a setting; known: {known}", param_hint="--set")
        assigned[name] = value
    return assigned


# Commands of the database import the store in their bodies, because it takes 1.4 s.


@command_of(database)
def current(url: DatabaseUrl = None) -> None:
    """Show the schema of the database and the newest schema of this version."""
    from steering.store import migrate  # noqa: PLC0415

    found, newest = migrate.current(_address(url))
    console.print(f"database: {found or 'empty'}; this version: {newest}")


@command_of(database)
def upgrade(url: DatabaseUrl = None) -> None:
    """Upgrade the database to the schema of this version, in one transaction."""
    from steering.store import migrate  # noqa: PLC0415

    address = _address(url)
    migrate.migrate(address)
    console.print(f"database: {migrate.current(address)[0]}")


@command_of(database, "migrate-to")
def migrate_to(
    target: Annotated[str, "sqlite:///file or postgresql://..."], url: DatabaseUrl = None, replace: Replace = False
) -> None:
    """Copy everything to another database, SQLite or PostgreSQL, in one transaction.

    The source is not changed. Stop its servers first: what they write after the copy has begun is not copied.
    """
    from steering.store.backup import copy_database  # noqa: PLC0415

    copy_database(_address(url), _address(target), replace=replace, report=_report)


@command_of(database)
def backup(file: Annotated[Path, "A new file."], url: DatabaseUrl = None) -> None:
    """Write a snapshot of the database to one file, a SQLite database. Servers may be running."""
    from steering.store import backup as backups  # noqa: PLC0415

    backups.backup(_address(url), file, report=_report)
    console.print(f"wrote {file} ({file.stat().st_size:,} bytes)")


@command_of(database)
def restore(
    file: Annotated[Path, "A file that `steer db backup` wrote."], url: DatabaseUrl = None, replace: Replace = False
) -> None:
    """Copy a backup into an empty database, SQLite or PostgreSQL. With --replace the database may be in use."""
    from steering.store import backup as backups  # noqa: PLC0415

    backups.restore(file, _address(url), replace=replace, report=_report)


@command_of(database)
def prune(
    jobs: Annotated[
        int | None, Option(min=1, max=MAX_DAYS, help="Age in days of ended jobs; default: STEERING_JOB_DAYS.")
    ] = None,
    audit: Annotated[
        int | None, Option(min=1, max=MAX_DAYS, help="Age in days of audit entries; default: STEERING_AUDIT_DAYS.")
    ] = None,
    links: Annotated[
        int | None, Option(min=1, max=MAX_DAYS, help="Age in days of saved links; default: STEERING_LINK_DAYS.")
    ] = None,
    keep_versions: Annotated[
        int | None, Option(min=1, help="Versions of each vector to keep, the newest and those that are named.")
    ] = None,
    url: DatabaseUrl = None,
    dry_run: Annotated[bool, Option("--dry-run", help="Show what would be deleted.")] = False,
) -> None:
    """Delete old jobs, audit entries and links, and with --keep-versions old versions of vectors.

    Versions that a profile, a default steering or the policy names as `name@version` are kept.
    """
    from steering.store import pruning  # noqa: PLC0415

    settings, address = settings_of({}), _address(url)
    before: dict[pruning.Aging, str] = {
        "jobs": pruning.days_ago(jobs or settings.job_days),
        "audit": pruning.days_ago(audit or settings.audit_days),
        "links": pruning.days_ago(links or settings.link_days),
    }
    counts = pruning.prune_records(address, before, dry_run=dry_run)
    verb = "would delete" if dry_run else "deleted"
    for name, count in counts.items():
        console.print(f"{verb} {count} rows of {name}")
    if keep_versions is not None:
        versions = pruning.prune_versions(address, keep_versions, dry_run=dry_run)
        console.print(f"{verb} {len(versions)} versions of vectors" + "".join(f"\n  {one}" for one in versions))


def _report(table: str, rows: int) -> None:
    console.print(f"copied {rows} rows of {table}")


def _address(url: str | None) -> "DatabaseAddress":
    from steering.store.address import read_address  # noqa: PLC0415

    return read_address(settings_of({}).database if url is None else url)


PROMPTS = ("What was the train journey like?", "How is your new apartment?")


@command
def demo(
    model: Annotated[str | None, "Another model than the embedded one."] = None,
    device: Annotated[str | None, "auto, cpu, cuda, mps, ..."] = None,
) -> None:
    """Start a server, extract the sentiment vector, steer in both directions, and show the answers."""
    console.print("Starting a temporary server. The first start converts the model, which takes a minute.\n")
    prepare_for_torch()
    from app.cli.local import local_client  # noqa: PLC0415 - imports torch and loads a model

    with local_client(database="memory://", **given(model=model, device=device)) as client:
        vector = _extracted(client)
        negative, positive = _strengths(vector.recommended)
        console.print("\n[bold]3[/] POST /v1/compare: one prompt, one batch, three strengths, greedy decoding")
        for prompt in PROMPTS:
            with console.status("generating"):
                answer = client.compare(
                    messages=[{"role": "user", "content": prompt}],
                    intervention={"vector": vector.id},
                    strengths=[negative, 0.0, positive],
                    readout=["sentiment"],
                    max_tokens=48,
                    temperature=0.0,
                )
            console.print()
            console.print(comparison_table(answer, prompt))
        _profile(client, vector.id, positive)


def _extracted(client: Client) -> Vector:
    info = client.capabilities().model
    console.print(f"[bold]1[/] A server is up: {info.name}, {info.layers} layers, {info.dtype} on {info.device}\n")
    with console.status("reading contrasting texts"):
        vector = client.extract_vector("sentiment", concept="sentiment", description="pleased against displeased")
    console.print("[bold]2[/] POST /v1/vectors/extract extracted a concept vector from contrasting examples")
    for line in card_lines(vector):
        console.print("  ", line, sep="")
    return vector


def _strengths(recommended: Recommended) -> tuple[float, float]:
    """A strength below and one above zero: the middle of what was measured, or of what is to be tried."""
    above = recommended.strength or recommended.strengths_to_try or (1.0, 1.0)
    below = recommended.negative or (-above[0], -above[1])
    return round(sum(below) / 2, 2), round(sum(above) / 2, 2)


def _profile(client: Client, vector: str, strength: float) -> None:
    client.put_profile("cheerful", [{"vector": vector, "strength": strength}], description="always sees the good")
    console.print("\n[bold]4[/] PUT /v1/profiles/cheerful stores the strength on the server; a request names it")
    with console.status("generating"):
        answer = client.generate(
            messages=[{"role": "user", "content": PROMPTS[1]}],
            steering={"profile": "cheerful"},
            max_tokens=48,
            temperature=0.0,
        )
    console.print("  ", shown(answer.choices[0].text.strip(), "green"), sep="")
    for one in answer.steering.applied:
        doses = ", ".join(f"{dose:.2f} of the residual at layer {layer}" for layer, dose in one.relative_dose.items())
        console.print(f"  applied: {one.operation} {one.vector} at {one.strength:+g}, {doses}")
    console.print("\nNext: [bold]make serve[/], then http://127.0.0.1:8000 and docs/quickstart.md")
