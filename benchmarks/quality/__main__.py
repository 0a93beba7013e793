"""`python -m benchmarks.quality`: measures what steering does to the text of the embedded model."""

import argparse
import asyncio
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.contenders.open_engine import cache_dir, until_compiled
from benchmarks.quality.cards import card
from benchmarks.quality.choosing import choice
from benchmarks.quality.concepts import CONCEPTS, FULL, QUICK, RANGES, SMALL, Profile
from benchmarks.quality.dose import measured
from benchmarks.quality.gates import METHODS, gates
from benchmarks.quality.holding import held
from benchmarks.quality.ranges import add_ranges, ranges
from benchmarks.quality.training import CONTESTED, contest
from steering.concepts import CONCEPTS as STARTERS
from steering.engine import open_engine
from steering.engine.api import Engine
from steering.engine.options import EngineOptions
from steering.model.embedded import EMBEDDED_MODEL

RESULTS = Path(__file__).parent.parent / "results" / "quality.json"
PARTS = {
    "cards": tuple(STARTERS),
    "choice": CONCEPTS,
    "dose": CONCEPTS,
    "training": CONTESTED,
    "holding": CONCEPTS,
    "gates": tuple(STARTERS),
    "ranges": tuple(STARTERS),
}


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    counts = parser.add_mutually_exclusive_group()
    counts.add_argument("--quick", action="store_true", help="tiny counts: shows that everything runs")
    counts.add_argument("--small", action="store_true", help="fewer prompts and shorter answers: for the gates")
    parser.add_argument(
        "--eager", action="store_true", help="without compiled decode steps, which take minutes to make"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=list(PARTS),
        default=[part for part in PARTS if part not in ("ranges", "gates")],
        metavar="PART",
    )
    parser.add_argument("--concepts", nargs="+", choices=list(STARTERS), default=list(STARTERS), metavar="NAME")
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, default=list(METHODS), help="of the gates", metavar="NAME"
    )
    parser.add_argument("--output", type=Path, default=RESULTS, help="figures are added to this file as they come")
    return parser.parse_args(arguments)


async def run(chosen: argparse.Namespace) -> None:
    """Measures the chosen parts of the chosen concepts. Writes the file after each, so that an interrupted run keeps its results."""
    profile = QUICK if chosen.quick else SMALL if chosen.small else FULL
    engine = open_engine("transformers", EngineOptions(EMBEDDED_MODEL, cache_dir(), compiled=not chosen.eager))
    try:
        if not chosen.eager:
            await until_compiled(engine)
        for part in chosen.only:
            for concept in chosen.concepts:
                if concept in PARTS[part] and part == "ranges":
                    add_ranges(engine, concept, await ranges(engine, concept, QUICK if chosen.quick else RANGES))
                elif concept in PARTS[part]:
                    add_result(
                        chosen.output, engine, part, concept, await one(engine, part, concept, profile, chosen.methods)
                    )
    finally:
        await engine.close()


async def one(engine: Engine, part: str, concept: str, profile: Profile, methods: Sequence[str]) -> Any:
    """Measures one part of one concept. methods: of the gates."""
    if part == "cards":
        return await card(engine, concept)
    if part == "choice":
        return await choice(engine, concept, profile)
    if part == "dose":
        return await measured(engine, concept, profile)
    if part == "gates":
        return await gates(engine, concept, profile, methods)
    if part == "holding":
        return await held(engine, concept, profile)
    return await contest(engine, concept, profile)


def add_result(path: Path, engine: Engine, part: str, concept: str, found: Any) -> None:
    """Adds one result to the file. Methods of the gates are added to those that are there."""
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    about: Mapping[str, str] = {"model": engine.info.name, "dtype": engine.info.dtype, "device": engine.info.device}
    results.update(about, date=datetime.now(UTC).date().isoformat())
    if part == "gates":
        found = {**results.get(part, {}).get(concept, {}), **found}
    results.setdefault(part, {})[concept] = found
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    asyncio.run(run(parsed()))
