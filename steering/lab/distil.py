"""Distils an instruction into a vector with a map, fitted so that the residual without the instruction becomes the one with it.

The model answers prompts under the instruction; the same conversations are read with and without it, at the tokens after the
instruction: the user's message, the header of the answer and the answer. The map is a reduced-rank ridge regression of the difference on
the residual without, in closed form: no labels, no judge, no gradient. After PSR (arXiv 2605.03907), which trains probes on the same
target; the rank follows Izenman (1975). The maps are then multiplied so that strength 1 changes the predictions as much as the instruction.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain
from math import inf, log
from statistics import fmean
from typing import TypeAlias

import torch

from steering.cards import DISTILLED, Recommended
from steering.concepts.loader import load_instructed
from steering.engine.api import CapturePrompt, CaptureSpec, Engine, Prompt, SamplingParams
from steering.errors import InvalidRequest, NonfiniteActivations
from steering.extraction.base import MeanDifference
from steering.extraction.card import strengths_to_try
from steering.extraction.cross_validation import LayerFit, fit_layer, folding, nested_auroc
from steering.lab.calibration import NEAR, StrengthSearch, token_divergences
from steering.lab.controls import planned
from steering.layer_indices import layer_indices
from steering.maps import LowRankMap, Rows
from steering.pairs import ChatMessage, ContrastivePair, PairSet, dataset_digest
from steering.plan.types import UNSTEERED, SteeringPlan
from steering.shapes import Float, Tensor
from steering.spec import MAX_RANK, InterventionSpec
from steering.threads import run_in_thread
from steering.vectors import ConceptVector, check_name
from steering.workflows.describe import under
from steering.workflows.extract import ExtractionRequest, assembled, registered
from steering.workflows.generate import Progress, background, ignore_progress, seeded
from steering.workflows.measures import divergences, predicting, shared_prefix
from steering.workflows.texts import as_prompts, conversation

TOKENS = 64
"""Positions of a conversation that are fitted, evenly spaced; and tokens of an answer that are compared."""
PROMPT_TOKENS = 32
"""Positions of a prompt, counted from its end, among which they are."""
LAYERS = 6
AT_ONCE = 8
"""Conversations whose residuals are held in full at a time."""
PROMPTS = 32
"""Of `load_instructed`, where a request has none."""
LEAST_PROMPTS = 8
LEAST_FITTED = 2
"""Prompts that are fitted whatever `holdout` is: one chooses the penalty."""
LEAST_TOKENS = 4
RIDGES = (0.01, 0.1, 1.0)
"""Penalties that are tried, as multiples of the mean squared singular value of the residuals."""
SMALL = 1e-12
"""Share of the largest eigenvalue below which one is a rounding error."""
WEAK = 0.1
"""Share of the change below which a card warns."""
COMPARED = 16
"""Prompts on which the vector is compared with the instruction, by TOKENS tokens of each answer at most."""
STEPS, START = 4, 1.5
"""Tries of the search for the factor, and the first factor tried."""
COMPARING = 2 + 3 * STEPS
"""Passes over the answer to a compared prompt, at most: it is read with the instruction and without; for each try one is written,
and read with the vector and without."""
Residuals: TypeAlias = Float[Tensor, "layer row d_model"]


@dataclass(frozen=True, slots=True)
class DistilRequest:
    """What to distil and how.

    instruction: a system message, such as "Answer as a cheerful pirate."
    prompts: what the model is asked; None: PROMPTS of `load_instructed`, which no evaluation takes by default.
    layers: block indices, negative from the top; None: `default_layers`.
    rank: directions of the map at each layer, at most. The first is the mean change.
    max_tokens: of each answer.
    holdout: share of the prompts that the maps are not fitted on and measured by, at least 0 and below 1; LEAST_FITTED are fitted.
    """

    name: str
    instruction: str
    prompts: tuple[str, ...] | None = None
    layers: tuple[int, ...] | None = None
    rank: int = MAX_RANK
    max_tokens: int = 64
    holdout: float = 0.25
    seed: int = 0
    description: str = ""
    tags: tuple[str, ...] = ()

    @property
    def asked(self) -> tuple[str, ...]:
        """The prompts."""
        return tuple(load_instructed()[:PROMPTS]) if self.prompts is None else self.prompts


@dataclass(frozen=True, slots=True)
class _Told:
    """One answer under the instruction. told, plain: token ids of the prompt with and without it. shared: how many of the last tokens of
    both prompts are read, from the user's message on."""

    prompt: str
    told: tuple[int, ...]
    plain: tuple[int, ...]
    shared: int
    answer: tuple[int, ...]

    def rows(self) -> list[int]:
        """Returns the positions that are fitted, counted from the first that is read. The last token of an answer predicts nothing."""
        last = self.shared + len(self.answer) - 2
        return torch.linspace(0, last, min(TOKENS, last + 1)).round().long().tolist()


