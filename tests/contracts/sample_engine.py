"""A sample engine: all that a new entry of ENGINES needs. It has no weights: it repeats the bytes of its prompt."""

from collections.abc import AsyncGenerator, Callable, Sequence

import torch

from steering.engine import api
from steering.engine.capabilities import reading_passes
from steering.engine.options import EngineOptions
from steering.engine.prompts import check_capture, check_context
from steering.injection.rows import SteeringReport
from steering.model.info import ModelInfo
from steering.pairs import ChatMessage

SIZES = {"d_model": 8, "layer_count": 2, "vocab_size": 256, "context_length": 512}


class ByteTokenizer:
    def encode(self, prompt: api.Prompt, most: int | None = None) -> tuple[int, ...]:
        del most
        ids: list[int] = []
        for part in [prompt] if isinstance(prompt, str) else prompt:
            text = part.content if isinstance(part, ChatMessage) else part
            ids += text.encode() if isinstance(text, str) else [text]
        return tuple(ids)

    def decode(self, token_ids: Sequence[int]) -> str:
        return bytes(token_ids).decode(errors="replace")

    def encode_with_roles(self, messages: tuple[ChatMessage, ...]) -> tuple[tuple[int, ...], tuple[str | None, ...]]:
        return self.encode(messages), tuple(one.role for one in messages for _ in one.content.encode())

    def control_strings(self, text: str) -> tuple[str, ...]:
        del text
        return ()

    def token_text(self, token_id: int) -> str:
        return self.decode([token_id])

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id])


class SampleEngine:
    name, tokenizer = "sample", ByteTokenizer()

    def __init__(self, options: EngineOptions) -> None:
        self.info = ModelInfo(
            options.model, "Sample", "sample", SIZES["d_model"], SIZES["layer_count"], SIZES["vocab_size"],
            SIZES["context_length"], parameter_count=0, dtype="float32", device="cpu", chat_template=True, typical_norms=(1.0, 1.0), revision=None,
        )  # fmt: skip

    async def generate(self, request: api.GenerationRequest) -> AsyncGenerator[api.TokenEvent, None]:
        ids, count = self.tokenizer.encode(request.prompt), request.sampling.max_tokens
        check_context(len(ids), count, self.info)
        for index in range(count):
            readout = {reading.name: 0.5 for reading in request.readings}
            token = ids[index % len(ids)]
            yield api.TokenEvent(index, token, self.tokenizer.token_text(token), readout=readout)
        acted = len(request.plan.interventions)
        report = SteeringReport(({},) * acted, (True,) * acted, (0,) * acted)
        yield api.TokenEvent(count, -1, "", finish=api.Finish("length", len(ids), count, 0, report))

    async def capture(
        self, prompts: Sequence[api.CapturePrompt], spec: api.CaptureSpec, *,
        progress: Callable[[int, int], None] | None = None, priority: int = 1,
    ) -> tuple[api.Capture, ...]:  # fmt: skip
        reading_passes(self, spec.position)
        return tuple(self._read(one, self.tokenizer.encode(one.prompt), spec) for one in prompts)

    def _read(self, prompt: api.CapturePrompt, ids: tuple[int, ...], spec: api.CaptureSpec) -> api.Capture:
        check_capture(prompt, len(ids))
        noise = torch.Generator().manual_seed(sum(ids))
        residuals = torch.randn(len(spec.layers), len(ids), SIZES["d_model"], generator=noise)
        read = residuals[:, prompt.first :] if spec.position == "all" else residuals[:, -1:]
        return api.Capture(ids, read, logits=torch.zeros(len(ids) - prompt.first, 256) if spec.logits else None)

    def stats(self) -> api.EngineStats:
        return api.EngineStats(0, 0, 0, 0, 0, 0, alive=True)

    async def close(self) -> None: ...
