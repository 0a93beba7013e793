"""ResidualHooks: exactly what was asked, where it was asked, and nothing afterwards."""

from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from steering.errors import InternalError
from steering.model.hook_points import residual_of
from steering.model.hooks import ResidualHooks, StopForward
from steering.model.layout import find_layout
from steering.shapes import Tensor
from tests.families import D_MODEL, FAMILIES, LAYERS

ROWS, LENGTH = 2, 5
IDS = torch.arange(ROWS * LENGTH).view(ROWS, LENGTH)


def change_per_row() -> Tensor:
    """A different change for each row, (row, 1, d_model)."""
    return torch.randn(ROWS, 1, D_MODEL, generator=torch.Generator().manual_seed(7))


class Recorder:
    """What goes into each block and comes out of it, seen by hooks of its own."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.outputs: list[Tensor] = []
        self.inputs: list[Tensor] = []
        for block in find_layout(model).blocks:
            block.register_forward_pre_hook(
                lambda _block, arguments, options: self.inputs.append(
                    arguments[0] if arguments else options["hidden_states"]
                ),
                with_kwargs=True,
            )
            block.register_forward_hook(lambda _block, _arguments, output: self.outputs.append(residual_of(output)))

    def run(self, model: PreTrainedModel) -> list[Tensor]:
        self.outputs, self.inputs = [], []
        model(IDS)
        return self.outputs


@pytest.mark.parametrize("layer", range(LAYERS))
@pytest.mark.parametrize("family", FAMILIES)
def test_residual_after_the_block_is_the_unsteered_one_plus_what_was_asked(family: str, layer: int) -> None:
    model = FAMILIES[family]()
    hooks = ResidualHooks(find_layout(model))
    recorder = Recorder(model)  # registered later, so it sees what the hooks put out
    plain = recorder.run(model)
    change = change_per_row()

    def apply(at: int, residual: Tensor) -> Tensor | None:
        assert at == layer
        assert residual.shape == (ROWS * LENGTH, D_MODEL)
        return residual + change.expand(ROWS, LENGTH, D_MODEL).reshape(-1, D_MODEL)

    with hooks.step(apply, points={layer}):
        steered = recorder.run(model)
    assert torch.equal(steered[layer], plain[layer] + change)
    assert all(torch.equal(steered[before], plain[before]) for before in range(layer))
    if layer + 1 < LAYERS:
        assert torch.equal(recorder.inputs[layer + 1], plain[layer] + change)
        assert not torch.equal(steered[layer + 1], plain[layer + 1])


@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_an_unsteered_row_is_bit_equal_in_a_batch_with_a_steered_one(family: str) -> None:
    model = FAMILIES[family]()
    hooks = ResidualHooks(find_layout(model))
    plain = model(IDS).logits
    change = torch.zeros(ROWS, LENGTH, D_MODEL)
    change[1] = 3.0
    with hooks.step(lambda _layer, residual: residual + change.reshape(-1, D_MODEL)):
        steered = model(IDS).logits
    assert torch.equal(steered[0], plain[0])
    assert not torch.equal(steered[1], plain[1])


def test_none_leaves_the_residual_as_it_is(tiny_model: PreTrainedModel) -> None:
    hooks = ResidualHooks(find_layout(tiny_model))
    plain = tiny_model(IDS).logits
    seen: list[int] = []
    with hooks.step(lambda layer, _residual: seen.append(layer)):
        watched = tiny_model(IDS).logits
    assert torch.equal(watched, plain)
    assert seen == [0, 1, 2]


def test_only_the_chosen_layers_are_called(tiny_model: PreTrainedModel) -> None:
    hooks = ResidualHooks(find_layout(tiny_model))
    seen: list[int] = []
    with hooks.step(lambda layer, _residual: seen.append(layer), points=[2, 0]):
        tiny_model(IDS)
    assert seen == [0, 2]


def test_the_dtype_of_the_stream_is_kept(tiny_model: PreTrainedModel) -> None:
    hooks = ResidualHooks(find_layout(tiny_model.to(torch.bfloat16)))
    recorder = Recorder(tiny_model)
    plain = recorder.run(tiny_model)
    with hooks.step(lambda _layer, residual: residual.float() * 2, points={1}):
        steered = recorder.run(tiny_model)
    assert steered[1].dtype == torch.bfloat16
    assert torch.equal(steered[1], plain[1] * 2)


@pytest.mark.parametrize("error", [RuntimeError("planted"), StopForward()])
def test_an_exception_leaves_the_hooks_idle_and_intact(tiny_model: PreTrainedModel, error: Exception) -> None:
    hooks = ResidualHooks(find_layout(tiny_model))
    plain = tiny_model(IDS).logits
    seen: list[int] = []

    def apply(layer: int, residual: Tensor) -> Tensor:
        seen.append(layer)
        if layer == 1:
            raise error
        return residual + 1

    with pytest.raises(type(error)), hooks.step(apply):
        tiny_model(IDS)
    assert seen == [0, 1]
    assert [len(block._forward_hooks) for block in tiny_model.model.layers] == [1] * LAYERS
    assert torch.equal(tiny_model(IDS).logits, plain)
    with hooks.step(lambda _layer, residual: residual + 1):
        assert not torch.equal(tiny_model(IDS).logits, plain)


def test_an_exception_of_the_model_leaves_the_hooks_idle(tiny_model: PreTrainedModel) -> None:
    hooks = ResidualHooks(find_layout(tiny_model))
    plain = tiny_model(IDS).logits
    with pytest.raises(IndexError), hooks.step(lambda _layer, residual: residual + 1):
        tiny_model(torch.tensor([[10_000]]))
    assert torch.equal(tiny_model(IDS).logits, plain)


def test_nesting_is_refused_and_the_outer_step_goes_on(tiny_model: PreTrainedModel) -> None:
    hooks = ResidualHooks(find_layout(tiny_model))
    seen: list[int] = []
    with hooks.step(lambda layer, _residual: seen.append(layer)):
        with pytest.raises(InternalError, match="cannot be nested"), hooks.step(lambda _layer, residual: residual):
            pass
        tiny_model(IDS)
    assert seen == [0, 1, 2]


@pytest.mark.parametrize("shape", [(D_MODEL,), (1, D_MODEL), (ROWS * LENGTH, 1), (ROWS, LENGTH, D_MODEL)])
def test_another_shape_is_refused_and_never_broadcast(tiny_model: PreTrainedModel, shape: tuple[int, ...]) -> None:
    hooks = ResidualHooks(find_layout(tiny_model))
    with pytest.raises(InternalError, match="expected a residual of shape"), hooks.step(lambda *_: torch.zeros(shape)):
        tiny_model(IDS)


def test_layers_that_do_not_exist_are_refused(tiny_model: PreTrainedModel) -> None:
    hooks = ResidualHooks(find_layout(tiny_model))
    with pytest.raises(InternalError, match="layers 0 to 2"), hooks.step(lambda *_: None, points={-1, 3}):
        pass
    with hooks.step(lambda *_: None):
        pass


def test_removal_takes_its_own_hooks_only(tiny_model: PreTrainedModel) -> None:
    layout = find_layout(tiny_model)
    seen: list[int] = []
    layout.blocks[1].register_forward_hook(lambda *_: seen.append(1))
    first, second = ResidualHooks(layout), ResidualHooks(layout)
    first.remove()
    first.remove()
    with second.step(lambda layer, _residual: seen.append(10 + layer)):
        tiny_model(IDS)
    assert seen == [10, 1, 11, 12]


def test_a_compiler_can_trace_through_an_active_step(tiny_model: PreTrainedModel) -> None:
    """fullgraph: a hook that breaks the graph would raise."""
    hooks = ResidualHooks(find_layout(tiny_model))
    change = torch.full((ROWS * LENGTH, D_MODEL), 0.5)
    compiled: Callable[..., CausalLMOutputWithPast] = torch.compile(tiny_model, backend="eager", fullgraph=True)
    plain = tiny_model(IDS, use_cache=False).logits
    with hooks.step(lambda _layer, residual: residual + change, points={1}):
        eager = tiny_model(IDS, use_cache=False).logits
        traced = compiled(IDS, use_cache=False).logits
    assert torch.equal(traced, eager)
    assert not torch.equal(eager, plain)
    assert torch.equal(compiled(IDS, use_cache=False).logits, plain)
