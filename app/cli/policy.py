"""`steer policy` and `steer monitors`: what holds for all traffic of a server, and what its monitors measured."""

from pathlib import Path
from typing import Annotated, Any

import typer

from app.cli.output.tables import text_table
from app.cli.output.terminal import LOCAL, AsJson, Key, Url, client_of, console, print_json, shown
from steering.schemas.governance import MonitorAnswer, MonitorDetail
from steering.strict_json import load_json

policy = typer.Typer(no_args_is_help=True, help="What holds for all traffic: show, set, clear. Needs the scope admin.")


@policy.command("show")
def show_policy(url: Url = LOCAL, key: Key = None) -> None:
    """Show the policy as JSON, in the form that `set` takes."""
    with client_of(url, key) as client:
        print_json(client.get_policy().model_dump(mode="json", exclude_unset=True, by_alias=True))


@policy.command("set")
def set_policy(
    file: Annotated[Path, typer.Argument(help="A JSON file with mandatory, monitors and limits.", exists=True)],
    url: Url = LOCAL,
    key: Key = None,
) -> None:
    """Set the policy to the content of a file. It replaces the policy as a whole."""
    content: Any = load_json(file.read_bytes(), str(file), depth=64)
    if not isinstance(content, dict):
        raise typer.BadParameter("expected an object with mandatory, monitors and limits", param_hint="FILE")
    unknown = sorted(set(content) - {"mandatory", "monitors", "limits"})
    if unknown:
        raise typer.BadParameter(f"unknown: {', '.join(unknown)}; known are mandatory, monitors, limits")
    with client_of(url, key) as client:
        stored = client.set_policy(**content)
    print_json(stored.model_dump(mode="json", exclude_unset=True, by_alias=True))


@policy.command("clear")
def clear_policy(url: Url = LOCAL, key: Key = None) -> None:
    """Remove the policy."""
    with client_of(url, key) as client:
        client.clear_policy()


def monitors(
    name: Annotated[str | None, typer.Argument(help="Name of a monitor; absent, all of them.")] = None,
    as_json: AsJson = False,
    url: Url = LOCAL,
    key: Key = None,
) -> None:
    """Show what the monitors of the policy measured; for one monitor its distribution and latest raises."""
    with client_of(url, key) as client:
        found = client.list_monitors().data if name is None else [client.get_monitor(name)]
    if as_json:
        values = [one.model_dump(mode="json", exclude_none=True) for one in found]
        print_json(values if name is None else values[0])
        return
    headings = ("monitor", "vector", "bound", "at", "action", "scores", "raised", "answers", "mean")
    console.print(text_table(headings, [_row(one) for one in found]) if found else "none")
    for one in found:
        if isinstance(one, MonitorDetail):
            _show(one)


def _row(one: MonitorAnswer) -> list[str]:
    bound = f"above {one.above:g}" if one.above is not None else f"below {one.below:g}"
    counts = [str(one.scores), str(one.raised), str(one.answers)]
    mean = "" if one.mean is None else f"{one.mean:+.2f}"
    return [one.name, f"{one.vector} layer {one.layer}", bound, one.at, one.action, *counts, mean]


def _show(one: MonitorDetail) -> None:
    edges = [f"{edge:+.2f}" for edge in one.distribution.edges]
    ranges = [f"up to {edges[0]}", *(f"up to {edge}" for edge in edges[1:]), f"above {edges[-1]}"]
    counted = [pair for pair in zip(ranges, one.distribution.counts, strict=True) if pair[1]]
    if counted:
        most = max(count for _, count in counted)
        rows = [[label, str(count), "█" * max(round(30 * count / most), 1)] for label, count in counted]
        console.print(text_table(("score", "tokens" if one.at == "generated" else "prompts", ""), rows))
    for hour in one.hours:
        console.print(f"{hour.start:%Y-%m-%d %H:%M} mean {hour.mean:+.2f} of {hour.scores}, {hour.raised} raised")
    for latest in one.latest:
        where = "prompt" if latest.token is None else f"token {latest.token}"
        console.print(shown(f"{latest.at:%Y-%m-%d %H:%M:%S} {latest.request_id} {where} score {latest.score:+.2f}"))
