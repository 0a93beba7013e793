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
    best = max(readers, key=lambda one: distilling.told_apart(found, one))
    instructions: Mapping[str, Any] = found[distilling.REPORT]
    whole = [one for one in readers if len(found["readings"][one].get(distilling.REPORT, ())) == len(instructions)]
    shown = best if best in whole else whole[-1]
    rows = []
    for name, arms in distilling.arms_of(found, distilling.REPORT, shown).items():
        told, vectors = arms["told"], [arms[distilling.arm_of(one)] for one in distilling.REPORTED]
        factor = instructions[name]["factor"]
        multiplied = "none" if factor is None else f"{factor:.2f}"
        effects = (
            _estimate(told),
            *(f"{_estimate(one)} {'yes' if distilling.reaches(one, told) else 'no'}" for one in vectors),
        )
        texts = [
            ", ".join(f"{arm[key]:.2f}" for arm in (arms["plain"], told, *vectors))
            for key in ("surprise", "repetition")
        ]
        saved = str(instructions[name]["tokens_saved"])
        rows.append(
            (
                name,
                f"{told['auroc']:.2f}",
                f"{instructions[name]['instruction_kl']:.2f}, {instructions[name]['told_largest_kl']:.2f}",
                multiplied,
                f"{instructions[name]['nat'][0]:.2f}",
                *effects,
                *texts,
                saved,
            )
        )
    text = (
        f"**{model}**, {found['dtype']}, {found['date']}: distilled on {found['fitted']} prompts, answers of {found['max_tokens']} tokens to {found['prompts']} other prompts. "
        f"Of the readers, {best} tells answers under {distilling.CHOOSING} instructions from answers without best, on {found['tried']} prompts that are not reported.\n\n"
    )
    columns = (
        "concept", "reader's AUROC", "KL of the instruction: mean, 95th percentile", "factor", "strength of 1 nat", "effect of the instruction", *(f"of the vector at {one}, reached" for one in distilling.REPORTED),
        f"surprise: plain, instruction, {', '.join(distilling.REPORTED)}", "repetition", "tokens saved",
    )  # fmt: skip
    return f"{text}{_readers(found)}\nAs {shown} reads them:\n\n{table(columns, rows)}"


def _readers(found: Mapping[str, Any]) -> str:
    """Shows how well each reader tells answers apart, and how many instructions are reached at each strength as it reads them."""
    rows = []
    for reader in found["readings"]:
        reported = distilling.arms_of(found, distilling.REPORT, reader).values()
        apart = f"{distilling.told_apart(found, reader):.2f}"
        if not reported:
            rows.append((reader, apart, "", *["not read"] * 5))
        for strength in distilling.REPORTED if reported else ():
            vectors = [(arms[distilling.arm_of(strength)], arms["told"]) for arms in reported]
            effective = [distilling.reaches(*one) for one in vectors if one[1]["effect"]["interval"][0] > 0.0]
            counts = (
                f"{sum(distilling.reaches(*one) for one in vectors)} of {len(vectors)}",
                f"{sum(effective)} of {len(effective)}",
                f"{sum(distilling.within(*one) for one in vectors)}",
                f"{sum(one['effect']['mean'] >= told['effect']['mean'] for one, told in vectors)}",
                f"{sum(one['against_told']['interval'][1] < 0.0 for one, _ in vectors)}",
            )
            rows.append((reader, apart, strength, *counts))
    columns = (
        "reader", "AUROC on prompts that are not reported", "strength", "reached", "of instructions with an effect", "as fluent",
        "effect at least the instruction's, however fluent", "whole interval of the difference below 0",
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
    text = f"{found['model']}, {found['dtype']}, layer {found['layer']}, {found['date']} (data `{found['data']}`); greedy answers of {sparing.SAMPLING.max_tokens} tokens.\n\n"
    return text + table(("arm", *(f"declined: {kind}" for kind in kinds)), rows)
