"""Activations over HTTP equal the hidden states of transformers, steered or not, alone or while others generate."""

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Any

import httpx2
import numpy as np
import pytest
import torch
from safetensors.torch import load
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from steering.engine.api import Capture, CapturePrompt, CaptureSpec
from steering.engine.transformers.engine import TransformersEngine
from steering.model.hook_points import residual_of
from steering.model.layout import find_layout
from steering.model.loading import opened
from steering.workflows.activations import Activations, SafetensorsFile
from tests.app.conftest import D_MODEL, Server, StartServer
from tests.app.running import running
from tests.fakes import ScriptedEngine
from tests.families import FAMILIES
from tests.polling import until

TEXTS = ["The cat sat on the mat", "Hm", "A text that is rather longer than the others, by far"]
DIRECTION = torch.nn.functional.normalize(torch.randn(32, generator=torch.Generator().manual_seed(3)), dim=0)


async def read(server: Server, **body: Any) -> dict[str, torch.Tensor]:
    answer = await server.client.post("/v1/activations", json=body)
    assert answer.status_code == 200, answer.text
    assert int(answer.headers["content-length"]) == len(answer.content)
    found: dict[str, torch.Tensor] = load(answer.content)
    return found


def hidden_states(model: PreTrainedModel, ids: list[int]) -> list[torch.Tensor]:
    """The outputs of the blocks (token, d_model) as transformers lists them; its last entry, after the final norm, is left out."""
    with torch.no_grad():
        found = model(torch.tensor([ids]), output_hidden_states=True, use_cache=False).hidden_states
    return [one[0] for one in found[1:-1]]


def steered_states(model: PreTrainedModel, ids: list[int], added: torch.Tensor) -> list[torch.Tensor]:
    """The outputs of blocks 0 and 1 where `added` is added to every position after block 1, by plain hooks."""
    blocks, found = find_layout(model).blocks, []

    def add(_module: Any, _inputs: Any, output: Any) -> Any:
        return (output[0] + added, *output[1:]) if isinstance(output, tuple) else output + added

    handles = [blocks[1].register_forward_hook(add)]
    handles += [
        block.register_forward_hook(lambda _m, _i, output: found.append(residual_of(output)[0])) for block in blocks[:2]
    ]
    with torch.no_grad():
        model(torch.tensor([ids]), use_cache=False)
    for handle in handles:
        handle.remove()
    return found


async def generating(client: httpx2.AsyncClient, count: int) -> None:
    """Generates several answers, steered differently."""
    bodies = [
        {"prompt": f"Number {i}", "max_tokens": 150, "steering": [{"vector": "any", "strength": 0.1 * i}], "seed": i}
        for i in range(count)
    ]
    answers = await asyncio.gather(*(client.post("/v1/generate", json=body) for body in bodies))
    assert {answer.status_code for answer in answers} <= {200}


