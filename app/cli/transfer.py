"""`steer transfer`: carries a direction of the server's second model to the loaded one."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from app.cli.extract import pairs_of
from app.cli.output.job_progress import follow
from app.cli.output.tables import estimate_text
from app.cli.output.terminal import LOCAL, AsJson, Key, Url, client_of, console, print_json, shown
from app.cli.texts.sources import read_texts
from steering.schemas.transfer import TransferAnswer


def transfer(  # noqa: PLR0913, PLR0917 - one option a field
    name: Annotated[str, typer.Argument(help="Name of the new vector of the loaded model.")],
    concept: Annotated[str | None, typer.Option(help="A starter concept, such as sentiment.")] = None,
    pairs: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Pairs as for `steer extract`, JSON lines or CSV.")
    ] = None,
    anchors: Annotated[
        Path | None,
        typer.Option(
            exists=True, dir_okay=False, help="Texts that both models read, one a line or .jsonl; default: bundled."
        ),
    ] = None,
    from_layer: Annotated[int | None, typer.Option(help="Layer of the second model; default: the best.")] = None,
    to_layer: Annotated[int | None, typer.Option(help="Layer of the loaded model; default: the best.")] = None,
    seed: Annotated[int, typer.Option(help="Which topics are held out.")] = 0,
    description: Annotated[str, typer.Option(help="Description of the vector.")] = "",
    as_json: AsJson = False,
    url: Url = LOCAL,
    key: Key = None,
) -> None:
    """Carry a direction of the server's second model to the loaded one, and measure what it lost."""
    if (concept is None) == (pairs is None):
        raise typer.BadParameter("expected one of --concept and --pairs")
    options: dict[str, Any] = {"concept": concept, "from_layer": from_layer, "to_layer": to_layer}
    if pairs is not None:
        options["pairs"] = pairs_of(pairs)
    if anchors is not None:
        options["anchors"] = read_texts(anchors)
    given = {field: value for field, value in options.items() if value is not None}
    with client_of(url, key) as client:
        started = client.start_transfer(name, seed=seed, description=description, **given)
        found = TransferAnswer.model_validate(follow(client, started))
    if as_json:
        print_json(found.model_dump(mode="json"))
        return
    _show(found)


def _show(found: TransferAnswer) -> None:
    table = Table("direction", "AUROC on held-out pairs", title=f"{found.from_model} to {found.vector.model}")
    for name, one in found.auroc.items():
        table.add_row(name, "not measured" if one is None else estimate_text(one, ".2f"))
    console.print(table)
    for warning in found.warnings:
        console.print(shown(f"warning: {warning}", "yellow"))
    console.print(
        shown(
            f"{found.vector.id}: layer {found.from_layer} to layer {found.to_layer}; {found.anchors} anchors, "
            f"{found.explained:.0%} of their variance explained; cosine with the native direction {found.cosine:.2f}"
        )
    )
