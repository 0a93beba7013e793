"""Tiny random models of every supported family: 3 layers, float32, seeded."""

from collections.abc import Callable
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

LAYERS = 3
D_MODEL = 32
VOCABULARY = 264
"""256 bytes, the control tokens of tests/byte_tokenizer.py, and unused rows."""
PAD, BOS, EOS = 256, 257, 258

COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "use_cache": True,
}
LLAMA_LIKE: dict[str, Any] = {
    "hidden_size": D_MODEL,
    "intermediate_size": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
}
GPT2_LIKE: dict[str, Any] = {"n_embd": D_MODEL, "n_layer": LAYERS, "n_head": 4, "n_positions": 256}
NEOX_LIKE: dict[str, Any] = {
    "hidden_size": D_MODEL,
    "intermediate_size": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}


def build(name: str, seed: int = 0, **settings: Any) -> PreTrainedModel:
    """Returns a model of a transformers class with seeded weights, wider than the default so that argmax has no ties."""
    model_class = getattr(transformers, name)
    config = model_class.config_class(**{**COMMON, **settings})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = model_class._from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0.0, 0.2)
                elif parameter_name.endswith("bias"):
                    parameter.normal_(0.0, 0.02)
    return model.eval().requires_grad_(False)


FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: build("LlamaForCausalLM", **LLAMA_LIKE),
    "mistral": lambda: build("MistralForCausalLM", **LLAMA_LIKE, sliding_window=16),
    "qwen2": lambda: build("Qwen2ForCausalLM", **LLAMA_LIKE),
    "qwen3": lambda: build("Qwen3ForCausalLM", **LLAMA_LIKE),
    "gemma2": lambda: build("Gemma2ForCausalLM", **LLAMA_LIKE, sliding_window=16),
    "gemma3": lambda: build(
        "Gemma3ForCausalLM",
        **LLAMA_LIKE,
        sliding_window=16,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
    ),
    "phi3": lambda: build("Phi3ForCausalLM", **LLAMA_LIKE),
    "gpt2": lambda: build("GPT2LMHeadModel", **GPT2_LIKE),
    "gpt_neox": lambda: build("GPTNeoXForCausalLM", **NEOX_LIKE),
    "gptj": lambda: build("GPTJForCausalLM", **GPT2_LIKE, rotary_dim=4),
    "opt": lambda: build(
        "OPTForCausalLM",
        hidden_size=D_MODEL,
        word_embed_proj_dim=D_MODEL,
        ffn_dim=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        max_position_embeddings=256,
    ),
    "olmo": lambda: build("OlmoForCausalLM", **LLAMA_LIKE),
    "bloom": lambda: build("BloomForCausalLM", hidden_size=D_MODEL, n_layer=LAYERS, n_head=4),
    "falcon": lambda: build(
        "FalconForCausalLM",
        hidden_size=D_MODEL,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        max_position_embeddings=256,
        alibi=False,
    ),
    "mixtral": lambda: build("MixtralForCausalLM", **LLAMA_LIKE, num_local_experts=4, num_experts_per_tok=2),
    "qwen2_moe": lambda: build(
        "Qwen2MoeForCausalLM",
        **LLAMA_LIKE,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        shared_expert_intermediate_size=32,
    ),
}
"""Family name -> function that creates a model, with the same weights each time."""
