"""Starter concepts in the words of the wire."""

from dataclasses import asdict

from steering.concepts import CONCEPTS
from steering.concepts.loader import load_concept
from steering.pairs import Text as PairText
from steering.schemas.extraction import Text
from steering.schemas.generation import Message
from steering.schemas.system import ConceptAnswer, ConceptDetail, ConceptPair


def concept_answer(name: str) -> ConceptAnswer:
    """What a concept is about. Raises ConceptNotFound."""
    pairs = load_concept(name)
    entry = CONCEPTS[name]
    return ConceptAnswer(
        name=name,
        positive=entry.positive,
        negative=entry.negative,
        description=entry.description,
        pairs=len(pairs),
    )


def concept_detail(name: str) -> ConceptDetail:
    """A concept with its pairs. Raises ConceptNotFound."""
    pairs = load_concept(name)
    topics = pairs.topics or (None,) * len(pairs)
    return ConceptDetail(
        **concept_answer(name).model_dump(),
        data=[
            ConceptPair(positive=_words(positive), negative=_words(negative), topic=topic)
            for (positive, negative), topic in zip(pairs, topics, strict=True)
        ],
    )


def _words(text: PairText) -> Text:
    return text if isinstance(text, str) else tuple(Message(**asdict(message)) for message in text)
