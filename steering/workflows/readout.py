"""Reads texts against vectors: the score of each concept by token and layer, and the concepts that stand out."""

import asyncio
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil, isnan, log, nan, pi, sqrt
from statistics import fmean
from typing import Literal, TypeAlias, TypeVar

import torch
from cachetools import LRUCache

from steering.concepts.loader import load_neutral_texts
from steering.engine.api import Capture, CapturePrompt, CaptureSpec, Engine, Prompt, Tokenizer
from steering.errors import InvalidRequest, UnsupportedParameter
from steering.injection.readings import Reading
from steering.model.hook_points import layer_of, points_of
from steering.pairs import ChatMessage
from steering.plan.resolve import check_model, resolve_layers
from steering.schemas.messages import ScorePosition
from steering.schemas.reading import (
    CarryingTokenAnswer,
    ExplainedTextAnswer,
    LayerScores,
    ReadToken,
    ReadVector,
    StandingConceptAnswer,
    TextReadoutAnswer,
    TurnAnswer,
)
from steering.shapes import Float, Scores, Tensor
from steering.spec import Hook, Layers, PhaseName
from steering.threads import run_in_thread
from steering.vectors import ConceptVector
from steering.workflows.measures import shared_prefix
from steering.workflows.texts import as_answers

T = TypeVar("T")
ACTIVATIONS_BOUND = 16_000_000
"""Activations held at a time, in numbers (64 MB); more texts than fit are read in turn."""
CARRYING_TOKENS = 5
"""Tokens listed for a concept."""
LEAST_DEVIATION = 1e-6
"""Where the standard deviation of neutral text is not larger, nothing is known of how far a score lies from it."""
Extent: TypeAlias = Literal["text", "conversation", "turns"] | tuple[PhaseName, ...]
"""What is read: all tokens of a plain text or of a conversation, the assistant's turns, or some phases (sorted)."""


