"""Whatever steers two requests, a request that takes over cached prompt positions answers as one that computes them itself.

Specs, policies and guards go in, tokens and log probabilities come out; nothing here looks at how a plan is resolved.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import permutations
from typing import Any, Literal, TypeAlias

import pytest
from transformers import PreTrainedTokenizerFast

from steering.engine.api import Engine, GenerationRequest
from steering.engine.options import EngineLimits
from steering.engine.transformers.engine import TransformersEngine
from steering.plan.resolve import Mandatory, RecentPlans
from steering.plan.types import DoseGuard
from steering.spec import SteeringSpec
from steering.vectors import ConceptVector
from tests.engines import Outcome, family_engine, run, sampling
from tests.plans import PLACES, Vectors, random_item, vectors_for

PROMPT = tuple(b"The answer to that is not simple, since a prompt that is longer")
TOLERANCE = 1e-3
"""Nats: how far the arithmetic of two orders of computation may differ."""
PAIRS = 120

Item = dict[str, Any]
Action: TypeAlias = Literal["off", "warn", "clamp"]
LATER: Item = {"vector": "gamma", "strength": 0.5, "layers": [2], "scope": PLACES["generated"]}
"""Acts on no prompt position before the last."""


@dataclass(frozen=True)
class Steering:
    """What acts on one request: its own interventions, those of the policy, and the dose guard."""

    own: tuple[Item, ...]
    mandatory: tuple[Item, ...] = ()
    bound: float = 0.05
    action: Action = "clamp"


async def answer(
    engine: Engine, vectors: Mapping[str, ConceptVector], steering: Steering, salt: str, tokens: int = 4
) -> Outcome:
    """Answers PROMPT under a steering, sharing with earlier requests of the same salt."""
    own, mandatory = (
        SteeringSpec.model_validate({"interventions": items}) for items in (steering.own, steering.mandatory)
    )
    plan = await RecentPlans(1).resolve(
        own, Vectors(vectors), engine.info, DoseGuard(steering.bound, steering.action), Mandatory(mandatory, vectors)
    )
    return await run(engine, GenerationRequest(PROMPT, sampling(tokens, logprobs=0), plan, cache_salt=salt))


def assert_equal(shared: Outcome, computed: Outcome, pair: tuple[Steering, Steering]) -> None:
    """Tokens are the same, log probabilities nearly."""
    assert shared.tokens == computed.tokens, pair
    logprobs = [[event.logprob for event in one.events if event.finish is None] for one in (shared, computed)]
    assert logprobs[0] == pytest.approx(logprobs[1], abs=TOLERANCE), pair


class Pair:
    """Draws two steerings that differ in little: that is where two of them could be taken for one."""

    def __init__(self, seed: int, layers: int) -> None:
        self._rng, self._layers = random.Random(seed), layers

    def draw(self) -> tuple[Steering, Steering]:
        """Returns two."""
        items = [self._item() for _ in range(self._rng.randint(1, 4))]
        first = self._split(items)
        if first.own and self._rng.random() < 0.4:
            return first, self._under_another_policy(first)
        return first, self._split(self._changed(items))

    def _under_another_policy(self, first: Steering) -> Steering:
        """The last of the request's own interventions have become the policy's; it has as many as before."""
        kept = self._rng.randrange(len(first.own))
        moved = first.own[kept:]
        return replace(first, own=(*first.own[:kept], *[LATER] * len(moved)), mandatory=(*moved, *first.mandatory))

    def _item(self) -> Item:
        item = random_item(self._rng, self._layers)
        if "hold" not in item and self._rng.random() < 0.6:  # most cached prompts are those of such plans
            item["scope"] = PLACES["all"]
        return item

    def _split(self, items: list[Item]) -> Steering:
        at = self._rng.choice([len(items), self._rng.randint(0, len(items))])
        action: Action = self._rng.choice(["clamp", "clamp", "clamp", "warn", "off"])
        return Steering(tuple(items[:at]), tuple(items[at:]), self._rng.choice([0.02, 0.05]), action)

    def _changed(self, items: list[Item]) -> list[Item]:
        """The same once more, in another order, with another item, or with an item that leaves the prompt alone."""
        kind = self._rng.choice(["same", "order", "item", "later", "less", "scope"])
        items = list(items)
        index = self._rng.randrange(len(items))
        if kind == "order":
            self._rng.shuffle(items)
        elif kind == "item":
            items[index] = {**items[index], "vector": "delta"} if "to" not in items[index] else self._item()
        elif kind == "later":
            items.insert(self._rng.randint(0, len(items)), LATER)
        elif kind == "less":
            items.pop(index)
        elif kind == "scope" and "hold" not in items[index]:
            items[index] = {**items[index], "scope": PLACES["generated" if "schedule" in items[index] else "last"]}
        return items


async def test_a_shared_prompt_answers_as_a_computed_one(hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    """Pairs of steerings, one request after the other with one key; the second is compared with an engine that shares nothing."""
    taken_over = 0
    async with (
        family_engine("llama", hf_byte_tokenizer) as sharing,
        family_engine("llama", hf_byte_tokenizer, EngineLimits(share_prefixes=False)) as alone,
    ):
        vectors = vectors_for(sharing.info, means=True)
        for seed in range(PAIRS):
            pair = Pair(seed, sharing.info.layer_count).draw()
            await answer(sharing, vectors, pair[0], str(seed))
            shared = await answer(sharing, vectors, pair[1], str(seed))
            assert_equal(shared, await answer(alone, vectors, pair[1], str(seed)), pair)
            taken_over += shared.finish.cached_tokens > 0
    assert taken_over >= PAIRS / 10, "hardly any pair shared anything, so this shows nothing"


CLAMP = {"vector": "alpha", "operation": "clamp", "low": 5.0, "high": 6.0, "layers": [0]}
ROTATE = {"vector": "beta", "operation": "rotate", "degrees": 3.0, "layers": [0]}
SAME_CALLS = [
    Steering((CLAMP,), (ROTATE,)),
    Steering((LATER,), (CLAMP, ROTATE)),
    Steering((CLAMP, ROTATE), (LATER,)),
    Steering((CLAMP, ROTATE)),
    Steering((CLAMP, ROTATE), action="off"),
    Steering((CLAMP, ROTATE), bound=0.02),
    Steering((), (CLAMP, ROTATE)),
]
"""The same calls at the prompt, some of which the guard scales down and others not."""


async def test_whom_the_guard_bounds_decides_who_shares(hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    """A change of policy moves a call from one side of the guard to the other (engine A3, N1)."""
    async with family_engine("llama", hf_byte_tokenizer) as engine:
        vectors = vectors_for(engine.info)
        computed = [await answer(engine, vectors, one, f"alone {n}") for n, one in enumerate(SAME_CALLS)]
        for first, second in permutations(range(len(SAME_CALLS)), 2):
            await answer(engine, vectors, SAME_CALLS[first], f"{first} {second}", 1)
            shared = await answer(engine, vectors, SAME_CALLS[second], f"{first} {second}")
            assert_equal(shared, computed[second], (SAME_CALLS[first], SAME_CALLS[second]))


async def test_a_policy_of_the_same_calls_keeps_its_cached_prompts(hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    """What acts on later positions only, in whatever number, does not keep prompts apart."""
    async with family_engine("llama", hf_byte_tokenizer) as engine:
        await _warm(engine, Steering((CLAMP,), (ROTATE,)))
        shared = await answer(engine, vectors_for(engine.info), Steering((CLAMP, LATER), (ROTATE, LATER)), "key")
    assert shared.finish.cached_tokens > 0


async def _warm(engine: TransformersEngine, steering: Steering) -> None:
    await answer(engine, vectors_for(engine.info), steering, "key", tokens=1)
