"""Checks requests for what this engine cannot do, and converts their sampling parameters to vLLM's.

Captures are texts that are read and not continued. vLLM computes them as requests for one token, which is dropped.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from vllm import SamplingParams as VllmSampling
from vllm.sampling_params import RequestOutputKind

from steering.engine.api import Capture, CapturePrompt, CaptureSpec, GenerationRequest, SamplingParams
from steering.engine.captures import begin
from steering.engine.checks import check_sampling, refuse_token_scopes
from steering.engine.prompts import check_context
from steering.engine.vllm.client import Task, VllmClient
from steering.engine.vllm.messages import CaptureWindow
from steering.errors import InvalidRequest, LimitExceeded, NonfiniteActivations, UnsupportedParameter
from steering.injection.rows import CaptureState
from steering.injection.slots import MAX_THRESHOLDS
from steering.model.info import ModelInfo
from steering.model.prompt import ModelTokenizer
from steering.plan.scope import follows_single_tokens
from steering.plan.types import SteeringPlan
from steering.shapes import Float, Residual, Tensor

UNEMBED_ROWS = 64
"""Residuals that are unembedded between two steps of live traffic."""


def check_request(prompt_tokens: int, request: GenerationRequest, info: ModelInfo, stages: Mapping[int, int]) -> None:
    """Raises InvalidRequest for what cannot be computed. stages: layer -> its pipeline stage."""
    check_sampling(request.sampling, info)
    check_context(prompt_tokens, request.sampling.max_tokens, info)
    if len(request.plan.thresholds) > MAX_THRESHOLDS:
        raise LimitExceeded(f"at most {MAX_THRESHOLDS} thresholds per request", param="steering")
    check_stages(request.plan, stages)
    refuse_token_scopes(request.plan, "vllm")


def check_stages(plan: SteeringPlan, stages: Mapping[int, int]) -> None:
    """Raises UnsupportedParameter for a condition that is read on another pipeline stage than it acts on. stages: by layer."""
    for layer, edits in plan.layers.items():
        for edit in edits:
            condition = plan.interventions[edit.owner].condition
            read = {plan.thresholds[leaf].layer for leaf in condition.leaves()} if condition is not None else set()
            other = sorted(one for one in read if stages[one] != stages[layer])
            if other:
                raise UnsupportedParameter(
                    f"the engine 'vllm' cannot read a condition at layer {other[0]} that acts at layer {layer}: they are on "
                    "different pipeline stages",
                    param="when",
                )


def vllm_sampling(params: SamplingParams, eos_ids: Collection[int]) -> VllmSampling:
    """Returns vLLM's parameters. Text and stop strings are made from the ids by us, so it neither decodes nor looks for them.

    Raises vLLM's VLLMValidationError for values that it does not allow, such as a temperature above 2.
    """
    return VllmSampling(
        max_tokens=params.max_tokens,
        temperature=params.temperature,
        top_p=params.top_p,
        top_k=params.top_k,
        min_p=params.min_p,
        repetition_penalty=params.repetition_penalty,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        logit_bias=dict(params.logit_bias) or None,
        seed=params.seed,
        stop_token_ids=[] if params.ignore_eos else sorted(eos_ids),
        ignore_eos=True,
        logprobs=params.logprobs,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )


@dataclass(frozen=True, slots=True, eq=False)
class CaptureTask:
    """One text to read, and which of its positions."""

    prompt: CapturePrompt
    ids: tuple[int, ...]
    state: CaptureState

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
        return cls(prompt, ids, begin(0, prompt, ids, spec, tokenizer))

    def request(self, priority: int) -> Task:
        """Returns the request to vLLM. Its blocks are shared with nobody."""
        state = self.state
        window = CaptureWindow(
            state.layers, *state.window, reduce=state.reduce, logits=state.wants_logits, first=state.first
        )
        sampling = SamplingParams(max_tokens=1, ignore_eos=True)
        request = GenerationRequest(self.ids, sampling, self.prompt.plan, priority=priority, cache_salt="capture")
        length = self.prompt.prompt_length or len(self.ids)
        return Task(self.ids, length, request, vllm_sampling(sampling, ()), window)


async def captured(client: VllmClient, task: CaptureTask, priority: int) -> Capture:
    """Reads a text. Raises NonfiniteActivations, and what a request raises."""
    async with client.running(task.request(priority)) as run:
        assert run.mailbox is not None
        async for _ in run.outputs:
            pass
        reports = await run.mailbox.reports()
    activations = {layer: values for report in reports for layer, values in report.activations.items()}
    layers = task.state.layers
    read = torch.stack([activations[layer] for layer in layers]) if layers else torch.empty(0, 1, 0)
    if not bool(torch.isfinite(read).all()):
        raise NonfiniteActivations("the activations read are not finite; lower the strength")
    logits = next((report.logits for report in reports if report.logits is not None), None)
    return Capture(task.ids, read, logits, await _embeddings(client, task) if task.state.wants_embeddings else None)


async def _embeddings(client: VllmClient, task: CaptureTask) -> Tensor:
    found = [one for one in await client.call("steering_embed", list(task.ids)) if one is not None]
    width = len(found[0]) // (4 * len(task.ids))
    rows = torch.frombuffer(bytearray(found[0]), dtype=torch.float32).view(-1, width)[slice(*task.state.window)]
    return rows.mean(0, keepdim=True) if task.state.reduce else rows


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
