"""Measures at which strengths the shipped concepts steer a model, in both directions, with intervals.

The layer is chosen first, on other prompts: where a card reads best is not always where a vector steers best. So are the doses of
another model than the embedded one, which is then measured on further prompts.

Written to steering/concepts/data/measured.json, from where a vector extracted from a starter concept with default settings
gets its evidence.
"""

import json
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.quality.concepts import (
    Profile,
    further_prompts,
    neutral_prompts,
    reporting_prompts,
    strengths_of,
    vector_of,
)
from benchmarks.quality.progress import progress_printer
from benchmarks.quality.recording import PARTS, items_of, read_results, write_items, write_results
from benchmarks.quality.steering_layer import steering_doses, steering_layer
from steering.cards import Recommended
from steering.concepts.measured import MEASURED_FILE
from steering.engine.api import Engine
from steering.lab.evaluations import DoseResponseRequest, dose_response

PATH = Path(__file__).parents[2] / "steering" / "concepts" / "data" / MEASURED_FILE


async def ranges(engine: Engine, concept: str, profile: Profile) -> dict[str, Any]:
    """Measures the dose-response of a concept's vector with default settings, on its evaluation prompts."""
    vector = await vector_of(engine, concept)
    layer = await steering_layer(engine, concept, vector, profile)
    vector = replace(vector, recommended=Recommended((layer,), None, None, basis="measured"))
    doses = profile.doses or await steering_doses(engine, concept, vector, layer, profile, items_of(engine))
    reported = reporting_prompts if profile.doses else further_prompts
    request = DoseResponseRequest(
        vector,
        prompts=reported(engine, concept, profile.reporting),
        neutral=neutral_prompts(engine, profile.neutral),
        strengths=strengths_of(engine, vector, doses),
        random_directions=profile.controls,
        sampling=profile.sampling,
        checkpoints=PARTS,
    )
    found = await dose_response(engine, request, progress=progress_printer(f"{concept}, ranges"))
    write_items("ranges", concept, found.scores, items_of(engine))
    return {
        "dataset": vector.provenance["dataset"],
        "method": vector.method,
        "position": vector.provenance["position"],
        "layers": list(found.layers),
        "reading_layer": found.reading_layer,
        "prompts": len(request.prompts or ()),
        "random_directions": request.random_directions,
        "dtype": engine.info.dtype,
        "date": datetime.now(UTC).date().isoformat(),
        "strength": found.recommended.strength,
        "negative": found.recommended.negative,
        "anti_steered": found.anti_steered,
        "points": [asdict(point) for point in found.points],
    }


READ = ("dataset", "layers", "strength", "negative")
"""What a blind reading is of: pairs of answers that a vector steers at a layer, at the strengths that hold."""


def add_ranges(engine: Engine, concept: str, found: dict[str, Any], path: Path = PATH) -> None:
    """Adds one result to the package's data file, under the model's fingerprint. The blind reading of the result before stays where it is
    of the same vector, layer and strengths; otherwise the concept makes no claim until new pairs are read."""
    content = read_results(path)
    model = content.setdefault(engine.info.fingerprint, {"model": engine.info.name, "concepts": {}})
    before = model["concepts"].get(concept, {})
    made = json.loads(json.dumps(found))  # with lists in place of tuples, as the file has them
    if "blind" in before and all(before[key] == made[key] for key in READ):
        made["blind"] = before["blind"]
    model["concepts"][concept] = made
    write_results(path, content)
