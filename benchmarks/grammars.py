"""`python -m benchmarks.grammars`: what a JSON schema costs a decode step, where every row has one: plain and with top_p.

Each way is measured in turns with the same rows without a schema, whose answers are as long. Run it on an idle machine.
"""

import argparse
import asyncio
import json
import time
from statistics import median

from benchmarks.contenders.open_engine import open_endless, until_compiled
from benchmarks.contenders.registry import run_as_served
from benchmarks.machine import describe
from benchmarks.stream_timing import stream_metrics
from steering.engine.api import Engine, GenerationRequest, SamplingParams
from steering.engine.capabilities import check_grammar
from steering.model.embedded import embedded_gguf
from steering.pairs import ChatMessage
from steering.schemas.structured import Grammar

_PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 2, "maxLength": 40},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "mood": {"enum": ["calm", "cheerful", "sad", "angry"]},
        "likes": {"type": "array", "items": {"type": "string", "maxLength": 30}, "minItems": 1, "maxItems": 3},
    },
    "required": ["name", "age", "mood", "likes"],
    "additionalProperties": False,
}
SCHEMA = {"type": "array", "items": _PERSON, "minItems": 12, "maxItems": 12}
"""Its shortest answer has more tokens than are generated."""
TOWNS = [
    "Bern",
    "Oslo",
    "Lima",
    "Rome",
    "Kyoto",
    "Quito",
    "Paris",
    "Cairo",
    "Delhi",
    "Seoul",
    "Dakar",
    "Turin",
    "Malmo",
    "Split",
    "Porto",
    "Leeds",
]


async def step_seconds(
    engine: Engine, rows: int, tokens: int, grammar: Grammar | None, top_p: float, seed: int
) -> float:
    """Returns the seconds of a decode step of all rows together. Each row has its own prompt and seed."""

    async def answer(row: int) -> list[float]:
        question = f"Describe the people who live in house {seed * rows + row} of a street in {TOWNS[row % len(TOWNS)]}, as JSON."
        prompt = engine.tokenizer.encode((ChatMessage("user", question),))
        sampling = SamplingParams(max_tokens=tokens, temperature=0.7, top_p=top_p, seed=row, grammar=grammar)
        request = GenerationRequest(prompt, sampling)
        return [time.perf_counter() async for event in engine.generate(request) if event.finish is None]

    began = time.perf_counter()
    return rows / float(stream_metrics(began, await asyncio.gather(*map(answer, range(rows))))["decode_per_second"])


async def measured(engine: Engine, rows: int, tokens: int, rounds: int) -> dict[str, dict[str, float]]:
    """Returns, by way, the medians over rounds in milliseconds a step, and of the ratios of single rounds."""
    grammar = Grammar("json_schema", json.dumps(SCHEMA))
    await check_grammar(engine, grammar)
    await until_compiled(engine)
    found: dict[str, dict[str, float]] = {}
    for name, top_p in (("plain", 1.0), ("top_p 0.9", 0.9)):
        times: dict[bool, list[float]] = {False: [], True: []}
        for number in range(rounds + 1):
            for held in (False, True) if number % 2 else (True, False):
                seconds = await step_seconds(engine, rows, tokens, grammar if held else None, top_p, number)
                times[held] += [seconds] * (number > 0)  # the first round warms up
        ratios = [with_schema / without for with_schema, without in zip(times[True], times[False], strict=True)]
        found[name] = {
            "free_ms": round(1e3 * median(times[False]), 2),
            "schema_ms": round(1e3 * median(times[True]), 2),
            "ratio": round(median(ratios), 4),
            "lowest_ratio": round(min(ratios), 4),
            "highest_ratio": round(max(ratios), 4),
        }
    return found


async def main() -> None:
    """Prints the machine and the cost of each way."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.grammars", description=__doc__)
    for name, default in (("--rows", 32), ("--tokens", 64), ("--rounds", 7)):
        parser.add_argument(name, type=int, default=default)
    chosen = parser.parse_args()
    engine = open_endless(str(embedded_gguf()), "cpu")
    try:
        print(json.dumps(describe()))
        for name, numbers in (await measured(engine, chosen.rows, chosen.tokens, chosen.rounds)).items():
            print(name, json.dumps(numbers))
    finally:
        await engine.close()


if __name__ == "__main__":
    run_as_served("benchmarks.grammars")
    asyncio.run(main())
