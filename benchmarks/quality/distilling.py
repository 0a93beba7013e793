"""`python -m benchmarks.quality.distilling`: the effect of a distilled vector beside that of its own instruction, read by another model.

For each instruction the model answers prompts that nothing was fitted on: without it, under it, and with the vector in its place
(`--model`). The answers are stored, and another model reads them (`--reader`): how much likelier it finds an answer under the instruction
than without. At strength 1 a vector changes the predictions as much as its instruction does, and at the strength of 1 nat as much as all
vectors of the field benchmark do. So nothing is chosen but the reader: the one that tells answers under the first CHOOSING instructions
from answers without best, on prompts of their own (`--choose`). A run leaves out what the file has.
"""

import argparse
import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from itertools import chain, groupby
from pathlib import Path
from statistics import fmean
from typing import Any, TypeAlias

import numpy as np

from benchmarks.contenders.open_engine import opened, until_compiled
from benchmarks.contenders.registry import run_as_served
from benchmarks.quality.concepts import digest
from benchmarks.quality.recording import read_results, write_results
from steering.auroc import auroc
from steering.concepts.described import described
from steering.concepts.loader import load_evaluation_prompts, load_instructed, load_neutral, load_report_prompts
from steering.engine.api import CapturePrompt, CaptureSpec, Engine, Prompt, SamplingParams
from steering.lab.calibration import FIRST, NEUTRAL, QUANTILE, STEPS, StrengthSearch, kl_of, neutral_answers
from steering.lab.controls import planned
from steering.lab.distil import PROMPTS, DistilRequest, distil
from steering.pairs import ChatMessage
from steering.plan.types import UNSTEERED, SteeringPlan
from steering.spec import InterventionSpec
from steering.vectors import ConceptVector
from steering.workflows.describe import INSTRUCTION, under
from steering.workflows.generate import Answer, background, seeded
from steering.workflows.measures import (
    divergences,
    estimate,
    measure_tokens,
    predicting,
    repetition,
    shared_prefix,
)
from steering.workflows.texts import as_prompts, transcript

RESULTS = Path(__file__).parent.parent / "results" / "distilling.json"
CHOSEN = (
    "pirate", "joyful", "gloomy", "angry", "friendly", "sarcastic", "dramatic", "concise", "step-by-step", "poetic",
    "storytelling", "quantitative", "emphatic", "archaic", "legal", "optimistic", "hedging", "asks-back", "sea", "wizard",
)  # fmt: skip
"""Concepts whose positive poles are the instructions."""
EVALUATED = 16
"""Prompts whose answers are reported."""
REPORTED_BEFORE = 32
"""Prompts whose answers were reported for earlier vectors, which are not used again."""
TRIED = 8
"""Prompts whose answers choose the reader."""
CHOOSING = 4
"""Instructions that choose the reader."""
SAMPLING = SamplingParams(max_tokens=32, temperature=0.7, seed=1)
STRENGTHS = (1.0, 1.25)
"""As strong as the instruction, and a quarter stronger."""
NAT = "1 nat"
"""The strength at which the 95th percentile of the token KL on neutral text is 1 nat, as of every vector of the field benchmark."""
REPORTED = (*(f"{one:g}" for one in STRENGTHS), NAT)
"""Strengths whose answers are reported, by name."""
SURPRISE = 1.25
"""How much more surprising than the answers under the instruction those with the vector may be, as a ratio."""
REPETITION = 0.05
"""How much more repetitive they may be, as a difference."""
CHOICE, REPORT = "choosing", "instructions"
"""Parts: what chooses the reader, and what is reported."""
Arms: TypeAlias = Mapping[str, Mapping[str, Any]]
"""What is measured of the answers of each arm; `told` are those under the instruction."""


