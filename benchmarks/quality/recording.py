"""Adds results to a file as they come, with the counts, the time and the machine of each."""

import json
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.contenders.open_engine import cache_dir
from benchmarks.machine import describe
from benchmarks.quality.concepts import Profile, data_digest
from steering.engine.api import Engine
from steering.model.embedded import EMBEDDED_MODEL
from steering.schemas.evaluation import ScoresAnswer

ITEMS = Path(__file__).parents[1] / "results" / "items"
"""The score of every answer behind a table: `<part>.<concept>.jsonl`, a line for each steering."""
KEPT = ("processor", "processors", "python", "torch", "transformers", "commit", "load")
SEED = 0
"""Of sampling, folds and random directions wherever a part does not list its own seeds."""


class Folder:
    """Keeps finished parts of trials as files, so that a run that was stopped goes on."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def load(self, key: str) -> str | None:
        """See Checkpoints.load."""
        path = self._folder / f"{key}.json"
        return path.read_text(encoding="utf-8") if path.exists() else None

    async def save(self, key: str, content: str) -> None:
        """See Checkpoints.save."""
        self._folder.mkdir(parents=True, exist_ok=True)
        part = self._folder / f"{key}.part"  # renamed, so that a file that is there is complete
        part.write_text(content, encoding="utf-8")
        part.rename(self._folder / f"{key}.json")


PARTS = Folder(cache_dir().parent / "trials")
"""Parts of runs on this machine."""


@dataclass(frozen=True, slots=True)
class Spent:
    """Time that a measurement took. seconds: wall time; processor_seconds: of all threads and of child processes, which compile graphs."""

    seconds: int
    processor_seconds: int


class Stopwatch:
    """Measures wall time and processor time from when it is made."""

    def __init__(self) -> None:
        self._began = time.monotonic(), _processor_time()

    def spent(self) -> Spent:
        """Returns the time since the stopwatch was made."""
        wall, processor = self._began
        return Spent(round(time.monotonic() - wall), round(_processor_time() - processor))


def _processor_time() -> float:
    found = os.times()
    return found.user + found.system + found.children_user + found.children_system


def with_verdicts(before: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """Keeps the reader's verdict on every pair whose two texts came out the same again."""
    kinds, fields = ("pairs", "random"), ("read", "read_other")
    read = {(pair["up"], pair["down"]): pair for kind in kinds for pair in before.get(kind, ())}

    def kept(pair: Mapping[str, Any]) -> dict[str, Any]:
        same = read.get((pair["up"], pair["down"]), {})
        return {**pair, **{field: same.get(field) for field in fields}}

    return {**found, **{kind: [kept(pair) for pair in found[kind]] for kind in kinds if kind in found}}


def add_result(path: Path, engine: Engine, part: str, concept: str, found: Any) -> None:
    """Adds one result to the file, with the verdicts on pairs that were there."""
    results = read_results(path)
    about: Mapping[str, str] = {"model": engine.info.name, "dtype": engine.info.dtype, "device": engine.info.device}
    results.update(about, date=datetime.now(UTC).date().isoformat())
    if part == "blind":
        found = with_verdicts(results.get(part, {}).get(concept, {}), found)
    results.setdefault(part, {})[concept] = found
    write_results(path, results)


def add_whole_run(path: Path, engine: Engine, spent: Spent) -> None:
    """Records a run of all parts with all concepts, with the compilation of graphs."""
    results, machine = read_results(path), describe(engine.info.device)
    results["whole"] = {
        "date": datetime.now(UTC).date().isoformat(),
        **asdict(spent),
        **{name: machine[name] for name in KEPT},
    }
    write_results(path, results)


def add_run(path: Path, engine: Engine, part: str, concept: str, profile: Profile, spent: Spent) -> None:
    """Records how a result came about: counts, seed, data, time, executor, versions and machine."""
    results, machine = read_results(path), describe(engine.info.device)
    results.setdefault("runs", {}).setdefault(part, {})[concept] = {
        "date": datetime.now(UTC).date().isoformat(),
        **asdict(spent),
        "seed": SEED,
        "data": data_digest(concept),
        "executor": engine.stats().executor,
        "counts": {name: value for name, value in asdict(profile).items() if isinstance(value, int)},
        **{name: machine[name] for name in KEPT},
    }
    write_results(path, results)


def read_results(path: Path) -> dict[str, Any]:
    """Returns a file of results; empty where there is none."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def known_of(path: Path, about: Mapping[str, Any], part: str) -> dict[str, Any]:
    """Returns a part of the results in a file; nothing where they are of something else than `about` says."""
    found = read_results(path)
    known: dict[str, Any] = found.get(part, {}) if about.items() <= found.items() else {}
    return known


def file_of(model: str, path: Path, shown: str = EMBEDDED_MODEL) -> Path:
    """Returns the file of a model's results, so that those of one do not overwrite another's: `path` for the model whose results the pages
    show, `<name>.MODEL.json` beside it for any other. model: a name, folder or .gguf file."""
    name = Path(model).name.lower().removesuffix(".gguf")
    return path if name == shown else path.with_name(f"{path.stem}.{name}.json")


def write_results(path: Path, results: Mapping[str, Any]) -> None:
    """Writes a file of results."""
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def write_items(part: str, concept: str, scores: Iterable[ScoresAnswer], folder: Path = ITEMS) -> None:
    """Writes the scores of all answers of a result, rounded to four decimals, so that anyone can analyse it again."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(_rounded(one.model_dump(exclude_none=True)), separators=(",", ":")) for one in scores]
    (folder / f"{part}.{concept}.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def items_of(engine: Engine) -> Path:
    """Returns the folder of a model's scores."""
    return ITEMS if engine.info.name == EMBEDDED_MODEL else ITEMS / engine.info.name


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    return round(value, 4) if isinstance(value, float) else value
