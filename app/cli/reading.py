"""`steer readout`, `lens` and `evaluate`: reads texts with a vector, predictions by layer, and the effect of a vector."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import TypeAdapter

from app.cli.generation import Layers, Prompt, Raw, Steer, Steering, System, prompt_fields
from app.cli.output.evaluation_tables import dose_table, judge_table, result_lines, sweep_table
from app.cli.output.job_progress import follow
from app.cli.output.tables import lens_table, readout_table
from app.cli.output.terminal import (
    LOCAL,
    AsJson,
    Key,
    Url,
    client_of,
    console,
    layers_of,
    numbers,
    print_json,
    shown,
    stderr,
    steering_of,
)
from steering.concepts.loader import read_prompts
from steering.schemas.evaluation import DoseResponseAnswer, LayerSweepAnswer, StrengthsAnswer

EVALUATION: TypeAdapter[LayerSweepAnswer | DoseResponseAnswer] = TypeAdapter(StrengthsAnswer)


class Kind(StrEnum):
    """Kinds of evaluation."""

    DOSE_RESPONSE = "dose_response"
    LAYER_SWEEP = "layer_sweep"


class By(StrEnum):
    """Judges of an evaluation."""

    SELF = "self"
    ENDPOINT = "endpoint"


def readout(
    vector: Annotated[str, typer.Argument(help="The vector to read against: name, or name@version.")],
    text: Annotated[str, typer.Argument(help="The text to read.")],
    layers: Layers = "recommended",
    as_json: AsJson = False,
    url: Url = LOCAL,
    key: Key = None,
) -> None:
    """Measure a concept at each token of a text, in natural scales."""
    with client_of(url, key) as client:
        answer = client.readout([text], vectors=[vector], layers=layers_of(layers))
    if as_json:
        print_json(answer.model_dump(mode="json"))
        return
    console.print(readout_table(answer, vector))


def lens(  # noqa: PLR0913, PLR0917 - one option a field
    prompt: Prompt,
    steer: Steer = None,
    steer_layers: Annotated[str, typer.Option(help="Where --steer acts: recommended, all, 12,13 or 10:16.")] = (
        "recommended"
    ),
    steering: Steering = None,
    layers: Annotated[str, typer.Option(help="Layers to show: all, or 12,13.")] = "all",
    top_k: Annotated[int, typer.Option(help="Predictions per layer.")] = 5,
    token: Annotated[int, typer.Option(help="Which token of the prompt; -1 is the last.")] = -1,
    raw: Raw = False,
    system: System = None,
    as_json: AsJson = False,
    url: Url = LOCAL,
    key: Key = None,
) -> None:
    """Show the next token predicted from each layer, unsteered and steered."""
    interventions = steering_of(steer or [], steer_layers, None, steering)
    with client_of(url, key) as client:
        answer = client.logit_lens(
            **prompt_fields(prompt, raw, system), steering=interventions or [], layers=layers_of(layers), top_k=top_k
        )
    if as_json:
        print_json(answer.model_dump(mode="json"))
        return
    if not -len(answer.tokens) <= token < len(answer.tokens):
        raise typer.BadParameter(f"the prompt has {len(answer.tokens)} tokens", param_hint="--token")
    console.print(lens_table(answer, token))
    for warning in answer.steering.warnings if answer.steering else []:
        stderr.print(shown(warning, "yellow"))


def evaluate(  # noqa: PLR0913, PLR0917 - one option a field
    vector: Annotated[str, typer.Argument(help="The vector to evaluate: name, or name@version.")],
    kind: Annotated[Kind, typer.Option(help="dose_response: how strongly; layer_sweep: at which layer.")] = (
        Kind.DOSE_RESPONSE
    ),
    concept: Annotated[str | None, typer.Option(help="Use the evaluation prompts of this starter concept.")] = None,
    prompts: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help='Use these prompts, JSON lines: {"prompt": "..."}')
    ] = None,
    strengths: Annotated[str | None, typer.Option(help="Strengths, separated by commas.")] = None,
    layers: Annotated[str | None, typer.Option(help="recommended, all, 12,13 or 10:16 (half-open).")] = None,
    random_directions: Annotated[
        int | None, typer.Option(help="Random directions at the same dose (dose_response).")
    ] = None,
    judge: Annotated[
        By | None, typer.Option(help="Also rates the answers: the loaded model, or the operator's endpoint.")
    ] = None,
    judge_concept: Annotated[
        str | None, typer.Option(help="What the judge looks for; default: the description.")
    ] = None,
    save: Annotated[bool, typer.Option(help="Store it on the card, as the next version (dose_response).")] = False,
    as_json: AsJson = False,
    url: Url = LOCAL,
    key: Key = None,
) -> None:
    """Evaluate a vector: how text changes, what breaks, and what random directions do."""
    options: dict[str, Any] = {"concept": concept, "random_directions": random_directions}
    if prompts is not None:
        with prompts.open(encoding="utf-8") as lines:
            options["prompts"] = [[{"role": "user", "content": text}] for text in read_prompts(lines, prompts.name)]
    if strengths is not None:
        options["strengths"] = numbers(strengths, "--strengths")
    if layers is not None:
        options["layers"] = layers_of(layers)
    if judge is None and judge_concept is not None:
        raise typer.BadParameter("needs --judge", param_hint="--judge-concept")
    if judge is not None:
        options["judge"] = {"by": judge.value} | ({"concept": judge_concept} if judge_concept else {})
    if save:
        options["save"] = True
    with client_of(url, key) as client:
        result = EVALUATION.validate_python(follow(client, client.start_evaluation(kind.value, vector, **options)))
    if as_json:
        print_json(result.model_dump(mode="json"))
        return
    console.print(dose_table(result) if isinstance(result, DoseResponseAnswer) else sweep_table(result))
    if isinstance(result, DoseResponseAnswer) and result.judgement is not None:
        console.print(judge_table(result.judgement))
    for line in result_lines(result):
        console.print(line)
