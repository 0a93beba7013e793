"""`steer concepts`, `profiles`, `default`, `jobs` and `links`: what a server stores besides vectors."""

from collections.abc import Sequence
from typing import Annotated, Any

from typer import Argument, BadParameter, Option, Typer

from app.cli.commands import Output, client_command
from app.cli.inputs import Layers, Steer, Steering, steering_of
from app.cli.tables import dumped, follow, listing, text_table
from app.cli.terminal import console, print_json, print_warnings, shown
from steering.client import Client
from steering.schemas.resources import JobSummary
from steering.spec import InterventionSpec

concepts = Typer(no_args_is_help=True, help="Starter concepts: list, show.")
profiles = Typer(no_args_is_help=True, help="Named lists of interventions: list, show, set, delete.")
default = Typer(no_args_is_help=True, help="Steering of requests that name none: show, set, clear.")
jobs = Typer(no_args_is_help=True, help="Long work: list, show, follow, cancel.")
links = Typer(no_args_is_help=True, help="Saved links to views of the playground: list, show, delete.")

Id = Annotated[str, Argument(help="Id of the job.")]
LinkId = Annotated[str, Argument(help="Id of the link.")]
ProfileName = Annotated[str, Argument(help="Name of the profile.")]


def _summary(interventions: Sequence[InterventionSpec]) -> str:
    return ", ".join(f"{one.operation} {one.vector} {one.strength:+g}" for one in interventions) or "no steering"


@client_command(concepts, "list")
def list_concepts(client: Client) -> Output:
    """List the starter concepts."""
    found = client.list_concepts().data
    rows = [
        [c.name, str(c.pairs), c.description, "\n".join(f"{m}: {line}" for m, line in c.measured.items())]
        for c in found
    ]
    return listing(found, ("concept", "pairs", "description", "measured"), rows)


@client_command(concepts, "show")
def show_concept(client: Client, name: Annotated[str, Argument(help="Name of the concept.")]) -> Output:
    """Show the pairs of a starter concept."""
    found = client.get_concept(name)
    rows = [[_text(pair.positive), _text(pair.negative)] for pair in found.data]
    return dumped(found), [text_table(("positive", "negative"), rows)]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "\n".join(f"{one.role}: {one.content}" for one in value)


@client_command(profiles, "list")
def list_profiles(client: Client) -> Output:
    """List the profiles."""
    page = client.list_profiles(limit=200)
    found, warnings = page.data, page.warnings
    while page.next_cursor is not None:
        page = client.list_profiles(limit=200, cursor=page.next_cursor)
        found, warnings = [*found, *page.data], (*warnings, *page.warnings)
    print_warnings(warnings)  # --json prints the profiles alone
    rows = [[one.name, _summary(one.interventions), one.description] for one in found]
    return listing(found, ("profile", "interventions", "description"), rows)


@client_command(profiles, "show")
def show_profile(client: Client, name: ProfileName) -> None:
    """Show a profile as JSON."""
    print_json(client.get_profile(name), exclude_none=True)


@client_command(profiles, "set")
def set_profile(
    client: Client,
    name: ProfileName,
    steer: Steer = None,
    layers: Layers = "recommended",
    steering: Steering = None,
    description: Annotated[str, Option(help="Description of the profile.")] = "",
) -> None:
    """Create or replace a profile."""
    stored = client.put_profile(name, _interventions(steer, layers, steering), description=description)
    console.print(shown(f"{stored.name}: {_summary(stored.interventions)}"))


def _interventions(steer: list[str] | None, layers: str, steering: str | None) -> list[Any]:
    found = steering_of(steer, layers, steering=steering)
    if not found:
        raise BadParameter("expected --steer NAME=STRENGTH or --steering JSON")
    return list(found)


@client_command(profiles, "delete")
def delete_profile(client: Client, name: ProfileName) -> None:
    """Delete a profile, not the vectors it names."""
    client.delete_profile(name)
    console.print(shown(f"deleted {name}"))


@client_command(default, "show")
def show_default(client: Client) -> Output:
    """Show the default steering."""
    found = client.get_default_steering()
    print_warnings(found.warnings)
    return dumped(found), [shown("none" if found.interventions is None else _summary(found.interventions))]


@client_command(default, "set")
def set_default(client: Client, steer: Steer = None, layers: Layers = "recommended", steering: Steering = None) -> None:
    """Set the default steering."""
    stored = client.set_default_steering(_interventions(steer, layers, steering))
    print_warnings(stored.warnings)
    console.print(shown(_summary(stored.interventions or ())))


@client_command(default, "clear")
def clear_default(client: Client) -> None:
    """Remove the default steering."""
    client.clear_default_steering()
    console.print("no default steering")


@client_command(jobs, "list")
def list_jobs(client: Client, limit: Annotated[int, Option(help="Number of jobs.")] = 20) -> Output:
    """List jobs, newest first."""
    page = client.list_jobs(limit=limit)
    print_warnings(page.warnings)
    rows = [[one.id, one.kind, one.status, _progress(one), one.created_at] for one in page.data]
    return listing(page.data, ("job", "kind", "status", "progress", "created"), rows)


def _progress(job: JobSummary) -> str:
    if job.error is not None:
        return job.error.message
    return f"{job.progress.done}/{job.progress.total}" if job.progress.total else ""


@client_command(jobs, "show")
def show_job(client: Client, job: Id) -> None:
    """Show a job as JSON."""
    print_json(client.get_job(job), exclude_none=True)


@client_command(jobs, "follow")
def follow_job(client: Client, job: Id) -> None:
    """Wait for a job and print its result as JSON. Ctrl-C cancels the job."""
    print_json(follow(client, client.get_job(job)))


@client_command(jobs, "cancel")
def cancel_job(client: Client, job: Id) -> None:
    """Cancel a job."""
    console.print(shown(client.cancel_job(job).status))


@client_command(links, "list")
def list_links(client: Client, limit: Annotated[int, Option(help="Number of links.")] = 20) -> Output:
    """List the links of the namespace, newest first; in `shared` those of the key, for an admin all."""
    found = client.list_links(limit=limit).data
    rows = [[one.id, one.view, str(one.bytes), one.created_at, one.url] for one in found]
    return listing(found, ("link", "view", "bytes", "created", "address"), rows)


@client_command(links, "show")
def show_link(client: Client, link: LinkId) -> None:
    """Show a link with its state as JSON."""
    print_json(client.get_link(link))


@client_command(links, "delete")
def delete_link(client: Client, link: LinkId) -> None:
    """Delete a link."""
    client.delete_link(link)
    console.print(shown(f"deleted {link}"))
