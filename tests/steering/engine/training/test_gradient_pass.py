"""Likelihoods under an added direction are those of plain transformers with a plain hook; gradients those of finite differences."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from transformers import PreTrainedModel

from steering.engine.options import EngineLimits
from steering.engine.transformers.runner import ModelRunner
from steering.engine.transformers.training import Measured, Pieces, ScoredText
from steering.errors import NonfiniteActivations, UnsupportedParameter
from steering.model.hook_points import BlockOutput
from steering.model.layout import find_layout
from steering.model.verification import verify_layout
from tests.families import D_MODEL, FAMILIES, LAYERS
from tests.narrowing import present

LAYER = 1
TEXTS = [
    ScoredText(tuple(b"The day was warm and the sea was calm"), 12, 3.0),
    ScoredText(tuple(b"Hm"), 1, -1.0),
    ScoredText(tuple(b"The day was cold"), 8, 0.5),
]


@contextmanager
def runner_over(model: PreTrainedModel) -> Iterator[ModelRunner]:
    runner = ModelRunner(model, verify_layout(model, find_layout(model)), torch.device("cpu"), EngineLimits())
    try:
        yield runner
    finally:
        runner.close()


def finished(pieces: Pieces) -> Measured:
    """Runs all pieces."""
    try:
        while True:
            next(pieces)
    except StopIteration as ended:
        found: Measured = ended.value
        return found


def direction_of(seed: int = 0) -> torch.Tensor:
    direction = torch.randn(D_MODEL, generator=torch.Generator().manual_seed(seed))
    return direction / float(direction.norm())


def plain_logprobs(family: str, text: ScoredText, direction: torch.Tensor) -> torch.Tensor:
    """(position, vocab) of one text alone, by transformers as it comes."""
    model = FAMILIES[family]()

    def add(_module: object, _arguments: object, output: BlockOutput) -> BlockOutput:
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
        together, _ = finished(runner.gradients.score(TEXTS, LAYER, direction))
        alone = torch.cat([finished(runner.gradients.score([text], LAYER, direction))[0] for text in TEXTS])
    torch.testing.assert_close(together, torch.tensor(expected), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "bloom"])
def test_divergences_equal_plain_transformers(family: str) -> None:
    direction = direction_of()
    expected = [plain_divergence(family, text, direction) for text in TEXTS]
    with runner_over(FAMILIES[family]()) as runner:
        found, _ = finished(runner.gradients.diverge(TEXTS, LAYER, direction))
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("measure", ["score", "diverge"])
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gpt2", "bloom", "qwen3"])
def test_gradients_are_the_slopes(family: str, measure: str) -> None:
    """A small turn of the direction changes each text's number by the gradient times the turn, row by row."""
    model = FAMILIES[family]().to(torch.float64)
    direction, turn = direction_of(), 1e-2 * direction_of(1)
    with runner_over(model) as runner:
        measured = getattr(runner.gradients, measure)
        _, gradients = finished(measured(TEXTS, LAYER, direction))
        up, down = (finished(measured(TEXTS, LAYER, direction + sign * turn))[0] for sign in (1, -1))
    torch.testing.assert_close(gradients @ turn, (up - down) / 2, rtol=2e-2, atol=2e-4)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_block_by_block_gradients_equal_those_of_one_graph(family: str) -> None:
    model, direction = FAMILIES[family](), direction_of()
    text = TEXTS[0]
    added = (text.amount * direction).requires_grad_()

    def add(_module: object, _arguments: object, output: BlockOutput) -> BlockOutput:
        return (output[0] + added, *output[1:]) if isinstance(output, tuple) else output + added

    handle = find_layout(model).blocks[LAYER].register_forward_hook(add)
    logprobs = torch.log_softmax(model(input_ids=torch.tensor([text.ids])).logits[0], dim=-1)
    handle.remove()
    torch.autograd.backward([logprobs[at - 1, text.ids[at]] for at in range(text.start, len(text.ids))])
    with runner_over(FAMILIES[family]()) as runner:
        _, gradients = finished(runner.gradients.score([text], LAYER, direction))
    torch.testing.assert_close(gradients[0], text.amount * present(added.grad), rtol=1e-3, atol=1e-4)


def test_a_piece_is_one_block_and_frees_it() -> None:
    with runner_over(FAMILIES["llama"]()) as runner:
        pieces = runner.gradients.score([TEXTS[0]], 0, direction_of())
        count = sum(1 for _ in pieces)
    assert count == 1 + 1 + (LAYERS - 1), "a forward pass, the head, and each block after the steered one"


def test_a_model_that_changes_the_residual_between_blocks_is_refused() -> None:
    model = FAMILIES["llama"]()

    def doubled(_module: object, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (2 * arguments[0], *arguments[1:])

    model.model.layers[2].register_forward_pre_hook(doubled)
    with runner_over(model) as runner, pytest.raises(UnsupportedParameter, match="between its blocks"):
        finished(runner.gradients.score(TEXTS, 0, direction_of()))


def test_without_steering_nothing_diverges_at_all() -> None:
    """Both passes run the same kernels, so no rounding is left between them."""
    texts = [ScoredText(text.ids, text.start, 1e-30) for text in TEXTS]
    with runner_over(FAMILIES["llama"]().to(torch.bfloat16)) as runner:
        divergences, _ = finished(runner.gradients.diverge(texts, LAYER, direction_of()))
    assert not bool(divergences.any())


def test_nothing_is_left_on_the_model() -> None:
    model = FAMILIES["llama"]().requires_grad_(True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with runner_over(model) as runner:
        assert torch.is_grad_enabled()
        likelihoods, gradients = finished(runner.gradients.score(TEXTS, LAYER, direction_of()))
        with torch.no_grad():
            finished(runner.gradients.score(TEXTS, LAYER, direction_of()))
            assert not torch.is_grad_enabled()
    assert not any(tensor.requires_grad for tensor in (likelihoods, gradients))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert sum(len(module._forward_hooks) for module in model.modules()) == 0


def test_without_an_amount_there_is_no_gradient() -> None:
    texts = [ScoredText(text.ids, text.start, 0.0) for text in TEXTS]
    with runner_over(FAMILIES["llama"]()) as runner:
        likelihoods, gradients = finished(runner.gradients.score(texts, LAYER, direction_of()))
    assert not bool(gradients.any())
    expected = [plain_likelihood("llama", text, direction_of()) for text in texts]
    torch.testing.assert_close(likelihoods, torch.tensor(expected), rtol=1e-4, atol=1e-3)


def test_numbers_out_of_range_are_an_error() -> None:
    with runner_over(FAMILIES["llama"]()) as runner, pytest.raises(NonfiniteActivations):
        finished(runner.gradients.score([ScoredText(TEXTS[0].ids, 5, 3e38)], LAYER, 10 * direction_of()))
