"""`python -m benchmarks.quality`: measures what steering does to the text of a model, the embedded one if no other is named."""

import argparse
import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.contenders.open_engine import opened, until_compiled
from benchmarks.contenders.registry import run_as_served
from benchmarks.quality.blind.answers import blind
from benchmarks.quality.cards import card
from benchmarks.quality.choosing import TRIED_ON, choice
from benchmarks.quality.concepts import EVIDENCE, LARGER, QUICK, RANGES, Profile
from benchmarks.quality.dose import measured
from benchmarks.quality.holding import held
from benchmarks.quality.ranges import add_ranges, ranges
from benchmarks.quality.recording import Stopwatch, add_result, add_run, add_whole_run, file_of
from benchmarks.quality.reports.gates import gates
from benchmarks.quality.reports.methods import compared
from benchmarks.quality.training import CONTESTED, contest
from benchmarks.quality.transfer.measure import both_ways
from steering.concepts import CONCEPTS as STARTERS
from steering.engine.api import Engine
from steering.model.embedded import EMBEDDED_MODEL

RESULTS = Path(__file__).parent.parent / "results" / "quality.json"
PARTS = {
    "cards": tuple(STARTERS),
    "choice": TRIED_ON,
    "dose": tuple(STARTERS),
    "training": CONTESTED,
    "holding": tuple(STARTERS),
    "gates": tuple(STARTERS),
    "methods": tuple(STARTERS),
    "transfer": tuple(STARTERS),
    "ranges": tuple(STARTERS),
    "blind": tuple(STARTERS),
}
EVIDENCE_PARTS = tuple(part for part in PARTS if part != "ranges")
"""Parts of `make evidence`. Ranges run by name only: their result is part of the package."""
SECOND = ("transfer", "blind")
"""Parts that need a second model."""


@dataclass(frozen=True, slots=True, eq=False)
class Setup:
    """What a run measures with. second: the other model of transfers and blind pairs."""

    engine: Engine
    second: Engine | None
    profile: Profile


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny counts: shows that everything runs")
    parser.add_argument(
        "--eager", action="store_true", help="without compiled decode steps, which take minutes to make"
    )
    parser.add_argument(
        "--further", action="store_true", help="ranges of the embedded model on further prompts, as of a larger model"
    )
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(EVIDENCE_PARTS), metavar="PART")
    parser.add_argument("--concepts", nargs="+", choices=list(STARTERS), default=list(STARTERS), metavar="NAME")
    parser.add_argument("--model", default=EMBEDDED_MODEL, help="a name, folder or .gguf file")
    parser.add_argument("--second", help="second model of transfers and blind pairs: a name, folder or .gguf file")
    parser.add_argument("--output", type=Path, help="figures are added to this file as they come")
    chosen = parser.parse_args(arguments)
    chosen.output = chosen.output or file_of(chosen.model, RESULTS)
    if not chosen.second and (needing := [part for part in SECOND if part in chosen.only]):
        parser.error(f"{' and '.join(needing)} needs --second")
    return chosen


async def run(chosen: argparse.Namespace) -> None:
    """Measures the chosen parts of the chosen concepts. Writes the file after each, so that an interrupted run keeps its results."""
    watch, profile = Stopwatch(), QUICK if chosen.quick else EVIDENCE
    async with opened(chosen.model, compiled=not chosen.eager) as (engine,):
        if not chosen.eager:
            await until_compiled(engine)
        for part in chosen.only:
            await _measure_part(chosen, engine, profile, part)
        if _whole(chosen):
            add_whole_run(chosen.output, engine, watch.spent())


async def _measure_part(chosen: argparse.Namespace, engine: Engine, profile: Profile, part: str) -> None:
    """Measures all chosen concepts. The second model is open only for the parts that need it."""
    async with opened(*[chosen.second] * (part in SECOND)) as second:
        setup = Setup(engine, second[0] if second else None, profile)
        for concept in chosen.concepts:
            if concept in PARTS[part]:
                await _measure(chosen, setup, part, concept)


def _whole(chosen: argparse.Namespace) -> bool:
    """Whether a run measures what `make evidence` does."""
    default = parsed(["--second", chosen.second or "none"])
    return all(
        getattr(chosen, name) == getattr(default, name) for name in ("quick", "eager", "only", "concepts", "model")
    )


async def _measure(chosen: argparse.Namespace, setup: Setup, part: str, concept: str) -> None:
    watch, profile = Stopwatch(), setup.profile
    if part == "ranges":
        own = chosen.model == EMBEDDED_MODEL and not chosen.further
        profile = QUICK if chosen.quick else RANGES if own else LARGER
        add_ranges(setup.engine, concept, await ranges(setup.engine, concept, profile))
    else:
        add_result(chosen.output, setup.engine, part, concept, await one(setup, part, concept))
    spent = watch.spent()
    add_run(chosen.output, setup.engine, part, concept, profile, spent)
    print(f"{concept}, {part}: {spent.seconds} s, {spent.processor_seconds} s of processor time", flush=True)


async def one(setup: Setup, part: str, concept: str) -> Any:
    """Measures one part of one concept."""
    engine, profile = setup.engine, setup.profile
    if part == "cards":
        return await card(engine, concept)
    if part == "choice":
        return await choice(engine, concept, profile)
    if part == "dose":
        return await measured(engine, concept, profile)
    if part == "gates":
        return await gates(engine, concept, profile)
    if part == "methods":
        return await compared(engine, concept, profile)
    if part == "holding":
        return await held(engine, concept, profile)
    if part in SECOND:
        assert setup.second is not None, "checked when the command line is parsed"
        if part == "blind":
            return await blind(engine, setup.second, concept)
        return await both_ways(engine, setup.second, concept, profile)
    return await contest(engine, concept, profile)


if __name__ == "__main__":
    run_as_served("benchmarks.quality")
    asyncio.run(run(parsed()))
