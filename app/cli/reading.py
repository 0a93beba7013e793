"""`steer readout`, `lens`, `score`, `activations`, `explain` and `clusters`: what the model computes in given texts."""

from pathlib import Path
from typing import Annotated, Any

from typer import Argument, BadParameter, Option

from app.cli.input.conversion import given_texts, layers_of, position_of, prompt_fields, steering_of
from app.cli.options import Layers, ListedLayers, Prompt, Raw, Steer, Steering, System, TextFile, Texts
from app.cli.output.tables import lens_table, readout_table, text_table
from app.cli.output.terminal import Output, console, print_warnings, shown, with_client
from steering.client import Client

SHOWN_CHARACTERS = 60


@with_client
def readout(
    client: Client,
    vector: Annotated[str, Argument(help="The vector to read against: name, or name@version.")],
    text: Annotated[str, Argument(help="The text to read.")],
    layers: Layers = "recommended",
) -> Output:
    """Measure a concept at each token of a text, in natural scales."""
    answer = client.readout([text], vectors=[vector], layers=layers_of(layers))
    yield answer
    yield readout_table(answer, vector)


@with_client
def lens(  # noqa: PLR0913, PLR0917 - one option a field
    client: Client,
    prompt: Prompt,
    steer: Steer = None,
    steer_layers: Annotated[str, Option(help="Where --steer acts: recommended, all, 12,13 or 10:16.")] = (
        "recommended"
    ),
    steering: Steering = None,
    layers: Annotated[str, Option(help="Layers to show: all, or 12,13.")] = "all",
    top_k: Annotated[int, Option(help="Predictions per layer.")] = 5,
    token: Annotated[int, Option(help="Which token of the prompt; -1 is the last.")] = -1,
    raw: Raw = False,
    system: System = None,
) -> Output:
    """Show the next token predicted from each layer, unsteered and steered."""
    interventions = steering_of(steer, steer_layers, steering=steering)
    answer = client.logit_lens(
        **prompt_fields(prompt, raw, system), steering=interventions or [], layers=layers_of(layers), top_k=top_k
    )
    yield answer
    if not -len(answer.tokens) <= token < len(answer.tokens):
        raise BadParameter(f"the prompt has {len(answer.tokens)} tokens", param_hint="--token")
    yield lens_table(answer, token)
    print_warnings(answer.steering.warnings if answer.steering else [])


@with_client
def score(
    client: Client,
    prompt: Annotated[str, Argument(help="The prompt; a whole text to score without --continuation.")],
    continuation: Annotated[
        list[str] | None, Option(help="A text that may follow the prompt, with its leading space; repeatable.")
    ] = None,
    steer: Steer = None,
    steering: Steering = None,
    raw: Raw = False,
    system: System = None,
) -> Output:
    """Show how probable given continuations of a prompt, or a whole text, are to the model."""
    interventions = steering_of(steer, steering=steering) or []
    if continuation:
        fields = prompt_fields(prompt, raw, system)
        answer = client.score(continuations=continuation, steering=interventions, **fields)
    else:
        answer = client.score(texts=[prompt], steering=interventions)
    yield answer
    rows = [
        [one.text, f"{one.sum:.2f}", f"{len(one.token_ids)}", f"{one.sum / max(len(one.token_ids), 1):.2f}", "yes" if one.all_greedy else ""]
        for one in answer.scores
    ]  # fmt: skip
    yield text_table(("text", "log p", "tokens", "per token", "greedy"), rows)


@with_client
def activations(
    client: Client,
    texts: Texts = None,
    file: TextFile = None,
    output: Annotated[Path, Option("--output", "-o", help="File to write.")] = Path("activations.safetensors"),
    layers: ListedLayers = "all",
    position: Annotated[str, Option(help="last, mean, response_mean, all, or an offset from the end.")] = "last",
    dtype: Annotated[str, Option(help="float32, float16 or bfloat16.")] = "float32",
    steer: Annotated[
        list[str] | None,
        Option("--steer", metavar="NAME=STRENGTH", help="Steer with a vector; repeatable."),
    ] = None,
) -> None:
    """Write the residual stream of texts, by layer, to a safetensors file."""
    options: dict[str, Any] = {"layers": layers_of(layers), "position": position_of(position), "dtype": dtype}
    interventions = steering_of(steer) or []
    content = client.activations(given_texts(texts, file), steering=interventions, **options)
    output.write_bytes(content)
    console.print(shown(f"wrote {output}: {len(content):,} bytes"))


@with_client
def explain(
    client: Client,
    texts: Texts = None,
    file: TextFile = None,
    layers: Annotated[str, Option(help="recommended, or 12,13.")] = "recommended",
    threshold: Annotated[float, Option(help="Smallest absolute z-score that is listed.")] = 2.0,
) -> Output:
    """List the concepts of the library that stand out in texts against neutral text."""
    given = given_texts(texts, file)
    answer = client.explain(given, layers=None if layers == "recommended" else layers_of(layers), threshold=threshold)
    yield answer
    rows = [
        [_short(text), one.vector, f"{one.layer}", f"{one.z:+.1f}", " ".join(t.text.strip() for t in one.tokens)]
        for text, explained in zip(given, answer.texts, strict=True)
        for one in explained.concepts
    ]
    yield text_table(("text", "vector", "layer", "z", "tokens"), rows, "nothing stands out")
    print_warnings(answer.warnings)


@with_client
def clusters(  # noqa: PLR0913, PLR0917 - one option a field
    client: Client,
    texts: Texts = None,
    file: TextFile = None,
    layer: Annotated[int | None, Option(help="Layer to read; default: the middle one.")] = None,
    method: Annotated[str, Option(help="kmeans or hdbscan.")] = "kmeans",
    count: Annotated[int | None, Option("--clusters", help="kmeans: how many; default: by silhouette.")] = None,
    min_size: Annotated[int | None, Option(help="hdbscan: size of the smallest cluster.")] = None,
    position: Annotated[str, Option(help="last, mean, response_mean, or an offset from the end.")] = "mean",
    seed: Annotated[int, Option(help="The same seed gives the same clusters.")] = 0,
) -> Output:
    """Group texts by their activations, with the vector nearest to each difference of groups."""
    options: dict[str, Any] = {"layer": layer, "clusters": count, "min_size": min_size, "seed": seed}
    answer = client.clusters(given_texts(texts, file), method=method, position=position_of(position), **options)
    yield answer
    rows = [
        [f"{one.index}", f"{one.size}", "\n".join(_short(example.text) for example in one.examples)]
        for one in answer.clusters
    ]
    yield text_table(("cluster", "texts", "examples"), rows)
    for pair in answer.pairs:
        near = "" if pair.nearest is None else f"  {pair.nearest.vector} {pair.nearest.cosine:+.2f}"
        yield shown(f"{pair.clusters[0]} to {pair.clusters[1]}: distance {pair.distance:.1f}{near}")
    print_warnings(answer.warnings)


def _short(text: Any) -> str:
    written = text if isinstance(text, str) else str(text[-1].get("content", ""))
    return written if len(written) <= SHOWN_CHARACTERS else written[:SHOWN_CHARACTERS] + "..."
