"""Measures the saved answers of the playground's first page on a model, and writes app/web/src/compare/gallery/NAME.json.

Usage: `python -m tools.gallery --model MODEL --second OTHER`, minutes for each prompt on a CPU; OTHER tells the ends apart, as for
`python -m benchmarks.quality`. A call goes on after the prompts that the file names as tried; `--items` bounds how many it tries.
For each concept and prompt it steers at the stops of the dial over the range of the vector's card, with the same seeds at each
stop. A side of a prompt's dial is kept where its end moves what the answers say in the intended direction, with an interval over
the seeds that excludes no effect, and leaves them readable (perplexity, and no loops), and does so again with other seeds. A prompt is kept where it has a side,
and the second model tells the ends of what is kept apart in at least 8 of 10 answers. The answers that are saved are those of the seed whose readings follow the dial
best, among those without parts of characters or loops; the numbers are of all seeds. `tried` says of each prompt what came of it.
"""

import argparse
import asyncio
import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from math import exp, log, sqrt
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, TypeAlias

from app.cli.local import local_client
from app.cli.terminal import settings_of
from steering.client import Client
from steering.concepts.loader import load_concept
from steering.concepts.measured import DISTINGUISHED
from steering.engine import open_engine
from steering.engine.options import EngineLimits, EngineOptions
from steering.lab.report import other_model_scorer
from steering.model.embedded import EMBEDDED_MODEL

GALLERY = Path(__file__).resolve().parent.parent / "app" / "web" / "src" / "compare" / "gallery"
SHARES = (-1.0, -0.7, -0.4, 0.0, 0.4, 0.7, 1.0)
"""The stops of the dial as shares of the measured ends, as in app/web/src/maths/strength.ts."""
SAMPLES, PAIRS = 16, 10
MAX_TOKENS, TEMPERATURE = 28, 0.7
READABLE = 1.5
"""The largest ratio of perplexities, steered to plain, that an end of the dial may have."""
LOOPING = 1 / 8
"""The largest share of answers at an end of the dial that may say three words three times: a low perplexity does not show that."""
PROMPTS = (
    ("sentiment", "How is your new apartment?"),
    ("toxicity", "Why is my train late again?"),
    ("sentiment", "Tell me about your weekend."),
    ("formality", "Tell your friend that you are late."),
    ("toxicity", "Where is the train station?"),
    ("sentiment", "How was the concert?"),
    ("formality", "How was the party?"),
    ("refusal", "How do I bake bread?"),
)
"""Tried on every model, unless the concept has no measured range there."""
MORE = {
    "qwen2.5-coder-0.5b": (
        ("formality", "Ask your neighbour to turn the music down."),
        ("refusal", "Tell me a story about a dragon."),
        ("formality", "Invite a colleague to lunch."),
        ("refusal", "What should I cook tonight?"),
        ("refusal", "How do I repair a flat tyre?"),
        ("refusal", "How do I plant tomatoes?"),
        ("formality", "Tell me about your weekend."),
        ("refusal", "Explain how a bicycle works."),
        ("formality", "Tell me about your dog."),
        ("refusal", "How do I make coffee?"),
        ("formality", "Describe your favourite meal."),
        ("refusal", "Write a short poem about rain."),
        ("formality", "What do you think of the new office?"),
    )
}
"""Tried on some models too, by name."""
PLAIN = {"strength": 0.0}
PASSED = "passed"
Json: TypeAlias = dict[str, Any]
Runs: TypeAlias = Sequence[dict[float, Json]]
"""For each seed the answer at each strength."""


def parsed() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.gallery", description=__doc__)
    parser.add_argument("--model", default=EMBEDDED_MODEL, help="the model that answers: a name, folder or .gguf file")
    parser.add_argument(
        "--second", required=True, help="the model that tells the ends apart: a name, folder or .gguf file"
    )
    parser.add_argument(
        "--samples", type=int, default=SAMPLES, help="answers at each stop; fewer only show that it runs"
    )
    parser.add_argument("--items", type=int, help="how many prompts this call tries at most; all without it")
    parser.add_argument("--output", type=Path, help="the file; by default that of the model")
    return parser.parse_args()


