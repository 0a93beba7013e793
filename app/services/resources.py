"""Builds the response models of stored things: vectors, profiles, jobs, links, the model."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from pydantic import ValidationError

from steering.errors import StoreCorrupt
from steering.model.info import ModelInfo
from steering.quality import Recommended
from steering.schemas.base import by_layer
from steering.schemas.resources import JobAnswer, JobPage, JobSummary, LinkAnswer, LinkState, ProfileAnswer, link_url
from steering.schemas.system import ModelAnswer
from steering.schemas.vectors import QualityAnswer, RecommendedAnswer, VectorAnswer, VectorExport
from steering.store.base import JobPage as StoredJobs
from steering.store.base import JobRecord, Link, Profile
from steering.vectors import ConceptVector, VectorSummary

_COPIED = ("namespace", "name", "version", "id", "description", "model", "d_model", "method", "sha256", "created_at")
"""Fields of a vector that its description has too, unchanged."""
SHOWN_DAMAGED = 10
"""Damaged vectors, profiles or jobs that a warning names."""


def vector_answer(vector: VectorSummary) -> VectorAnswer:
    """Describes a vector without its directions."""
    return VectorAnswer(**_vector_fields(vector))


def damage_warnings(damaged: Sequence[str]) -> tuple[str, ...]:
    """Returns a warning that names damaged vectors, profiles or jobs, which the answer leaves out; none without any. damaged: ids or names."""
    if not damaged:
        return ()
    more = f" and {len(damaged) - SHOWN_DAMAGED} more" if len(damaged) > SHOWN_DAMAGED else ""
    shown = ", ".join(damaged[:SHOWN_DAMAGED])
    return (f"left out, because their stored bytes are damaged: {shown}{more}; restore or delete them",)


def vector_export(vector: ConceptVector) -> VectorExport:
    """Describes a vector with its directions."""
    return VectorExport(**_vector_fields(vector), directions=directions(vector))


def directions(vector: ConceptVector, layers: Sequence[int] | None = None) -> dict[str, list[float]]:
    """Returns unit directions by layer. Raises InvalidRequest for a layer the vector does not have."""
    chosen = sorted(vector.layers) if layers is None else layers
    return {str(layer): vector.at(layer).direction.tolist() for layer in chosen}


def _vector_fields(vector: VectorSummary) -> dict[str, Any]:
    means = {
        layer: (entry.positive_mean, entry.negative_mean)
        for layer, entry in vector.layers.items()
        if entry.positive_mean is not None and entry.negative_mean is not None
    }
    recommended = vector.recommended or Recommended(vector.recommended_layers())
    return {
        **{name: getattr(vector, name) for name in _COPIED},
        "tags": list(vector.tags),
        "layers": sorted(vector.layers),
        "scale": by_layer({layer: entry.scale for layer, entry in vector.layers.items()}),
        "means": by_layer(means),
        "centred": all(entry.centred for entry in vector.layers.values()),
        "recommended": RecommendedAnswer.model_validate(recommended, from_attributes=True),
        "quality": None if vector.quality is None else QualityAnswer.model_validate(vector.quality.to_dict()),
        "provenance": dict(vector.provenance),
    }


def profile_answer(profile: Profile) -> ProfileAnswer:
    """Describes a profile."""
    return ProfileAnswer(
        namespace=profile.namespace,
        name=profile.name,
        description=profile.description,
        interventions=profile.steering.interventions,
        created_at=profile.created_at,
        updated_at=profile.updated_at,
    )


def job_answer(job: JobRecord) -> JobAnswer:
    """Describes the current state of a job. Raises StoreCorrupt for a stored record that has other fields."""
    try:
        return JobAnswer.model_validate(job, from_attributes=True)
    except ValidationError:
        raise StoreCorrupt(f"the record stored in job {job.id} cannot be read") from None


def job_page(page: StoredJobs) -> JobPage:
    """Describes jobs without their results, and names those that cannot be read."""
    found, damaged = list[JobSummary](), list(page.damaged)
    for job in page.jobs:
        try:
            found.append(JobSummary.model_validate(job, from_attributes=True))
        except ValidationError:
            damaged.append(job.id)
    return JobPage(data=found, next_cursor=page.next_cursor, warnings=damage_warnings(damaged))


def link_answer(link: Link) -> LinkAnswer:
    """Describes a saved link without its state."""
    return LinkAnswer(**_link_fields(link), namespace=link.namespace, bytes=link.size)


def link_state(link: Link) -> LinkState:
    """Returns what a link restores. Who saved it, and in which namespace, is not for every reader."""
    return LinkState(**_link_fields(link), state=dict(link.state or {}))


def _link_fields(link: Link) -> dict[str, str]:
    return {"id": link.id, "view": link.view, "url": link_url(link.view, link.id), "created_at": link.created_at}


def model_answer(info: ModelInfo) -> ModelAnswer:
    """Describes the loaded model."""
    return ModelAnswer.model_validate({**asdict(info), "layers": info.layer_count, "parameters": info.parameter_count})
