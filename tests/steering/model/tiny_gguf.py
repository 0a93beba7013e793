"""A tiny Llama as a GGUF file with a byte tokenizer, written as llama.cpp's converters do."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, TokenType
from gguf.quants import quantize
from transformers import LlamaForCausalLM

from tests.byte_tokenizer import CHAT_TEMPLATE, CONTROL, byte_alphabet
from tests.families import BOS, EOS, PAD, VOCABULARY

PARTS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def _interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Reorders rotary pairs as GGUF does: adjacent numbers, where transformers splits the vector in the middle."""
    return weight.reshape(heads, 2, -1, weight.shape[-1]).swapaxes(1, 2).reshape(weight.shape)


def write_tiny_gguf(
    model: LlamaForCausalLM,
    path: Path,
    formats: Mapping[str, str] | None = None,
    biases: Mapping[str, int] | None = None,
) -> None:
    """formats: of the tensors of each block, by the second part of their names; others stay in float32. biases: by name how many ones."""
    config = model.config
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(VOCABULARY)
    _write_tokenizer(writer)
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    writer.add_tensor("token_embd.weight", state["model.embed_tokens.weight"])
    writer.add_tensor("output.weight", state["lm_head.weight"])
    writer.add_tensor("output_norm.weight", state["model.norm.weight"])
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for layer in range(config.num_hidden_layers):
        for ours, theirs in PARTS.items():
            weight = state[f"model.layers.{layer}.{ours}.weight"]
            if theirs in heads:
                weight = _interleaved(weight, heads[theirs])
            kind = GGMLQuantizationType[(formats or {}).get(theirs, "F32")]
            data = quantize(np.ascontiguousarray(weight), kind)
            writer.add_tensor(f"blk.{layer}.{theirs}.weight", data, raw_dtype=kind)
    for name, size in (biases or {}).items():
        writer.add_tensor(name, np.ones(size, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_tokenizer(writer: GGUFWriter) -> None:
    alphabet = sorted(byte_alphabet().items(), key=lambda item: item[1])
    merged = ["th", "ĊĊ"]
    tokens = [*(character for character, _ in alphabet), *CONTROL, *merged]
    kinds = [TokenType.NORMAL] * len(alphabet) + [TokenType.CONTROL] * len(CONTROL) + [TokenType.NORMAL] * len(merged)
    assert len(tokens) == VOCABULARY
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(["t h", "Ċ Ċ"])
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    writer.add_pad_token_id(PAD)
    writer.add_add_bos_token(True)
    writer.add_chat_template(CHAT_TEMPLATE)