def residuals_held(prompts: int, max_tokens: int) -> int:
    """Returns how many residuals a layer takes at most: of the fitted positions with the instruction and without, and of the
    conversations that are being read."""
    return 2 * prompts * TOKENS + min(prompts, AT_ONCE) * (PROMPT_TOKENS + max_tokens)


def default_layers(layer_count: int) -> tuple[int, ...]:
    """Returns layers from a third of the model to its end, evenly spaced, LAYERS at most."""
    return tuple(sorted({int(layer_count * (1 / 3 + 2 / 3 * number / LAYERS)) for number in range(LAYERS)}))


def check_distil(engine: Engine, request: DistilRequest) -> tuple[int, ...]:
    """Returns the layers. Raises InvalidRequest for what cannot be distilled."""
    check_name(request.name)
    info = engine.info
    layers = (
        default_layers(info.layer_count) if request.layers is None else layer_indices(request.layers, info.layer_count)
    )
    if not info.chat_template:
        raise InvalidRequest(
            f"model {info.name!r} has no chat template, so it cannot be instructed; extract a vector from pairs instead",
            param="instruction",
        )
    if not request.instruction.strip():
        raise InvalidRequest("the instruction is empty", param="instruction")
    if not 1 <= request.rank <= MAX_RANK:
        raise InvalidRequest(f"rank is 1 to {MAX_RANK}, got {request.rank}", param="rank")
    if not 0.0 <= request.holdout < 1.0:
        raise InvalidRequest(f"holdout must be at least 0 and below 1, got {request.holdout}", param="holdout")
    if len(set(request.asked)) < LEAST_PROMPTS:
        raise InvalidRequest(
            f"distilling needs at least {LEAST_PROMPTS} different prompts, got {len(set(request.asked))}",
            param="prompts",
        )
    return tuple(sorted(set(layers)))


async def distil(engine: Engine, request: DistilRequest, *, progress: Progress = ignore_progress) -> ConceptVector:
    """Returns a vector with a map and a card at each layer, not yet stored.

    Layers are fitted in ascending order, each to what the maps of the earlier ones have left of the difference, since `apply` adds
    them together. Cancelling stops the work within one answer or one fit. Raises what `check_distil` raises, and InvalidRequest
    where the model answers too little.
    """
    layers = check_distil(engine, request)
    asked = tuple(dict.fromkeys(request.asked))
    fitting = len(asked) * (2 + len(layers))
    total = fitting + COMPARING * min(COMPARED, len(asked))
    answers = await _answers(engine, request, asked, total, progress)

    async def read(part: int, plan: SteeringPlan, at: tuple[int, ...], *, told: bool = False) -> Residuals:
        def report(count: int) -> None:
            progress(part * len(asked) + count, total, "reading answers")

        return await _read(engine, answers, at, plan, report, told=told)

    told, plain = await read(1, UNSTEERED, layers, told=True), await read(2, UNSTEERED, layers)
    fitted, tuned = _divided(answers, request)
    found: dict[int, _Fit] = {}
    for number, layer in enumerate(layers):
        plan = await _plan(engine, {at: one.map for at, one in found.items()})
        met = plain[number] if not found else (await read(2 + number, plan, (layer,)))[0]
        found[layer] = await run_in_thread(_fit_layer, plain[number], met, told[number], fitted, tuned, request.rank)
    scaled, equal = await _scaled(
        engine,
        request,
        answers[:COMPARED],
        found,
        lambda done: progress(fitting + done, total, "comparing predictions"),
    )
    vector = await run_in_thread(_assembled, engine, request, answers, told, plain, scaled, equal)
    progress(total, total, "done")
    return vector


def _divided(answers: Sequence[_Told], request: DistilRequest) -> tuple[list[bool], list[bool]]:
    """Returns for each row whether its prompt is fitted, and whether it is one of the fitted that choose the penalty: every fourth."""
    order = torch.randperm(len(answers), generator=torch.Generator().manual_seed(request.seed % 2**63)).tolist()
    held = set(order[: min(round(request.holdout * len(order)), len(order) - LEAST_FITTED)])
    tuned = set([index for index in order if index not in held][::4])
    owners = [index for index, one in enumerate(answers) for _ in one.rows()]
    return [index not in held for index in owners], [index in tuned for index in owners]


