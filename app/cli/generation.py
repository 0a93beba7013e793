"""`steer generate`, `compare`, `sweep`, `replay` and `batch`: steered generation and comparison."""

from pathlib import Path
from typing import Annotated, Any

from typer import Argument, BadParameter, Option

from app.cli.commands import Connect, Output, with_client, with_connection
from app.cli.inputs import (
    Layers,
    Prompt,
    Raw,
    Steer,
    Steering,
    System,
    file_argument,
    file_option,
    given,
    layers_of,
    numbers,
    prompt_fields,
    steering_of,
    text_of,
)
from app.cli.tables import applied_lines, comparison_table, dumped, follow, live_comparison, raised_line, sweep_chart
from app.cli.terminal import console, safe, shown, stderr
from steering.client import Client
from steering.errors import InvalidRequest
from steering.schemas.generation import GenerateAnswer, TokenPiece
from steering.schemas.steering import AppliedSteering
from steering.strict_json import load_json

Hold = Annotated[
    list[str] | None,
    Option(
        "--hold",
        metavar="NAME=SCORE",
        help="Hold the mean readout of a vector at a score, by a strength of at most 1; repeatable.",
    ),
]
ShareDose = Annotated[
    bool, Option("--share-dose", help="The layers share the relative dose of the recommended layers.")
]
Profile = Annotated[str | None, Option(help="A profile stored on the server.")]
MaxTokens = Annotated[int, Option(help="Maximum number of generated tokens.")]
Temperature = Annotated[float, Option(help="0 is greedy decoding.")]
Seed = Annotated[int | None, Option(help="The same seed gives the same answer.")]
Samples = Annotated[int, Option("--n", help="Samples per arm.")]
Readout = Annotated[list[str] | None, Option(help="A vector to measure at every token; repeatable.")]


