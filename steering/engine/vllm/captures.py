"""Captures: texts that are read and not continued. vLLM computes them as requests for one token, which is dropped."""

from dataclasses import dataclass

import torch

from steering.engine.api import Capture, CapturePrompt, CaptureSpec, SamplingParams
from steering.engine.checks import refuse_token_scopes
from steering.engine.transformers.captures import begin
from steering.engine.transformers.steering.timing import follows_single_tokens
from steering.engine.vllm.client import Task, VllmClient
from steering.engine.vllm.messages import CaptureWindow
from steering.engine.vllm.requests import vllm_sampling
from steering.errors import InvalidRequest, NonfiniteActivations, UnsupportedParameter
from steering.model.info import ModelInfo
from steering.model.prompt import ModelTokenizer
from steering.shapes import Float, Residual, Tensor

UNEMBED_ROWS = 64
"""Residuals that are unembedded between two steps of live traffic."""


@dataclass(frozen=True, slots=True, eq=False)
class CaptureTask:
    """One text to read. window: half-open range of positions."""

    prompt: CapturePrompt
    spec: CaptureSpec
    ids: tuple[int, ...]
    window: tuple[int, int]
    reduce: bool

    @classmethod
    def of(
        cls, prompt: CapturePrompt, spec: CaptureSpec, ids: tuple[int, ...], tokenizer: ModelTokenizer
    ) -> "CaptureTask":
        """Finds the positions to read. Raises InvalidRequest where they do not exist or cannot be computed together."""
        if (prompt.prompt_length or len(ids)) < len(ids) and follows_single_tokens(prompt.plan):
            raise UnsupportedParameter(
                "the engine 'vllm' cannot read an answer again under steering that follows its tokens one at a time: a held "
                "readout, or a condition that is read behind the layer at which it acts",
                param="steering",
            )
        refuse_token_scopes(prompt.plan, "vllm")
        state = begin(0, prompt, ids, spec, tokenizer)
        return cls(prompt, spec, ids, state.window, state.reduce)

    def request(self, priority: int) -> Task:
        """Returns the request to vLLM. Its blocks are shared with nobody."""
        logits, first = self.spec.logits, self.prompt.first
        window = CaptureWindow(self.spec.layers, *self.window, reduce=self.reduce, logits=logits, first=first)
        sampling = vllm_sampling(SamplingParams(max_tokens=1, ignore_eos=True), ())
        length = self.prompt.prompt_length or len(self.ids)
        return Task(self.ids, length, sampling, self.prompt.plan, (), window, priority, salt="capture")


async def captured(client: VllmClient, task: CaptureTask, priority: int) -> Capture:
    """Reads a text. Raises NonfiniteActivations, and what a request raises."""
    async with client.running(task.request(priority)) as run:
        assert run.mailbox is not None
        async for _ in run.outputs:
            pass
        reports = await run.mailbox.reports()
    activations = {layer: values for report in reports for layer, values in report.activations.items()}
    read = torch.stack([activations[layer] for layer in task.spec.layers]) if task.spec.layers else torch.empty(0, 1, 0)
    if not bool(torch.isfinite(read).all()):
        raise NonfiniteActivations("the activations read are not finite; lower the strength")
    logits = next((report.logits for report in reports if report.logits is not None), None)
    return Capture(task.ids, read, logits, await _embeddings(client, task) if task.spec.embeddings else None)


async def _embeddings(client: VllmClient, task: CaptureTask) -> Tensor:
    found = [one for one in await client.call("steering_embed", list(task.ids)) if one is not None]
    width = len(found[0]) // (4 * len(task.ids))
    rows = torch.frombuffer(bytearray(found[0]), dtype=torch.float32).view(-1, width)[slice(*task.window)]
    return rows.mean(0, keepdim=True) if task.reduce else rows


async def unembedded(client: VllmClient, info: ModelInfo, residual: Residual) -> Float[Tensor, "token vocab"]:
    """Returns the logits of residuals. Raises InvalidRequest for another width, UnsupportedParameter for a model whose
    final norm is not found."""
    if residual.dim() != 2 or residual.shape[1] != info.d_model:
        raise InvalidRequest(f"residuals are (token, {info.d_model}), got {tuple(residual.shape)}", param="residual")
    pieces = [torch.empty(0, info.vocab_size)]
    for rows in torch.split(residual.to(torch.float32), UNEMBED_ROWS):
        found = await client.call("steering_unembed", rows.contiguous().numpy().tobytes())
        content = next(one for one in found if one is not None)
        if not content:
            raise UnsupportedParameter(f"the engine 'vllm' cannot unembed residuals of {info.architecture}")
        pieces.append(torch.frombuffer(bytearray(content), dtype=torch.float32).view(len(rows), -1))
    return torch.cat(pieces)
