"""What stands out is what was planted; z-scores equal a computation from the activations themselves."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from statistics import fmean
from typing import Any

import pytest
import torch
from safetensors.torch import load
from sqlalchemy import update

from steering.concepts.loader import load_neutral_texts
from steering.engine.api import Capture, CapturePrompt, CaptureSpec, Prompt
from steering.errors import StoreCorrupt
from steering.model.prompt import ModelTokenizer
from steering.pairs import ChatMessage
from steering.store.records import Page
from steering.store.store import Store
from steering.store.tables import VectorRow
from steering.store.vectors import Vectors
from steering.vectors import ConceptVector, VectorSummary
from steering.workflows.measures import shared_prefix
from steering.workflows.readout import chosen_turns
from steering.workflows.texts import as_answers
from tests.app.changed_store import ChangedStore
from tests.app.conftest import D_MODEL, Server, StartServer
from tests.app.openai.test_phases import Thinker
from tests.narrowing import messages_of
from tests.scripted_model import planted_direction

TEXTS = ["a good day", "a bad day", "a day"]


async def library(server: Server) -> None:
    """The planted direction, one orthogonal to it, and one that is read at another layer."""
    planted = planted_direction()
    other = torch.nn.functional.normalize(torch.linalg.svd(planted[None])[2][1], dim=0)
    for name, layer, direction in (("mood", "2", planted), ("other", "2", other), ("first", "0", planted)):
        body = {"name": name, "directions": {layer: direction.tolist()}, "scale": {layer: 2.0}}
        assert (await server.client.post("/v1/vectors", json=body)).status_code == 201


async def explained(server: Server, **body: Any) -> dict[str, Any]:
    answer = await server.client.post("/v1/explain", json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def test_the_planted_concept_stands_out_with_its_sign(server: Server) -> None:
    await library(server)
    found = await explained(server, texts=TEXTS, threshold=10)
    assert list(found["vectors"]) == ["first@1", "mood@1", "other@1"]
    good, bad, neither = ({one["vector"]: one["z"] for one in text["concepts"]} for text in found["texts"])
    assert set(good) == set(bad) == {"first@1", "mood@1"}
    assert min(good.values()) > 10 > -10 > max(bad.values())
    assert neither == {}
    assert (found["neutral"], found["warnings"]) == (len(load_neutral_texts()), [])


async def test_scores_equal_a_computation_from_the_activations(server: Server) -> None:
    await library(server)
    found = await explained(server, texts=TEXTS[:1], threshold=0)

    async def rows(texts: list[str]) -> list[torch.Tensor]:
        body = {"texts": texts, "layers": [0, 2], "position": "all"}  # the layers that are read together
        file = load((await server.client.post("/v1/activations", json=body)).content)
        bounds = file["offsets"].tolist()
        scores = file["layer.2"] @ planted_direction() / 2.0
        return [scores[start + 1 : end] for start, end in pairwise(bounds)]

    neutral = await rows(list(load_neutral_texts()))
    means, tokens = torch.stack([one.mean() for one in neutral]), torch.cat(neutral)
    (text,) = await rows(TEXTS[:1])
    (mood,) = (one for one in found["texts"][0]["concepts"] if one["vector"] == "mood@1")
    assert mood["score"] == pytest.approx(float(text.mean()), abs=1e-5)
    within = sum(float((one - one.mean()).square().sum()) for one in neutral) / (len(tokens) - len(neutral))
    shorter = 1 / len(text) - fmean(1 / len(one) for one in neutral)
    assert shorter > 0.0
    deviation = (float(means.var()) + within * shorter) ** 0.5
    assert mood["z"] == pytest.approx(float(text.mean() - means.mean()) / deviation, rel=1e-4)
    own = ((text - tokens.mean()) / tokens.std()).tolist()
    best = sorted(range(len(own)), key=lambda index: -own[index])[:5]
    assert [token["index"] for token in mood["tokens"]] == [index + 1 for index in best]
    assert [token["z"] for token in mood["tokens"]] == pytest.approx([own[index] for index in best], rel=1e-4)
    assert [token["text"] for token in mood["tokens"]] == [TEXTS[0][index + 1] for index in best]


async def test_a_text_of_one_token_comes_with_a_warning(server: Server) -> None:
    """Where the tokenizer writes no token before a text, its first is an attention sink, with a score near 100 on some models."""
    await library(server)
    for texts in (["a", TEXTS[0]], [TEXTS[0], "a"]):
        found = await explained(server, texts=texts, threshold=0)
        assert [bool(one["concepts"]) for one in found["texts"]] == [text == TEXTS[0] for text in texts]
        read = (await server.client.post("/v1/readout", json={"texts": texts, "vectors": ["mood"]})).json()
        for (warning,) in (found["warnings"], read["warnings"]):
            assert warning.startswith(f"text {texts.index('a')}: only its first token is read")


async def test_the_largest_score_is_compared_with_that_of_as_many_neutral_tokens(server: Server) -> None:
    await library(server)
    found = await explained(server, texts=TEXTS[:1], threshold=0, position="max")
    body = {"texts": [TEXTS[0], *load_neutral_texts()], "layers": [0, 2], "position": "all"}
    file = load((await server.client.post("/v1/activations", json=body)).content)
    scores = file["layer.2"] @ planted_direction() / 2.0
    text, *neutral = [scores[start + 1 : end] for start, end in pairwise(file["offsets"].tolist())]
    largest = torch.stack([one[: len(text)].max() for one in neutral])
    (mood,) = (one for one in found["texts"][0]["concepts"] if one["vector"] == "mood@1")
    assert mood["score"] == pytest.approx(float(text.max()), abs=1e-5)
    assert mood["z"] == pytest.approx(float((text.max() - largest.mean()) / largest.std()), rel=1e-4)


async def test_neutral_text_is_read_once_for_each_version(server: Server) -> None:
    await library(server)
    counts = []
    for _ in range(2):
        await explained(server, texts=["a good day"])
        counts.append(len(server.scripted.captured))
    assert counts == [len(load_neutral_texts()) + 1, len(load_neutral_texts()) + 2]
    await server.register("mood", layers=(1,))
    await explained(server, texts=["a good day"])
    assert len(server.scripted.captured) == counts[1] + len(load_neutral_texts()) + 1


class Answering(Thinker):
    """A model whose residuals are along the planted direction where it answers."""

    async def capture(self, prompts: Sequence[CapturePrompt], spec: CaptureSpec, **options: Any) -> tuple[Capture, ...]:
        """See Thinker.capture."""
        found = await super().capture(prompts, spec, **options)
        for one, capture in zip(prompts, found, strict=True):
            phases = self.tokenizer.conversation_phases(tuple(messages_of(one.prompt)))
            answers = torch.tensor([phase == "answer" for phase in phases])
            capture.activations[:, answers] += planted_direction()
        return found


def neutral_talks() -> list[list[dict[str, str]]]:
    texts = map(messages_of, as_answers(load_neutral_texts()))
    return [[{"role": one.role, "content": one.content} for one in text] for text in texts]


@pytest.mark.parametrize("chosen", [{"turns": True}, {"phase": ["answer"]}, {"phase": ["answer", "prompt"]}, {}])
async def test_neutral_answers_do_not_stand_out_whatever_is_read_of_them(
    start: StartServer, chosen: dict[str, Any]
) -> None:
    """Compared with all tokens of neutral conversations, answers alone stand out by more than 10."""
    server = await start(Answering())
    await library(server)
    found = await explained(server, texts=neutral_talks(), threshold=0, vectors=["mood"], **chosen)
    z = torch.tensor([concept["z"] for text in found["texts"] for concept in text["concepts"]])
    assert len(z) == len(load_neutral_texts())
    assert float(z.mean()) == pytest.approx(0.0, abs=0.05)
    assert float(z.std()) == pytest.approx(1.0, abs=0.1)


class Headed(Thinker):
    """A model whose largest residuals are at what the template writes before the first message."""

    HEAD = 5.0

    def head(self, ids: Sequence[int]) -> int:
        """Returns how many of the tokens come before the first message of a user."""
        return shared_prefix(ids, self.tokenizer.encode((ChatMessage("user", "\x01"),)))

    async def capture(self, prompts: Sequence[CapturePrompt], spec: CaptureSpec, **options: Any) -> tuple[Capture, ...]:
        """See Thinker.capture."""
        found = await super().capture(prompts, spec, **options)
        for capture in found:
            capture.activations[:, : self.head(capture.token_ids)] = self.HEAD * planted_direction()
        return found


@pytest.mark.parametrize("chosen", [{"turns": True}, {"phase": ["answer", "prompt"]}, {}])
async def test_what_all_conversations_begin_with_is_not_their_largest_score(
    start: StartServer, chosen: dict[str, Any]
) -> None:
    """With it, the largest score of every neutral conversation is the same."""
    model = Headed()
    server = await start(model)
    await library(server)
    told = {"role": "system", "content": "Be brief."}
    talks = [*neutral_talks(), [told, *neutral_talks()[0]]]
    found = await explained(server, texts=talks, threshold=0, vectors=["mood"], position="max", **chosen)
    concepts = [concept for text in found["texts"] for concept in text["concepts"]]
    *z, other = (concept["z"] for concept in concepts)
    assert fmean(z) == pytest.approx(0.0, abs=0.2)
    assert float(torch.tensor(z).std()) == pytest.approx(1.0, abs=0.15)
    assert abs(other) < 4.0
    assert max(concept["score"] for concept in concepts) < Headed.HEAD / 2.0
    head = model.head(model.tokenizer.encode((ChatMessage("user", "Well?"),)))
    assert head > 1
    assert all(token["index"] >= head for concept in concepts[:-1] for token in concept["tokens"])


async def test_z_is_null_where_all_neutral_texts_have_the_same_score(server: Server) -> None:
    await library(server)
    body = {"name": "flat", "directions": {"2": planted_direction().tolist()}, "scale": {"2": 1e9}}
    assert (await server.client.post("/v1/vectors", json=body)).status_code == 201
    for position in ("mean", "max"):
        (text,) = (await explained(server, texts=TEXTS[:1], threshold=0, position=position))["texts"]
        assert [one["vector"] for one in text["concepts"]][-1] == "flat@1"
        assert (text["concepts"][-1]["z"], text["concepts"][-1]["tokens"]) == (None, [])
        (text,) = (await explained(server, texts=TEXTS[:1], position=position))["texts"]
        assert "flat@1" not in [one["vector"] for one in text["concepts"]]


async def test_neutral_text_is_read_once_for_each_choice_of_tokens(start: StartServer) -> None:
    server = await start(Thinker())
    await library(server)
    talk = [{"role": "user", "content": "Well?"}, {"role": "assistant", "content": "a day"}]
    extents: list[dict[str, Any]] = [{}, {"turns": True}, {"phase": ["answer"]}, {"phase": ["answer", "prompt"]}]
    again = {"phase": ["prompt", "answer", "answer"]}
    for number, body in enumerate([*extents, *extents, again], start=1):
        await explained(server, messages=talk, **body)
        read = len(load_neutral_texts()) * min(number, len(extents))
        assert len(server.scripted.captured) == read + number


async def test_a_conversation_is_compared_with_conversations(server: Server) -> None:
    await library(server)
    chat = [{"role": "user", "content": "How was it?"}, {"role": "assistant", "content": "good"}]
    one = await explained(server, messages=chat, threshold=10)
    assert one == await explained(server, texts=[chat], threshold=10)
    assert {found["vector"] for found in one["texts"][0]["concepts"]} == {"first@1", "mood@1"}
    asked = [prompt for prompt in server.scripted.captured if not isinstance(prompt, str)]
    assert len(asked) == len(load_neutral_texts()) + 2


async def test_turns_of_the_assistant_are_read_together_and_each(start: StartServer) -> None:
    """The scores are those of a readout at the tokens of the answers."""
    server = await start(Thinker())
    await library(server)
    said = ("a good day", "a better night")
    talk = [
        message
        for number, answer in enumerate(said)
        for message in ({"role": "user", "content": f"Well? {number}"}, {"role": "assistant", "content": answer})
    ]
    found = await explained(server, messages=talk, turns=True, vectors=["mood"], threshold=5)
    assert list(found["vectors"]) == ["mood@1"]
    (mood,) = found["texts"][0]["concepts"]
    body = {"messages": talk, "vectors": ["mood"], "layers": [2]}
    (text,) = (await server.client.post("/v1/readout", json=body)).json()["texts"]
    written = "".join(token["text"] if len(token["text"]) == 1 else "\0" for token in text["tokens"])
    spans = [range(written.index(one), written.index(one) + len(one)) for one in said]
    scores = text["readout"]["mood"]["2"]["scores"]
    means = [fmean(scores[at] for at in span) for span in spans]
    assert [turn["score"] for turn in mood["turns"]] == pytest.approx(means, abs=1e-4)
    assert [(turn["message"], turn["tokens"]) for turn in mood["turns"]] == [(1, len(said[0])), (3, len(said[1]))]
    assert mood["score"] == pytest.approx(fmean(scores[at] for span in spans for at in span), abs=1e-4)
    assert found["texts"][0]["tokens"] == sum(map(len, said))
    assert min(turn["z"] for turn in mood["turns"]) > 5
    (plain,) = (await explained(server, messages=talk, vectors=["mood"], threshold=0))["texts"][0]["concepts"]
    assert plain["turns"] is None
    for body, says in (
        ({"texts": ["plain"], "turns": True}, "text 0 has none"),
        ({"messages": talk[:1], "turns": True}, "text 0 has none"),
        ({"messages": [*talk, talk[0], talk[1] | {"content": ""}], "turns": True}, "message 5 is an empty answer"),
        ({"messages": [*talk[:1], talk[1] | {"content": ""}, *talk], "turns": True}, "message 1 is an empty answer"),
        ({"messages": talk, "turns": True, "phase": ["answer"]}, "not both"),
        ({"messages": talk, "vectors": ["nobody"]}, "nobody"),
    ):
        answer = await server.client.post("/v1/explain", json=body)
        assert answer.status_code in (400, 404), answer.text
        assert says in answer.json()["error"]["message"]


def test_a_turn_is_found_where_the_template_drops_the_thinking_of_earlier_answers() -> None:
    class Dropping(ModelTokenizer):
        """Writes the thinking of the last answer alone."""

        def encode(self, prompt: Prompt, most: int | None = None) -> tuple[int, ...]:
            kept = [
                replace(one, content=one.content.split("</think>")[-1]) if one is not prompt[-1] else one
                for one in messages_of(prompt)
            ]
            return super().encode(tuple(kept), most)

    marked = Thinker()
    tokenizer = Dropping(marked.family, vocab_size=280)
    asked, think = ChatMessage("user", "Well?"), "<think>so</think>"
    talk = (asked, ChatMessage("assistant", f"{think}Yes"), asked, ChatMessage("assistant", f"{think}No"))
    (read,) = chosen_turns(tokenizer, [talk])
    ids = tokenizer.encode(talk)
    texts = ["".join(tokenizer.token_text(ids[at]) for at in read.positions[part]) for part in read.turns.values()]
    assert texts == ["Yes", think + "No"]


async def test_layers_choose_where_vectors_are_read(server: Server) -> None:
    await library(server)
    found = await explained(server, texts=["a good day"], layers=[0, -1], threshold=0, top=1)
    assert [(one["vector"], one["layer"]) for one in found["texts"][0]["concepts"]] == [("first@1", 0)]
    answer = await server.client.post("/v1/explain", json={"texts": ["a"], "layers": [3]})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "layers")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({}, "invalid_request"),
        ({"texts": ["a"], "messages": [{"role": "user", "content": "a"}]}, "invalid_request"),
        ({"texts": ["a" * 5000]}, "context_length_exceeded"),
        ({"texts": ["a"], "layers": [9]}, "invalid_request"),
        ({"texts": ["a"], "top": 0}, "invalid_request"),
    ],
)
async def test_what_cannot_be_explained_is_refused(server: Server, body: dict[str, Any], code: str) -> None:
    await library(server)
    answer = await server.client.post("/v1/explain", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)
    assert server.scripted.captured == []


async def test_the_bound_counts_tokens_layers_and_width(start: StartServer) -> None:
    for bound, status in ((4 * 2 * D_MODEL, 200), (4 * 2 * D_MODEL - 1, 400)):
        server = await start(max_activations=bound)
        await library(server)
        assert (await server.client.post("/v1/explain", json={"texts": ["abcd"]})).status_code == status


async def test_an_empty_library_has_nothing_to_read(server: Server) -> None:
    answer = await server.client.post("/v1/explain", json={"texts": ["a"]})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_request")


class Vanishing(Vectors):
    """The vectors of a store, of which `first` is deleted after each listing and `damaged` cannot be read."""

    def __init__(self, vectors: Vectors) -> None:
        super().__init__(vectors.database, vectors.namespace, vectors.writer, vectors.reads)

    async def find(self, limit: int = 50, cursor: str | None = None, **wanted: str | None) -> Page[VectorSummary]:
        """See Vectors.find."""
        page = await super().find(limit, cursor, **wanted)
        await self.delete("first")
        return page

    async def get(self, name: str, version: int | None = None) -> ConceptVector:
        """See Vectors.get."""
        if name == "damaged":
            raise StoreCorrupt("the bytes of vector damaged@1 do not match their SHA-256")
        return await super().get(name, version)


def vanishing(store: Store) -> ChangedStore:
    """A store with Vanishing vectors."""
    return ChangedStore(store, lambda found: replace(found, vectors=Vanishing(found.vectors)))


async def test_vectors_that_nobody_named_are_left_out_when_they_cannot_be_read(server: Server) -> None:
    await library(server)
    await server.register("damaged")
    kept = server.state.jobs.store
    server.state.jobs.store = vanishing(kept)
    found = await explained(server, texts=TEXTS)
    server.state.jobs.store = kept
    assert list(found["vectors"]) == ["mood@1", "other@1"]
    warning = "left out, because their stored bytes are damaged: damaged@1; restore or delete them"
    assert found["warnings"] == [warning], "what was deleted is no damage"


async def test_vectors_that_no_listing_can_read_are_named(server: Server) -> None:
    await library(server)
    kept = server.state.store
    assert isinstance(kept, Store)
    await server.register("unlisted")
    await kept.database.change(update(VectorRow).where(VectorRow.name == "unlisted").values(metadata_json="{"))
    found = await explained(server, texts=TEXTS)
    assert list(found["vectors"]) == ["first@1", "mood@1", "other@1"]
    (warning,) = found["warnings"]
    assert "unlisted@1" in warning


async def test_where_every_vector_is_damaged_the_refusal_says_so(server: Server) -> None:
    for name in ("damaged", "first"):
        await server.register(name)
    kept = server.state.jobs.store
    server.state.jobs.store = vanishing(kept)
    answer = await server.client.post("/v1/explain", json={"texts": ["a"]})
    server.state.jobs.store = kept
    assert answer.status_code == 400
    assert "damaged@1" in answer.json()["error"]["message"]
