"""Carries every concept from one model to the other, and measures what it reads and how far it steers, against native and random."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.quality.concepts import Profile, reporting_prompts
from benchmarks.quality.progress import progress_printer
from benchmarks.quality.recording import ITEMS, write_items
from steering.cards import Estimate
from steering.concepts.loader import load_concept
from steering.engine.api import Engine
from steering.lab.transfer import DOSE, EffectRequest, TransferRequest, default_anchors, effect, transfer
from steering.workflows.texts import default_position


async def both_ways(
    engine: Engine, second: Engine, concept: str, profile: Profile, items: Path = ITEMS
) -> list[dict[str, Any]]:
    """Carries the concept from the second model and to it. The layers of the first direction, which read the pairs best, serve both.

    items: the folder in which the scores of the answers are written.
    """
    found = await transferred(engine, second, concept, profile, items)
    from_layer, to_layer = found["layers"]
    return [found, await transferred(second, engine, concept, profile, items, layers=(to_layer, from_layer))]


async def transferred(
    target: Engine,
    source: Engine,
    concept: str,
    profile: Profile,
    items: Path,
    *,
    layers: tuple[int | None, int | None] = (None, None),
) -> dict[str, Any]:
    """Returns the AUROC of each direction on held-out pairs and the shift of the answers at one relative dose, with intervals.

    layers: where the direction is read and where it arrives; None: where the pairs are read best.
    """
    pairs = load_concept(concept)
    label = f"{concept}, {source.info.name} to {target.info.name}"
    anchors = default_anchors(pairs)
    anchors = anchors[:: max(1, len(anchors) // profile.anchors)][: profile.anchors]
    request = TransferRequest(
        concept,
        pairs,
        anchors=anchors,
        from_layer=layers[0],
        to_layer=layers[1],
        position=default_position(pairs),
    )
    found = await transfer(target, source, request, progress=progress_printer(label))
    measured = await effect(
        target,
        found,
        EffectRequest(reporting_prompts(target, concept, profile.reporting), sampling=profile.sampling),
        progress=progress_printer(f"{concept}, steering"),
    )
    write_items(f"transfer.from.{source.info.name}", concept, measured.scores, items)
    return {
        "from": source.info.name,
        "to": target.info.name,
        "layers": [found.from_layer, found.to_layer],
        "anchors": found.anchors,
        "explained": found.explained,
        "cosine": found.cosine,
        "auroc": {name: _numbers(one) for name, one in found.auroc.items()},
        "dose": DOSE,
        "prompts": profile.reporting,
        "tokens": profile.tokens,
        "shift": {name: _numbers(one) for name, one in measured.shift.items()},
        "chance": measured.chance,
    }


def _numbers(found: Estimate | None) -> dict[str, Any] | None:
    return None if found is None else asdict(found)
