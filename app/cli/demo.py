"""`steer demo`: starts a temporary server, extracts a vector, steers with it and compares the answers."""

from typing import Annotated

from typer import Option

from app.cli.input.conversion import given
from app.cli.output.tables import card_lines, comparison_table
from app.cli.output.terminal import console, shown
from app.core.process_settings import prepare_for_torch
from steering.client import Client
from steering.schemas.vectors import RecommendedAnswer

PROMPTS = ("What was the train journey like?", "How is your new apartment?")


def demo(
    model: Annotated[str | None, Option(help="Another model than the embedded one.")] = None,
    device: Annotated[str | None, Option(help="auto, cpu, cuda, ...")] = None,
) -> None:
    """Start a server, extract the sentiment vector, steer in both directions, and show the answers."""
    console.print("Starting a temporary server. The first start converts the model, which takes a minute.\n")
    prepare_for_torch()
    from app.cli.local import local_client  # noqa: PLC0415 - imports torch and loads a model

    with local_client(database="memory://", **given(model=model, device=device)) as client:
        _run(client)


def _run(client: Client) -> None:
    info = client.capabilities().model
    console.print(f"[bold]1[/] A server is up: {info.name}, {info.layers} layers, {info.dtype} on {info.device}\n")
    with console.status("reading contrasting texts"):
        vector = client.extract_vector("sentiment", concept="sentiment", description="pleased against displeased")
    console.print("[bold]2[/] POST /v1/vectors/extract extracted a concept vector from contrasting examples")
    for line in card_lines(vector):
        console.print("  ", line, sep="")
    console.print("\n[bold]3[/] POST /v1/compare: one prompt, one batch, three strengths, greedy decoding")
    negative, positive = _strengths(vector.recommended)
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


def _strengths(recommended: RecommendedAnswer) -> tuple[float, float]:
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