async def _scaled(
    engine: Engine,
    request: DistilRequest,
    answers: Sequence[_Told],
    fits: Mapping[int, "_Fit"],
    report: Callable[[int], None],
) -> tuple[dict[int, "_Fit"], dict[str, float]]:
    """Returns the fits with their maps multiplied by one factor, at which steering by them changes the predictions as much as the
    instruction does, and for the provenance `instruction_kl`, `kl` and `factor`. The divergences are means over tokens of KL(instructed or
    steered || neither), in nats, along answers of their own. The nearest of STEPS tries counts; without any the maps stay as they were.
    report: called with the number of answers that were written or read."""
    wanted = fmean(chain.from_iterable([await _instructed_divergences(engine, one) for one in answers]))
    search = StrengthSearch(START, wanted)
    prompts = as_prompts(engine, [one.prompt for one in answers])
    sampling = replace(_sampling(request), max_tokens=min(request.max_tokens, TOKENS))
    for step in range(STEPS if wanted > 0.0 else 0):
        report((2 + 3 * step) * len(answers))
        plan = await _plan(engine, {layer: one.map.scaled(search.next) for layer, one in fits.items()})
        search.found(await _divergence(engine, prompts, sampling, plan))
        if search.done:
            break
    if search.best is None:
        return dict(fits), {"instruction_kl": wanted}
    factor, found = search.best
    scaled = {layer: replace(one, map=one.map.scaled(factor)) for layer, one in fits.items()}
    return scaled, {"instruction_kl": wanted, "kl": found, "factor": factor}


async def _instructed_divergences(engine: Engine, one: _Told) -> tuple[float, ...]:
    """Returns KL(instructed || not) of each of the first TOKENS tokens of an answer, in nats."""
    answer = one.answer[:TOKENS]
    reads = [
        CapturePrompt(ids + answer, UNSTEERED, prompt_length=len(ids), first=len(ids) - 1)
        for ids in (one.told, one.plain)
    ]
    told, plain = await engine.capture(reads, CaptureSpec((), logits=True))
    return await run_in_thread(divergences, predicting(told, len(answer)), predicting(plain, len(answer)))


async def _divergence(engine: Engine, prompts: Sequence[Prompt], sampling: SamplingParams, plan: SteeringPlan) -> float:
    """Returns the mean of KL(plan || unsteered) over the tokens of answers that are written under the plan; inf where they are not finite,
    or most end before they begin, which is no small change."""
    try:
        written = await background(engine, [replace(one, plan=plan) for one in seeded(prompts, sampling)])
    except NonfiniteActivations:
        return inf
    (found,) = await token_divergences(engine, list(zip(prompts, written, strict=True)), [plan])
    return fmean(chain.from_iterable(found)) if len(found) > len(prompts) / 2 else inf


def _sampling(request: DistilRequest) -> SamplingParams:
    return SamplingParams(max_tokens=request.max_tokens, temperature=0.7, seed=request.seed % 2**63)


async def _answers(
    engine: Engine, request: DistilRequest, asked: Sequence[str], total: int, progress: Progress
) -> list[_Told]:
    """Returns the answers under the instruction that are long enough."""
    prompts = [under(engine, request.instruction.strip(), one) for one in asked]
    written = await background(
        engine, seeded(prompts, _sampling(request)), progress=lambda done, _, message: progress(done, total, message)
    )

    def encode() -> list[_Told]:
        found = []
        for one, prompt, answer in zip(asked, prompts, written, strict=True):
            if len(answer.tokens) < LEAST_TOKENS:
                continue
            told = engine.tokenizer.encode(prompt)
            plain, roles = engine.tokenizer.encode_with_roles((ChatMessage("user", one),))
            # What ends a system message differs with it, and is no part of a prompt without one.
            start = roles.index("user") if "user" in roles else len(plain) - 1
            most = min(PROMPT_TOKENS, len(plain) - start)
            shared = shared_prefix(told[::-1][:most], plain[::-1][:most])
            found.append(_Told(one, told, plain, shared, answer.tokens))
        return found

    found = await run_in_thread(encode)
    if len(found) < LEAST_PROMPTS:
        raise InvalidRequest(
            f"the model gave only {len(found)} answers of {LEAST_TOKENS} tokens or more to {len(asked)} prompts; at least "
            f"{LEAST_PROMPTS} are needed",
            param="instruction",
        )
    return found


