"""`steer map` and `steer card`: writes maps of texts and quality cards to files."""

import csv
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import BadParameter, Option

from app.cli.input.conversion import layers_of, position_of, text_of
from app.cli.options import ListedLayers, VectorName, file_argument
from app.cli.output.terminal import Connect, Output, console, shown, with_client, with_connection
from steering.client import Client
from steering.client.display import aligned, card_html, page
from steering.errors import InvalidRequest

if TYPE_CHECKING:
    from steering.client.results import LatentMap

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
    texts, labels = read_texts(file)
    options: dict[str, Any] = {"layers": layers_of(layers), "position": position_of(position), "labels": labels or None}
    if out.suffix not in (".html", ".png"):
        raise BadParameter(f"expected a file ending in .html or .png, got {out.name}", param_hint="--out")
    found = connect().latent_space(texts, method=method, embeddings=True, **options)
    yield found
    if out.suffix == ".html":
        out.write_text(found.page(texts, labels), encoding="utf-8")
    else:
        write_png(out, found, labels)
    for warning in found.warnings:
        yield shown(warning, "yellow")
    yield shown(f"wrote {out}")


def read_texts(file: Path) -> tuple[list[str], list[str] | None]:
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
