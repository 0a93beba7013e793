"""A concept from its description: the model answers neutral prompts under opposite instructions, and contrasting pairs
are made of the answers (persona vectors, arXiv 2507.21509), or the assistant axis (arXiv 2601.10387)."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from steering.concepts import ConceptEntry
from steering.concepts.described import ASSISTANT, roles
from steering.concepts.loader import load_instructed
from steering.engine.api import Engine, SamplingParams
from steering.errors import InvalidRequest
from steering.pairs import ChatMessage, ContrastivePair, PairSet
from steering.workflows.generate import Progress, background, ignore_progress, seeded
from steering.workflows.texts import conversation

INSTRUCTION = "You are {pole}."
"""As short as it is, since small models lose a pole in more words: on the embedded model the role of the pirate reads at an AUROC of 0.96
[0.88, 0.99] with it, and at 0.55 [0.46, 0.65] with two more sentences about where to show it and at what length."""
WRITING = SamplingParams(max_tokens=80, temperature=0.7)
LEAST_WORDS = 4
LEAST_PAIRS = 2
REFUSALS = (
    "sorry", "i'm sorry", "i am sorry", "i can't", "i cannot", "i can not", "i won't", "i will not be able",
    "i'm unable", "i am unable", "i'm not able", "i am not able", "as an ai", "as a language model",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Described:
    """Conversations without the instruction; topics are prompts. dropped: pairs of answers set aside, by reason."""

    pairs: PairSet
    dropped: Mapping[str, int]

    @property
    def warnings(self) -> tuple[str, ...]:
        """Returns how many pairs were set aside, and why; nothing where there are none."""
        count = sum(self.dropped.values())
        written = f"{count} of {len(self.pairs) + count} that the model wrote"
        return (f"left out, because they make no pair: {written} ({_counted(self.dropped)})",) if count else ()


@dataclass(frozen=True, slots=True)
class Description:
    """What the model is to be. trait: None: no instruction. opposites: in turn. per_prompt: answers a pole to each."""

    trait: str | None
    opposites: tuple[str, ...]
    per_prompt: int = 1

    @classmethod
    def of(cls, name: str, entry: ConceptEntry) -> "Description":
        """Describes a concept in words; of the assistant two roles a prompt, so that every role has as many."""
        return cls(None, roles(), 2) if name == ASSISTANT else cls(entry.positive, (entry.negative,))

    @property
    def answers(self) -> int:
        """How many answers the model writes to the package's prompts."""
        return 2 * self.per_prompt * len(load_instructed())

    def opposite(self, index: int, prompts: int) -> str:
        """Returns the opposite of answer `index` to so many prompts: another one each time a prompt comes again."""
        return self.opposites[(index + index // prompts) % len(self.opposites)]

    def check(self, engine: Engine) -> None:
        """Raises InvalidRequest for an empty pole, equal poles, and a model without a chat template."""
        poles = [one.strip().casefold() for one in (*([] if self.trait is None else [self.trait]), *self.opposites)]
        if not all(poles) or not self.opposites:
            raise InvalidRequest("a description needs a trait and its opposite, both in words", param="describe")
        if self.trait is not None and poles[0] in poles[1:]:
            raise InvalidRequest("the trait and its opposite are the same", param="describe")
        if not engine.info.chat_template:
            raise InvalidRequest(
                f"model {engine.info.name!r} has no chat template, so it cannot be instructed; give pairs instead",
                param="describe",
            )


async def describe(
    engine: Engine,
    description: Description,
    *,
    prompts: Sequence[str] | None = None,
    sampling: SamplingParams = WRITING,
    progress: Progress = ignore_progress,
) -> Described:
    """Writes pairs of answers under opposite instructions, with one seed for both poles, to `prompts`, by default
    those of `load_instructed`. Raises what `Description.check` raises, and InvalidRequest for fewer than LEAST_PAIRS usable pairs."""
    asked = tuple(load_instructed() if prompts is None else prompts)
    description.check(engine)
    questions, trait = asked * description.per_prompt, description.trait
    sides = [
        [(ChatMessage("user", one),) if trait is None else instructed(engine, trait, one) for one in questions],
        [instructed(engine, description.opposite(i, len(asked)), one) for i, one in enumerate(questions)],
    ]
    requests = [request for side in sides for request in seeded(side, sampling)]
    answers = [found.text.strip() for found in await background(engine, requests, progress=progress)]
    kept, dropped = [], Counter[str]()
    for prompt, positive, negative in zip(questions, answers[: len(questions)], answers[len(questions) :], strict=True):
        reason = unusable(positive, negative)
        if reason is None:
            kept.append(ContrastivePair(conversation(prompt, positive), conversation(prompt, negative), topic=prompt))
        else:
            dropped[reason] += 1
    if len(kept) < LEAST_PAIRS:
        reasons = _counted(dropped) or "too few prompts"
        raise InvalidRequest(
            f"the model wrote only {len(kept)} usable pairs of answers out of {len(questions)} ({reasons}); "
            "describe the poles in other words, or give pairs",
            param="describe",
        )
    return Described(PairSet.of(kept), dict(dropped))


def instructed(engine: Engine, pole: str, prompt: str) -> tuple[ChatMessage, ...]:
    """Returns the prompt under an instruction: as a system message, or before the question without system messages."""
    return under(engine, INSTRUCTION.format(pole=pole.strip()), prompt)


def under(engine: Engine, instruction: str, prompt: str) -> tuple[ChatMessage, ...]:
    """Returns the prompt under an instruction that is sent as it is, see `instructed`."""
    messages = (ChatMessage("system", instruction), ChatMessage("user", prompt))
    try:
        engine.tokenizer.encode(messages)
    except InvalidRequest:
        return (ChatMessage("user", f"{instruction}\n\n{prompt}"),)
    return messages


def unusable(positive: str, negative: str) -> str | None:
    """Returns why two answers make no pair: "empty", "too short", "identical", "refusal"; None when they do."""
    both = (positive, negative)
    if not all(both):
        return "empty"
    if min(len(text.split()) for text in both) < LEAST_WORDS:
        return "too short"
    if positive.casefold().split() == negative.casefold().split():
        return "identical"
    if any(text.casefold().replace("’", "'").startswith(REFUSALS) for text in both):
        return "refusal"
    return None


def _counted(dropped: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in dropped.items())
