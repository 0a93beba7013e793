"""Hook points inside vLLM's layers: activations equal transformers' hooks, edits those of the transformers engine. `python -m
tests.vllm.test_hook_points` tries every class of MODELS and writes the table of docs/vllm.md."""

import asyncio
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from steering.engine.api import CapturePrompt, CaptureSpec, Engine, GenerationRequest
from steering.engine.transformers.engine import TransformersEngine
from steering.engine.vllm.engine import VllmEngine
from steering.injection.readings import Reading
from steering.model.hook_points import HEADS, point_of
from steering.model.loading import load
from tests.byte_tokenizer import build_byte_tokenizer
from tests.docs.pages import BEGIN, DOCS, END
from tests.engines import run_all, sampling
from tests.families import LAYERS, LLAMA_LIKE, NEOX_LIKE, build
from tests.plans import WORK, plan_for, vectors_for
from tests.steering.engine.test_hook_points import PROMPT, seen
from tests.vllm.conftest import opened
from tests.vllm.test_equal_tokens import assert_equal

# heads of 32, the smallest that vLLM's CPU attention knows
WIDE: dict[str, Any] = {**LLAMA_LIKE, "head_dim": 32}
WIDER: dict[str, Any] = {**NEOX_LIKE, "hidden_size": 128}
MODELS: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": WIDE,
    "Qwen3ForCausalLM": WIDE,
    "GPT2LMHeadModel": {"n_embd": 128, "n_layer": LAYERS, "n_head": 4, "n_positions": 256},
    "OPTForCausalLM": {**WIDER, "word_embed_proj_dim": 128, "ffn_dim": 64},
    "MixtralForCausalLM": {**WIDE, "num_local_experts": 4, "num_experts_per_tok": 2},
    "BloomForCausalLM": {"hidden_size": 128, "n_layer": LAYERS, "n_head": 4},
    "Qwen2ForCausalLM": {**WIDE, "hidden_size": 128},
    "MistralForCausalLM": {**WIDE, "sliding_window": 16},
    "Gemma2ForCausalLM": {**WIDE, "sliding_window": 16},
    "Gemma3ForCausalLM": {
        **WIDE,
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    },
    "Phi3ForCausalLM": {**WIDE, "hidden_size": 128},
    "FalconForCausalLM": {**WIDER, "alibi": False},
    "GraniteForCausalLM": WIDE,
    "CohereForCausalLM": WIDE,
    "StableLmForCausalLM": {**WIDE, "hidden_size": 128},
    "Qwen2MoeForCausalLM": {
        **WIDE,
        "hidden_size": 128,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 32,
    },
}
TESTED = list(MODELS)[:6]
"""Layers of the MLP in the block itself, experts; and BLOOM, whose modules add the residual."""


@contextmanager
def engines(name: str, folder: Path, tokenizer: PreTrainedTokenizerFast) -> Iterator[tuple[VllmEngine, Engine]]:
    """Yields vLLM and the transformers engine over one tiny model."""
    build(name, **MODELS[name]).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    both = (
        opened(str(folder), folder),
        TransformersEngine(load(str(folder), cache_dir=folder, device="cpu", dtype="float32")),
    )
    try:
        yield both
    finally:
        for engine in both:
            asyncio.run(engine.close())


async def largest_gap(name: str, engine: Engine) -> float:
    """Returns by how much what the engine captures at its hook points differs from what forward hooks of transformers see, as a share of
    its length."""
    kinds, largest = {"attention": 1, "mlp": 2}, 0.0
    for kind in [kinds[hook] for hook in engine.info.hooks[1:]] + [HEADS] * bool(engine.info.head_count):
        points = tuple(point_of(layer, kind) for layer in range(LAYERS))
        (found,) = await engine.capture([CapturePrompt(PROMPT)], CaptureSpec(points, "all"))
        expected = torch.stack(seen(build(name, **MODELS[name]), kind))
        gaps = (found.activations - expected).norm(dim=-1) / expected.norm(dim=-1)
        largest = max(largest, float(gaps.max()))
    return largest


@pytest.mark.parametrize("name", TESTED)
def test_hook_points_equal_those_of_transformers(
    name: str, hf_byte_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """Every operation at every point and ablations of heads in one batch, with a readout at an MLP."""
    with engines(name, tmp_path, hf_byte_tokenizer) as (engine, reference):
        assert (engine.info.hooks, engine.info.head_count) == (reference.info.hooks, reference.info.head_count)
        assert (len(engine.info.hooks) == 1) == (name == "BloomForCausalLM")
        assert recorded()[name][0] == points_of(engine)
        asyncio.run(_assert_equal(name, engine, reference))


async def _assert_equal(name: str, engine: VllmEngine, reference: Engine) -> None:
    assert await largest_gap(name, engine) < 1e-4
    vectors = vectors_for(engine.info)
    at: dict[str, Any] = {"layers": [0, 2]}
    cases: list[list[dict[str, Any]]] = [
        [{"vector": "alpha", **at, **work, "hook": hook}, {"vector": "gamma", "strength": 0.4, "layers": [1]}]
        for hook in engine.info.hooks
        for work in WORK.values()
    ]
    if engine.info.head_count:
        cases += [[{"operation": "ablate", "hook": "attention", "head": head, **at}] for head in (0, 3)]
    direction = torch.nn.functional.normalize(torch.arange(1.0, engine.info.d_model + 1), dim=0)
    point = point_of(1, 2) if "mlp" in engine.info.hooks else 1
    requests = [
        GenerationRequest(
            PROMPT,
            sampling(6, logprobs=0),
            await plan_for(items, vectors, engine.info),
            (Reading("r", point, direction, 2.0),),
        )
        for items in [[], *cases]
    ]
    for found, expected in zip(await run_all(engine, requests), await run_all(reference, requests), strict=True):
        assert_equal(found, expected)


def points_of(engine: Engine) -> str:
    """Returns what the table says of an engine."""
    return ", ".join((*engine.info.hooks[1:], *["heads"] * bool(engine.info.head_count)))


def recorded() -> dict[str, tuple[str, ...]]:
    """Returns the rows of the table of docs/vllm.md, by class."""
    text = (DOCS / "vllm.md").read_text(encoding="utf-8")
    lines = text.partition(BEGIN.format("hooks"))[2].partition(END.format("hooks"))[0].splitlines()
    rows = [line.removeprefix("| `").removesuffix(" |").split(" | ") for line in lines if line.startswith("| `")]
    return {row[0].removesuffix("`"): tuple(row[1:]) for row in rows}


def main(names: Sequence[str]) -> None:
    """Tries classes, and writes them into the table."""
    rows = recorded()
    for name in names:
        with TemporaryDirectory() as folder:
            try:
                with engines(name, Path(folder), build_byte_tokenizer()) as (engine, _):
                    gap = asyncio.run(largest_gap(name, engine))
                    rows[name] = points_of(engine), f"{gap:.0e}" if gap else ""
            except Exception as error:
                rows[name] = f"not served: {type(error).__name__}", ""
                print(error, flush=True)
        print(name, rows[name], flush=True)
    page, begin, end = DOCS / "vllm.md", BEGIN.format("hooks"), END.format("hooks")
    before, _, rest = page.read_text(encoding="utf-8").partition(begin)
    lines = [f"| `{name}` | {' | '.join(row)} |" for name, row in rows.items()]
    table = "\n".join(["| class | hook points | largest difference |", "|---|---|---|", *lines])
    page.write_text(f"{before}{begin}\n\n{table}\n\n{end}{rest.partition(end)[2]}", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:] or list(MODELS))