async def _read(
    engine: Engine,
    answers: Sequence[_Told],
    layers: tuple[int, ...],
    plan: SteeringPlan,
    report: Callable[[int], None],
    *,
    told: bool,
) -> Residuals:
    """Returns the residuals at the fitted positions of all conversations, one after the other, with or without the instruction."""
    pieces = []
    for start in range(0, len(answers), AT_ONCE):
        chunk = answers[start : start + AT_ONCE]
        prompts = []
        for one in chunk:
            ids = one.told if told else one.plain
            prompts.append(CapturePrompt(ids + one.answer, plan, prompt_length=len(ids), first=len(ids) - one.shared))
        captures = await engine.capture(prompts, CaptureSpec(layers, "all"))
        pieces += [capture.activations[:, one.rows()].float() for one, capture in zip(chunk, captures, strict=True)]
        del captures  # whole conversations, which must not be held together with the next ones
        report(start + len(chunk))
    return torch.cat(pieces, dim=1)


async def _plan(engine: Engine, maps: Mapping[int, LowRankMap]) -> SteeringPlan:
    """Returns the plan that applies the maps."""
    if not maps:
        return UNSTEERED
    info = engine.info
    vector = registered(info, "distilled", {}, maps={str(layer): found for layer, found in maps.items()})
    item = InterventionSpec(vector="distilled", operation="apply", layers=tuple(maps))
    return await planned(info, vector, item)


@dataclass(frozen=True, slots=True, eq=False)
class _Fit:
    """The map of one layer. explained: share of the squared change of held-out prompts that it and the maps of earlier layers
    make; constant: that the mean change makes. None where nothing was held out."""

    map: LowRankMap
    explained: float | None
    constant: float | None


def _fit_layer(plain: Rows, met: Rows, told: Rows, fitted: Sequence[bool], tuned: Sequence[bool], rank: int) -> _Fit:
    """Fits one layer. met: the residuals without the instruction that the maps of earlier layers left; plain: without those.
    fitted, tuned: which rows are of prompts that are fitted, and which of these choose the penalty."""
    inside, inner = torch.tensor(fitted), torch.tensor(tuned)
    plain, met, told = plain.double(), met.double(), told.double()
    # What a layer makes of a residual depends on the change relative to its norm, which differs much between tokens.
    weights = 1.0 / plain.norm(dim=1).clamp_min(torch.finfo(plain.dtype).tiny)
    change, wanted = told - plain, told - met

    def size(rows: Rows, of: Tensor) -> float:
        return float((rows * weights[of, None]).square().sum())

    def trained(of: Tensor, ridges: Sequence[float]) -> list[LowRankMap]:
        return reduced_rank(met[of], wanted[of], rank, ridges, weights[of])

    def left(found: LowRankMap, of: Tensor) -> float:
        return size(wanted[of] - found.change(met[of]), of)

    maps = trained(inside & ~inner, RIDGES)
    best = min(range(len(RIDGES)), key=lambda index: left(maps[index], inner))
    (made,) = trained(inside, RIDGES[best : best + 1])
    whole = size(change[~inside], ~inside)
    if not whole:
        return _Fit(made, None, None)
    shares = weights[inside].square() / weights[inside].square().sum()
    constant = size(change[~inside] - shares @ change[inside], ~inside)
    return _Fit(made, 1.0 - left(made, ~inside) / whole, 1.0 - constant / whole)


def reduced_rank(
    rows: Rows, wanted: Rows, rank: int, ridges: Sequence[float], weights: Float[Tensor, "row"]
) -> list[LowRankMap]:
    """Returns for each ridge the linear map of a rank that adds nearly `wanted` to `rows`, both (row, d_model) in float64.

    B = (X^T X + l I)^-1 X^T Y on centred rows times their weights, l = ridge times the mean eigenvalue of X^T X. What is written are
    orthonormal directions: the mean of `wanted`, and the right singular vectors of X B across it. Raises InvalidRequest where nothing
    is wanted.
    """
    shares = weights.square() / weights.square().sum()
    middle, mean = shares @ rows, shares @ wanted
    x, y = weights[:, None] * (rows - middle), weights[:, None] * (wanted - mean)
    sizes, basis = torch.linalg.eigh(x.T @ x)
    inside = basis.T @ (x.T @ y)
    length = float(mean.norm())
    first = mean[None] / length if length > 0.0 else mean[None, :][:0]
    found = []
    for ridge in ridges:
        gains = 1.0 / (sizes.clamp_min(0.0) + ridge * float(sizes.mean())).clamp_min(1e-300)
        moved = basis @ (gains[:, None] * inside)
        across = x @ (moved - moved @ first.T @ first)
        squares, directions = torch.linalg.eigh(across.T @ across)
        kept = directions.T.flip(0)[squares.flip(0) > SMALL * max(float(squares[-1]), length**2)]
        write = torch.cat([first, kept])[:rank]
        if not len(write):
            raise InvalidRequest("the instruction changes nothing that the model computes", param="instruction")
        read = write @ moved.T
        found.append(LowRankMap.of(read, write, write @ mean - read @ middle))
    return found


