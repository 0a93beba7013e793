"""Likelihoods under an added direction are those of plain transformers with a plain hook; gradients those of finite differences."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from transformers import PreTrainedModel

from steering.engine.transformers.runner import ModelRunner
from steering.engine.transformers.training.gradient_pass import ScoredText
from steering.errors import NonfiniteActivations
from steering.model.layout import find_layout
from steering.model.verification import verify_layout
from tests.families import D_MODEL, FAMILIES

LAYER = 1
TEXTS = [
    ScoredText(tuple(b"The day was warm and the sea was calm"), 12, 3.0),
    ScoredText(tuple(b"Hm"), 1, -1.0),
    ScoredText(tuple(b"The day was cold"), 8, 0.5),
]


@contextmanager
def runner_over(model: PreTrainedModel) -> Iterator[ModelRunner]:
    runner = ModelRunner(model, verify_layout(model, find_layout(model)), torch.device("cpu"))
    try:
        yield runner
    finally:
        runner.close()


def direction_of(seed: int = 0) -> torch.Tensor:
    direction = torch.randn(D_MODEL, generator=torch.Generator().manual_seed(seed))
    return direction / direction.norm()


def plain_logprobs(family: str, text: ScoredText, direction: torch.Tensor) -> torch.Tensor:
    """(position, vocab) of one text alone, by transformers as it comes."""
    model = FAMILIES[family]()

    def add(_module: object, _arguments: object, output: object) -> object:
        if isinstance(output, tuple):
            return (output[0] + text.amount * direction, *output[1:])
        return output + text.amount * direction

    handle = find_layout(model).blocks[LAYER].register_forward_hook(add)
    with torch.no_grad():
        logprobs = torch.log_softmax(model(input_ids=torch.tensor([text.ids])).logits[0], dim=-1)
    handle.remove()
    return logprobs


def plain_likelihood(family: str, text: ScoredText, direction: torch.Tensor) -> float:
    """The sum over the scored tokens."""
    logprobs = plain_logprobs(family, text, direction)
    return float(sum(logprobs[at - 1, text.ids[at]] for at in range(text.start, len(text.ids))))


def plain_divergence(family: str, text: ScoredText, direction: torch.Tensor) -> float:
    """Mean KL(steered || unsteered) over the predictions of the scored tokens."""
    steered, plain = plain_logprobs(family, text, direction), plain_logprobs(family, text, 0.0 * direction)
    divergence = (steered.exp() * (steered - plain)).sum(1)
    return float(divergence[text.start - 1 : len(text.ids) - 1].mean())


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_likelihoods_equal_plain_transformers(family: str) -> None:
    direction = direction_of()
    expected = [plain_likelihood(family, text, direction) for text in TEXTS]
    with runner_over(FAMILIES[family]()) as runner:
        together, _ = runner.gradients.score(TEXTS, LAYER, direction)
        alone = torch.cat([runner.gradients.score([text], LAYER, direction)[0] for text in TEXTS])
    torch.testing.assert_close(together, torch.tensor(expected), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "bloom"])
def test_divergences_equal_plain_transformers(family: str) -> None:
    direction = direction_of()
    expected = [plain_divergence(family, text, direction) for text in TEXTS]
    with runner_over(FAMILIES[family]()) as runner:
        found, _ = runner.gradients.diverge(TEXTS, LAYER, direction)
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("measure", ["score", "diverge"])
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gpt2", "bloom", "qwen3"])
def test_gradients_are_the_slopes(family: str, measure: str) -> None:
    """A small turn of the direction changes each text's number by the gradient times the turn, row by row."""
    model = FAMILIES[family]().to(torch.float64)
    direction, turn = direction_of(), 1e-2 * direction_of(1)
    with runner_over(model) as runner:
        ask = getattr(runner.gradients, measure)
        _, gradients = ask(TEXTS, LAYER, direction)
        up, down = ask(TEXTS, LAYER, direction + turn)[0], ask(TEXTS, LAYER, direction - turn)[0]
    torch.testing.assert_close(gradients @ turn, (up - down) / 2, rtol=2e-2, atol=2e-4)


def test_nothing_is_left_on_the_model() -> None:
    model = FAMILIES["llama"]().requires_grad_(True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with runner_over(model) as runner:
        assert torch.is_grad_enabled()
        likelihoods, gradients = runner.gradients.score(TEXTS, LAYER, direction_of())
        with torch.no_grad():
            runner.gradients.score(TEXTS, LAYER, direction_of())
            assert not torch.is_grad_enabled()
    assert not any(tensor.requires_grad for tensor in (likelihoods, gradients))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert sum(len(module._forward_hooks) for module in model.modules()) == 0


def test_without_an_amount_there_is_no_gradient() -> None:
    texts = [ScoredText(text.ids, text.start, 0.0) for text in TEXTS]
    with runner_over(FAMILIES["llama"]()) as runner:
        likelihoods, gradients = runner.gradients.score(texts, LAYER, direction_of())
    assert not bool(gradients.any())
    expected = [plain_likelihood("llama", text, direction_of()) for text in texts]
    torch.testing.assert_close(likelihoods, torch.tensor(expected), rtol=1e-4, atol=1e-3)


def test_numbers_out_of_range_are_an_error() -> None:
    with runner_over(FAMILIES["llama"]()) as runner, pytest.raises(NonfiniteActivations):
        runner.gradients.score([ScoredText(TEXTS[0].ids, 5, 3e38)], LAYER, 10 * direction_of())
