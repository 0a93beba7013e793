"""One batch on a real model: every row gets what it would get alone, and the unsteered ones what transformers gives."""

import asyncio
from collections.abc import Callable, Mapping, Sequence

import pytest
import torch
from transformers import PreTrainedModel

from steering.engine.api import Engine, GenerationRequest
from steering.engine.transformers.engine import TransformersEngine
from steering.model.layout import find_layout
from steering.vectors import ConceptVector
from tests.embedded.material import question
from tests.embedded.rows import PLAIN, STEERED, Row
from tests.engines import Outcome, run, run_all, run_alone, sampling
from tests.plans import plan_for
from tests.reference import Reference

pytestmark = pytest.mark.embedded

TOKENS = 16
REFERENCE_TOKENS = 4


@pytest.fixture(scope="module")
def requests(engine: TransformersEngine, vectors: Mapping[str, ConceptVector]) -> list[GenerationRequest]:
    """Steered and plain rows, mixed up."""

    async def made(row: Row) -> GenerationRequest:
        plan = await plan_for(row.items, vectors, engine.info)
        return GenerationRequest(question(row.prompt), sampling(TOKENS), plan)

    rows = [*STEERED[:8], *PLAIN[:2], *STEERED[8:], *PLAIN[2:]]
    return [asyncio.run(made(row)) for row in rows]


@pytest.fixture(scope="module")
def together(engine: TransformersEngine, requests: list[GenerationRequest]) -> list[Outcome]:
    """All rows in one batch that half of them join while the others are being written."""
    return asyncio.run(joining(engine, requests))


async def joining(engine: Engine, requests: Sequence[GenerationRequest]) -> list[Outcome]:
    """The second half of the requests comes when the first row has its third token."""
    half = len(requests) // 2
    under_way = asyncio.Event()

    async def first() -> Outcome:
        events = []
        async for event in engine.generate(requests[0]):
            events.append(event)
            if event.index == 2:
                under_way.set()
        finish = events[-1].finish
        assert finish is not None
        return Outcome([e.token_id for e in events[:-1]], "".join(e.text for e in events), finish, events)

    async def late(request: GenerationRequest) -> Outcome:
        await under_way.wait()
        return await run(engine, request)

    early = [run(engine, request) for request in requests[1:half]]
    return list(await asyncio.gather(first(), *early, *(late(request) for request in requests[half:])))


async def test_every_row_of_a_mixed_batch_gets_what_it_gets_alone(
    engine: TransformersEngine, requests: list[GenerationRequest], together: list[Outcome]
) -> None:
    alone = await run_alone(engine, requests)
    for request, one, other in zip(requests, together, alone, strict=True):
        assert one.tokens == other.tokens, request.plan.spec
        assert len(one.tokens) == TOKENS
        assert one.finish.steering.fired_at == other.finish.steering.fired_at
    fired = [item for outcome in alone for item in outcome.finish.steering.fired]
    assert len(STEERED) == 16
    assert {True, False} == set(fired), "conditions that hold and such that do not"


async def test_the_plans_of_the_batch_steer(
    engine: TransformersEngine, requests: list[GenerationRequest], together: list[Outcome]
) -> None:
    """Or that they agree would say nothing. One row's condition never holds, and that row reads as if unsteered."""
    plain = await run_all(engine, [GenerationRequest(r.prompt, r.sampling) for r in requests if not r.plan.empty])
    steered = [o for r, o in zip(requests, together, strict=True) if not r.plan.empty]
    changed = [one.tokens != other.tokens for one, other in zip(steered, plain, strict=True)]
    unmoved = [row.prompt for row, moved in zip(STEERED, changed, strict=True) if not moved]
    assert len(unmoved) <= 4, unmoved
    for one, other in zip(steered, plain, strict=True):
        if not any(one.finish.steering.fired):
            assert one.tokens == other.tokens


def test_unsteered_rows_equal_transformers(
    engine: TransformersEngine,
    plain_model: PreTrainedModel,
    requests: list[GenerationRequest],
    together: list[Outcome],
) -> None:
    plain = [(r, o) for r, o in zip(requests, together, strict=True) if r.plan.empty]
    assert len(plain) == len(PLAIN)
    for request, outcome in plain:
        ids = torch.tensor([engine.tokenizer.encode(request.prompt)])
        expected = plain_model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=TOKENS,
            min_new_tokens=TOKENS,
            do_sample=False,
            eos_token_id=None,
        )
        assert outcome.tokens == expected[0, ids.shape[1] :].tolist()


def test_the_slow_reference_agrees(
    engine: TransformersEngine,
    plain_model: PreTrainedModel,
    vectors: Mapping[str, ConceptVector],
    requests: list[GenerationRequest],
    together: list[Outcome],
) -> None:
    """One request, a plain hook, no cache, one position at a time: the first tokens of every steered row of the batch."""
    blocks = find_layout(plain_model).blocks
    by_id = {vector.id: vector for vector in vectors.values()}  # a plan's spec names versions
    for request, outcome in zip(requests, together, strict=True):
        if request.plan.empty:
            continue
        prompt = engine.tokenizer.encode(request.prompt)
        expected = Reference(plain_model, blocks, request.plan.spec, by_id).generate(prompt, REFERENCE_TOKENS)
        assert outcome.tokens[:REFERENCE_TOKENS] == expected, request.plan.spec


@pytest.mark.parametrize("coefficient", [-9.0, 9.0])
async def test_a_raw_add_equals_a_plain_hook(
    engine: TransformersEngine,
    plain_model: PreTrainedModel,
    vectors: Mapping[str, ConceptVector],
    coefficient: float,
) -> None:
    """The way repeng steers: coefficient times the unit direction of each block, added to all that the block returns."""
    vector, prompt = vectors["sentiment"], engine.tokenizer.encode(question("How was the trip?"))
    layers = sorted(vector.layers)
    items = [{"vector": "sentiment", "unit": "raw", "strength": coefficient, "layers": layers}]
    plan = await plan_for(items, vectors, engine.info)
    ours = await run(engine, GenerationRequest(prompt, sampling(TOKENS), plan))
    blocks = plain_model.model.layers

    def hook_of(layer: int) -> Callable[[torch.nn.Module, object, torch.Tensor], torch.Tensor]:
        change = coefficient * vector.layers[layer].direction
        return lambda _module, _inputs, output: output + change

    handles = [blocks[layer].register_forward_hook(hook_of(layer)) for layer in layers]
    try:
        ids = torch.tensor([prompt])
        expected = plain_model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=TOKENS, do_sample=False, eos_token_id=None
        )
    finally:
        for handle in handles:
            handle.remove()
    plain = await run(engine, GenerationRequest(prompt, sampling(TOKENS)))
    assert ours.tokens == expected[0, len(prompt) :].tolist()
    assert ours.tokens != plain.tokens
