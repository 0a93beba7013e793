"""The tables of docs/distilling.md and docs/extraction.md: distilled vectors beside their instructions, and what `null_space` spares."""

import json
from collections.abc import Mapping
from typing import Any

from benchmarks.quality import distilling, sparing
from benchmarks.quality.page import table


def compared_table() -> str:
    """Shows for each model how far its vectors move the reader's score, beside their instructions."""
    results: Mapping[str, Any] = json.loads(distilling.RESULTS.read_text(encoding="utf-8"))
    return "\n".join(_of_model(model, found) for model, found in results.items())


def _of_model(model: str, found: Mapping[str, Any]) -> str:
    readers = list(found["readings"])
    first, best = readers[0], max(readers, key=lambda one: distilling.told_apart(found, one))
    whole = [
        one
        for one in readers
        if len(found["readings"][one].get(distilling.REPORT, ())) == len(found[distilling.REPORT])
    ]
    shown = best if best in whole else whole[-1]
    trials, strength = distilling.arms_of(found, distilling.CHOICE, first), distilling.strength_of(found)
    instructions: Mapping[str, Any] = found[distilling.REPORT]
    reported = distilling.arms_of(found, distilling.REPORT, shown)
    rows = []
    for name, arms in reported.items():
        told, vector = arms["told"], arms[f"apply {strength:g}"]
        effects = (_estimate(told), _estimate(vector), _estimate(vector, "against_told"))
        texts = (
            ", ".join(f"{arm[of]:.2f}" for arm in (arms["plain"], told, vector)) for of in ("surprise", "repetition")
        )
        yes = "yes" if distilling.reaches(vector, told) else "no"
        saved = str(instructions[name]["tokens_saved"])
        rows.append((name, f"{told['auroc']:.2f}", *effects, *texts, yes, saved))
    held = [
        f"{sum(distilling.reaches(arms[f'apply {one:g}'], arms['told']) for arms in trials.values())} at {one:g}"
        for one in distilling.STRENGTHS
    ]
    text = (
        f"**{model}**, {found['dtype']}, {found['date']}: distilled on {found['fitted']} prompts, answers of {found['max_tokens']} tokens. On {found['tried']} prompts that are "
        f"not reported, as {first} reads them, {', '.join(held)} of the {len(trials)} instructions {', '.join(trials)} are reached, so the strength is {strength:g}. Of the readers, "
        f"{best} tells the answers of these prompts apart best. On {found['prompts']} other prompts:\n\n"
    )
    columns = (
        "concept", "reader's AUROC", "effect of the instruction", "of the vector", "difference", "surprise: plain, instruction, vector", "repetition",
        "reached", "tokens saved",
    )  # fmt: skip
    return f"{text}{_readers(found, strength)}\nAs {shown} reads them:\n\n{table(columns, rows)}"


def _readers(found: Mapping[str, Any], strength: float) -> str:
    """Shows how well each reader tells answers apart, and how many instructions are reached as it reads them."""
    rows = []
    for reader in found["readings"]:
        reported = distilling.arms_of(found, distilling.REPORT, reader).values()
        counts = ["not read"] * 4
        if reported:
            vectors = [(arms[f"apply {strength:g}"], arms["told"]) for arms in reported]
            effective = [distilling.reaches(*one) for one in vectors if one[1]["effect"]["interval"][0] > 0.0]
            counts = [
                f"{sum(distilling.reaches(*one) for one in vectors)} of {len(vectors)}",
                f"{sum(effective)} of {len(effective)}",
                f"{sum(one['effect']['mean'] >= told['effect']['mean'] for one, told in vectors)}",
                f"{sum(one['against_told']['interval'][1] < 0.0 for one, _ in vectors)}",
            ]
        rows.append((reader, f"{distilling.told_apart(found, reader):.2f}", *counts))
    columns = (
        "reader", "AUROC on prompts that are not reported", "reached", "of instructions with an effect", "effect at least the instruction's, however fluent",
        "whole interval below it",
    )  # fmt: skip
    return table(columns, rows)


def _estimate(arm: Mapping[str, Any], name: str = "effect") -> str:
    mean, (low, high) = arm[name]["mean"], arm[name]["interval"]
    return f"{mean:+.2f} [{low:.2f}, {high:.2f}]"


def sparing_table() -> str:
    """Shows how many requests of each kind are declined, by arm."""
    found = json.loads(sparing.RESULTS.read_text(encoding="utf-8"))
    kinds: Mapping[str, int] = found["counts"]
    rows = [
        (
            arm,
            *(
                f"{one[kind]['declined']} of {count} [{', '.join(f'{x:.0%}' for x in one[kind]['interval'])}]"
                for kind, count in kinds.items()
            ),
        )
        for arm, one in found["arms"].items()
    ]
    text = f"{found['model']}, {found['dtype']}, layer {found['layer']}, {found['date']}; greedy answers of {sparing.SAMPLING.max_tokens} tokens.\n\n"
    return text + table(("arm", *(f"declined: {kind}" for kind in kinds)), rows)