def within(arm: Mapping[str, Any], told: Mapping[str, Any]) -> bool:
    """Whether the answers of an arm are about as fluent as those under the instruction: SURPRISE times as surprising at most, and hardly
    more repetitive. Broken text must not count as an effect."""
    return bool(arm["surprise"] <= SURPRISE * told["surprise"] and arm["repetition"] <= told["repetition"] + REPETITION)


def reaches(arm: Mapping[str, Any], told: Mapping[str, Any]) -> bool:
    """Whether an arm has at least the effect of the instruction, with text as fluent."""
    return bool(arm["effect"]["mean"] >= told["effect"]["mean"]) and within(arm, told)


def told_apart(found: Mapping[str, Any], reader: str) -> float:
    """Returns how well a reader tells answers under the instruction from answers without, on the prompts that are not reported: the mean
    AUROC over the instructions that choose."""
    return fmean(arms["told"]["auroc"] for arms in found["readings"][reader][CHOICE].values())


def arms_of(found: Mapping[str, Any], part: str, reader: str) -> dict[str, Arms]:
    """Returns what is measured of the arms of each instruction of a part, as a reader reads them."""
    read: Mapping[str, Arms] = found["readings"][reader].get(part, {})
    return {
        name: {arm: {**found[part][name]["arms"][arm], **values} for arm, values in arms.items()}
        for name, arms in read.items()
    }


def arm_of(strength: str) -> str:
    """Returns the name of the arm of a strength."""
    return f"apply {strength}"


@dataclass(frozen=True, slots=True)
class Asked:
    """Prompts, and their answers without an instruction, which all instructions are compared with. tokens: see `_tokens`. neutral: the
    texts of a calibration, and their answers."""

    prompts: Sequence[str]
    plain: Sequence[Answer]
    tokens: Mapping[str, float]
    neutral: Mapping[str, Answer]


async def asked(engine: Engine, prompts: Sequence[str]) -> Asked:
    """Answers prompts without an instruction."""
    rendered = as_prompts(engine, prompts)
    written = await background(engine, seeded(rendered, SAMPLING))
    texts = load_neutral()[FIRST : FIRST + NEUTRAL]
    neutral = await neutral_answers(engine, as_prompts(engine, texts), SAMPLING)
    answers = dict(zip(texts, (answer for _, answer in neutral), strict=True))
    return Asked(prompts, written, await _tokens(engine, rendered, written), answers)


def evaluated() -> tuple[str, ...]:
    """Returns the prompts whose answers are reported."""
    return _mixed(load_report_prompts)[REPORTED_BEFORE : REPORTED_BEFORE + EVALUATED]


def tried() -> tuple[str, ...]:
    """Returns the prompts whose answers choose the reader."""
    return _mixed(load_evaluation_prompts)[:TRIED]


