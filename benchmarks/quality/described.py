"""`python -m benchmarks.quality.described`: measures the cards of the concepts in words on a model, and how far they move its text.

A run measures concepts until its time is over, adds each to the file as it comes, and leaves out those that the file
has of the same model, data and settings.
"""

import argparse
import asyncio
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.contenders.open_engine import opened, until_compiled
from benchmarks.contenders.registry import run_as_served
from benchmarks.quality.concepts import digest, neutral_prompts, strengths_of
from benchmarks.quality.recording import SEED, file_of, items_of, known_of, write_items, write_results
from steering.concepts import ConceptEntry
from steering.concepts.described import described
from steering.concepts.loader import load_evaluation_prompts, load_neutral
from steering.engine.api import Engine, SamplingParams
from steering.lab.evaluations import DoseResponseRequest, dose_response
from steering.model.embedded import EMBEDDED_MODEL
from steering.workflows.describe import INSTRUCTION, Description, describe
from steering.workflows.extract import ExtractionRequest, extract, tried_layers
from steering.workflows.texts import as_prompts

RESULTS = Path(__file__).parent.parent / "results" / "described.json"
DOSE = 0.13
"""Relative dose at which text is steered, up and down."""
EVALUATED = "sentiment"
"""Whose evaluation prompts are answered."""
PROMPTS = 24
"""Prompts that are answered steered and not; they are none of those that the pairs were written to."""
WRITING = SamplingParams(max_tokens=48, temperature=0.7, seed=SEED)
"""Of the answers that become pairs, to every second neutral prompt: half of what the server does, in shorter answers."""
SAMPLING = SamplingParams(max_tokens=24, temperature=0.7, seed=SEED)


async def card(engine: Engine, name: str, entry: ConceptEntry, items: Path) -> dict[str, Any]:
    """Returns the card of the recommended layer, and what a dose of DOSE up and down does there to answers, beside random directions.
    Writes the score of every answer to the folder `items`."""
    written = await describe(engine, Description.of(name, entry), prompts=load_neutral()[::2], sampling=WRITING)
    layers = tried_layers(engine.info.layer_count)
    vector = await extract(engine, ExtractionRequest(name, written.pairs, layers=layers, position="response_mean"))
    (layer,) = vector.recommended_layers()
    assert vector.quality is not None
    quality = vector.quality.layers[layer]
    (strength,) = strengths_of(engine, vector, (DOSE,))
    request = DoseResponseRequest(
        vector,
        prompts=as_prompts(engine, load_evaluation_prompts(EVALUATED)[:PROMPTS]),
        neutral=neutral_prompts(engine, 1),
        strengths=(-strength, strength),
        sampling=SAMPLING,
    )
    found = await dose_response(engine, request)
    write_items("described", name, found.scores, items)
    points = {point.strength: point for point in found.points}
    return {
        "kind": entry.kind,
        "layer": layer,
        "pairs": len(written.pairs),
        "dropped": dict(written.dropped),
        "auroc": vector.quality.auroc,
        "interval": vector.quality.auroc_interval,
        "separation": quality.separation,
        "share": vector.at(layer).scale / engine.info.typical_norms[layer],
        "strength": strength,
        "random_directions": request.random_directions,
        "down": asdict(points[-strength]),
        "up": asdict(points[strength]),
        "holds": [found.recommended.negative is not None, found.recommended.strength is not None],
    }


async def measure(path: Path, names: Sequence[str], model: str, seconds: float) -> None:
    """Measures until the time is over."""
    began = time.monotonic()
    async with opened(model, compiled=True) as (engine,):
        await until_compiled(engine)
        poles = [(name, asdict(entry)) for name, entry in described().items()]
        about = {
            "model": engine.info.name,
            "dtype": engine.info.dtype,
            "dose": DOSE,
            "prompts": PROMPTS,
            "instruction": INSTRUCTION,
            "seed": SEED,
            "data": digest([poles, load_neutral(), load_evaluation_prompts(EVALUATED)]),
        }
        for name in names:
            known = known_of(path, about, "concepts")
            if name in known or time.monotonic() - began > seconds:
                continue
            at = time.monotonic()
            concepts = known | {name: await card(engine, name, described()[name], items_of(engine))}
            write_results(path, about | {"date": datetime.now(UTC).date().isoformat(), "concepts": concepts})
            print(f"{name}: {time.monotonic() - at:.0f} s", flush=True)


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality.described", description=__doc__)
    parser.add_argument("--model", default=EMBEDDED_MODEL)
    parser.add_argument("--output", type=Path, help="results are added to this file as they come")
    parser.add_argument("--concepts", nargs="+", choices=list(described()), default=list(described()), metavar="NAME")
    parser.add_argument("--seconds", type=float, default=3600.0, help="no concept is begun after so long")
    chosen = parser.parse_args()
    path = chosen.output or file_of(chosen.model, RESULTS)
    asyncio.run(measure(path, chosen.concepts, chosen.model, chosen.seconds))


if __name__ == "__main__":
    run_as_served("benchmarks.quality.described")
    main()
