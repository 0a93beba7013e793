"""`steer score`: log-probabilities of given texts."""

from typing import Annotated

import typer

from app.cli.generation import Raw, Steer, Steering, System, prompt_fields
from app.cli.output.tables import text_table
from app.cli.output.terminal import LOCAL, AsJson, Key, Url, client_of, console, print_json, steering_of


def score(  # noqa: PLR0913, PLR0917 - one option a field
    prompt: Annotated[str, typer.Argument(help="The prompt; a whole text to score without --continuation.")],
    continuation: Annotated[
        list[str] | None, typer.Option(help="A text that may follow the prompt, with its leading space; repeatable.")
    ] = None,
    steer: Steer = None,
    steering: Steering = None,
    raw: Raw = False,
    system: System = None,
    as_json: AsJson = False,
    url: Url = LOCAL,
    key: Key = None,
) -> None:
    """Show how probable given continuations of a prompt, or a whole text, are to the model."""
    interventions = steering_of(steer or [], "recommended", None, steering) or []
    with client_of(url, key) as client:
        if continuation:
            fields = prompt_fields(prompt, raw, system)
            answer = client.score(continuations=continuation, steering=interventions, **fields)
        else:
            answer = client.score(texts=[prompt], steering=interventions)
    if as_json:
        print_json(answer.model_dump(mode="json"))
        return
    rows = [
        [one.text, f"{one.sum:.2f}", f"{len(one.token_ids)}", f"{one.sum / max(len(one.token_ids), 1):.2f}", "yes" if one.all_greedy else ""]
        for one in answer.scores
    ]  # fmt: skip
    console.print(text_table(("text", "log p", "tokens", "per token", "greedy"), rows))
