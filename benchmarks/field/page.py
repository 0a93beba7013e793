"""The tables of docs/field.md, from the saved results."""

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.field.__main__ import RESULTS
from benchmarks.field.data import BEHAVIOURS
from benchmarks.field.methods import BASE, DIRECTIONS, MAPS
from benchmarks.field.refusal import PROMPTS
from benchmarks.quality.page import Row, table
from benchmarks.quality.recording import read_results

LARGER = RESULTS.with_name("field.qwen2.5-coder-1.5b.json")
"""Results of the larger model."""
NONE = "Not measured yet.\n"


def _found(path: Path = RESULTS) -> Mapping[str, Any]:
    return read_results(path)


def _result(name: str, path: Path = RESULTS) -> Mapping[str, Any] | None:
    entry = _found(path).get(name)
    return None if entry is None else entry["result"]


def _methods(path: Path) -> list[str]:
    """Returns the methods that any result compares with ours, the prompt last."""
    results = [entry["result"] for name, entry in _found(path).items() if name.startswith("peers.")]
    found = dict.fromkeys(key for result in results for key, one in result.items() if isinstance(one, Mapping))
    return sorted(found, key=lambda method: method == "prompt")


def _same(one: Mapping[str, Any]) -> str:
    return f"the same direction as ours (cosine {one['cosine']:+.2f})"


def _interval(mean: float, interval: Sequence[float] | None, digits: int = 2) -> str:
    if interval is None:
        return f"{mean:+.{digits}f}"
    return f"{mean:+.{digits}f} [{interval[0]:+.{digits}f}, {interval[1]:+.{digits}f}]"


def _estimate(one: Mapping[str, Any], digits: int = 2) -> str:
    return _interval(one["mean"], one["interval"], digits)


def _spread(one: Mapping[str, Any]) -> str:
    return _interval(one["spread"], one["interval"])


def runs_table(paths: Sequence[Path] = (RESULTS, LARGER)) -> str:
    """Shows what ran, when and for how long; results of one part, model and date together."""
    groups: dict[tuple[str, ...], list[tuple[str, Mapping[str, Any]]]] = {}
    for name, entry in chain.from_iterable(_found(path).items() for path in paths):
        about = entry["about"]
        how = f"{about['dtype']}, {about['device']}, seed {about['seed']}"
        counts = "subset" if about["small"] else "whole"
        groups.setdefault((name.split(".")[0], about["model"], how, counts, entry["date"]), []).append((name, entry))
    rows = [
        (
            part,
            str(len(entries)),
            model,
            how,
            counts,
            f"{sum(entry['seconds'] for _, entry in entries) / 60.0:.0f}",
            date,
            ", ".join(f"{name.rpartition('.')[2]} `{entry['result']['digest'][:8]}`" for name, entry in entries),
        )
        for (part, model, how, counts, date), entries in groups.items()
    ]
    columns = ("part", "results", "model", "numbers", "counts", "minutes", "date", "digests of the data")
    return table(columns, rows) if rows else NONE


def behaviours_table(path: Path = RESULTS) -> str:
    """Shows CAA's behaviours: the spread of the log odds at equal KL, beside random directions, MMLU and TruthfulQA."""
    rows: list[Row] = []
    found = {name: _result(f"caa.{name}", path) for name in BEHAVIOURS}
    for name, one in found.items():
        if one is None:
            rows.append((name, *("",) * 7))
            continue
        kept = [f"{_estimate(one[kind]['+'], 3)}; {_estimate(one[kind]['-'], 3)}" for kind in ("mmlu", "truthful_qa")]
        rows.append(
            (
                name,
                f"{one['layer']} ({one['counts']['test']} questions)",
                _spread(one),
                ", ".join(f"{value:+.2f}" for value in one["random"]),
                "yes" if one["moves"] else "not shown",
                f"{one['anti_steered']:.0%}",
                *kept,
            )
        )
    columns = (
        "behaviour", "layer", "spread, nats", "random directions", "moves", "anti-steered", "MMLU, change at +; -", "TruthfulQA, change at +; -",
    )  # fmt: skip
    known = [one for one in found.values() if one is not None]
    if not known:
        return NONE
    plain = [f"{known[0][kind]['unsteered']['mean']:.2f}" for kind in ("mmlu", "truthful_qa")]
    summary = f"\n{sum(one['moves'] for one in known)} of {len(known)} move. Unsteered, the right one of two choices has a mean probability of {plain[0]} in MMLU and {plain[1]} in TruthfulQA.\n"
    return table(columns, rows) + summary


def peers_table(path: Path = RESULTS) -> str:
    """Compares the spreads of the peers' vectors, and of a prompt, with ours."""
    rows, methods = [], _methods(path)
    compared: dict[str, dict[str, Mapping[str, Any]]] = {method: {} for method in methods}
    for name in BEHAVIOURS:
        own, others = _result(f"caa.{name}", path), _result(f"peers.{name}", path)
        if own is None or others is None:
            continue
        cells = []
        for method in methods:
            one = others.get(method)
            if one is None or "same_direction" in one:
                cells.append("" if one is None else _same(one))
                continue
            compared[method][name] = one["ours_minus_it"]
            where = "" if "layer" not in one else f" (layer {one['layer']}, cosine {one['cosine']:+.2f})"
            cells.append(f"{_spread(one)}{where}; ours less it {_estimate(one['ours_minus_it'])}")
        rows.append((name, f"{_spread(own)} (layer {own['layer']})", *cells))
    if not rows:
        return NONE
    ahead = (f"\n{_ahead(*one)}\n" for one in compared.items() if one[1])
    return table(("behaviour", "ours", *methods), rows) + "".join(ahead)


