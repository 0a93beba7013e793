"""`python -m benchmarks.field --data FOLDER`: measures a server on the field's common data, over HTTP.

Layer and strength are chosen on the generation split, the test split is touched once, all vectors steer at equal KL, and random directions stand beside each.
With `--peers` the peers' own code fits vectors on the same pairs, after all parts of our own; `--methods` names those that are added.
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.contenders.process import Contender
from benchmarks.field import behaviours, data, following, refusal
from benchmarks.field.detection import detection
from benchmarks.field.methods import methods
from benchmarks.field.run import METHODS, PEERS, SMALL, Counts, Run, Uncalibrated, peers_of
from benchmarks.quality.recording import file_of, read_results, write_results
from steering.client import Client

RESULTS = Path(__file__).parents[1] / "results" / "field.json"
MODEL = "qwen2.5-coder-0.5b"
"""Whose whole results RESULTS has."""
PART = "prod_2b_l10_v1"
"""Of AxBench's concept10: ten concepts."""
PARTS = ("caa", "refusal", "concepts", "methods", "following")
Work = Callable[[], dict[str, Any]]
Compare = Callable[[Sequence[str]], dict[str, Any]]
"""Measures these methods."""


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.field", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with the repositories of docs/field.md")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--key")
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--behaviours", nargs="+", default=list(data.BEHAVIOURS), choices=data.BEHAVIOURS)
    parser.add_argument("--concepts", type=int, default=10, help="how many of AxBench's concepts")
    parser.add_argument(
        "--peers", type=Path, help="the server's model as a Hugging Face folder, for the peers' own code"
    )
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS, help="what is compared, with --peers")
    parser.add_argument("--small", action="store_true", help="a subset, for a processor that is shared")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--output",
        type=Path,
        help="results are added as they come, items beside it; by default a file of the model's own",
    )
    return parser.parse_args(arguments)


def output_of(model: str, small: bool) -> Path:
    """Returns the file of a model's results: RESULTS for all data of MODEL; a subset, and another model, have a file of their own."""
    return file_of(model, RESULTS, "" if small else MODEL)


class Results:
    """The file of results, with the items of each beside it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, name: str, about: Mapping[str, Any], work: Work) -> None:
        """Measures and writes a result, unless the file has it with the same settings. Leaves it out where no layer can be calibrated."""
        if read_results(self.path).get(name, {}).get("about") != about:
            try:
                self._measure(name, about, work, {})
            except Uncalibrated as error:
                print(f"{name} is left out: {error}", flush=True)

    def compare(
        self, name: str, about: Mapping[str, Any], versions: Mapping[str, str], methods: Sequence[str], work: Compare
    ) -> None:
        """Measures the methods that a result lacks or has in another version, and keeps the others, if it has the same settings. versions:
        of the peers' code."""
        found = read_results(self.path).get(name, {})
        before = found.get("about", {})
        same = about == {key: one for key, one in before.items() if key != "peers"}
        kept, known = (found, before["peers"]) if same else ({}, {})
        measured = kept.get("result", {})
        missing = [one for one in methods if one not in measured or known.get(one) != versions.get(one)]
        used = {key: one for key, one in versions.items() if key in missing or key not in PEERS}
        if missing:
            self._measure(name, {**about, "peers": {**known, **used}}, partial(work, missing), kept)

    def _measure(self, name: str, about: Mapping[str, Any], work: Work, kept: Mapping[str, Any]) -> None:
        """Measures and writes a result, with what it does not replace of the one before."""
        began = time.monotonic()
        result = work()
        write_items(self._items(name), result, bool(kept))
        seconds = round(time.monotonic() - began)
        made = {
            "about": about,
            "date": datetime.now(UTC).date().isoformat(),
            "seconds": kept.get("seconds", 0) + seconds,
            "result": {**kept.get("result", {}), **result},
        }
        write_results(self.path, read_results(self.path) | {name: made})
        print(f"{name}: {seconds} s", flush=True)

    def items(self, name: str, of: str) -> list[dict[str, Any]]:
        """Returns the items of one place in a result, such as `mmlu`; "" is the result itself."""
        rows = map(json.loads, self._items(name).read_text(encoding="utf-8").splitlines())
        return [row for row in rows if row["of"] == of]

    def _items(self, name: str) -> Path:
        """Returns the file of a result's items; those of `field.MODEL.json` have a folder of their own."""
        return self.path.parent / "items" / self.path.stem.partition(".")[2] / f"field.{name}.jsonl"