def _assembled(
    engine: Engine,
    request: DistilRequest,
    answers: Sequence[_Told],
    told: Residuals,
    plain: Residuals,
    found: Mapping[int, _Fit],
    equal: Mapping[str, float],
) -> ConceptVector:
    """Builds the vector: at each layer the map, and the direction of the mean change with its cross-validated card. equal: what
    `_scaled` says."""
    pairs = _pairs(engine, request, answers)
    division = folding(pairs, request.holdout, request.seed)
    ends = [0, *accumulate(len(one.rows()) for one in answers)]
    # of the answer alone, which the direction is for: what an instruction changes in the prompt is another change
    starts = [
        end - sum(row >= one.shared - 1 for row in one.rows()) for one, end in zip(answers, ends[1:], strict=True)
    ]
    fits: dict[int, LayerFit] = {}
    for number, (layer, one) in enumerate(found.items()):
        positive, negative = (
            torch.stack([rows[number, start:end].mean(0) for start, end in zip(starts, ends[1:], strict=True)])
            for rows in (told, plain)
        )
        fit = fit_layer(MeanDifference.fit, positive, negative, True, division, request.seed)
        quality = replace(fit.quality, explained=one.explained)
        fits[layer] = replace(fit, direction=replace(fit.direction, map=one.map), quality=quality)
    info, layers = engine.info, tuple(found)
    left_out = len(dict.fromkeys(request.asked)) - len(answers)
    notes = [f"left out, because the model answered too little: {left_out} prompts"] if left_out else []
    last = found[layers[-1]].explained
    if last is not None and last < WEAK:
        notes.append(
            f"the maps as fitted make {max(last, 0.0):.0%} of the change that the instruction makes on held-out prompts"
        )
    reached, wanted = equal.get("kl"), equal["instruction_kl"]
    if reached is None:
        notes.append("no factor of the maps was found at which strength 1 is as strong as the instruction")
    elif abs(log(reached / wanted)) > NEAR:
        notes.append(
            f"strength 1 changes the predictions by {reached:.2g} nats a token, the instruction by {wanted:.2g}: no closer was found"
        )
    provenance = {
        **equal,
        "method": DISTILLED,
        "position": "response_mean",  # where the direction reads texts: nearest to the positions of the answers that it is a mean over
        "instruction": request.instruction,
        "prompts": len(answers),
        "rank": request.rank,
        "tokens": TOKENS,
        "max_tokens": request.max_tokens,
        "seed": request.seed,
        "holdout": request.holdout,
        "constant": {str(layer): one.constant for layer, one in found.items() if one.constant is not None},
        "dataset": dataset_digest(pairs),
        "model": info.name,
        "model_revision": info.revision,
        "dtype": info.dtype,
    }
    made = ExtractionRequest(
        request.name, pairs, DISTILLED, layers, seed=request.seed, description=request.description, tags=request.tags
    )
    auroc = nested_auroc(fits, info.layer_count)
    vector = assembled(info, made, fits, auroc, division, notes, provenance)
    scales = {layer: fit.direction.scale for layer, fit in fits.items()}
    at_chance = vector.quality is not None and vector.quality.at_chance
    # of `add`, as on every card, and of all layers together; the share of `apply` is 1 whatever the scale
    strengths = None if at_chance else strengths_to_try(layers, scales, info.typical_norms)
    return replace(vector, recommended=Recommended(layers, strengths_to_try=strengths, basis="card"))


def _pairs(engine: Engine, request: DistilRequest, answers: Sequence[_Told]) -> PairSet:
    """Returns the conversations with and without the instruction; those of a prompt are held out together."""
    found = []
    for one in answers:
        plain = conversation(one.prompt, engine.tokenizer.decode(one.answer))
        told = (ChatMessage("system", request.instruction), *plain)
        found.append(ContrastivePair(told, plain, topic=one.prompt))
    return PairSet.of(found)
