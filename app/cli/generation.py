"""`steer generate`, `compare` and `sweep`: steered generation and comparison."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from app.cli.output.live import live_comparison, sweep_chart
from app.cli.output.tables import applied_lines, comparison_table
from app.cli.output.terminal import (
    LOCAL,
    AsJson,
    Key,
    Local,
    Url,
    client_of,
    console,
    layers_of,
    numbers,
    print_json,
    safe,
    stderr,
    steering_of,
)
from steering.client import Client
from steering.client.results import Comparison
from steering.schemas.generation import GenerateAnswer, TokenPiece

Prompt = Annotated[str, typer.Argument(help="The prompt.")]
Steer = Annotated[
    list[str] | None,
    typer.Option(
        "--steer", metavar="NAME=STRENGTH", help="Steer with a vector; repeatable. Strength in natural scales."
    ),
]
Hold = Annotated[
    list[str] | None,
    typer.Option(
        "--hold",
        metavar="NAME=SCORE",
        help="Hold the mean readout of a vector at a score, by a strength of at most 1; repeatable.",
    ),
]
Layers = Annotated[str, typer.Option(help="recommended, all, 12,13 or 10:16 (half-open).")]
ShareDose = Annotated[
    bool, typer.Option("--share-dose", help="The layers share the relative dose of the recommended layers.")
]
Profile = Annotated[str | None, typer.Option(help="A profile stored on the server.")]
Steering = Annotated[
    str | None, typer.Option(metavar="JSON", help="Interventions as the API takes them; @FILE reads them from a file.")
]
Raw = Annotated[bool, typer.Option("--raw", help="Continue the text without the chat template.")]
System = Annotated[str | None, typer.Option(help="A system message before the prompt.")]
MaxTokens = Annotated[int, typer.Option(help="Maximum number of generated tokens.")]
Temperature = Annotated[float, typer.Option(help="0 is greedy decoding.")]
Seed = Annotated[int | None, typer.Option(help="The same seed gives the same answer.")]
Samples = Annotated[int, typer.Option("--n", help="Samples per arm.")]
Readout = Annotated[list[str] | None, typer.Option(help="A vector to measure at every token; repeatable.")]


def prompt_fields(prompt: str, raw: bool, system: str | None) -> dict[str, Any]:
    """Returns a raw prompt, or messages with the prompt as the user's."""
    if raw:
        return {"prompt": prompt}
    before = [] if system is None else [{"role": "system", "content": system}]
    return {"messages": [*before, {"role": "user", "content": prompt}]}


def _sampling(max_tokens: int, temperature: float, seed: int | None, readout: Sequence[str] | None) -> dict[str, Any]:
    options: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature, "readout": readout or []}
    return options if seed is None else {**options, "seed": seed}


def generate(  # noqa: PLR0913, PLR0917 - one option a field
    prompt: Prompt,
    steer: Steer = None,
    hold: Hold = None,
    layers: Layers = "recommended",
    share_dose: ShareDose = False,
    profile: Profile = None,
    steering: Steering = None,
    raw: Raw = False,
    system: System = None,
    max_tokens: MaxTokens = 128,
    temperature: Temperature = 0.7,
    seed: Seed = None,
    as_json: AsJson = False,
    local: Local = False,
    url: Url = LOCAL,
    key: Key = None,
) -> None:
    """Stream an answer, then show what the steering applied."""
    options = prompt_fields(prompt, raw, system) | _sampling(max_tokens, temperature, seed, None)
    interventions = steering_of(steer or [], layers, profile, steering, hold or [], share_dose=share_dose)
    if interventions is not None:
        options["steering"] = interventions
    with client_of(url, key, local) as client:
        if local:
            _extract_missing(client, options.get("steering"))
        if as_json:
            print_json(client.generate(**options).model_dump(mode="json", exclude_none=True))
            return
        for event in client.generate_stream(**options):
            if isinstance(event, TokenPiece):
                console.print(safe(event.text), end="", markup=False, soft_wrap=True)
            elif isinstance(event, GenerateAnswer):
                console.print()
                stderr.print(f"seed {event.seed}, {event.usage.completion_tokens} tokens", style="dim")
                for line in applied_lines(event.steering):
                    stderr.print(line)