def main() -> None:
    """Measures every candidate that was not tried before, and writes those that pass."""
    chosen = parsed()
    with (
        tempfile.TemporaryDirectory() as folder,
        local_client(database=f"sqlite:///{folder}/steering.sqlite3", model=chosen.model) as client,
    ):
        model = client.capabilities().model.name
        output = chosen.output or GALLERY / f"{model}.json"
        page: Json = {"model": model, "date": f"{datetime.now(UTC):%Y-%m-%d}", "samples": chosen.samples}
        before: Json = json.loads(output.read_text(encoding="utf-8")) if output.exists() else {}
        same = "tried" in before and all(before[key] == page[key] for key in ("model", "samples"))
        page |= {key: before[key] if same else [] for key in ("tried", "items")}
        known = {(one["vector"], one["prompt"]) for one in page["tried"]}
        left = [one for one in (*PROMPTS, *MORE.get(model, ())) if one not in known]
        for concept, prompt in left[: chosen.items]:
            found = measured(client, concept, prompt, chosen)
            result = found if isinstance(found, str) else PASSED
            page["tried"].append({"vector": concept, "prompt": prompt, "result": result})
            if not isinstance(found, str):
                page["items"] = sorted([*page["items"], found], key=reach, reverse=True)
            text = json.dumps(page, indent=1, ensure_ascii=False) + "\n"
            output.write_text(text, encoding="utf-8")  # after each: it takes minutes
            print(page["tried"][-1], flush=True)
    print(f"{len(page['items'])} of {len(page['tried'])} in {output}")


def reach(item: Json) -> tuple[int, float]:
    """Sorts dials with both sides first, and then by how far their ends moved other seeds."""
    return len(item["stops"]), sum(abs(stop["shift"][0]) for stop in item["again"])


def measured(client: Client, concept: str, prompt: str, chosen: argparse.Namespace) -> Json | str:
    """Returns the item of a prompt, or why it does not pass."""
    strengths = strengths_of(client, concept)
    ends = [min(strengths), max(strengths)]
    if ends == [0.0, 0.0]:
        return "its card has no measured range"
    runs = answers(client, concept, prompt, strengths, range(1, chosen.samples + 1))
    stops = [stop_of(strength, concept, runs) for strength in strengths]
    print(concept, prompt, stops, flush=True)
    kept = [stop["strength"] for stop in (stops[0], stops[-1]) if stop["strength"] and passes(stop)]
    other = range(chosen.samples + 1, 2 * chosen.samples + 1)
    if not kept:
        return "no end of its dial passes"
    repeated = answers(client, concept, prompt, sorted({*kept, 0.0}), other)
    again = [stop for end in kept if passes(stop := stop_of(end, concept, repeated))]
    if not again:
        return "no end passes again with other seeds"
    low, high = (end(stop["strength"] for stop in [*again, PLAIN]) for end in (min, max))
    pairs = [tuple(text_of(run[end]) for end in (low, high)) for run in repeated[:PAIRS]]
    apart = asyncio.run(told_apart(chosen.second, concept, prompt, pairs))
    print(concept, prompt, again, f"told apart: {apart} of {len(pairs)}", flush=True)
    if apart < DISTINGUISHED * len(pairs):
        return f"told apart in {apart} of {len(pairs)}"
    stops = [stop for stop in stops if low <= stop["strength"] <= high]
    shown = [stop["strength"] for stop in stops]
    whole = [run for run in runs if all(is_whole(text_of(run[strength])) for strength in shown)]
    if not whole:
        return "no seed without loops or parts of characters"
    best = max(whole, key=lambda run: order_of([score_of(run[strength], concept) for strength in shown]))
    for stop in stops:
        stop["words"] = words_of(client, concept, text_of(best[stop["strength"]]))
    known = client.get_concept(concept)
    poles = {"positive": known.positive, "negative": known.negative}
    evidence = {"again": again, "apart": {"pairs": len(pairs), "second": apart}}
    return {
        "vector": concept,
        "poles": poles,
        "prompt": prompt,
        "seed": runs.index(best) + 1,
        "stops": stops,
        **evidence,
    }


def answers(client: Client, concept: str, prompt: str, strengths: Sequence[float], seeds: Sequence[int]) -> Runs:
    """Answers a prompt at each strength, once for each seed."""
    arms = [
        {"name": str(strength), "steering": [{"vector": concept, "strength": strength}] if strength else []}
        for strength in strengths
    ]

    def compare(seed: int) -> dict[float, Json]:
        answer = client.compare(
            messages=[{"role": "user", "content": prompt}],
            arms=arms,
            baseline=str(0.0),
            readout=[concept],
            seed=seed,
            max_tokens=MAX_TOKENS,
            temperature=TEMPERATURE,
        ).model_dump()
        return {float(arm["name"]): arm for arm in answer["arms"]}

    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(compare, seeds))


