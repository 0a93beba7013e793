"""/v1/concepts: the contrastive pairs that come with the package."""

from dataclasses import asdict

from fastapi import APIRouter

from app.core.requests import ApiRoute
from steering.concepts import CONCEPTS
from steering.concepts.loader import load_concept
from steering.concepts.measured import summaries_of
from steering.pairs import Text as PairText
from steering.schemas.messages import Message, Text
from steering.schemas.system import ConceptAnswer, ConceptDetail, ConceptList, ConceptPair
from steering.threads import run_in_thread

router = APIRouter(route_class=ApiRoute, tags=["concepts"])


@router.get("/v1/concepts")
async def find() -> ConceptList:
    """Lists the starter concepts."""
    return ConceptList(data=await run_in_thread(lambda: [_concept_answer(name) for name in CONCEPTS]))


@router.get("/v1/concepts/{name}")
async def read(name: str) -> ConceptDetail:
    """Returns one starter concept with its pairs."""
    return await run_in_thread(_detail, name)


def _concept_answer(name: str) -> ConceptAnswer:
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


def _detail(name: str) -> ConceptDetail:
    """Describes a concept with its pairs. Raises ConceptNotFound."""
    pairs = load_concept(name)
    topics = pairs.topics or (None,) * len(pairs)
    return ConceptDetail(
        **_concept_answer(name).model_dump(),
        data=[
            ConceptPair(positive=_text(positive), negative=_text(negative), topic=topic)
            for (positive, negative), topic in zip(pairs, topics, strict=True)
        ],
    )


def _text(text: PairText) -> Text:
    return text if isinstance(text, str) else tuple(Message(**asdict(message)) for message in text)