def own_work(run: Run, chosen: argparse.Namespace) -> dict[str, Work]:
    """Returns what is measured of our own vectors, by the name of the result."""
    parts: dict[str, dict[str, Work]] = {
        "caa": {f"caa.{name}": partial(behaviours.behaviour, run, name) for name in chosen.behaviours},
        "refusal": {"refusal": partial(refusal.refusal, run)},
        "methods": {f"methods.{name}": partial(methods, run, name) for name in chosen.behaviours},
        "concepts": {f"concepts.{at}": partial(detection, run, PART, at) for at in range(chosen.concepts)},
    }
    return {name: work for part, found in parts.items() if part in chosen.parts for name, work in found.items()}


def peers_work(run: Run, chosen: argparse.Namespace, results: Results) -> dict[str, Compare]:
    """Returns what is measured of the peers: for each chosen result of our own that stands beside them."""
    found = read_results(results.path)
    work: dict[str, Compare] = {}
    for name in chosen.behaviours if "caa" in chosen.parts else ():
        own, spreads = found[f"caa.{name}"], [row["spread"] for row in results.items(f"caa.{name}", "")]
        work[f"peers.{name}"] = partial(behaviours.compared, run, name, own["result"]["layer"], spreads)
    if "refusal" in chosen.parts:
        own = found["refusal"]
        work["peers.refusing"] = partial(refusal.compared, run, own["result"]["layer"])
    return work


def follow(run: Run, names: Sequence[str], about: Mapping[str, Any], results: Results) -> None:
    """Measures IFEval at the layers of behaviours: once a layer without steering and with random directions, then each behaviour. Raises
    ValueError for a behaviour that was not measured with the same settings."""
    for name in names:
        own = read_results(results.path).get(f"caa.{name}", {})
        if own.get("about") != about:
            missing = f"{results.path} has no caa.{name} with the same settings"
            raise ValueError(f"{missing}: run --parts caa --behaviours {name}")
        layer = own["result"]["layer"]
        beside = f"following.layer-{layer}"
        results.add(beside, about, partial(following.reference, run, layer))
        plain = {row["prompt"]: row["followed"] for row in results.items(beside, following.UNSTEERED)}
        results.add(f"following.{name}", about, partial(following.following, run, name, own["result"], plain))


def measure(chosen: argparse.Namespace, counts: Counts, peers: AbstractContextManager[Contender | None]) -> None:
    """Measures what was chosen, and writes each result when it is there. What the file has with the same settings is not repeated."""
    if "following" in chosen.parts:
        data.checker(chosen.data)  # before hours of other parts
    with Client(chosen.url, api_key=chosen.key, timeout=3600.0) as client:
        model = client.capabilities().model
        results = Results(chosen.output or output_of(model.name, chosen.small))
        run = Run(client, model.layers, model.d_model, chosen.data, counts, chosen.seed)
        about = {
            "model": model.name,
            "fingerprint": model.fingerprint,
            "dtype": model.dtype,
            "device": model.device,
            "seed": chosen.seed,
            "small": chosen.small,
        }
        for name, work in own_work(run, chosen).items():
            results.add(name, about, work)
        if "following" in chosen.parts:
            follow(run, chosen.behaviours, about, results)
        with peers as process:
            if process is not None:
                methods = [one for one in chosen.methods if one in process.facts or one not in PEERS]
                for one in chosen.methods:
                    if one not in methods:
                        print(f"{one} is left out: {chosen.data} has no clone of it", flush=True)
                for name, compare in peers_work(replace(run, peers=process), chosen, results).items():
                    results.compare(name, about, process.facts, methods, compare)


def write_items(path: Path, result: dict[str, Any], add: bool) -> None:
    """Moves the items out of a result into a file of JSON lines: their numbers, and a digest in place of each text. add: whether items that
    the file has of other methods stay."""
    before = path.read_text(encoding="utf-8").splitlines() if add and path.exists() else []
    lines = [line for line in before if json.loads(line)["of"].partition(".")[0] not in result]

    def moved(value: Any, place: tuple[str, ...]) -> None:
        if not isinstance(value, dict):
            return
        for number, item in enumerate(value.pop("items", ())):
            lines.append(json.dumps({"of": ".".join(place), "item": number, **_hidden(item)}))
        for key, one in value.items():
            moved(one, (*place, key))

    moved(result, ())
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _hidden(value: Any) -> Any:
    """Returns a value with a digest in place of each text."""
    if isinstance(value, dict):
        return {key: _hidden(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_hidden(one) for one in value]
    return data.digest(value) if isinstance(value, str) else value


if __name__ == "__main__":
    chosen = parsed()
    measure(chosen, SMALL if chosen.small else Counts(), peers_of(chosen.peers, chosen.data))
