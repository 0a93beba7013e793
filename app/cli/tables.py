"""Answers of the server as tables for a terminal. Every text of a model is made safe first."""

from rich.table import Table
from rich.text import Text

from app.cli.terminal import shown
from steering.schemas.comparison import ArmAnswer, CompareAnswer
from steering.schemas.steering import AppliedSteering
from steering.schemas.vectors import VectorAnswer


def comparison_table(answer: CompareAnswer, title: str) -> Table:
    """One row a sample and arm: what it wrote, its readouts, and how far it is from the unsteered model."""
    names = list(dict.fromkeys(name for arm in answer.arms if arm.metrics for name in arm.metrics.readout))
    table = Table(title=shown(title, "bold"), title_justify="left", show_lines=True)
    table.add_column("arm", no_wrap=True)
    table.add_column("answer", ratio=1, overflow="fold")
    for heading in [*names, "KL", "differs at", "perplexity"]:
        table.add_column(heading, justify="right")
    for arm in answer.arms:
        if arm.error is not None:
            table.add_row(shown(arm.name), shown(arm.error.message, "red"))
            continue
        for index, choice in enumerate(arm.choices):
            label = shown(arm.name if index == 0 else "")
            table.add_row(label, shown(choice.text.strip()), *_figures(arm, names, index))
    return table


def _figures(arm: ArmAnswer, names: list[str], index: int) -> list[str]:
    """What stands beside sample `index`; figures over all samples stand beside the first."""
    metrics, against = arm.metrics, arm.against_baseline
    readouts, kl, perplexity = [""] * len(names), "", ""
    if index == 0 and metrics is not None:
        readouts = [f"{metrics.readout[name].mean:+.2f}" if name in metrics.readout else "" for name in names]
        perplexity = "" if metrics.perplexity is None else f"{metrics.perplexity:.1f}"
    if index == 0 and against is not None and against.kl_mean is not None:
        kl = f"{against.kl_mean:.2f}"
    return [*readouts, kl, _divergence(arm, index), perplexity]


def _divergence(arm: ArmAnswer, index: int) -> str:
    if arm.against_baseline is None or index >= len(arm.against_baseline.first_divergence):
        return ""
    first = arm.against_baseline.first_divergence[index]
    return "never" if first is None else f"token {first}"


def applied_lines(steering: AppliedSteering) -> list[Text]:
    """What was really done, a line for each intervention, then the warnings."""
    lines = []
    for one in steering.applied:
        doses = ", ".join(f"{dose:.2f} at layer {layer}" for layer, dose in one.relative_dose.items())
        fired = "" if one.fired else "; its condition never held"
        lines.append(
            shown(f"{one.operation} {one.vector} at {one.strength:+g} {one.unit}: relative dose {doses}{fired}")
        )
    return lines + [shown(warning, "yellow") for warning in steering.warnings]


def card_lines(vector: VectorAnswer) -> list[Text]:
    """A vector in short: where to steer with it, how well it reads what it was not made from, and what to beware of."""
    recommended = vector.recommended
    low, high = recommended.strength
    layers = ", ".join(map(str, recommended.layers))
    lines = [
        Text.assemble((vector.id, "bold"), f"  {vector.method}, {len(vector.layers)} layers of {vector.model}"),
        Text(f"recommended: layer {layers}, strength {low:g} to {high:g}"),
    ]
    card = vector.quality
    if card is None:
        return [*lines, Text("no quality card: it was not made from examples")]
    for layer in recommended.layers:
        quality = card.layers.get(str(layer))
        if quality is not None and quality.auroc is not None:
            interval = quality.auroc_interval
            between = f" (95 % interval {interval[0]:.2f} to {interval[1]:.2f})" if interval else ""
            against = "" if quality.random_auroc is None else f"; random directions {quality.random_auroc:.2f}"
            lines.append(
                Text(
                    f"layer {layer}: held-out AUROC {quality.auroc:.2f}{between} on {card.holdout} of "
                    f"{card.pairs} pairs{against}"
                )
            )
    return lines + [shown(f"warning: {warning}", "yellow") for warning in card.warnings]


def card_table(vector: VectorAnswer) -> Table:
    """The card layer by layer."""
    table = Table(title="by layer", title_justify="left")
    for heading in ("layer", "scale", "AUROC", "interval", "separation", "pairs agree", "random AUROC"):
        table.add_column(heading, justify="right")
    for layer, scale in vector.scale.items():
        quality = vector.quality.layers.get(layer) if vector.quality else None
        interval = quality.auroc_interval if quality else None
        style = "bold" if int(layer) in vector.recommended.layers else ""
        table.add_row(
            layer,
            f"{scale:.2f}",
            _figure(quality.auroc if quality else None),
            f"{interval[0]:.2f} to {interval[1]:.2f}" if interval else "",
            _figure(quality.separation if quality else None),
            _figure(quality.pair_agreement if quality else None),
            _figure(quality.random_auroc if quality else None),
            style=style,
        )
    return table


def vectors_table(vectors: list[VectorAnswer]) -> Table:
    """A list of vectors."""
    table = Table()
    for heading in ("vector", "method", "recommended", "AUROC", "description"):
        table.add_column(heading)
    for vector in vectors:
        layers = vector.recommended.layers
        card = vector.quality.layers.get(str(layers[0])) if vector.quality and layers else None
        table.add_row(
            shown(vector.id),
            shown(vector.method),
            f"layer {', '.join(map(str, layers))}",
            _figure(card.auroc if card else None),
            shown(vector.description),
        )
    return table


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
