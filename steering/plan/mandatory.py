"""Mandatory: the interventions that an operator adds to every request, after its own."""

from collections.abc import Mapping

from steering.spec import SteeringSpec, pinned
from steering.vectors import ConceptVector

_PREFIX = "mandatory/"
"""No name of a caller has a slash: `mood@1` of a request and of the operator may be vectors of two namespaces."""


class Mandatory:
    """Interventions whose vectors are at hand. vectors: by the names in `spec`.

    marked, found: the same interventions under names that no request can write, and their vectors. key: equal for equal
    content.
    """

    def __init__(self, spec: SteeringSpec | None = None, vectors: Mapping[str, ConceptVector] | None = None) -> None:
        self.spec, vectors = spec or SteeringSpec(), vectors or {}
        self.marked = pinned(self.spec, {name: _PREFIX + name for name in vectors})
        self.found = {_PREFIX + name: vector for name, vector in vectors.items()}
        self.key = (self.spec.model_dump_json(), tuple((one.id, one.sha256) for one in vectors.values()))

    @property
    def count(self) -> int:
        """How many they are."""
        return len(self.spec.interventions)