def _ahead(method: str, differences: Mapping[str, Mapping[str, Any]]) -> str:
    """Says where our spread is larger than another method's, and where it is not."""
    behind = [f"{name} ({_estimate(one, 3)})" for name, one in differences.items() if one["mean"] < 0.0]
    shown = [name for name, one in differences.items() if one["interval"][0] > 0.0]
    text = f"Beside {method}: our spread is at least as large in {len(differences) - len(behind)} of {len(differences)} behaviours, in {len(shown)} with the whole interval"
    return text + (f"; it is smaller in {', '.join(behind)}." if behind else ".")


def methods_table(path: Path = RESULTS) -> str:
    """Compares our methods with the mean difference: the shift towards each behaviour at equal KL, and what it is beyond the shift of the
    mean difference."""
    found = {name: one for name in BEHAVIOURS if (one := _result(f"methods.{name}", path)) is not None}
    if not found:
        return NONE

    def cell(one: Mapping[str, Any]) -> str:
        return "none" if "failed" in one else f"{_interval(one['shift'], one['interval'])} (layer {one['layer']})"

    rows, ahead, failed = [], [], list[str]()
    for method in (*DIRECTIONS, *MAPS):
        cells = [cell(one[method]) for one in found.values()]
        beyond = {
            name: one[method]["beyond_base"] for name, one in found.items() if "shift" in one[method] and method != BASE
        }
        cells.append("; ".join(_estimate(beyond[name]) if name in beyond else "none" for name in found if beyond))
        rows.append((f"`{method}`", *cells))
        failed += [
            f"\n`{method}` gives nothing for {name}: {one[method]['failed'].partition(' (job ')[0]}.\n"
            for name, one in found.items()
            if "failed" in one[method]
        ]
        more, less = (
            [name for name, one in beyond.items() if one["interval"] and side * one["interval"][side < 0] > 0.0]
            for side in (1, -1)
        )
        if method != BASE:
            ahead.append(f"`{method}` moves more in {len(more)} of {len(beyond)} and less in {len(less)}")
    columns = ("method", *found, "less the mean difference")
    text = "; ".join(ahead)
    return table(columns, rows) + f"\nWith the whole interval of the difference, {text}.\n" + "".join(failed)


def concepts_table() -> str:
    """Shows the detection of AxBench's concepts."""
    found = [entry["result"] for name, entry in _found().items() if name.startswith("concepts.")]
    if not found:
        return NONE
    rows = []
    for one in found:
        hard, card = ("" if one[key] is None else f"{one[key]:.2f}" for key in ("hard", "card"))
        rows.append((one["concept"], str(one["layer"]), f"{one['auroc']:.3f}", hard, f"{one['random']:.2f}", card))
    mean, random = (fmean(one[key] for one in found) for key in ("auroc", "random"))
    rows.append((f"mean of {len(found)}", "", f"{mean:.3f}", "", f"{random:.2f}", ""))
    cards = [(one["auroc"], *one["card_interval"]) for one in found if one["card_interval"] is not None]
    held = sum(low <= value <= high for value, low, high in cards)
    kept = f"\nThe interval of the card (of the largest token, too) holds the fresh AUROC of {held} of {len(cards)} concepts.\n"
    return table(("concept", "layer", "AUROC", "hard negatives", "random direction", "card"), rows) + (
        kept if cards else ""
    )


def refusal_table(path: Path = RESULTS) -> str:
    """Shows the share of refusals without steering and at strength 1 and -1, of ours, of random directions and of the peers."""
    found, others = _result("refusal", path), _result("peers.refusing", path) or {}
    if found is None:
        return NONE
    shown, methods = [], _methods(path)
    names = {
        "harmful": "harmful, unsteered",
        "harmful -": "harmful, strength -1",
        "harmful ablated": "harmful, ablated",
        "harmless": "harmless, unsteered (over-refusal)",
        "harmless +": "harmless, strength 1",
        "harmless ablated": "harmless, ablated",
    }
    for key, name in names.items():
        random = ", ".join(f"{other[key]:.2f}" for other in found["random"] if key in other)
        shown.append((name, _share(found[key]), random, *(_refused(others.get(method, {}), key) for method in methods)))
    counts = f"\n{found['counts']['test']} instructions of each kind; layer {found['layer']}.\n"
    return table(("instructions", "refused", "random directions", *methods), shown) + counts


def _refused(one: Mapping[str, Any], key: str) -> str:
    return _same(one) if "same_direction" in one and key in PROMPTS else _share(one.get(key))


def following_table(saved: Mapping[str, Any] | None = None) -> str:
    """Shows the share of IFEval's prompts that are followed without steering and at strength 1 and -1, and how random directions change it.
    saved: results, by default those of the file."""
    rows, found = [], _found() if saved is None else saved
    for name in BEHAVIOURS:
        if f"following.{name}" not in found:
            continue
        one = found[f"following.{name}"]["result"]
        beside = found[f"following.layer-{one['layer']}"]["result"]
        steered = [f"{_share(one[sign])}; {_estimate(one[sign]['change'])}" for sign in "+-"]
        random = "; ".join(
            ", ".join(f"{other[sign]['change']['mean']:+.2f}" for other in beside["random"].values()) for sign in "+-"
        )
        layer = f"{one['layer']} ({one['counts']['test']} prompts)"
        rows.append((name, layer, _share(beside["unsteered"]), *steered, random))
    columns = (
        "behaviour", "layer", "unsteered", "strength 1; change", "strength -1; change", "random directions, change at +; -",
    )  # fmt: skip
    return table(columns, rows) if rows else NONE


def _share(one: Mapping[str, Any] | None) -> str:
    return "" if one is None else f"{one['share']:.2f} [{one['interval'][0]:.2f}, {one['interval'][1]:.2f}]"
