"""`steer explain` and `steer clusters`: what stands out in texts, and how they group."""

from typing import Annotated, Any

import typer

from app.cli.output.tables import text_table
from app.cli.output.terminal import LOCAL, AsJson, Key, Url, client_of, console, layers_of, print_json, shown, stderr
from app.cli.texts.activations import position_of
from app.cli.texts.sources import TextFile, Texts, given_texts

SHOWN_CHARACTERS = 60


def explain(
    texts: Texts = None,
    file: TextFile = None,
    layers: Annotated[str, typer.Option(help="recommended, or 12,13.")] = "recommended",
    threshold: Annotated[float, typer.Option(help="Smallest absolute z-score that is listed.")] = 2.0,
    as_json: AsJson = False,
    url: Url = LOCAL,
    key: Key = None,
) -> None:
    """List the concepts of the library that stand out in texts against neutral text."""
    chosen = None if layers == "recommended" else layers_of(layers)
    given = given_texts(texts, file)
    with client_of(url, key) as client:
        answer = client.explain(given, layers=chosen, threshold=threshold)
    if as_json:
        print_json(answer.model_dump(mode="json"))
        return
    rows = [
        [
            _short(text),
            one.vector,
            f"{one.layer}",
            f"{one.z:+.1f}",
            " ".join(token.text.strip() for token in one.tokens),
        ]
        for text, explained in zip(given, answer.texts, strict=True)
        for one in explained.concepts
    ]
    console.print(text_table(("text", "vector", "layer", "z", "tokens"), rows) if rows else "nothing stands out")
    for warning in answer.warnings:
        stderr.print(shown(warning, "yellow"))


def clusters(  # noqa: PLR0913, PLR0917 - one option a field
    texts: Texts = None,
    file: TextFile = None,
    layer: Annotated[int | None, typer.Option(help="Layer to read; default: the middle one.")] = None,
    method: Annotated[str, typer.Option(help="kmeans or hdbscan.")] = "kmeans",
    count: Annotated[int | None, typer.Option("--clusters", help="kmeans: how many; default: by silhouette.")] = None,
    min_size: Annotated[int | None, typer.Option(help="hdbscan: size of the smallest cluster.")] = None,
    position: Annotated[str, typer.Option(help="last, mean, response_mean, or an offset from the end.")] = "mean",
    seed: Annotated[int, typer.Option(help="The same seed gives the same clusters.")] = 0,
    as_json: AsJson = False,
    url: Url = LOCAL,
    key: Key = None,
) -> None:
    """Group texts by their activations, with the vector nearest to each difference of groups."""
    options: dict[str, Any] = {"layer": layer, "clusters": count, "min_size": min_size, "seed": seed}
    with client_of(url, key) as client:
        answer = client.clusters(given_texts(texts, file), method=method, position=position_of(position), **options)
    if as_json:
        print_json(answer.model_dump(mode="json"))
        return
    rows = [
        [f"{one.index}", f"{one.size}", "\n".join(_short(example.text) for example in one.examples)]
        for one in answer.clusters
    ]
    console.print(text_table(("cluster", "texts", "examples"), rows))
    for pair in answer.pairs:
        near = "" if pair.nearest is None else f"  {pair.nearest.vector} {pair.nearest.cosine:+.2f}"
        console.print(shown(f"{pair.clusters[0]} to {pair.clusters[1]}: distance {pair.distance:.1f}{near}"))
    for warning in answer.warnings:
        stderr.print(shown(warning, "yellow"))


def _short(text: Any) -> str:
    written = text if isinstance(text, str) else str(text[-1].get("content", ""))
    return written if len(written) <= SHOWN_CHARACTERS else written[:SHOWN_CHARACTERS] + "..."
