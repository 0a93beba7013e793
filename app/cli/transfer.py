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
from steering.schemas.extraction import EffectAnswer, TransferAnswer


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
    effect: Annotated[bool, typer.Option("--effect", help="Measure how far it steers, too.")] = False,
    native: Annotated[
        str | None,
        typer.Option(help="With --effect: a vector of the loaded model to compare with; default: that of the pairs."),
    ] = None,
    prompts: Annotated[int, typer.Option(help="With --effect: neutral prompts that are answered.")] = 12,
    dose: Annotated[float, typer.Option(help="With --effect: relative dose of each vector.")] = 0.15,
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
    if effect:
        options["effect"] = {
            "prompts": prompts,
            "relative_dose": dose,
            **({} if native is None else {"native": native}),
        }
    given = {field: value for field, value in options.items() if value is not None}
    with client_of(url, key) as client:
        started = client.start_transfer(name, seed=seed, description=description, **given)
        found = TransferAnswer.model_validate(follow(client, started))
    if as_json:
        print_json(found.model_dump(mode="json"))
        return
    _show(found)


def _show(found: TransferAnswer) -> None:
    effect = found.effect
    columns = ["AUROC on held-out pairs", *([] if effect is None else ["shift of the answers"])]
    table = Table("direction", *columns, title=f"{found.from_model} to {found.vector.model}")
    for name, one in found.auroc.items():
        cells = ["not measured" if one is None else estimate_text(one, ".2f")]
        if effect is not None:
            cells.append(_shift(effect, name))
        table.add_row(name, *cells)
    console.print(table)
    for warning in found.warnings:
        console.print(shown(f"warning: {warning}", "yellow"))
    if effect is not None:
        compared = effect.native or "fitted to the pairs"
        console.print(
            shown(
                f"shift: {effect.prompts} neutral prompts, {effect.max_tokens} tokens, relative dose {effect.relative_dose:g}; "
                f"native: {compared}"
            )
        )
    console.print(
        shown(
            f"{found.vector.id}: layer {found.from_layer} to layer {found.to_layer}; {found.anchors} anchors, "
            f"{found.explained:.0%} of their variance explained; cosine with the native direction {found.cosine:.2f}"
        )
    )


def _shift(effect: EffectAnswer, name: str) -> str:
    """Describes the shift of one kind of direction; empty for the one of the second model, which steers no answer."""
    if name not in effect.shift:
        return ""
    one = effect.shift[name]
    return "numbers out of range" if one is None else estimate_text(one)
