"""`steer activations`: writes the residual stream of texts to a file."""

from pathlib import Path
from typing import Annotated, Any

import typer

from app.cli.output.terminal import LOCAL, Key, Url, client_of, console, layers_of, shown, steering_of
from app.cli.texts.sources import TextFile, Texts, given_texts

Position = Annotated[str, typer.Option(help="last, mean, response_mean, all, or an offset from the end.")]


def activations(  # noqa: PLR0913, PLR0917 - one option a field
    texts: Texts = None,
    file: TextFile = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")] = Path("activations.safetensors"),
    layers: Annotated[str, typer.Option(help="all, or 12,13.")] = "all",
    position: Position = "last",
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16.")] = "float32",
    steer: Annotated[
        list[str] | None,
        typer.Option("--steer", metavar="NAME=STRENGTH", help="Steer with a vector; repeatable."),
    ] = None,
    url: Url = LOCAL,
    key: Key = None,
) -> None:
    """Write the residual stream of texts, by layer, to a safetensors file."""
    options: dict[str, Any] = {
        "layers": layers_of(layers),
        "position": position_of(position),
        "steering": steering_of(steer or [], "recommended", None, None) or [],
    }
    with client_of(url, key) as client:
        content = client.activations(given_texts(texts, file), dtype=dtype, **options)
    output.write_bytes(content)
    console.print(shown(f"wrote {output}: {len(content):,} bytes"))


def position_of(text: str) -> str | int:
    """Converts a position to the API's form."""
    return int(text) if text.lstrip("-").isdigit() else text