@pytest.mark.parametrize("busy", [False, True])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
async def test_activations_equal_the_hidden_states_of_transformers(
    start: StartServer, hf_byte_tokenizer: PreTrainedTokenizerFast, family: str, busy: bool
) -> None:
    engine = TransformersEngine(opened(FAMILIES[family](), hf_byte_tokenizer, name="tiny"))
    server = await start(engine)
    await server.client.post("/v1/vectors", json={"name": "any", "directions": {"1": DIRECTION.tolist()}})
    load_task = asyncio.create_task(generating(server.client, 6 if busy else 0))
    if busy:
        await until(lambda: engine.stats().running > 0)
    every = await read(server, texts=TEXTS, layers=[0, 1], position="all")
    last = await read(server, texts=TEXTS, layers=[1, 0], position="last", steering=[])
    mean = await read(server, texts=TEXTS, layers=[1], position="mean")
    before = await read(server, texts=TEXTS, layers=[0], position=-2)
    steering = [{"vector": "any", "strength": 4.0, "unit": "raw"}]
    steered = await read(server, texts=TEXTS, layers=[0, 1], position="all", steering=steering)
    await load_task
    model = FAMILIES[family]()
    offsets = every["offsets"].tolist()
    assert offsets == [0, *np.cumsum([len(engine.tokenizer.encode(text)) for text in TEXTS])]
    for index, text in enumerate(TEXTS):
        rows = slice(offsets[index], offsets[index + 1])
        ids = every["token_ids"][rows].tolist()
        assert ids == list(engine.tokenizer.encode(text))
        expected = hidden_states(model, ids)
        for layer in (0, 1):
            found = every[f"layer.{layer}"][rows]
            torch.testing.assert_close(found, expected[layer], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(last[f"layer.{layer}"][index], expected[layer][-1], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(mean["layer.1"][index], expected[1][1:].mean(0), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(before["layer.0"][index], expected[0][-2], rtol=1e-4, atol=1e-4)
        moved = steered_states(model, ids, 4.0 * DIRECTION)
        for layer in (0, 1):
            torch.testing.assert_close(steered[f"layer.{layer}"][rows], moved[layer], rtol=1e-4, atol=1e-4)


async def test_the_same_text_is_read_from_its_ids_a_conversation_and_json(
    start: StartServer, hf_byte_tokenizer: PreTrainedTokenizerFast
) -> None:
    engine = TransformersEngine(opened(FAMILIES["llama"](), hf_byte_tokenizer, name="tiny"))
    server = await start(engine)
    chat = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good day"}]
    one = await read(server, messages=chat, layers=[-1], position="response_mean")
    two = await read(server, texts=[chat], layers=[2], position="response_mean")
    assert torch.equal(one["layer.2"], two["layer.2"])
    phrase = await read(server, messages=chat, layers=[2], position={"span": "Good day"})
    assert torch.equal(phrase["layer.2"], one["layer.2"])
    text = await read(server, texts=["Hello"], position="all")
    ids = await read(server, token_ids=[text["token_ids"].tolist()], position="all")
    assert all(torch.equal(text[name], ids[name]) for name in text)
    assert sorted(text) == ["layer.0", "layer.1", "layer.2", "offsets", "token_ids"]
    answer = await server.client.post(
        "/v1/activations", json={"texts": ["Hello"], "position": "all"}, headers={"accept": "application/json"}
    )
    found = answer.json()
    assert (found["offsets"], found["token_ids"]) == (text["offsets"].tolist(), text["token_ids"].tolist())
    assert found["steering"] == {"fingerprint": "", "vectors": {}, "warnings": []}
    for layer in range(3):
        torch.testing.assert_close(torch.tensor(found["layers"][str(layer)]), text[f"layer.{layer}"])
    for dtype in (torch.float16, torch.bfloat16):
        narrow = await read(server, texts=["Hello"], dtype=str(dtype).removeprefix("torch."))
        last = text["layer.1"][-1:]
        assert torch.equal(narrow["layer.1"], last.to(dtype))


async def test_the_metadata_names_model_position_and_steering(server: Server) -> None:
    await server.register()
    steering = [{"vector": "sentiment", "strength": 0.1}]
    for position, named in (("last", "last"), (-1, "-1"), ({"span": "good"}, '{"span":"good"}')):
        body = {"texts": ["good"], "steering": steering, "position": position}
        answer = await server.client.post("/v1/activations", json=body)
        size = int.from_bytes(answer.content[:8], "little")
        metadata = json.loads(answer.content[8 : 8 + size])["__metadata__"]
        assert (metadata["model"], metadata["position"]) == ("scripted", named)
    assert list(json.loads(metadata["steering"])["vectors"]) == ["sentiment@1"]
    assert (size % 8, answer.headers["content-type"]) == (0, "application/octet-stream")


async def test_a_large_file_is_sent_in_pieces() -> None:
    """Over a real socket, since the transport of the other tests joins what is sent."""
    with running() as address:
        async with httpx2.AsyncClient(base_url=address, timeout=60) as client:
            body = {"texts": ["good day " * 50] * 100, "position": "all"}
            answer = await client.post("/v1/activations", json=body)
    found = load(answer.content)
    assert found["layer.3"].shape == (100 * 450, D_MODEL)
    assert int(answer.headers["content-length"]) == len(answer.content)


def test_pieces_are_small_and_join_to_the_file() -> None:
    captures = [Capture(tuple(range(300)), torch.randn(2, 300, 64)) for _ in range(40)]
    file = SafetensorsFile(Activations((3, 5), True, tuple(captures)), "float32", {"model": "tiny"})
    pieces = list(file.pieces())
    assert len(pieces) > 4
    assert max(map(len, pieces)) < 2 << 20
    assert sum(map(len, pieces)) == file.length
    found = load(b"".join(pieces))
    assert torch.equal(found["layer.5"], torch.cat([one.activations[1] for one in captures]))


REFUSED: list[tuple[dict[str, Any], str, str | None]] = [
    ({}, "invalid_request", None),
    ({"texts": ["a"], "token_ids": [[1]]}, "invalid_request", None),
    ({"texts": []}, "invalid_request", "texts"),
    ({"token_ids": [[]]}, "invalid_request", "token_ids.0"),
    ({"token_ids": [[99999]]}, "invalid_request", "token_ids"),
    ({"texts": ["a" * 5000]}, "context_length_exceeded", "texts"),
    ({"texts": ["a"], "layers": [4]}, "invalid_request", "layers"),
    ({"texts": ["a"], "position": 0}, "invalid_request", "position"),
    ({"texts": ["a"], "position": "first"}, "invalid_request", "position"),
    ({"texts": ["a"], "position": {"span": ""}}, "invalid_request", "position.span"),
    ({"texts": ["a"], "dtype": "int8"}, "invalid_request", "dtype"),
    ({"texts": ["a"], "steering": [{"vector": "nothing"}]}, "vector_not_found", "vector"),
]


@pytest.mark.parametrize(("body", "code", "param"), REFUSED)
async def test_what_cannot_be_read_is_refused(
    server: Server, body: dict[str, Any], code: str, param: str | None
) -> None:
    answer = await server.client.post("/v1/activations", json=body)
    assert answer.status_code in (400, 404), answer.text
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == (code, param)
    assert server.scripted.captured == []


@pytest.mark.parametrize(
    ("body", "numbers"),
    [
        ({"texts": ["abc", "de"], "layers": [0, 1], "position": "all"}, 5 * 2 * D_MODEL),
        ({"texts": ["abc", "de"], "layers": "all"}, 2 * 4 * D_MODEL),
    ],
)
async def test_the_bound_counts_rows_layers_and_width(start: StartServer, body: dict[str, Any], numbers: int) -> None:
    assert (await (await start(max_activations=numbers)).client.post("/v1/activations", json=body)).status_code == 200
    refused = await start(max_activations=numbers - 1)
    answer = await refused.client.post("/v1/activations", json=body)
    assert answer.json()["error"]["code"] == "limit_exceeded"
    assert refused.scripted.captured == []


async def test_json_is_for_few_numbers(start: StartServer) -> None:
    server = await start()
    body = {"texts": ["good day " * 100] * 10, "position": "all"}
    answer = await server.client.post("/v1/activations", json=body, headers={"accept": "application/json"})
    assert answer.json()["error"]["code"] == "limit_exceeded"
    assert (await server.client.post("/v1/activations", json=body)).status_code == 200


class LargeEngine(ScriptedEngine):
    """A ScriptedEngine whose residuals are beyond float16."""

    async def capture(
        self,
        prompts: Sequence[CapturePrompt],
        spec: CaptureSpec,
        *,
        progress: Callable[[int, int], None] | None = None,
        priority: int = 1,
    ) -> tuple[Capture, ...]:
        """See Engine.capture."""
        found = await super().capture(prompts, spec, progress=progress, priority=priority)
        for one in found:
            one.activations.mul_(1e6)
        return found


async def test_float16_is_refused_where_it_would_become_infinite(start: StartServer) -> None:
    server = await start(LargeEngine())
    answer = await server.client.post("/v1/activations", json={"texts": ["good"], "dtype": "float16"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "dtype")
    found = await read(server, texts=["good"], dtype="bfloat16")
    assert bool(torch.isfinite(found["layer.0"]).all())


async def test_hook_points_over_http(start: StartServer, hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    """One head as wide as a head, the place of an intervention in what was applied, and a refusal that names the field."""
    engine = TransformersEngine(opened(FAMILIES["llama"](), hf_byte_tokenizer, name="tiny"))
    server = await start(engine)
    client = server.client
    await client.post("/v1/vectors", json={"name": "any", "directions": {"1": DIRECTION.tolist()}})
    model = (await client.get("/v1/capabilities")).json()["model"]
    assert (model["hooks"], model["head_count"]) == (["residual", "attention", "mlp"], 4)
    head = await read(server, texts=TEXTS, layers=[1], position="last", hook="attention", head=3)
    assert head["layer.1"].shape == (len(TEXTS), 8)
    body = {"texts": TEXTS[:1], "vectors": ["any"], "layers": [1], "hook": "mlp"}
    scores = (await client.post("/v1/readout", json=body)).json()["texts"][0]["readout"]["any"]["1"]
    adds = await read(server, texts=TEXTS[:1], layers=[1], position="all", hook="mlp")
    assert scores["scores"] == pytest.approx((adds["layer.1"] @ DIRECTION / DIRECTION.norm() ** 2).tolist(), abs=1e-3)
    steering: list[dict[str, Any]] = [
        {"vector": "any", "hook": "mlp", "layers": [1]},
        {"operation": "ablate", "hook": "attention", "head": 2, "layers": [0]},
    ]
    answer = (await client.post("/v1/generate", json={"prompt": "a", "max_tokens": 4, "steering": steering})).json()
    added, ablated = answer["steering"]["applied"]
    assert (added["hook"], ablated["hook"], ablated["head"], ablated["vector"]) == ("mlp", "attention", 2, "")
    assert ablated["relative_dose"]["0"] > 0.0
    again = await client.post("/v1/replay", json=answer["steering"]["record"])
    assert again.json()["choices"][0]["text"] == answer["choices"][0]["text"]
    wrong = await client.post("/v1/generate", json={"prompt": "a", "steering": [{**steering[1], "head": 9}]})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "head")
