"""Adds results to a file as they come, with the counts, the time and the machine of each."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.machine import describe
from benchmarks.quality.concepts import Profile
from steering.engine.api import Engine

MERGED = ("gates",)
"""Parts whose entries are mappings that a run adds to, by method."""
KEPT = ("processor", "processors", "python", "torch", "transformers", "commit", "load")
SEED = 0
"""Of sampling, folds and random directions wherever a part does not list its own seeds."""


def add_result(path: Path, engine: Engine, part: str, concept: str, found: Any) -> None:
    """Adds one result to the file. Methods of the gates are added to those that are there."""
    results = _read(path)
    about: Mapping[str, str] = {"model": engine.info.name, "dtype": engine.info.dtype, "device": engine.info.device}
    results.update(about, date=datetime.now(UTC).date().isoformat())
    if part in MERGED:
        found = {**results.get(part, {}).get(concept, {}), **found}
    results.setdefault(part, {})[concept] = found
    _write(path, results)


def add_run(path: Path, engine: Engine, part: str, concept: str, profile: Profile, seconds: float) -> None:
    """Records how a result came about: counts, seed, seconds, executor, versions and machine."""
    results, machine = _read(path), describe(engine.info.device)
    results.setdefault("runs", {}).setdefault(part, {})[concept] = {
        "date": datetime.now(UTC).date().isoformat(),
        "seconds": round(seconds),
        "seed": SEED,
        "executor": engine.stats().executor,
        "counts": {name: value for name, value in asdict(profile).items() if isinstance(value, int)},
        **{name: machine[name] for name in KEPT},
    }
    _write(path, results)


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def _write(path: Path, results: Mapping[str, Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
