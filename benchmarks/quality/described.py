"""`python -m benchmarks.quality.described`: measures the cards of the concepts in words on a model, and how far they move its text.

A run measures concepts until its time is over, adds each to the file as it comes, and leaves out those that the file has.
"""

import argparse
import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.contenders.open_engine import opened
from benchmarks.contenders.registry import run_as_served
from benchmarks.quality.recording import read_results, write_results
from steering.concepts import ConceptEntry
from steering.concepts.described import described
from steering.concepts.loader import load_evaluation_prompts, load_neutral
from steering.engine.api import Engine, SamplingParams
from steering.lab.controls import planned
from steering.model.embedded import EMBEDDED_MODEL
from steering.spec import InterventionSpec
from steering.vectors import ConceptVector
from steering.workflows.describe import INSTRUCTION, Description, describe
from steering.workflows.extract import ExtractionRequest, extract, tried_layers
from steering.workflows.generate import background, seeded
from steering.workflows.measures import estimate
from steering.workflows.readout import read_texts, reading_at
from steering.workflows.texts import as_prompts

RESULTS = Path(__file__).parent.parent / "results" / "described.json"
DOSE = 0.13
"""Relative dose at which text is steered, up and down."""
PROMPTS = 12
"""Prompts that are answered steered and not; they are none of those that the pairs were written to."""
WRITING = SamplingParams(max_tokens=48, temperature=0.7)
"""Of the answers that become pairs, to every second neutral prompt: half of what the server does, in shorter answers."""
SAMPLING = SamplingParams(max_tokens=24, temperature=0.7, seed=0)


async def card(engine: Engine, name: str, entry: ConceptEntry) -> dict[str, Any]:
    """Returns the card of the recommended layer, and the shift of answers at DOSE up and down, in natural scales."""
    written = await describe(engine, Description.of(name, entry), prompts=load_neutral()[::2], sampling=WRITING)
    layers = tried_layers(engine.info.layer_count)
    vector = await extract(engine, ExtractionRequest(name, written.pairs, layers=layers, position="response_mean"))
    (layer,) = vector.recommended_layers()
    assert vector.quality is not None
    quality = vector.quality.layers[layer]
    return {
        "kind": entry.kind,
        "layer": layer,
        "pairs": len(written.pairs),
        "dropped": dict(written.dropped),
        "auroc": vector.quality.auroc,
        "interval": vector.quality.auroc_interval,
        "separation": quality.separation,
        "share": vector.at(layer).scale / engine.info.typical_norms[layer],
        **await _shifts(engine, vector, layer),
    }


async def _shifts(engine: Engine, vector: ConceptVector, layer: int) -> dict[str, Any]:
    prompts = as_prompts(engine, load_evaluation_prompts("sentiment")[:PROMPTS])
    strength = DOSE * engine.info.typical_norms[layer] / vector.at(layer).scale
    reading = reading_at("own", vector, (layer,))
    scores: dict[float, list[float]] = {}
    for signed in (0.0, strength, -strength):
        items = (InterventionSpec(vector=vector.name, strength=signed, layers=(layer,)),) if signed else ()
        plan = await planned(engine.info, vector, *items)
        answers = await background(engine, [replace(one, plan=plan) for one in seeded(prompts, SAMPLING)])
        read = await read_texts(engine, [one.text.strip() or "." for one in answers], (reading,))
        scores[signed] = [one["own"] for one in read]
    changed = {
        name: estimate([after - before for after, before in zip(scores[signed], scores[0.0], strict=True)])
        for name, signed in (("up", strength), ("down", -strength))
    }
    return {
        "strength": round(strength, 2),
        **{name: {"mean": found.mean, "interval": found.interval} for name, found in changed.items()},
    }


async def measure(path: Path, names: Sequence[str], model: str, seconds: float) -> None:
    """Measures until the time is over."""
    began = time.monotonic()
    async with opened(model) as (engine,):
        about = {
            "model": engine.info.name,
            "dtype": engine.info.dtype,
            "dose": DOSE,
            "prompts": PROMPTS,
            "instruction": INSTRUCTION,
        }
        for name in names:
            known = read_results(path).get("concepts", {})
            if name in known or time.monotonic() - began > seconds:
                continue
            at = time.monotonic()
            concepts = known | {name: await card(engine, name, described()[name])}
            write_results(path, about | {"date": datetime.now(UTC).date().isoformat(), "concepts": concepts})
            print(f"{name}: {time.monotonic() - at:.0f} s", flush=True)


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality.described", description=__doc__)
    parser.add_argument("--model", default=EMBEDDED_MODEL)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--concepts", nargs="+", choices=list(described()), default=list(described()), metavar="NAME")
    parser.add_argument("--seconds", type=float, default=3600.0, help="no concept is begun after so long")
    chosen = parser.parse_args()
    asyncio.run(measure(chosen.output, chosen.concepts, chosen.model, chosen.seconds))


if __name__ == "__main__":
    run_as_served("benchmarks.quality.described")
    main()
