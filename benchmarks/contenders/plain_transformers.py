"""Plain transformers: `generate` on a static batch, one vector at a time with a hook on every block, one forward pass."""

import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from benchmarks.contenders.linear_layers import multiplies_bfloat16
from benchmarks.contenders.protocol import serve_requests
from benchmarks.device_clock import wait_for
from benchmarks.stream_timing import stream_metrics
from benchmarks.workload import prompts

WARM_TOKENS = 4


class PlainContender:
    """Runs one model as transformers loads it: in bfloat16, and in float32 on a processor without instructions for bfloat16, which is faster there."""

    def __init__(self, folder: str, device: str) -> None:
        self.dtype = torch.bfloat16 if device != "cpu" or multiplies_bfloat16() else torch.float32
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=self.dtype, local_files_only=True)
        self._model.to(device).eval().requires_grad_(False)
        self._device = device
        self._model.generation_config.eos_token_id = None

    def generate(self, prompts: list[list[int]], new_tokens: int) -> dict[str, Any]:
        """Generates from all prompts as one static batch, greedily; see `stream_metrics`."""
        self._warm(len(prompts))
        return self._generate([prompts], new_tokens)

    def hooked(self, prompts: list[list[int]], new_tokens: int, seed: int) -> dict[str, Any]:
        """Generates prompt by prompt, each with its own vector at all layers, as repeng does: its vector belongs to the model."""
        self._warm(1)
        return self._generate([[prompt] for prompt in prompts], new_tokens, seed=seed)

    def forward(self, prompt: list[int]) -> dict[str, Any]:
        """Returns the seconds of a warm forward pass over a prompt, with cache and the logits of the last position."""
        ids = torch.tensor([prompt], device=self._device)
        with torch.inference_mode():
            self._model(input_ids=ids, use_cache=True, logits_to_keep=1)
            wait_for(self._device)
            start = time.perf_counter()
            self._model(input_ids=ids, use_cache=True, logits_to_keep=1)
            wait_for(self._device)
        return {"first_token": time.perf_counter() - start}

    def _warm(self, rows: int) -> None:
        self._generate([prompts(rows, 32, -1)], WARM_TOKENS)

    def _generate(self, batches: list[list[list[int]]], new_tokens: int, seed: int | None = None) -> dict[str, Any]:
        """Generates batch by batch, with a seed each with its own vectors. A stopping criterion records the time of every token."""
        arrivals: list[list[float]] = []
        start = time.perf_counter()
        for index, batch in enumerate(batches):
            times: list[float] = []
            with _no_hooks() if seed is None else self._hooks(f"{seed} {index}"):
                self._one(batch, new_tokens, times)
            arrivals.extend([times] * len(batch))
        return stream_metrics(start, arrivals)

    def _one(self, batch: list[list[int]], new_tokens: int, times: list[float]) -> None:
        ids = torch.tensor(batch, device=self._device)

        def record_time(ids: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
            wait_for(self._device)
            times.append(time.perf_counter())
            return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

        with torch.inference_mode():
            self._model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=new_tokens,
                do_sample=False,
                pad_token_id=0,
                stopping_criteria=[record_time],
            )
        assert len(times) == new_tokens

    @contextmanager
    def _hooks(self, seed: str) -> Iterator[None]:
        generator = torch.Generator().manual_seed(zlib.crc32(seed.encode()))
        handles = []
        for block in self._model.model.layers:
            vector = 0.05 * torch.randn(self._model.config.hidden_size, generator=generator).to(
                self._device, self.dtype
            )

            def add(_block: Any, _inputs: Any, output: Any, vector: torch.Tensor = vector) -> Any:
                return (output[0] + vector, *output[1:]) if isinstance(output, tuple) else output + vector

            handles.append(block.register_forward_hook(add))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


@contextmanager
def _no_hooks() -> Iterator[None]:
    yield


def begin(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Loads the model from a folder."""
    plain = PlainContender(options["folder"], options["device"])
    handlers = {"generate": plain.generate, "hooked": plain.hooked, "forward": plain.forward}
    return handlers, {"threads": torch.get_num_threads(), "dtype": str(plain.dtype).removeprefix("torch.")}


if __name__ == "__main__":
    serve_requests(begin)