async def told_apart(second: str, concept: str, prompt: str, pairs: Sequence[tuple[str, ...]]) -> int:
    """Counts the pairs of answers, at the lower and the upper end, of which the second model gives the upper one the higher
    score along the direction that it finds in the pairs of the concept."""
    options = EngineOptions(
        second, settings_of({}).cache_dir, compiled=False, limits=EngineLimits(cache_bytes=256 << 20)
    )
    engine = open_engine("transformers", options)
    try:
        scorer = await other_model_scorer(engine, concept, load_concept(concept))
        scores = await scorer.score(
            [prompt] * 2 * len(pairs), [text for side in zip(*pairs, strict=True) for text in side]
        )
    finally:
        await engine.close()
    return sum(low < high for low, high in zip(scores[: len(pairs)], scores[len(pairs) :], strict=True))


def strengths_of(client: Client, concept: str) -> list[float]:
    """Makes the vector unless it is there, and returns the stops on the sides that its card shows to steer, and 0."""
    if concept not in {vector.name for vector in client.list_vectors().data}:
        client.extract_vector(concept, concept=concept)
    recommended = client.get_vector(concept).model_dump()["recommended"]
    ends = {1: recommended["strength"], -1: recommended["negative"]} if recommended["basis"] == "measured" else {}
    sides = {sign: max(map(abs, end)) for sign, end in ends.items() if end is not None}
    signs = {share: (share > 0) - (share < 0) for share in SHARES}
    return [round(share * sides.get(sign, 0.0), 2) for share, sign in signs.items() if sign == 0 or sign in sides]


def text_of(arm: Json) -> str:
    """The text of an answer."""
    return str(arm["choices"][0]["text"])


def loops(text: str) -> bool:
    """Whether a text says some three words three times."""
    words = text.split()
    return max(Counter(zip(words, words[1:], words[2:], strict=False)).values(), default=0) >= 3


def is_whole(text: str) -> bool:
    """Whether a text has neither parts of characters nor loops."""
    return "\ufffd" not in text and not loops(text)


def score_of(arm: Json, concept: str) -> float:
    """What an answer says about a concept, read by the unsteered model; 0 for one without words."""
    return float(arm["metrics"]["readout"][concept]["mean"] or 0.0)


def stop_of(strength: float, concept: str, runs: Runs) -> Json:
    """How far a strength moves what is said from the plain answer to the same seed: the mean, and half of its interval."""
    shifts = [score_of(run[strength], concept) - score_of(run[0.0], concept) for run in runs]
    perplexities = [[run[key]["metrics"]["perplexity"] for key in (strength, 0.0)] for run in runs]
    ratios = [log(own / plain) for own, plain in perplexities if own and plain]  # an answer without words has none
    shift = [round(fmean(shifts), 2), round(1.96 * stdev(shifts) / sqrt(len(shifts)), 2)]
    looping = sum(loops(text_of(run[strength])) for run in runs) / len(runs)
    ratio = round(exp(fmean(ratios)), 2)
    return {"strength": strength, "shift": shift, "perplexity_ratio": ratio, "looping": round(looping, 2)}


def passes(stop: Json) -> bool:
    """Whether an end of the dial moves the answers its way beyond its interval, and leaves them readable."""
    mean, half = stop["shift"]
    readable = stop["perplexity_ratio"] <= READABLE and stop.get("looping", 0.0) <= LOOPING  # older items have none
    return bool(mean * stop["strength"] / abs(stop["strength"]) > half and readable)


def order_of(scores: Sequence[float]) -> float:
    """How well scores rise from stop to stop: the share of pairs in order, and for equal ones the distance of the ends."""
    pairs = [(first, second) for index, first in enumerate(scores) for second in scores[index + 1 :]]
    return fmean(float(first < second) for first, second in pairs) + 0.1 * min(1.0, scores[-1] - scores[0])


def words_of(client: Client, concept: str, text: str) -> list[list[str | float]]:
    """The pieces of a text, each with what it says about the concept."""
    read = client.readout([text], vectors=[concept]).model_dump()["texts"][0]
    layers = list(read["readout"][concept].values())
    scores = layers[len(layers) // 2]["scores"]
    scored = zip(read["tokens"], [None, *scores[1:]], strict=True)  # the first token of a model belongs to no word
    return [[token["text"], round(score or 0.0, 1)] for token, score in scored]


if __name__ == "__main__":
    main()
