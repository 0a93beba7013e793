"""Calls for sparse autoencoders that the operator registered."""

from collections.abc import Sequence
from typing import Unpack

from steering.client.calls.base import Call, Text, VectorDescription, json_fields, parsed, path_of
from steering.client.results import Vector
from steering.schemas.latent_space import DictionariesAnswer, DictionarySearchAnswer


def list_dictionaries() -> Call[DictionariesAnswer]:
    """Lists the dictionaries of the server."""
    return Call("GET", "/v1/dictionaries", parsed(DictionariesAnswer))


def search_dictionary(
    name: str,
    *,
    vector: str | None = None,
    texts: Sequence[Text] | None = None,
    against: Sequence[Text] | None = None,
    top: int = 20,
    min_output_score: float | None = None,
) -> Call[DictionarySearchAnswer]:
    """Finds features near a vector, or more active in texts than in others."""
    body = json_fields(vector=vector, texts=texts, against=against, top=top, min_output_score=min_output_score)
    return Call("POST", path_of("/v1/dictionaries/{}/search", name), parsed(DictionarySearchAnswer), body)


def feature_vector(dictionary: str, name: str, feature: int, **description: Unpack[VectorDescription]) -> Call[Vector]:
    """Stores a feature of a dictionary as the next version of a vector."""
    body = json_fields(name=name, feature=feature, **description)
    return Call("POST", path_of("/v1/dictionaries/{}/vectors", dictionary), parsed(Vector), body)