@with_connection
def generate(  # noqa: PLR0913, PLR0917 - one option a field
    connect: Connect,
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
) -> Output:
    """Stream an answer, then show what the steering applied."""
    interventions = steering_of(steer, layers, profile, steering, hold, share_dose=share_dose)
    options = prompt_fields(prompt, raw, system) | {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    options["steering"] = interventions
    client = connect(interventions)
    return lambda: dumped(client.generate(**options)), lambda: _print_stream(client, options)


def _print_stream(client: Client, options: dict[str, Any]) -> None:
    """Prints an answer while it is generated, then what the steering applied."""
    for event in client.generate_stream(**options):
        if isinstance(event, TokenPiece):
            console.print(safe(event.text), end="", markup=False, soft_wrap=True)
        elif isinstance(event, GenerateAnswer):
            console.print()
            _print_notes(f"seed {event.seed}, {event.usage.completion_tokens} tokens", event.steering)
            for flag in event.choices[0].flags or ():  # of monitors: this command asks for no flags of its own
                stderr.print(shown(raised_line(flag), "yellow"))


@with_connection
def compare(  # noqa: PLR0913, PLR0917 - one option a field
    connect: Connect,
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
) -> Output:
    """Show unsteered and steered answers side by side: one prompt, one seed, one batch."""
    interventions = steering_of(steer, layers, profile, steering, hold, share_dose=share_dose)
    if interventions is None:
        raise BadParameter("expected one of --steer NAME=STRENGTH, --hold NAME=SCORE, --profile, --steering")
    measured = readout or [one.partition("=")[0] for one in [*(steer or []), *(hold or [])]]
    options = prompt_fields(prompt, raw, system) | {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    options |= {"n": n, "steering": interventions, "readout": measured}
    return _compared(connect(interventions), prompt, options)


@with_connection
def sweep(  # noqa: PLR0913, PLR0917 - one option a field
    connect: Connect,
    vector: Annotated[str, Argument(help="The vector whose strength is swept.")],
    prompt: Prompt,
    strengths: Annotated[str, Option(help="Strengths, separated by commas.")] = "-1,-0.5,0,0.5,1",
    layers: Layers = "recommended",
    share_dose: ShareDose = False,
    operation: Annotated[str, Option(help="add, ablate, clamp, rotate or replace.")] = "add",
    degrees: Annotated[float | None, Option(help="For rotate: the angle of strength 1.")] = None,
    raw: Raw = False,
    system: System = None,
    n: Samples = 1,
    max_tokens: MaxTokens = 64,
    temperature: Temperature = 0.7,
    seed: Seed = None,
) -> Output:
    """Answer one prompt at many strengths of one vector."""
    options = prompt_fields(prompt, raw, system) | {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    options |= {"n": n, "readout": [vector]}
    one = given(
        vector=vector, operation=operation, layers=layers_of(layers), degrees=degrees, share_dose=share_dose or None
    )
    options |= {"intervention": one, "strengths": numbers(strengths, "--strengths", float)}
    return _compared(connect([one]), prompt, options, swept=vector)


def _compared(client: Client, prompt: str, options: dict[str, Any], swept: str | None = None) -> Output:
    """Compares. swept: the vector of a sweep, whose readout a chart shows."""

    def printed() -> None:
        answer = live_comparison(client, options, console) if console.is_terminal else client.compare(**options)
        console.print(comparison_table(answer, prompt))
        _print_notes(f"seed {answer.seed}, model {answer.model}", *(arm.steering for arm in answer.arms))
        if swept is not None and console.is_terminal:
            console.print(sweep_chart(answer, swept))

    return lambda: dumped(client.compare(**options)), printed


def _print_notes(first: str, *applied: AppliedSteering) -> None:
    stderr.print(first, style="dim")
    for steering in applied:
        for line in applied_lines(steering):
            stderr.print(line)


@with_client
def replay(
    client: Client,
    record: Annotated[Path, file_argument("JSON file: a response, or its steering.record.")],
    directions: Annotated[
        Path | None, file_option("JSON file: the inline directions that the response was given.")
    ] = None,
) -> Output:
    """Generate the same tokens again from the record of an earlier response."""
    answer = client.replay(_record_of(record), directions=[] if directions is None else _directions_of(directions))
    return dumped(answer), lambda: console.print(
        *(shown(choice.text) for choice in answer.choices), sep="\n", soft_wrap=True
    )


def _record_of(file: Path) -> dict[str, Any]:
    """Returns the record of a JSON file, which holds it alone or in a response. Raises InvalidRequest where there is none."""
    content: Any = load_json(text_of(file), file.name)
    if isinstance(content, dict) and "steering" in content:
        content = content["steering"].get("record") if isinstance(content["steering"], dict) else None
    if not isinstance(content, dict):
        raise InvalidRequest(f"{file.name}: expected a response with steering.record, or that record")
    return content


def _directions_of(file: Path) -> list[dict[str, Any]]:
    """Returns the inline directions of a JSON file, one or a list. Raises InvalidRequest for anything else."""
    content: Any = load_json(text_of(file), file.name)
    found = content if isinstance(content, list) else [content]
    if not all(isinstance(one, dict) for one in found):
        raise InvalidRequest(f"{file.name}: expected an object with directions, or a list of them")
    return found


@with_client
def batch(
    client: Client,
    requests: Annotated[Path, file_argument("JSON lines: the fields of POST /v1/generate, and an id if wanted.")],
    out: Annotated[Path, Option("--out", "-o", help="File to write: a line per request, in the same order.")],
) -> None:
    """Answer many prompts in the background. Ctrl-C cancels; what was finished is written all the same."""
    job = client.start_batch(requests.read_bytes())
    try:
        result = follow(client, job)
    finally:
        lines = [one.model_dump_json(exclude_none=True) for one in client.job_output(job.id)]
        out.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    console.print(shown(f"wrote {out}: {result['succeeded']} answers"))
    if result["failed"]:
        stderr.print(shown(f"{result['failed']} requests failed; their lines have an error", "yellow"))