def compare(  # noqa: PLR0913, PLR0917 - one option a field
    prompt: Prompt,
    steer: Steer = None,
    hold: Hold = None,
    layers: Layers = "recommended",
    share_dose: ShareDose = False,
    profile: Profile = None,
    steering: Steering = None,
    raw: Raw = False,
    system: System = None,
    n: Samples = 1,
    max_tokens: MaxTokens = 64,
    temperature: Temperature = 0.7,
    seed: Seed = None,
    readout: Readout = None,
    as_json: AsJson = False,
    local: Local = False,
    url: Url = LOCAL,
    key: Key = None,
) -> None:
    """Show unsteered and steered answers side by side: one prompt, one seed, one batch."""
    interventions = steering_of(steer or [], layers, profile, steering, hold or [], share_dose=share_dose)
    if interventions is None:
        raise typer.BadParameter("expected one of --steer NAME=STRENGTH, --hold NAME=SCORE, --profile, --steering")
    measured = readout or [one.partition("=")[0] for one in [*(steer or []), *(hold or [])]]
    options = prompt_fields(prompt, raw, system) | _sampling(max_tokens, temperature, seed, measured)
    with client_of(url, key, local) as client:
        if local:
            _extract_missing(client, interventions)
        _show(client, prompt, as_json, {**options, "n": n, "steering": interventions})


def sweep(  # noqa: PLR0913, PLR0917 - one option a field
    vector: Annotated[str, typer.Argument(help="The vector whose strength is swept.")],
    prompt: Prompt,
    strengths: Annotated[str, typer.Option(help="Strengths, separated by commas.")] = "-1,-0.5,0,0.5,1",
    layers: Layers = "recommended",
    share_dose: ShareDose = False,
    operation: Annotated[str, typer.Option(help="add, ablate, clamp, rotate or replace.")] = "add",
    degrees: Annotated[float | None, typer.Option(help="For rotate: the angle of strength 1.")] = None,
    raw: Raw = False,
    system: System = None,
    n: Samples = 1,
    max_tokens: MaxTokens = 64,
    temperature: Temperature = 0.7,
    seed: Seed = None,
    as_json: AsJson = False,
    local: Local = False,
    url: Url = LOCAL,
    key: Key = None,
) -> None:
    """Answer one prompt at many strengths of one vector."""
    options = prompt_fields(prompt, raw, system) | _sampling(max_tokens, temperature, seed, [vector])
    one = {"vector": vector, "operation": operation, "layers": layers_of(layers)}
    if degrees is not None:
        one["degrees"] = degrees
    if share_dose:
        one["share_dose"] = True
    swept = numbers(strengths, "--strengths")
    with client_of(url, key, local) as client:
        if local:
            _extract_missing(client, [one])
        answer = _show(client, prompt, as_json, {**options, "n": n, "intervention": one, "strengths": swept})
    if not as_json and console.is_terminal:
        console.print(sweep_chart(answer, vector))


def replay(
    record: Annotated[
        Path, typer.Argument(exists=True, dir_okay=False, help="JSON file: a response, or its steering.record.")
    ],
    directions: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="JSON file: the inline directions that the response was given."),
    ] = None,
    as_json: AsJson = False,
    url: Url = LOCAL,
    key: Key = None,
) -> None:
    """Generate the same tokens again from the record of an earlier response."""
    content = json.loads(record.read_text(encoding="utf-8"))
    given = [] if directions is None else json.loads(directions.read_text(encoding="utf-8"))
    with client_of(url, key) as client:
        answer = client.replay(
            content.get("steering", {}).get("record", content), directions=given if isinstance(given, list) else [given]
        )
    if as_json:
        print_json(answer.model_dump(mode="json", exclude_none=True))
        return
    for choice in answer.choices:
        console.print(safe(choice.text), markup=False, soft_wrap=True)


def _extract_missing(client: Client, interventions: Any) -> None:
    from app.cli.local import extract_missing  # noqa: PLC0415 - imports torch; only with --local

    items = interventions if isinstance(interventions, list) else []
    extract_missing(client, [one["vector"] for one in items if isinstance(one.get("vector"), str)])


def _show(client: Client, prompt: str, as_json: bool, options: dict[str, Any]) -> Comparison:
    live = console.is_terminal and not as_json
    answer = live_comparison(client, options, console) if live else client.compare(**options)
    if as_json:
        print_json(answer.model_dump(mode="json", exclude_none=True))
        return answer
    console.print(comparison_table(answer, prompt))
    stderr.print(f"seed {answer.seed}, model {answer.model}", style="dim")
    for arm in answer.arms:
        for line in applied_lines(arm.steering):
            stderr.print(line)
    return answer