def reading_at(name: str, vector: ConceptVector, layers: Sequence[int]) -> Reading:
    """Returns the readout of a vector at the middle one of the layers, in natural scales."""
    layer = layers[len(layers) // 2]
    entry = vector.at(layer)
    return Reading(name, layer, entry.direction, entry.scale, entry.middle)


@dataclass(frozen=True, slots=True)
class ReadPhases:
    """The tokens of a text that are read. phases: of all of them. positions: of those that are chosen, without the first token where
    there are others. turns: the part of `positions` that is each of the assistant's turns, by the index of its message."""

    extent: Extent
    phases: tuple[PhaseName | None, ...]
    positions: tuple[int, ...]
    turns: Mapping[int, slice] = field(default_factory=dict)


def chosen_phases(tokenizer: Tokenizer, texts: Sequence[Prompt], chosen: Sequence[PhaseName]) -> list[ReadPhases]:
    """Finds the tokens of conversations that are in some phases; to be called in a thread. Raises InvalidRequest for a text that is no
    conversation with an answer, and for one without such a token; UnsupportedParameter for an engine without chat templates."""
    phases_of = getattr(tokenizer, "conversation_phases", None)
    if phases_of is None:
        raise UnsupportedParameter("the engine's tokenizer does not know phases", param="phase")
    found = []
    for index, text in enumerate(texts):
        if not _is_conversation(text):
            raise InvalidRequest(
                f"phases are those of a conversation that ends with an answer; text {index} is plain", param="phase"
            )
        phases = phases_of(text)
        positions = [at for at, phase in enumerate(phases) if phase in chosen]
        if not positions:
            raise InvalidRequest(f"text {index} has no token in the phases {', '.join(chosen)}", param="phase")
        kept = positions[1:] if positions[0] == 0 and positions[1:] else positions
        found.append(ReadPhases(tuple(sorted(set(chosen))), phases, tuple(kept)))
    return found


def chosen_turns(tokenizer: Tokenizer, texts: Sequence[Prompt]) -> list[ReadPhases]:
    """Finds the tokens of the assistant's turns, thinking included where the template keeps it; to be called in a thread. Raises
    InvalidRequest for a text that is no conversation with an answer, for an empty answer, and where the template writes an answer
    otherwise once another message follows; UnsupportedParameter for an engine without chat templates."""
    phases_of = getattr(tokenizer, "conversation_phases", None)
    if phases_of is None:
        raise UnsupportedParameter("the engine's tokenizer does not know turns", param="turns")
    found = []
    for number, text in enumerate(texts):
        answers = [index for index, one in enumerate(text) if index and getattr(one, "role", "") == "assistant"]
        if not answers:
            raise InvalidRequest(
                f"turns are those of a conversation with an answer to another message; text {number} has none",
                param="turns",
            )
        ids, positions, turns = tokenizer.encode(text), list[int](), dict[int, slice]()
        for index in answers:
            part = text[: index + 1]
            phases = phases_of(part)
            if {*phases} <= {None, "prompt"}:
                raise InvalidRequest(f"text {number}: message {index} is an empty answer", param="turns")
            span = _turn(ids, tokenizer.encode(part), phases)
            if span is None:
                raise InvalidRequest(
                    f"text {number}: the chat template writes message {index} otherwise once another follows",
                    param="turns",
                )
            turns[index] = slice(len(positions), len(positions) + len(span))
            positions += span
        found.append(ReadPhases("turns", (), tuple(positions), turns))
    return found


def _turn(ids: Sequence[int], part: Sequence[int], phases: Sequence[PhaseName | None]) -> range | None:
    """Returns where `ids` have the answer that ends `part`, perhaps without its thinking; None where they do not."""
    said = [at for at, phase in enumerate(phases) if phase not in (None, "prompt")]
    start = said[0]
    if tuple(ids[:start]) != tuple(part[:start]):
        return None
    for kept in (said, [at for at in said if phases[at] != "thinking"]):
        if kept and [*ids[start : start + len(kept)]] == [part[at] for at in kept]:
            return range(start, start + len(kept))
    return None


async def readout(
    engine: Engine,
    texts: Sequence[Prompt],
    vectors: Mapping[str, ConceptVector],
    layers: Layers = "recommended",
    phases: Sequence[ReadPhases] | None = None,
    hook: Hook = "residual",
) -> list[TextReadoutAnswer]:
    """Reads texts (strings, conversations or token ids) in order. vectors: by the name used in the result. phases: of each text, by
    which its scores are summarized. Raises InvalidRequest for layers that do not exist,
    VectorModelMismatch for another model's vector, UnsupportedParameter for a hook point that the model does not have.

    Scores are (r . direction - m) / kappa per token: natural scales, centred on the poles; without class means m is 0, and
    at other hook points than the residual: there the score is what the module adds to the projection. mean and max leave out the first position, where models keep a very large residual that belongs to no word.
    """
    axes: list[tuple[Reading, bool]] = []
    for name, vector in vectors.items():
        check_model(vector, engine.info)
        chosen = sorted(resolve_layers(layers, vector, engine.info.layer_count))
        for layer, point in zip(chosen, points_of(chosen, engine.info, hook), strict=True):
            reading, centred = reading_at(name, vector, (layer,)), vector.at(layer).centred
            inside = replace(reading, layer=point, middle=0.0)
            axes.append((reading, centred) if hook == "residual" else (inside, False))
    read = tuple(sorted({reading.layer for reading, _ in axes}))
    remaining = iter([None] * len(texts) if phases is None else phases)

    def summarized(_: Prompt, capture: Capture) -> TextReadoutAnswer:
        found, chosen = dict[str, dict[str, LayerScores]](), next(remaining)
        for reading, centred in axes:
            scores = reading.scores(capture.activations[read.index(reading.layer)])
            part = spoken(scores) if chosen is None else scores[list(chosen.positions)]
            found.setdefault(reading.name, {})[str(layer_of(reading.layer))] = LayerScores(
                scores=scores.tolist(),
                mean=float(part.mean()),
                max=float(part.max()),
                last=float(part[-1]),
                centred=centred,
            )
        listed = None if chosen is None else list(chosen.phases)
        return TextReadoutAnswer(tokens=read_tokens(engine.tokenizer, capture.token_ids), phases=listed, readout=found)

    return await read_each(engine, texts, read, summarized)


def unread_warnings(texts: Sequence[Sequence[int]], phases: Sequence[ReadPhases] | None) -> list[str]:
    """Returns a warning for each text of which nothing but the first token is read. texts: their tokens."""
    chosen: Sequence[Sequence[int]] = (
        [one.positions for one in phases] if phases else [range(len(one)) for one in texts]
    )
    return [
        f"text {index}: only its first token is read, whose residual belongs to no word; its scores have no meaning"
        for index, positions in enumerate(chosen)
        if _only_first(positions)
    ]


def _only_first(positions: Sequence[int]) -> bool:
    """Whether nothing but the first token is read, whose residual belongs to no word."""
    return tuple(positions) == (0,)


def used_vectors(vectors: Mapping[str, ConceptVector]) -> dict[str, ReadVector]:
    """Reports the versions that were used, by the names given."""
    return {name: ReadVector(id=vector.id, sha256=vector.sha256) for name, vector in vectors.items()}


def read_tokens(tokenizer: Tokenizer, ids: Sequence[int]) -> list[ReadToken]:
    """Lists the tokens of a text that was read."""
    return [ReadToken(id=token, text=tokenizer.token_text(token)) for token in ids]


async def read_texts(engine: Engine, texts: Sequence[str], readings: Sequence[Reading]) -> tuple[dict[str, float], ...]:
    """Returns, per text, the mean score of each reading as the unsteered model reads it alone; empty for a text of no
    more than one token, since the first belongs to no word."""
    layers = tuple(sorted({reading.layer for reading in readings}))
    written = [text for text in texts if text and readings]

    def scores(_: Prompt, capture: Capture) -> dict[str, float]:
        residuals = dict(zip(layers, capture.activations, strict=True))
        read = readings if len(capture.token_ids) > 1 else ()
        return {one.name: float(spoken(one.scores(residuals[one.layer])).mean()) for one in read}

    remaining = iter(await read_each(engine, written, layers, scores))
    return tuple(next(remaining) if text and readings else {} for text in texts)


async def read_each(
    engine: Engine,
    texts: Sequence[Prompt],
    layers: tuple[int, ...],
    work: Callable[[Prompt, Capture], T],
    *,
    priority: int = 0,
    done: Callable[[int], None] = lambda _: None,
) -> list[T]:
    """Reads texts at all positions, as many as fit, and returns what `work` makes of each. done: how many are read."""
    found: list[T] = []
    for part in await run_in_thread(parts, engine, texts, len(layers)):
        prompts = [CapturePrompt(text) for text in part]
        captures = await engine.capture(prompts, CaptureSpec(layers, "all"), priority=priority)
        found += await run_in_thread(lambda texts, read: list(map(work, texts, read)), part, captures)
        done(len(found))
    return found


def parts(engine: Engine, texts: Sequence[Prompt], layers: int) -> list[list[Prompt]]:
    """Groups texts whose activations at that many layers fit into ACTIVATIONS_BOUND; a longer text is alone."""
    width = layers * engine.info.d_model
    return grouped(texts, lambda text: len(engine.tokenizer.encode(text)) * width, ACTIVATIONS_BOUND)


def grouped(items: Sequence[T], size: Callable[[T], int], bound: int) -> list[list[T]]:
    """Groups neighbours whose sizes together are at most `bound`; a larger item is alone."""
    groups: list[list[T]] = []
    held = 0
    for item in items:
        needed = size(item)
        if not groups or held + needed > bound:
            groups.append([])
            held = 0
        groups[-1].append(item)
        held += needed
    return groups


def spoken(scores: Scores) -> Float[Tensor, "spoken"]:
    """Returns the scores without the first position, where there are others."""
    return scores[1:] if len(scores) > 1 else scores


@dataclass(frozen=True, slots=True, eq=False)
class Axis:
    """One vector read at one layer."""

    vector: ConceptVector
    layer: int

    @property
    def key(self) -> tuple[str, str, int]:
        """Identifies its content: id, digest, layer."""
        return self.vector.id, self.vector.sha256, self.layer


@dataclass(frozen=True, slots=True, eq=False)
class NeutralStatistics:
    """Mean and standard deviation of a score over neutral texts (means over tokens), and over all their tokens.
    within: variance of a text's tokens. inverse_length: mean of 1 / tokens. maxima: mean and deviation of the largest
    score of the first n tokens, up to the n that half of the texts have. growth: of that mean for each factor e of n
    beyond. beginning: ids that all texts begin with, whose scores are alike in all, so that `maxima` leave them out."""

    mean: float
    deviation: float
    token_mean: float
    token_deviation: float
    within: float
    inverse_length: float
    maxima: Float[Tensor, "tokens 2"]
    growth: float
    beginning: tuple[int, ...] = ()

    def z(self, score: float, tokens: int, position: ScorePosition) -> float:
        """Returns how far the score of a text of so many tokens lies from neutral text, in standard deviations; NaN where all neutral
        texts have the same score."""
        mean, deviation = self.mean, self.deviation_of(tokens)
        if position == "max":  # the largest of more tokens is larger
            known = min(tokens, len(self.maxima))
            mean, deviation = self.maxima[known - 1].tolist()
            mean += self.growth * log(tokens / known)
        return (score - mean) / deviation if deviation > LEAST_DEVIATION else nan

    def deviation_of(self, tokens: int) -> float:
        """Returns the standard deviation of the mean over so many tokens; a mean over few varies more."""
        return sqrt(self.deviation**2 + self.within * max(1 / tokens - self.inverse_length, 0.0))


class NeutralCache:
    """Statistics of neutral text by what is read of it, vector version and layer."""

    def __init__(self) -> None:
        self._found: LRUCache[tuple[Extent, tuple[str, str, int]], NeutralStatistics] = LRUCache(8192)
        self._reading = asyncio.Lock()

    async def of(self, engine: Engine, axes: Sequence[Axis], extent: Extent) -> list[NeutralStatistics]:
        """Returns statistics for every axis; neutral text is read for those not known yet, by one caller at a time."""
        async with self._reading:
            keys = [(extent, axis.key) for axis in axes]
            known = {key: self._found[key] for key in keys if key in self._found}
            missing = [axis for axis, key in zip(axes, keys, strict=True) if key not in known]
            if missing:
                read = await _read_neutral(engine, missing, extent)
                known |= {(extent, axis.key): one for axis, one in zip(missing, read, strict=True)}
                self._found.update(known)
        return [known[key] for key in keys]


async def _read_neutral(engine: Engine, axes: Sequence[Axis], extent: Extent) -> list[NeutralStatistics]:
    """Reads the same of neutral texts, as answers to neutral prompts where conversations are read."""
    texts: Sequence[Prompt] = load_neutral_texts() if extent == "text" else as_answers(load_neutral_texts())
    phases: Sequence[ReadPhases | None] = [None] * len(texts)
    if extent == "turns":
        phases = await run_in_thread(chosen_turns, engine.tokenizer, texts)
    elif isinstance(extent, tuple):
        phases = await run_in_thread(chosen_phases, engine.tokenizer, texts, extent)
    remaining = iter(phases)

    def scored(_: Prompt, capture: Capture) -> tuple[tuple[int, ...], Float[Tensor, "token axis"], Sequence[int]]:
        return capture.token_ids, *_scores(capture, axes, next(remaining))

    read = await read_each(engine, texts, _layers(axes), scored)
    first, beginning = read[0][0], tuple[int, ...]()
    if extent != "turns":  # which lie behind, and are told apart by their places
        beginning = first[: min(shared_prefix(first, ids) for ids, _, _ in read)]
    behind = [scores[_beginning_read(positions, len(beginning)) :] for _, scores, positions in read]
    found = await run_in_thread(neutral_statistics, [scores for _, scores, _ in read], behind)
    return [replace(one, beginning=beginning) for one in found]


def _beginning_read(positions: Sequence[int], beginning: int) -> int:
    """Returns how many of the positions are among so many first tokens; the last one counts as behind them."""
    return min(bisect_left(positions, beginning), len(positions) - 1)


async def explain(
    engine: Engine,
    texts: Sequence[Prompt],
    axes: Sequence[Axis],
    neutral: NeutralCache,
    *,
    position: ScorePosition = "mean",
    threshold: float = 2.0,
    most: int = 10,
    phases: Sequence[ReadPhases] | None = None,
) -> list[ExplainedTextAnswer]:
    """Returns, per text, the concepts with |z| of at least `threshold`, at most `most` of them, by |z|; of one vector
    only the layer with the largest |z|. position: what the score of a text is. phases: of each text, whose chosen tokens are then
    read alone, of neutral answers too, also by turn; |z| is then the largest over the text and its turns. A z that is not known counts
    as 0. Raises what `Engine.capture` raises."""
    read_of: Sequence[ReadPhases | None] = [None] * len(texts) if phases is None else phases
    statistics: dict[Extent, list[NeutralStatistics]] = {}
    for extent in dict.fromkeys(map(_extent, texts, read_of)):
        statistics[extent] = await neutral.of(engine, axes, extent)
    remaining = iter(read_of)

    def explained(text: Prompt, capture: Capture) -> ExplainedTextAnswer:
        phases = next(remaining)
        known, count = statistics[_extent(text, phases)], len(capture.token_ids)
        scores, positions = _scores(capture, axes, phases)
        if _only_first(positions):
            return ExplainedTextAnswer(tokens=1, concepts=[])
        listed = count if phases is None else len(positions)
        if position == "max":
            behind = _beginning_read(positions, shared_prefix(capture.token_ids, known[0].beginning))
            scores, positions = scores[behind:], positions[behind:]

        def read(part: slice) -> list[tuple[float, float]]:
            """Returns score and z of each axis over some of the tokens."""
            values = scores[part].amax(dim=0) if position == "max" else scores[part].mean(dim=0)
            found = zip(values.tolist(), known, strict=True)
            return [(score, one.z(score, len(scores[part]), position)) for score, one in found]

        whole, turns = read(slice(None)), {at: read(part) for at, part in (phases.turns if phases else {}).items()}
        best: dict[str, tuple[int, float]] = {}  # by vector: the layer where the text, or a turn, stands out most
        for index, axis in enumerate(axes):
            most_z = max(0.0 if isnan(one[index][1]) else abs(one[index][1]) for one in (whole, *turns.values()))
            if axis.vector.id not in best or most_z > best[axis.vector.id][1]:
                best[axis.vector.id] = (index, most_z)
        standing = sorted((one for one in best.values() if one[1] >= threshold), key=lambda one: -one[1])
        concepts = []
        for index, _ in standing[:most]:
            score, z = whole[index]
            by_turn = [
                TurnAnswer(message=at, tokens=len(scores[phases.turns[at]]), score=one[index][0], z=one[index][1])
                for at, one in turns.items()
                if phases is not None
            ]
            concepts.append(
                StandingConceptAnswer(
                    vector=axes[index].vector.id,
                    layer=axes[index].layer,
                    score=score,
                    z=z,
                    tokens=_carrying(engine.tokenizer, capture.token_ids, positions, scores[:, index], known[index], z),
                    turns=by_turn or None,
                )
            )
        return ExplainedTextAnswer(tokens=listed, concepts=concepts)

    return await read_each(engine, texts, _layers(axes), explained)


def axes_of(vectors: Sequence[ConceptVector], layers: Sequence[int] | None) -> list[Axis]:
    """Returns where each vector is read: at the middle of its recommended layers, or at those of `layers` it has."""
    found: list[Axis] = []
    for vector in vectors:
        recommended = vector.recommended_layers()
        chosen = (recommended[len(recommended) // 2],) if layers is None else layers
        found += [Axis(vector, layer) for layer in chosen if layer in vector.layers]
    return found


def _layers(axes: Sequence[Axis]) -> tuple[int, ...]:
    return tuple(sorted({axis.layer for axis in axes}))


def _is_conversation(prompt: Prompt) -> bool:
    return not isinstance(prompt, str) and isinstance(prompt[0], ChatMessage)


def _extent(text: Prompt, phases: ReadPhases | None) -> Extent:
    """Returns what is read of a text."""
    if phases is not None:
        return phases.extent
    return "conversation" if _is_conversation(text) else "text"


def neutral_statistics(
    texts: Sequence[Float[Tensor, "token axis"]], behind: Sequence[Float[Tensor, "token axis"]] | None = None
) -> list[NeutralStatistics]:
    """texts: the scores of the tokens of each. behind: those behind what all texts begin with. Returns the statistics of each axis."""
    means, tokens = torch.stack([scores.mean(dim=0) for scores in texts]), torch.cat(list(texts))
    around = torch.stack([(scores - scores.mean(dim=0)).square().sum(0) for scores in texts]).sum(0)
    variance = around / max(len(tokens) - len(texts), 1)
    inverse_length = fmean(1 / len(scores) for scores in texts)
    of_means, of_tokens = (one.std(0).clamp(min=LEAST_DEVIATION) for one in (means, tokens))
    statistics = torch.stack([means.mean(0), of_means, tokens.mean(0), of_tokens, variance], dim=1)
    maxima, growth = _maxima(texts if behind is None else behind)
    return [
        NeutralStatistics(
            mean, deviation, token_mean, token_deviation, within, inverse_length, maxima[:, index], growth[index]
        )
        for index, (mean, deviation, token_mean, token_deviation, within) in enumerate(statistics.tolist())
    ]


def _maxima(texts: Sequence[Float[Tensor, "token axis"]]) -> tuple[Float[Tensor, "tokens axis 2"], list[float]]:
    """Returns `maxima` and `growth` of each axis. The largest of n scores grows about as b log n (Gumbel, Statistics of
    Extremes, 1958); b is measured between half of the largest n and that n, in the same texts."""
    lengths = sorted(map(len, texts), reverse=True)
    most = lengths[max(ceil(len(texts) / 2), min(2, len(texts))) - 1]
    running = [scores[:most].cummax(dim=0).values for scores in texts]
    measured = []
    for index in range(most):
        largest = torch.stack([one[index] for one in running if len(one) > index])
        measured.append(torch.stack([largest.mean(0), largest.std(0).clamp(min=LEAST_DEVIATION)], dim=1))
    maxima = torch.stack(measured)
    if most == 1:
        return maxima, (maxima[0, :, 1] * sqrt(6.0) / pi).tolist()
    grown = torch.stack([one[-1] - one[most // 2 - 1] for one in running if len(one) == most]).mean(0)
    return maxima, (grown / log(most / (most // 2))).tolist()


def _scores(
    capture: Capture, axes: Sequence[Axis], phases: ReadPhases | None
) -> tuple[Float[Tensor, "token axis"], Sequence[int]]:
    """Returns the centred score of each axis at each token that is read, without the first token where there are others, and their
    positions."""
    residuals = dict(zip(_layers(axes), capture.activations, strict=True))
    readings = (reading_at("", axis.vector, (axis.layer,)) for axis in axes)
    positions: Sequence[int] = range(len(capture.token_ids)) if phases is None else phases.positions
    if phases is None and len(positions) > 1:
        positions = positions[1:]
    read = torch.tensor(positions)
    return torch.stack([one.scores(residuals[one.layer])[read] for one in readings], dim=1), positions


def _carrying(
    tokenizer: Tokenizer,
    ids: Sequence[int],
    positions: Sequence[int],
    scores: Float[Tensor, "token"],
    neutral: NeutralStatistics,
    z: float,
) -> list[CarryingTokenAnswer]:
    """Lists the tokens that carry a concept most, in the direction of its z; none where that is not known. positions: of the scores."""
    if isnan(z) or neutral.token_deviation <= LEAST_DEVIATION:
        return []
    own = (scores - neutral.token_mean) / neutral.token_deviation
    values, places = (own if z > 0 else -own).topk(min(CARRYING_TOKENS, len(own)))
    found = []
    for value, place in zip(values.tolist(), places.tolist(), strict=True):
        index = positions[place]
        if value > 0:
            text = tokenizer.token_text(ids[index])
            found.append(CarryingTokenAnswer(index=index, id=ids[index], text=text, z=float(own[place])))
    return found
