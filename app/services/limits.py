"""Checks what a caller gave against the operator's limits. Every route that takes sampling or steering uses these."""

from collections.abc import Sequence

from app.settings import Settings
from steering.errors import LimitExceeded
from steering.schemas.sampling import ChoiceFields, SamplingFields
from steering.spec import InterventionSpec


def check_limit(given: int, limit: int, what: str, param: str) -> None:
    """Raises LimitExceeded when more was given than the operator allows."""
    if given > limit:
        raise LimitExceeded(f"{given} {what} given; at most {limit}", param=param)


def check_sampling(settings: Settings, fields: SamplingFields, n: int) -> None:
    """Raises LimitExceeded for more answers, stop strings or biases than the operator allows."""
    stops = fields.stops
    check_limit(n, settings.max_n, "answers", "n")
    check_limit(len(stops), settings.max_stops, "stop strings", "stop")
    check_limit(max(map(len, stops), default=0), settings.max_stop_characters, "characters in a stop string", "stop")
    if isinstance(fields, ChoiceFields):
        check_limit(fields.top_logprobs or 0, settings.max_top_logprobs, "logprobs", "logprobs")


def check_steering(settings: Settings, interventions: Sequence[InterventionSpec]) -> None:
    """Raises LimitExceeded for more interventions than the operator allows."""
    check_limit(len(interventions), settings.max_interventions, "interventions", "steering")
