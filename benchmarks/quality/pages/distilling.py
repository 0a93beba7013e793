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
    trials = distilling.arms_of(found, "choosing")
    strength = distilling.chosen_strength(trials)
    instructions: Mapping[str, Any] = found["instructions"]
    rows, reached, effective = [], [], []
    for name, one in instructions.items():
        told, vector = one["arms"]["told"], one["arms"][f"apply {strength:g}"]
        reached += [name] if distilling.reaches(vector, told) else []
        effective += [name] if told["effect"]["interval"][0] > 0.0 else []
        effects = (_estimate(told), _estimate(vector), _estimate(vector, "against_told"))
        arms = (one["arms"]["plain"], told, vector)
        texts = (", ".join(f"{arm[of]:.2f}" for arm in arms) for of in ("surprise", "repetition"))
        yes = "yes" if name in reached else "no"
        rows.append((name, f"{told['auroc']:.2f}", *effects, *texts, yes, str(one["tokens_saved"])))
    both = [name for name in effective if name in reached]
    held = [
        f"{sum(distilling.reaches(arms[f'apply {one:g}'], arms['told']) for arms in trials.values())} at {one:g}"
        for one in distilling.STRENGTHS
    ]
    text = (
        f"**{model}**, {found['dtype']}, read by {found['reader']}, {found['date']}: distilled on {found['fitted']} prompts, answers of {found['max_tokens']} tokens. On "
        f"{found['tried']} prompts that are not reported, {', '.join(held)} of the {len(trials)} instructions {', '.join(trials)} are reached, so the strength is {strength:g}. On "
        f"{found['prompts']} other prompts the vector reaches its instruction for **{len(reached)} of {len(instructions)}** instructions, among them {len(both)} of the "
        f"{len(effective)} whose own effect has its whole interval above 0.\n\n"
    )
    columns = (
        "concept", "reader's AUROC", "effect of the instruction", "of the vector", "difference", "surprise: plain, instruction, vector", "repetition",
        "reached", "tokens saved",
    )  # fmt: skip
    return text + table(columns, rows)


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
