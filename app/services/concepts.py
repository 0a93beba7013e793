"""Describes the starter concepts."""

from dataclasses import asdict

from steering.concepts import CONCEPTS
from steering.concepts.loader import load_concept
from steering.concepts.measured import summaries_of
from steering.pairs import Text as PairText
from steering.schemas.messages import Message, Text
from steering.schemas.system import ConceptAnswer, ConceptDetail, ConceptPair


def concept_answer(name: str) -> ConceptAnswer:
    """Summarizes a concept. Raises ConceptNotFound."""
    pairs = load_concept(name)
    entry = CONCEPTS[name]
    return ConceptAnswer(
        name=name,
        positive=entry.positive,
        negative=entry.negative,
        description=entry.description,
        pairs=len(pairs),
        measured=summaries_of(name),
    )


def concept_detail(name: str) -> ConceptDetail:
    """Describes a concept with its pairs. Raises ConceptNotFound."""
    pairs = load_concept(name)
    topics = pairs.topics or (None,) * len(pairs)
    return ConceptDetail(
        **concept_answer(name).model_dump(),
        data=[
            ConceptPair(positive=_text(positive), negative=_text(negative), topic=topic)
            for (positive, negative), topic in zip(pairs, topics, strict=True)
        ],
    )


def _text(text: PairText) -> Text:
    return text if isinstance(text, str) else tuple(Message(**asdict(message)) for message in text)
