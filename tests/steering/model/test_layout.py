"""The layout of every family, and the architectures that are refused by name."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlavaForConditionalGeneration, PreTrainedModel

from steering.errors import UnsupportedModel
from steering.model.hook_points import residual_of, with_residual
from steering.model.layout import find_layout
from steering.model.verification import verify_layout
from tests.architectures.configurations import tiny
from tests.families import D_MODEL, FAMILIES, LAYERS, LLAMA_LIKE, VOCABULARY, build

OWN_ATTENTION = {"bloom", "falcon"}


@pytest.mark.parametrize("family", FAMILIES)
def test_layout_of_every_family(family: str) -> None:
    model = FAMILIES[family]()
    layout = verify_layout(model, find_layout(model))
    assert layout.architecture == type(model).__name__
    assert (layout.d_model, layout.layer_count, layout.vocab_size) == (D_MODEL, LAYERS, VOCABULARY)
    assert layout.attention == ("own" if family in OWN_ATTENTION else "interface")
    assert layout.embedding is model.get_input_embeddings()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_cache_argument_is_accepted(family: str) -> None:
    """Under warnings as errors: a deprecated name would fail here."""
    model = FAMILIES[family]()
    ids = torch.arange(6)[None]
    first = model(ids[:, :4], use_cache=True)
    cache = getattr(first, find_layout(model).cache_argument)
    continued = model(ids[:, 4:], use_cache=True, **{find_layout(model).cache_argument: cache}).logits
    assert torch.allclose(continued, model(ids).logits[:, 4:], atol=1e-5)


def test_of_a_model_that_reads_images_the_blocks_of_its_text_are_found() -> None:
    """Also where the part that reads images has as many."""
    config = tiny("LlavaForConditionalGeneration").config
    config.vision_config.num_hidden_layers = config.text_config.num_hidden_layers
    with torch.device("meta"):
        model = LlavaForConditionalGeneration._from_config(config)
    assert find_layout(model).blocks is model.model.language_model.layers


TINY = {**LLAMA_LIKE, "head_dim": 8}
RECURRENT = "recurrent state|linear_attention"  # before transformers 5.25, and since
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "encoder-decoder": (
        "T5ForConditionalGeneration",
        {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 3, "num_heads": 4},
        "encoder-decoder",
    ),
    "state space": ("MambaForCausalLM", {"hidden_size": 32, "num_hidden_layers": 3}, RECURRENT),
    "recurrent": ("RwkvForCausalLM", {"hidden_size": 32, "num_hidden_layers": 3}, "recurrent state|no key-value cache"),
    "hybrid": ("JambaForCausalLM", LLAMA_LIKE, RECURRENT),
    "gated delta": ("Qwen3NextForCausalLM", {**TINY, "num_hidden_layers": 4}, RECURRENT),
    "linear attention": ("MiniMaxForCausalLM", {**TINY, "num_local_experts": 2}, "linear_attention"),
    "convolutions": ("Lfm2ForCausalLM", {**TINY, "layer_types": ["conv", "conv", "full_attention"]}, "conv"),
    "no head": ("LlamaModel", TINY, "no language-model head"),
    "no cache": ("OpenAIGPTLMHeadModel", {"n_embd": 32, "n_layer": 3, "n_head": 4}, "no key-value cache"),
    "narrow head": (
        "OPTForCausalLM",
        {
            "hidden_size": 32,
            "word_embed_proj_dim": 16,
            "ffn_dim": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "do_layer_norm_before": False,
        },
        "its head reads 16 numbers",
    ),
    "not causal": (
        "BertForMaskedLM",
        {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64},
        "not causal",
    ),
    "four streams": (
        "Gemma3nForCausalLM",
        {
            **TINY,
            "intermediate_size": [64] * 3,
            "vocab_size_per_layer_input": VOCABULARY,
            "hidden_size_per_layer_input": 16,
            "laurel_rank": 8,
            "num_kv_shared_layers": 0,
            "layer_types": ["full_attention"] * 3,
            "activation_sparsity_pattern": [0.0] * 3,
        },
        "block 0 returns",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_steered_is_refused_by_name_and_reason(case: str) -> None:
    name, settings, reason = REFUSED[case]
    model = build(name, **settings)
    with pytest.raises(UnsupportedModel, match=reason) as refusal:
        verify_layout(model, find_layout(model))
    assert name in refusal.value.message


def test_a_model_without_a_list_of_blocks_is_refused(tiny_model: PreTrainedModel) -> None:
    tiny_model.model.layers = nn.ModuleList([nn.Sequential(block) for block in tiny_model.model.layers])
    with pytest.raises(UnsupportedModel, match="no list of 3 decoder blocks"):
        find_layout(tiny_model)


def test_blocks_that_run_twice_are_refused(tiny_model: PreTrainedModel) -> None:
    layout = find_layout(tiny_model)
    layout.blocks[2] = layout.blocks[1]
    with pytest.raises(UnsupportedModel, match="once each, in order"):
        verify_layout(tiny_model, layout)


OWN: dict[str, Callable[[], PreTrainedModel]] = {
    "sinks": lambda: build("GptOssForCausalLM", **TINY, num_local_experts=4, num_experts_per_tok=2),
    "chunks": lambda: build("Llama4ForCausalLM", **TINY, intermediate_size_mlp=64, num_local_experts=2),
    "masks of its own": lambda: build("DogeForCausalLM", **TINY),
    "two attentions in one": lambda: build("DiffLlamaForCausalLM", **TINY),
    "a window in its masks alone": lambda: build(
        "PhimoeForCausalLM", **TINY, num_local_experts=4, num_experts_per_tok=2, sliding_window=128
    ),
}


@pytest.mark.parametrize("case", OWN)
def test_attention_with_more_than_queries_keys_and_values_is_its_own(case: str) -> None:
    model = OWN[case]()
    before = model.config._attn_implementation
    assert verify_layout(model, find_layout(model)).attention == "own"
    assert model.config._attn_implementation == before


def test_verification_leaves_nothing_behind(tiny_model: PreTrainedModel) -> None:
    ids = torch.arange(5)[None]
    before = tiny_model(ids).logits
    verify_layout(tiny_model, find_layout(tiny_model))
    assert all(not block._forward_hooks for block in tiny_model.model.layers)
    assert torch.equal(tiny_model(ids).logits, before)


def test_residual_in_and_out_of_both_forms() -> None:
    residual, other = torch.zeros(2, 3, 4), torch.ones(1)
    assert residual_of(residual) is residual
    assert residual_of((residual, other)) is residual
    changed = residual + 1
    assert with_residual(residual, changed) is changed
    kept = with_residual((residual, other), changed)
    assert isinstance(kept, tuple)
    assert kept[0] is changed
    assert kept[1] is other
