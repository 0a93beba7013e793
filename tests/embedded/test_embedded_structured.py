"""Structured output of a real model: answers match their schemas under steering at every layer, alone and in a batch."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jsonschema
import pytest

from steering.engine.api import GenerationRequest, SamplingParams
from steering.engine.transformers.engine import TransformersEngine
from steering.schemas.structured import Grammar
from steering.vectors import ConceptVector
from tests.embedded.material import question
from tests.engines import run_all, run_alone, sampling
from tests.plans import plan_for

pytestmark = pytest.mark.embedded

TEXT = {"type": "string", "minLength": 1, "maxLength": 30}
SCHEMAS: list[dict[str, Any]] = [
    {"type": "object", "properties": {"city": TEXT, "days": {"type": "integer", "minimum": 1, "maximum": 30}}},
    {"type": "object", "properties": {"moods": {"type": "array", "items": {"enum": ["glad", "sad"]}, "maxItems": 3}}},
    {"type": "object", "properties": {"day": {"type": "string", "format": "date"}, "sure": {"type": "boolean"}}},
]


async def test_answers_match_their_schemas_and_are_as_alone(
    engine: TransformersEngine, vectors: Mapping[str, ConceptVector]
) -> None:
    name = next(iter(vectors))
    steered = [{"vector": name, "layers": "all", "strength": 1.0}]
    plans = [await plan_for(items, vectors, engine.info) for items in (steered, [])]
    requests = []
    for seed, schema in enumerate(SCHEMAS):
        schema |= {"required": list(schema["properties"]), "additionalProperties": False}
        grammar = Grammar("json_schema", json.dumps(schema))
        params = SamplingParams(max_tokens=120, temperature=seed % 2 * 0.7, seed=seed, grammar=grammar, logprobs=0)
        requests.append(GenerationRequest(question("Describe a journey as JSON."), params, plans[0]))
        requests.append(replace(requests[-1], sampling=sampling(20, seed=seed), plan=plans[seed % 2]))
    together, alone = await run_all(engine, requests), await run_alone(engine, requests)
    assert [outcome.tokens for outcome in together] == [outcome.tokens for outcome in alone]
    for schema, outcome in zip(SCHEMAS, together[::2], strict=True):
        assert outcome.finish.reason == "stop", outcome.text
        jsonschema.validate(json.loads(outcome.text), schema)
        assert "".join(event.text for event in outcome.events) == outcome.text
