"""What the peers' code is given in place of a model: the hidden states of its layers, in float32 and as tuples."""

import torch
from transformers import PreTrainedModel

from benchmarks.contenders.peers.from_folders import FITS, Float32Layers
from benchmarks.field.run import PEERS


def test_hooks_at_a_layer_see_what_the_model_returns_there(tiny_model: PreTrainedModel) -> None:
    read, seen = Float32Layers(tiny_model), []
    read.model.get_submodule("layers.0").register_forward_hook(lambda _module, _inputs, outputs: seen.append(outputs))
    tokens = torch.tensor([[5, 6, 7]])
    with torch.inference_mode():
        states = read(input_ids=tokens).hidden_states
        expected = tiny_model(input_ids=tokens, output_hidden_states=True).hidden_states
    ((found,),) = seen
    assert found.dtype == torch.float32
    assert torch.equal(found, expected[1].float())
    assert len(states) == len(expected)


def test_every_method_that_a_folder_may_have_is_a_peer_of_the_field() -> None:
    assert {*FITS} < {*PEERS}