def _mixed(load: Callable[[str], tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(chain.from_iterable(zip(load("sentiment"), load("formality"), strict=True)))


def data_of(part: str) -> str:
    """Returns the digest of the instructions and of all prompts of a part."""
    instructions = [INSTRUCTION.format(pole=described()[name].positive) for name in instructed(part)]
    if part == CHOICE:
        return digest([instructions, tried()])
    return digest([instructions, evaluated(), load_neutral()[FIRST : FIRST + NEUTRAL], load_instructed()[:PROMPTS]])


def instructed(part: str) -> Sequence[str]:
    """Returns the concepts whose positive poles are the instructions of a part."""
    return CHOSEN[:CHOOSING] if part == CHOICE else CHOSEN


def kept_results(found: Mapping[str, Any], about: Mapping[str, Any], part: str) -> dict[str, Any]:
    """Returns what is kept of a model's results: none of other settings, and without the part, and its readings, where its data differ."""
    if not about.items() <= found.items():
        return {}
    if found.get("data", {}).get(part) == data_of(part):
        return dict(found)
    readings = {
        reader: {key: one for key, one in read.items() if key != part} for reader, read in found["readings"].items()
    }
    others = {key: one for key, one in found.items() if key != "note"}  # of the part that is left out, too
    return {**others, part: {}, "readings": readings}


async def answered(
    engine: Engine, name: str, asked: Asked, *, vectors: bool
) -> tuple[dict[str, Any], dict[str, Sequence[Answer]]]:
    """Returns what is measured of the answers without the instruction, under it, and, if asked for, with its vector at each strength; and
    the answers."""
    instruction = INSTRUCTION.format(pole=described()[name].positive)
    plans: dict[str, SteeringPlan] = {}
    equal: dict[str, Any] = {}
    if vectors:
        # nothing is held out, because all is measured on other prompts
        vector = await distil(engine, DistilRequest(name, instruction, max_tokens=SAMPLING.max_tokens, holdout=0.0))
        nat = await calibrated(engine, vector, asked)
        strengths = (*STRENGTHS, nat[0])
        plans = {one: await _plan(engine, vector, at) for one, at in zip(REPORTED, strengths, strict=True)}
        equal = {key: vector.provenance.get(key) for key in ("instruction_kl", "kl", "factor")}
        equal |= {"nat": nat, "told_largest_kl": await told_kl(engine, instruction, asked)}
    prompts: Sequence[Prompt] = as_prompts(engine, asked.prompts)
    told: Sequence[Prompt] = [under(engine, instruction, one) for one in asked.prompts]
    planned = {"told": (told, UNSTEERED)} | {arm_of(one): (prompts, plan) for one, plan in plans.items()}
    requests = [replace(one, plan=plan) for asked_so, plan in planned.values() for one in seeded(asked_so, SAMPLING)]
    answers = await background(engine, requests)  # of all arms in one batch
    count = len(prompts)
    written = {arm: answers[number * count : (number + 1) * count] for number, arm in enumerate(planned)}
    arms = {"plain": asked.tokens} | {arm: await _tokens(engine, prompts, one) for arm, one in written.items()}
    encode = engine.tokenizer.encode
    saved = len(encode(told[0])) - len(encode(prompts[0]))
    return {"instruction": instruction, "tokens_saved": saved, **equal, "arms": arms}, {"plain": asked.plain, **written}


async def calibrated(engine: Engine, vector: ConceptVector, asked: Asked) -> tuple[float, float]:
    """Returns the strength whose 95th percentile of the token KL on neutral text is nearest to 1 nat, and that percentile."""
    search = StrengthSearch(STRENGTHS[0])
    answered = list(zip(as_prompts(engine, list(asked.neutral)), asked.neutral.values(), strict=True))
    for _ in range(STEPS):
        (kl,) = await kl_of(engine, answered, [await _plan(engine, vector, search.next)])
        search.found(kl)
        if search.done:
            break
    assert search.result is not None, "KL grows steadily from 0 on"
    return search.result


async def told_kl(engine: Engine, instruction: str, asked: Asked) -> float:
    """Returns the 95th percentile over the tokens of the neutral answers of KL(with the instruction || without)."""
    found: list[float] = []
    for text, answer in asked.neutral.items():
        prompts = (under(engine, instruction, text), *as_prompts(engine, [text]))
        starts = [engine.tokenizer.encode(one) for one in prompts]
        reads = [CapturePrompt(ids + answer.tokens, UNSTEERED, len(ids), len(ids) - 1) for ids in starts]
        told, plain = await engine.capture(reads, CaptureSpec((), logits=True))
        found += divergences(predicting(told, len(answer.tokens)), predicting(plain, len(answer.tokens)))
    return float(np.quantile(found, QUANTILE))


async def _plan(engine: Engine, vector: ConceptVector, strength: float) -> SteeringPlan:
    item = InterventionSpec(vector=vector.name, operation="apply", strength=strength)
    return await planned(engine.info, vector, item)


async def read(
    reader: Engine, instruction: str, rows: Sequence[Mapping[str, Any]], known: dict[tuple[str, str], float]
) -> tuple[dict[str, dict[str, Any]], list[dict[str, float]]]:
    """Returns the effect of each arm as a reader finds it, and the score of every answer: how much likelier the reader finds it under
    the instruction than without, in nats a token. rows: prompt, and answer of each arm. known: likelihoods without an instruction."""
    arms = [arm for arm in rows[0] if arm not in {"concept", "prompt"}]
    pairs = {arm: [(row["prompt"], row[arm].strip() or ".") for row in rows] for arm in arms}
    different = list(dict.fromkeys(chain.from_iterable(pairs.values())))
    told = dict(zip(different, await _read(reader, instruction, different), strict=True))
    missing = [pair for pair in different if pair not in known]
    known.update(zip(missing, await _read(reader, None, missing), strict=True))
    scores = {arm: [told[pair] - known[pair] for pair in of] for arm, of in pairs.items()}
    found = {
        arm: {
            "effect": asdict(estimate([after - before for after, before in zip(of, scores["plain"], strict=True)])),
            "against_told": asdict(estimate([one - base for one, base in zip(of, scores["told"], strict=True)])),
            "auroc": float(auroc(np.array(of), np.array(scores["plain"]))),
        }
        for arm, of in scores.items()
    }
    return found, [dict(zip(arms, values, strict=True)) for values in zip(*scores.values(), strict=True)]


async def _read(reader: Engine, instruction: str | None, pairs: Sequence[tuple[str, str]]) -> list[float]:
    """Returns the mean log-likelihood of the tokens of answers to prompts; in a transcript for a reader without a chat template."""
    encode, texts = reader.tokenizer.encode, [text for _, text in pairs]
    if reader.info.chat_template:
        prompts = [prompt for prompt, _ in pairs]
        asked: Sequence[Prompt] = as_prompts(reader, prompts)
        if instruction is not None:
            asked = [under(reader, instruction, one) for one in prompts]
        split = [(encode(one), encode(text)) for one, text in zip(asked, texts, strict=True)]
    else:
        first = [] if instruction is None else [ChatMessage("system", instruction)]
        begins = [transcript([*first, ChatMessage("user", prompt)]) for prompt, _ in pairs]
        whole = [encode(f"{one} {text}") for one, text in zip(begins, texts, strict=True)]
        lengths = [shared_prefix(encode(one), ids) for one, ids in zip(begins, whole, strict=True)]
        split = [(ids[:length], ids[length:]) for ids, length in zip(whole, lengths, strict=True)]
    return list(await asyncio.gather(*(_likelihood(reader, *one) for one in split)))


async def _likelihood(engine: Engine, prompt: tuple[int, ...], answer: tuple[int, ...]) -> float:
    """Returns the mean log-likelihood of the tokens of an answer, which has some."""
    measured = await measure_tokens(engine, prompt, answer, UNSTEERED)
    assert measured is not None, "answers are short"
    return -fmean(measured.surprise)


async def _tokens(engine: Engine, prompts: Sequence[Prompt], written: Sequence[Answer]) -> dict[str, float]:
    """Returns how surprising answers are to the model without instruction and vector, in nats a token, and how repetitive."""
    kept = [(engine.tokenizer.encode(prompt), one.tokens) for prompt, one in zip(prompts, written, strict=True)]
    likely = await asyncio.gather(*(_likelihood(engine, *one) for one in kept if one[1]))
    return {"surprise": -fmean(likely), "repetition": fmean(repetition(one.tokens) for one in written)}


async def write(path: Path, model: str, part: str, seconds: float) -> None:
    """Answers until the time is over, and adds each instruction to the file as it comes, and its answers to those of the part."""
    began = time.monotonic()
    async with opened(model, compiled=True) as (engine,):
        await until_compiled(engine)
        choose = part == CHOICE
        about = {"dtype": engine.info.dtype, "prompts": EVALUATED, "fitted": PROMPTS}
        about |= {"tried": TRIED, "max_tokens": SAMPLING.max_tokens, "seed": SAMPLING.seed}
        prompts = await asked(engine, tried() if choose else evaluated())
        for name in instructed(part):
            results = read_results(path)
            mine = kept_results(results.get(engine.info.name, {}), about, part)
            before = mine.get(part, {})
            if name in before or time.monotonic() - began > seconds:
                continue
            at = time.monotonic()
            found, answers = await answered(engine, name, prompts, vectors=not choose)
            texts = [{arm: one[number].text for arm, one in answers.items()} for number in range(len(prompts.prompts))]
            rows = [{"prompt": prompt, **row} for prompt, row in zip(prompts.prompts, texts, strict=True)]
            _add_items(_items(path, engine.info.name, part), name, rows)
            added = {part: {**before, name: found}, "date": _today(), "readings": mine.get("readings", {})}
            added["data"] = {**mine.get("data", {}), part: data_of(part)}
            for read in added["readings"].values():  # of other answers
                read.get(part, {}).pop(name, None)
            write_results(path, results | {engine.info.name: {**mine, **about, **added}})
            print(f"{name}: {time.monotonic() - at:.0f} s", flush=True)


async def read_all(path: Path, second: str, part: str, seconds: float) -> None:
    """Reads the stored answers of a part until the time is over, and adds the effects of each instruction to the file as they come."""
    began = time.monotonic()
    async with opened(second, compiled=True) as (reader,):
        await until_compiled(reader)
        for model in read_results(path):
            known: dict[tuple[str, str], float] = {}
            lines = _items(path, model, part).read_text(encoding="utf-8").splitlines()
            for name, rows in groupby(map(json.loads, lines), key=lambda row: str(row["concept"])):
                results = read_results(path)
                mine, of = results[model], reader.info.name
                before = mine.get("readings", {}).get(of, {})
                current = name in mine.get(part, {})  # otherwise the answers are of former settings or data
                if not current or name in before.get(part, {}) or time.monotonic() - began > seconds:
                    continue
                at = time.monotonic()
                found, scores = await read(reader, mine[part][name]["instruction"], list(rows), known)
                _add_items(_items(path, model, f"{part}.{of}"), name, scores)
                added = {**before, part: {**before.get(part, {}), name: found}, "date": _today()}
                readings = {**mine.get("readings", {}), of: added}
                write_results(path, results | {model: {**mine, "readings": readings}})
                print(f"{name}: {time.monotonic() - at:.0f} s", flush=True)


def _items(path: Path, model: str, part: str) -> Path:
    return path.parent / "items" / model / f"distilling.{part}.jsonl"


def _add_items(path: Path, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes the rows of an instruction, in place of those of a run that was stopped before its result was written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    before = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    kept = [line for line in before if json.loads(line)["concept"] != name]
    added = [json.dumps({"concept": name, **row}) for row in rows]
    path.write_text("".join(f"{line}\n" for line in (*kept, *added)), encoding="utf-8")


def _today() -> str:
    return datetime.now(UTC).date().isoformat()


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality.distilling", description=__doc__)
    work = parser.add_mutually_exclusive_group(required=True)
    work.add_argument("--model", help="distils and answers: a name, folder or .gguf file")
    work.add_argument("--reader", help="reads the answers: another model")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--choose", action="store_true", help="what chooses the reader, in place of what is reported")
    parser.add_argument("--seconds", type=float, default=3600.0, help="no instruction is begun after so long")
    chosen = parser.parse_args()
    part = CHOICE if chosen.choose else REPORT
    if chosen.model:
        asyncio.run(write(chosen.output, chosen.model, part, chosen.seconds))
    else:
        asyncio.run(read_all(chosen.output, chosen.reader, part, chosen.seconds))


if __name__ == "__main__":
    run_as_served("benchmarks.quality.distilling")
    main()
