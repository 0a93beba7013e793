"""`steer concepts`, `profiles`, `default`, `jobs` and `links`: what a server stores besides vectors."""

from collections.abc import Sequence
from typing import Annotated, Any

import typer
from pydantic import BaseModel

from app.cli.generation import Layers, Steer, Steering
from app.cli.output.job_progress import follow
from app.cli.output.tables import text_table
from app.cli.output.terminal import LOCAL, AsJson, Key, Url, client_of, console, print_json, shown, steering_of
from steering.schemas.resources import JobAnswer
from steering.spec import InterventionSpec

concepts = typer.Typer(no_args_is_help=True, help="Starter concepts: list, show.")
profiles = typer.Typer(no_args_is_help=True, help="Named lists of interventions: list, show, set, delete.")
default = typer.Typer(no_args_is_help=True, help="Steering of requests that name none: show, set, clear.")
jobs = typer.Typer(no_args_is_help=True, help="Long work: list, show, follow, cancel.")
links = typer.Typer(no_args_is_help=True, help="Saved links to views of the playground: list, show, delete.")

Id = Annotated[str, typer.Argument(help="Id of the job.")]
LinkId = Annotated[str, typer.Argument(help="Id of the link.")]
ProfileName = Annotated[str, typer.Argument(help="Name of the profile.")]


