"""vLLM's CPU build, compiled and unsteered: run by the interpreter of an environment of its own (make bench-vllm-setup)."""

import time
from typing import Any

import torch
import vllm  # type: ignore[import-not-found]
from vllm import LLM, SamplingParams

from benchmarks.contenders.protocol import answer_questions
from benchmarks.workload import prompts

WARM_TOKENS = 4


class VllmPeer:
    """Answers questions about one offline engine: no server, no network, prompts as token ids."""

    def __init__(self, folder: str, rows: int, length: int) -> None:
        self._engine = LLM(
            folder,
            dtype="bfloat16",
            max_model_len=length,
            max_num_seqs=rows,
            enable_prefix_caching=False,
            enforce_eager=False,
            disable_log_stats=False,
        )
        self._warm_rows: set[int] = set()

    def generate(self, prompts: list[list[int]], new_tokens: int) -> dict[str, Any]:
        """All prompts at once, greedy; figures as `streams.figures` has them, from vLLM's own clock readings."""
        self._warm(len(prompts))
        start = time.perf_counter()
        outputs = self._run(prompts, new_tokens)
        seconds = time.perf_counter() - start
        tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
        assert tokens == new_tokens * len(prompts)
        return {"seconds": seconds, "tokens": tokens, "tokens_per_second": tokens / seconds, **_latencies(outputs)}

    def _warm(self, rows: int) -> None:
        """A short run before every measurement, and a whole one the first time a batch of this size is met."""
        if rows not in self._warm_rows:
            self._warm_rows.add(rows)
            self._run(prompts(rows, 32, -2), 64)
        self._run(prompts(rows, 32, -1), WARM_TOKENS)

    def _run(self, rows: list[list[int]], new_tokens: int) -> list[Any]:
        sampling = SamplingParams(temperature=0.0, max_tokens=new_tokens, ignore_eos=True)
        return list(self._engine.generate([{"prompt_token_ids": row} for row in rows], sampling, use_tqdm=False))


def _latencies(outputs: list[Any]) -> dict[str, Any]:
    """First token, time a token, and tokens a second once every stream has begun; None where vLLM does not say."""
    times = [getattr(output, "metrics", None) for output in outputs]
    found: dict[str, Any] = {"first_token": None, "per_token": None, "decode_per_second": None}
    if any(one is None or not getattr(one, "first_token_ts", 0.0) for one in times):
        return found
    found["first_token"] = _middle([one.first_token_latency for one in times if one is not None])
    spans = [(one.first_token_ts, one.last_token_ts, one.num_generation_tokens) for one in times if one is not None]
    if all(count > 1 for _, _, count in spans):
        found["per_token"] = _middle([(last - first) / (count - 1) for first, last, count in spans])
    return found


def _middle(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def begin(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Starts the engine over a model folder; compiles on the way."""
    peer = VllmPeer(options["folder"], options["rows"], options["length"])
    return {"generate": peer.generate}, {"vllm": vllm.__version__, "torch": torch.__version__}


if __name__ == "__main__":
    answer_questions(begin)
