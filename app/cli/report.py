"""`steer report`: judges steering at a fixed operating point, and writes what was found to a file."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from app.cli.output.job_progress import follow
from app.cli.output.terminal import LOCAL, AsJson, Key, Url, client_of, console, print_json, shown, steering_of
from steering.client.display.reports import CHECKS, check_row, verdict
from steering.client.results import Report
from steering.concepts.loader import read_prompts

SUFFIXES = (".html", ".md", ".json")


def report(  # noqa: PLR0913, PLR0917 - one option a field
    vector: Annotated[str, typer.Argument(help="The vector whose concept is to move: name, or name@version.")],
    strength: Annotated[
        float | None, typer.Option(help="Strength of an add; default: the largest recommended one.")
    ] = None,
    profile: Annotated[str | None, typer.Option(help="Judge this profile of the server.")] = None,
    steering: Annotated[
        str | None, typer.Option(metavar="JSON", help="Judge these interventions, as the API takes them.")
    ] = None,
    direction: Annotated[str | None, typer.Option(help="up or down: how the concept is meant to move.")] = None,
    concept: Annotated[str | None, typer.Option(help="Use the evaluation prompts of this starter concept.")] = None,
    prompts: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help='Use these prompts, JSON lines: {"prompt": "..."}')
    ] = None,
    seeds: Annotated[str, typer.Option(help="Seeds of the answers, separated by commas; each is judged.")] = "0,1",
    samples: Annotated[int, typer.Option(help="Answers to each prompt under each steering.")] = 1,
    varied: Annotated[int, typer.Option(help="How many prompts are varied for robustness.")] = 12,
    side_effects: Annotated[
        list[str] | None, typer.Option(help="A starter concept or vector to read the texts along; repeatable.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="File to write: .html, .md or .json.")] = None,
    as_json: AsJson = False,
    url: Url = LOCAL,
    key: Key = None,
) -> None:
    """Judge a vector or profile before it is deployed: control, utility, robustness and side effects."""
    if out is not None and out.suffix not in SUFFIXES:
        raise typer.BadParameter(f"expected a file ending in {', '.join(SUFFIXES)}, got {out.name}", param_hint="--out")
    options: dict[str, Any] = {"strength": strength, "direction": direction, "concept": concept}
    options |= {"steering": steering_of([], "recommended", profile, steering), "seeds": _seeds(seeds)}
    options |= {"samples": samples, "varied": varied}
    if prompts is not None:
        with prompts.open(encoding="utf-8") as lines:
            options["prompts"] = [[{"role": "user", "content": text}] for text in read_prompts(lines, prompts.name)]
    if side_effects is not None:
        options["side_effects"] = side_effects
    given = {name: value for name, value in options.items() if value is not None}
    with client_of(url, key) as client:
        found = Report.model_validate(follow(client, client.start_report(vector, **given)))
    if out is not None:
        out.write_text(_document(found, out.suffix), encoding="utf-8")
    if as_json:
        print_json(found.model_dump(mode="json"))
        return
    _show(found)
    if out is not None:
        console.print(shown(f"wrote {out}"))


def _seeds(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(
            f"expected whole numbers separated by commas, got {text!r}", param_hint="--seeds"
        ) from None


def _document(found: Report, suffix: str) -> str:
    if suffix == ".html":
        return found.page()
    return found.markdown() if suffix == ".md" else found.model_dump_json(indent=1) + "\n"


def _show(found: Report) -> None:
    for seed in found.seeds:
        table = Table(*CHECKS, title=f"seed {seed.seed}: {verdict(seed.passed)}")
        for gate in seed.gates:
            for check in gate.checks:
                table.add_row(gate.name, *check_row(check))
        console.print(table)
    for warning in found.warnings:
        console.print(shown(f"warning: {warning}", "yellow"))
    agree = "agree" if found.seeds_agree else "do not agree"
    console.print(shown(f"{found.vector}: {verdict(found.passed)}; the seeds {agree}"))
