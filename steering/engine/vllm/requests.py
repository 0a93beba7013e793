"""Checks requests for what this engine cannot do, and converts their sampling parameters to vLLM's."""

from collections.abc import Collection, Mapping

from vllm import SamplingParams as VllmSampling
from vllm.sampling_params import RequestOutputKind

from steering.engine.api import GenerationRequest, SamplingParams
from steering.engine.checks import check_sampling, refuse_token_scopes
from steering.engine.prompts import check_context
from steering.engine.transformers.steering.bank import MAX_THRESHOLDS
from steering.errors import LimitExceeded, UnsupportedParameter
from steering.model.info import ModelInfo
from steering.plan.types import SteeringPlan


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
    for layer, steering in plan.layers.items():
        for call in steering.calls:
            condition = plan.intervention(call).condition
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
