"""`steer readout`, `lens`, `score`, `activations`, `explain`, `clusters`, `map` and `card`: what the model computes in given texts."""

import csv
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, BadParameter, Option

from app.cli.commands import Connect, Output, with_client, with_connection
from app.cli.inputs import (
    Layers,
    ListedLayers,
    Prompt,
    Raw,
    Steer,
    Steering,
    System,
    TextFile,
    Texts,
    VectorName,
    file_argument,
    given_texts,
    layers_of,
    position_of,
    prompt_fields,
    steering_of,
    text_of,
)
from app.cli.tables import lens_table, readout_table, text_table
from app.cli.terminal import console, print_warnings, shown
from steering.client import Client
from steering.client.display import aligned, card_html, page
from steering.errors import InvalidRequest

if TYPE_CHECKING:
    from steering.client.results import LatentMap


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
    return answer, [readout_table(answer, vector)]


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

    def printed() -> None:
        if not -len(answer.tokens) <= token < len(answer.tokens):
            raise BadParameter(f"the prompt has {len(answer.tokens)} tokens", param_hint="--token")
        console.print(lens_table(answer, token))
        print_warnings(answer.steering.warnings if answer.steering else [])

    return answer, printed


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
    rows = [
        [one.text, f"{one.sum:.2f}", f"{len(one.token_ids)}", f"{one.sum / max(len(one.token_ids), 1):.2f}", "yes" if one.all_greedy else ""]
        for one in answer.scores
    ]  # fmt: skip
    return answer, [text_table(("text", "log p", "tokens", "per token", "greedy"), rows)]


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
    rows = [
        [_short(text), one.vector, f"{one.layer}", f"{one.z:+.1f}", " ".join(t.text.strip() for t in one.tokens)]
        for text, explained in zip(given, answer.texts, strict=True)
        for one in explained.concepts
    ]
    print_warnings(answer.warnings)  # --json prints them, too
    return answer, [text_table(("text", "vector", "layer", "z", "tokens"), rows, "nothing stands out")]


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
    rows = [
        [f"{one.index}", f"{one.size}", "\n".join(_short(example.text) for example in one.examples)]
        for one in answer.clusters
    ]
    pairs = [
        shown(
            f"{pair.clusters[0]} to {pair.clusters[1]}: distance {pair.distance:.1f}"
            + ("" if pair.nearest is None else f"  {pair.nearest.vector} {pair.nearest.cosine:+.2f}")
        )
        for pair in answer.pairs
    ]
    print_warnings(answer.warnings)
    return answer, [text_table(("cluster", "texts", "examples"), rows), *pairs]


def _short(text: Any) -> str:
    written = text if isinstance(text, str) else str(text[-1].get("content", ""))
    return written if len(written) <= SHOWN_CHARACTERS else written[:SHOWN_CHARACTERS] + "..."


PANELS = 6
"""Layers in a picture; a page shows all of them."""


@with_connection
def draw_map(
    connect: Connect,
    file: Annotated[Path, file_argument("CSV with the column text, and label if wanted; or one text a line.")],
    out: Annotated[Path, Option(help="File to write: .html (slider over the layers) or .png.")] = Path("map.html"),
    layers: ListedLayers = "all",
    method: Annotated[str, Option(help="pca, tsne or umap.")] = "pca",
    position: Annotated[str, Option(help="last, mean, or an offset from the end.")] = "mean",
) -> Output:
    """Draw texts in the latent space, layer by layer."""
    texts, labels = texts_and_labels(file)
    options: dict[str, Any] = {"layers": layers_of(layers), "position": position_of(position), "labels": labels or None}
    if out.suffix not in (".html", ".png"):
        raise BadParameter(f"expected a file ending in .html or .png, got {out.name}", param_hint="--out")
    found = connect().latent_space(texts, method=method, embeddings=True, **options)

    def printed() -> None:
        if out.suffix == ".html":
            out.write_text(found.page(texts, labels), encoding="utf-8")
        else:
            write_png(out, found, labels)
        for line in (*(shown(warning, "yellow") for warning in found.warnings), shown(f"wrote {out}")):
            console.print(line)

    return found, printed


def texts_and_labels(file: Path) -> tuple[list[str], list[str] | None]:
    """Reads texts and labels: a CSV with a column `text` and perhaps `label`, or one text per line. Raises InvalidRequest."""
    content = text_of(file)
    if file.suffix != ".csv":
        texts = [line for line in content.splitlines() if line.strip()]
        return texts, None
    rows = list(csv.DictReader(StringIO(content, newline="")))
    if not rows or "text" not in rows[0]:
        raise InvalidRequest(f"{file.name} has no column 'text'; its first line names the columns", param="file")
    texts = [row["text"] or "" for row in rows]
    return texts, [row["label"] or "" for row in rows] if "label" in rows[0] else None


def write_png(out: Path, found: "LatentMap", labels: list[str] | None) -> None:
    """Draws evenly spaced layers next to each other. Raises InvalidRequest when matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 - optional
    except ImportError:
        raise InvalidRequest("--out FILE.png needs matplotlib: pip install matplotlib", param="out") from None
    layers = ([found.embedding] if found.embedding else []) + list(found.layers)
    points = aligned(layers)
    count = min(PANELS, len(layers))
    chosen = [round(index * (len(layers) - 1) / max(count - 1, 1)) for index in range(count)]
    figure = Figure(figsize=(3.0 * count, 3.3), layout="constrained")
    axes = figure.subplots(1, count, squeeze=False)[0]
    given = labels or [""] * len(points[0])
    for axis, index in zip(axes, chosen, strict=True):
        for name in sorted(set(given)):
            members = [point for point, label in zip(points[index], given, strict=True) if label == name]
            axis.scatter([x for x, _ in members], [y for _, y in members], s=12, alpha=0.75, label=name)
        layer, separability = layers[index].layer, layers[index].separability
        auroc = "" if separability is None or separability.auroc is None else f", AUROC {separability.auroc:.2f}"
        axis.set_title(("input embeddings" if layer is None else f"layer {layer}") + auroc, fontsize=9)
        axis.set(xticks=[], yticks=[])
    if labels:
        axes[0].legend(fontsize=8)
    figure.savefig(out, dpi=150)


@with_client
def card(
    client: Client, name: VectorName, out: Annotated[Path, Option(help="File to write.")] = Path("card.html")
) -> None:
    """Write the quality card of a vector as one HTML page."""
    vector = client.get_vector(name)
    out.write_text(page(vector.id, card_html(vector)), encoding="utf-8")
    console.print(shown(f"wrote {out}"))
