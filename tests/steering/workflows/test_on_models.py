"""The workflows on the transformers engine: numbers that a plain forward pass confirms, and a real concept found and moved."""

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import torch
from transformers import PreTrainedModel

from steering.concepts.loader import load_evaluation_prompts
from steering.engine.api import CapturePrompt, CaptureSpec, GenerationRequest, SamplingParams
from steering.engine.transformers.engine import TransformersEngine
from steering.lab.controls import plan_at
from steering.model.loading import LoadedModel
from steering.pairs import ChatMessage, PairSet
from steering.workflows.comparison import Comparison, compare
from steering.workflows.describe import Description, describe
from steering.workflows.extract import ExtractionRequest, extract
from tests.embedded.material import few_pairs
from tests.families import FAMILIES
from tests.narrowing import present


@pytest.fixture
async def tiny(tiny_loaded: LoadedModel) -> AsyncIterator[TransformersEngine]:
    engine = TransformersEngine(tiny_loaded)
    yield engine
    await engine.close()


@pytest.fixture
async def embedded(embedded_model: LoadedModel) -> AsyncIterator[TransformersEngine]:
    engine = TransformersEngine(embedded_model)
    yield engine
    await engine.close()


@pytest.fixture
def plain_model() -> PreTrainedModel:
    """The tiny model as transformers made it, with the same weights; the engine has the other one to itself."""
    return FAMILIES["llama"]()


PAIRS = PairSet(("I love it", "What joy", "So good"), ("I hate it", "What woe", "So bad"))


async def test_perplexity_is_that_of_a_plain_forward_pass(
    tiny: TransformersEngine, plain_model: PreTrainedModel
) -> None:
    sampling = SamplingParams(max_tokens=12, temperature=1.0, seed=4, ignore_eos=True)
    arm = (await compare(tiny, Comparison({"base": GenerationRequest("Hello", sampling)}, "base")))[0]
    prompt = tiny.tokenizer.encode("Hello")
    ids = prompt + arm.answers[0].tokens
    with torch.no_grad():
        logits = plain_model(torch.tensor([ids])).logits[0].double()
    picked = logits.log_softmax(1)[torch.arange(len(prompt) - 1, len(ids) - 1), torch.tensor(arm.answers[0].tokens)]
    assert present(arm.metrics).perplexity == pytest.approx(float((-picked.mean()).exp()), rel=1e-4)


async def test_kl_is_that_of_a_plain_hook(tiny: TransformersEngine, plain_model: PreTrainedModel) -> None:
    """Teacher-forced steering equals adding the row by hand after block 1, at every position."""
    vector = await extract(tiny, ExtractionRequest("joy", PAIRS, layers=(1,), holdout=0.0))
    plan = await plan_at(tiny.info, vector, 3.0, (1,))
    sampling = SamplingParams(max_tokens=8, temperature=1.0, seed=4, ignore_eos=True)
    arms = {"base": GenerationRequest("Hello", sampling), "joy": GenerationRequest("Hello", sampling, plan)}
    steered = (await compare(tiny, Comparison(arms, "base")))[1]
    prompt = tiny.tokenizer.encode("Hello")
    ids = torch.tensor([prompt + steered.answers[0].tokens])
    row = 3.0 * vector.at(1).scale * vector.at(1).direction
    with torch.no_grad():
        plain = plain_model(ids).logits[0].double().log_softmax(1)
        handle = plain_model.model.layers[1].register_forward_hook(lambda module, inputs, output: output + row)
        hooked = plain_model(ids).logits[0].double().log_softmax(1)
        handle.remove()
    kl = (hooked.exp() * (hooked - plain)).sum(1)[len(prompt) - 1 : -1]
    assert float(kl.min()) > 0.0
    assert present(steered.against_baseline).kl_per_token[0] == pytest.approx(kl.tolist(), rel=1e-3, abs=1e-7)


async def test_a_greedy_answer_is_the_best_of_its_own_teacher_forced_logits(tiny: TransformersEngine) -> None:
    """What is measured is what was generated: reading an answer again under its plan predicts that very answer."""
    vector = await extract(tiny, ExtractionRequest("joy", PAIRS, holdout=0.0))
    plan = await plan_at(tiny.info, vector, 2.0, (0, 2))
    arm = GenerationRequest("Hello there", SamplingParams(max_tokens=16, ignore_eos=True), plan)
    tokens = (await compare(tiny, Comparison({"joy": arm}, "joy")))[0].answers[0].tokens
    prompt = tiny.tokenizer.encode("Hello there")
    (again,) = await tiny.capture([CapturePrompt(prompt + tokens, plan, len(prompt))], CaptureSpec((), logits=True))
    assert tuple(present(again.logits)[len(prompt) - 1 : -1].argmax(1).tolist()) == tokens


async def test_identical_arms_of_a_real_engine_are_identical(tiny: TransformersEngine) -> None:
    vector = await extract(tiny, ExtractionRequest("joy", PAIRS, holdout=0.0))
    plan = await plan_at(tiny.info, vector, 2.0, (1,))
    plain = GenerationRequest("Hello", SamplingParams(max_tokens=12, temperature=1.0, seed=9, ignore_eos=True))
    steered = replace(plain, plan=plan)
    arms = {"base": plain, "one": steered, "two": steered}
    base, one, two = await compare(tiny, Comparison(arms, "base", 4))
    assert [answer.tokens for answer in one.answers] == [answer.tokens for answer in two.answers]
    assert [answer.tokens for answer in one.answers] != [answer.tokens for answer in base.answers]
    assert tiny.stats().running == 0


@pytest.mark.embedded
async def test_the_model_describes_a_concept_itself(embedded: TransformersEngine) -> None:
    prompts = load_evaluation_prompts("sentiment")[:8]
    found = await describe(
        embedded,
        Description("cheerful, delighted and full of hope", ("gloomy, bitter and full of sorrow",)),
        prompts=prompts,
        sampling=SamplingParams(max_tokens=40, temperature=0.7, seed=2),
    )
    assert len(found.pairs) >= 4
    assert all(isinstance(text[-1], ChatMessage) and text[-1].role == "assistant" for text in found.pairs.positive)
    request = ExtractionRequest("cheer", found.pairs, layers=(16,), position="response_mean", holdout=0.0)
    described = await extract(embedded, request)
    mood = ExtractionRequest("sentiment", few_pairs("sentiment", 16), layers=(16,), position="mean", holdout=0.0)
    ours = await extract(embedded, mood)
    assert float(described.at(16).direction @ ours.at(16).direction) > 0.1