def _print(values: Sequence[BaseModel], as_json: bool, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    if as_json:
        print_json([value.model_dump(mode="json", exclude_none=True) for value in values])
    else:
        console.print(text_table(headings, rows) if rows else "none")


def _summary(interventions: Sequence[InterventionSpec]) -> str:
    return ", ".join(f"{one.operation} {one.vector} {one.strength:+g}" for one in interventions) or "no steering"


@concepts.command("list")
def list_concepts(as_json: AsJson = False, url: Url = LOCAL, key: Key = None) -> None:
    """List the starter concepts."""
    with client_of(url, key) as client:
        found = client.list_concepts().data
    rows = [
        [c.name, str(c.pairs), c.description, "\n".join(f"{m}: {line}" for m, line in c.measured.items())]
        for c in found
    ]
    _print(found, as_json, ("concept", "pairs", "description", "measured"), rows)


@concepts.command("show")
def show_concept(
    name: Annotated[str, typer.Argument(help="Name of the concept.")],
    as_json: AsJson = False,
    url: Url = LOCAL,
    key: Key = None,
) -> None:
    """Show the pairs of a starter concept."""
    with client_of(url, key) as client:
        found = client.get_concept(name)
    if as_json:
        print_json(found.model_dump(mode="json", exclude_none=True))
        return
    rows = [[_text(pair.positive), _text(pair.negative)] for pair in found.data]
    console.print(text_table(("positive", "negative"), rows))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "\n".join(f"{one.role}: {one.content}" for one in value)


@profiles.command("list")
def list_profiles(as_json: AsJson = False, url: Url = LOCAL, key: Key = None) -> None:
    """List the profiles."""
    with client_of(url, key) as client:
        found = client.list_profiles().data
    rows = [[one.name, _summary(one.interventions), one.description] for one in found]
    _print(found, as_json, ("profile", "interventions", "description"), rows)


@profiles.command("show")
def show_profile(name: ProfileName, url: Url = LOCAL, key: Key = None) -> None:
    """Show a profile as JSON."""
    with client_of(url, key) as client:
        print_json(client.get_profile(name).model_dump(mode="json", exclude_none=True))


@profiles.command("set")
def set_profile(
    name: ProfileName,
    steer: Steer = None,
    layers: Layers = "recommended",
    steering: Steering = None,
    description: Annotated[str, typer.Option(help="Description of the profile.")] = "",
    url: Url = LOCAL,
    key: Key = None,
) -> None:
    """Create or replace a profile."""
    with client_of(url, key) as client:
        stored = client.put_profile(name, _interventions(steer, layers, steering), description=description)
    console.print(shown(f"{stored.name}: {_summary(stored.interventions)}"))


def _interventions(steer: list[str] | None, layers: str, steering: str | None) -> list[Any]:
    found = steering_of(steer or [], layers, None, steering)
    if not found:
        raise typer.BadParameter("expected --steer NAME=STRENGTH or --steering JSON")
    return list(found)


@profiles.command("delete")
def delete_profile(name: ProfileName, url: Url = LOCAL, key: Key = None) -> None:
    """Delete a profile, not the vectors it names."""
    with client_of(url, key) as client:
        client.delete_profile(name)
    console.print(shown(f"deleted {name}"))


@default.command("show")
def show_default(as_json: AsJson = False, url: Url = LOCAL, key: Key = None) -> None:
    """Show the default steering."""
    with client_of(url, key) as client:
        found = client.get_default_steering()
    if as_json:
        print_json(found.model_dump(mode="json", exclude_none=True))
    else:
        console.print(shown("none" if found.interventions is None else _summary(found.interventions)))


@default.command("set")
def set_default(
    steer: Steer = None, layers: Layers = "recommended", steering: Steering = None, url: Url = LOCAL, key: Key = None
) -> None:
    """Set the default steering."""
    with client_of(url, key) as client:
        stored = client.set_default_steering(_interventions(steer, layers, steering))
    console.print(shown(_summary(stored.interventions or ())))


@default.command("clear")
def clear_default(url: Url = LOCAL, key: Key = None) -> None:
    """Remove the default steering."""
    with client_of(url, key) as client:
        client.clear_default_steering()
    console.print("no default steering")


@jobs.command("list")
def list_jobs(
    limit: Annotated[int, typer.Option(help="Number of jobs.")] = 20,
    as_json: AsJson = False,
    url: Url = LOCAL,
    key: Key = None,
) -> None:
    """List jobs, newest first."""
    with client_of(url, key) as client:
        found = client.list_jobs(limit=limit).data
    rows = [[one.id, one.kind, one.status, _progress(one), one.created_at] for one in found]
    _print(found, as_json, ("job", "kind", "status", "progress", "created"), rows)


def _progress(job: JobAnswer) -> str:
    if job.error is not None:
        return job.error.message
    return f"{job.progress.done}/{job.progress.total}" if job.progress.total else ""


@jobs.command("show")
def show_job(job: Id, url: Url = LOCAL, key: Key = None) -> None:
    """Show a job as JSON."""
    with client_of(url, key) as client:
        print_json(client.get_job(job).model_dump(mode="json", exclude_none=True))


@jobs.command("follow")
def follow_job(job: Id, url: Url = LOCAL, key: Key = None) -> None:
    """Wait for a job and print its result as JSON. Ctrl-C cancels the job."""
    with client_of(url, key) as client:
        print_json(follow(client, client.get_job(job)))


@jobs.command("cancel")
def cancel_job(job: Id, url: Url = LOCAL, key: Key = None) -> None:
    """Cancel a job."""
    with client_of(url, key) as client:
        console.print(shown(client.cancel_job(job).status))


@links.command("list")
def list_links(
    limit: Annotated[int, typer.Option(help="Number of links.")] = 20,
    as_json: AsJson = False,
    url: Url = LOCAL,
    key: Key = None,
) -> None:
    """List the links of the namespace, newest first; in `shared` those of the key, for an admin all."""
    with client_of(url, key) as client:
        found = client.list_links(limit=limit).data
    rows = [[one.id, one.view, str(one.bytes), one.created_at, one.url] for one in found]
    _print(found, as_json, ("link", "view", "bytes", "created", "address"), rows)


@links.command("show")
def show_link(link: LinkId, url: Url = LOCAL, key: Key = None) -> None:
    """Show a link with its state as JSON."""
    with client_of(url, key) as client:
        print_json(client.get_link(link).model_dump(mode="json"))


@links.command("delete")
def delete_link(link: LinkId, url: Url = LOCAL, key: Key = None) -> None:
    """Delete a link."""
    with client_of(url, key) as client:
        client.delete_link(link)
    console.print(shown(f"deleted {link}"))
