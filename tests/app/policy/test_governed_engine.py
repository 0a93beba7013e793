"""The engine of routes and workflows: every pass is under the policy that holds when it begins, whatever its plan."""

import ast
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from app.api.policy import GovernedEngine, Policy
from app.core.settings import Settings
from steering.engine.api import CapturePrompt, CaptureSpec, GenerationRequest, SamplingParams
from steering.engine.capabilities import fitting_of, unembedding_of
from steering.lab.controls import UNGUARDED, plan_at
from steering.plan.resolve import RecentPlans
from steering.schemas.governance import PolicySpec
from steering.shapes import Tensor
from steering.spec import InterventionSpec
from steering.store import open_store
from steering.vectors import ConceptVector
from steering.workflows.extract import registered
from steering.workflows.generate import answer
from tests.app.policy.conftest import directions, tiny_engine

APP = Path(__file__).resolve().parents[3] / "app"
PROMPT = tuple(b"the road")


async def test_a_plan_of_a_workflow_ends_with_what_is_mandatory_now(hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    inner, store, policy = (
        tiny_engine(hf_byte_tokenizer),
        await open_store("memory://"),
        Policy(Settings(), RecentPlans()),
    )
    engine = GovernedEngine(inner, policy)
    try:
        vectors, logits = list[ConceptVector](), list[Tensor]()
        for seed, name in enumerate(("mood", "other")):
            given = directions(inner.info.d_model, seed)
            vectors.append(await store.shared.vectors.put(registered(inner.info, name, given, None, "", ())))
        other = vectors[1]
        own = await plan_at(inner.info, other, 0.5, (1,))
        both = await RecentPlans().resolve(
            PolicySpec(mandatory=(_spec("other", 0.5), _spec("mood", 3.0))).steering,
            store.shared.vectors,
            inner.info,
            UNGUARDED,
        )
        free = await answer(inner, GenerationRequest(PROMPT, SamplingParams(max_tokens=6), own))
        expected = await answer(inner, GenerationRequest(PROMPT, SamplingParams(max_tokens=6), both))
        for mandatory in ((_spec("mood", 3.0),), ()):  # set, and removed again
            found = await policy.resolve(PolicySpec(mandatory=mandatory), store, inner)
            await policy.put(found, store)
            governed = await answer(engine, GenerationRequest(PROMPT, SamplingParams(max_tokens=6), own))
            assert governed.tokens == (expected if mandatory else free).tokens
            assert len(governed.finish.steering.doses) == 1, "the report is of the plan's own interventions"
        assert free.tokens != expected.tokens
        stale = (await policy.resolve(PolicySpec(mandatory=(_spec("mood", 3.0),)), store, inner)).unsteered
        spec = CaptureSpec((), logits=True)
        for engine_, plan in ((engine, stale), (inner, CapturePrompt(PROMPT).plan)):
            (capture,) = await engine_.capture([CapturePrompt(PROMPT, plan)], spec)
            assert capture.logits is not None
            logits.append(capture.logits)
        assert (logits[0] == logits[1]).all(), "what was mandatory once is no longer applied"
        assert unembedding_of(engine) is not None
        assert fitting_of(engine) is not None
    finally:
        await engine.close()
        await store.close()


def _spec(vector: str, strength: float) -> InterventionSpec:
    return InterventionSpec(vector=vector, strength=strength, layers=[1])


def test_the_server_has_no_other_engine() -> None:
    """The factory is called where its engine is put under the policy, and nowhere else."""
    calls = []
    for file in APP.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr == "_engine_factory":
                calls.append((file.relative_to(APP).as_posix(), node.ctx.__class__.__name__))
    assert sorted(calls) == [("state.py", "Load"), ("state.py", "Store")]
