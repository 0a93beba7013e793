"""Vectors with a map: what `apply` adds equals the slow reference and the forms of others, and what is no map is refused."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load
from transformers import PreTrainedTokenizerFast

from steering.engine.api import GenerationRequest
from steering.errors import InvalidRequest, LimitExceeded, VectorModelMismatch
from steering.injection.injector import Injector
from steering.injection.slots import Slots
from steering.maps import LowRankMap
from steering.model.layout import find_layout
from steering.plan.types import DoseGuard, SteeringPlan
from steering.shapes import Residual
from steering.spec import SteeringSpec
from steering.store.blob import decode, encode
from steering.vectors import ConceptVector, LayerDirection, combine
from steering.workflows.extract import registered
from tests.engines import family_engine, run, run_all, run_alone, sampling
from tests.families import FAMILIES
from tests.plans import plan_for, vectors_for
from tests.reference import Reference
from tests.steering.injection.passes import INFO, begun, row_of
from tests.steering.store.files import file_of, metadata_in

WIDTH = INFO.d_model
PROMPT = tuple(b"The answer to that question is")
APPLY: dict[str, Any] = {"vector": "gamma", "operation": "apply", "layers": [1]}
CASES: list[list[dict[str, Any]]] = [
    [],
    [APPLY],
    [APPLY | {"vector": "alpha", "strength": -1.5, "layers": "all"}],
    [APPLY | {"vector": "delta", "scope": {"tokens": "generated", "start": 1, "end": 6}}],
    [APPLY | {"vector": "beta", "schedule": {"kind": "linear", "to": 2.0, "tokens": 4}}],
    [APPLY | {"when": {"vector": "gamma", "above": 0.0, "layer": 0, "at": "token"}}],
    [
        APPLY,
        APPLY | {"vector": "delta", "strength": 0.6},
        {"vector": "beta", "strength": 0.5},
        {"vector": "alpha", "operation": "ablate", "layers": [1]},
    ],
    [{"vector": "alpha", "operation": "rotate", "degrees": 20.0}],
]


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def vector(given: LowRankMap | None, layers: tuple[int, ...] = (1,), seed: int = 5) -> ConceptVector:
    """A vector of a random direction, with the map at every layer."""
    direction = torch.nn.functional.normalize(numbers(WIDTH, seed=seed), dim=0)
    entries = {layer: LayerDirection(direction, scale=2.0, map=given) for layer in layers}
    return ConceptVector("mapped", INFO.name, INFO.fingerprint, WIDTH, "given", entries, version=1)


async def plan_of(given: LowRankMap, guard: DoseGuard | None = None, **fields: Any) -> SteeringPlan:
    item = {"vector": "mapped", "operation": "apply", "layers": [1], **fields}
    return await plan_for([item], {"mapped": vector(given)}, INFO, guard)


async def applied(residual: Residual, plan: SteeringPlan) -> Residual:
    """What a plan makes of residuals that are one prompt, at layer 1."""
    injector, row = Injector(Slots(INFO.layer_count, WIDTH, torch.device("cpu"))), row_of(plan, len(residual), 0)
    injector.admit(row)
    injection, _, _ = begun(injector, [(row, len(residual))])
    return injection.apply(1, residual.clone())


async def test_it_agrees_with_the_slow_reference(hf_byte_tokenizer: PreTrainedTokenizerFast) -> None:
    """In a batch of all, and alone with the prompt taken from the cache. The guard scales some of them down."""
    model, bound = FAMILIES["llama"](), 0.4
    guard = DoseGuard(bound, "clamp")
    async with family_engine("llama", hf_byte_tokenizer) as engine:
        vectors = vectors_for(engine.info, means=True)
        requests = [
            GenerationRequest(PROMPT, sampling(6), await plan_for(items, vectors, engine.info, guard))
            for items in CASES
        ]
        outcomes, again = await run_all(engine, requests), await run_alone(engine, requests)
        plain = await run(engine, GenerationRequest(PROMPT, sampling(6)))
    assert sum(outcome.tokens != plain.tokens for outcome in outcomes) > len(CASES) // 2
    clamped = [outcome.finish.steering.clamped > 0 for outcome in outcomes]
    assert any(clamped[1:7])
    assert not all(clamped[1:7])
    for items, outcome, other in zip(CASES, outcomes, again, strict=True):
        spec = SteeringSpec.model_validate({"interventions": items})
        reference = Reference(model, find_layout(model).blocks, spec, vectors, bound)
        assert outcome.tokens == other.tokens == reference.generate(PROMPT, 6), items
        for number, doses in enumerate(outcome.finish.steering.doses):
            theirs = {layer: sum(of) / len(of) for (index, layer), of in reference.doses.items() if index == number}
            assert doses == pytest.approx(theirs, rel=1e-2, abs=1e-4), items


@pytest.mark.parametrize("rank", [1, 3, 16])
@pytest.mark.parametrize("activation", ["linear", "relu"])
async def test_each_pair_of_directions_adds_its_part(rank: int, activation: Any) -> None:
    read, write, bias = numbers(rank, WIDTH), numbers(rank, WIDTH, seed=1), numbers(rank, seed=2)
    residual, given = 5 * numbers(4, WIDTH, seed=3), LowRankMap.of(read, write, bias, activation)
    change = torch.zeros_like(residual)
    for v, u, b in zip(read, write, bias, strict=True):
        score = residual @ v + b
        change += (score.clamp_min(0.0) if activation == "relu" else score)[:, None] * u
    found = await applied(residual, await plan_of(given, strength=0.7))
    torch.testing.assert_close(found, residual + 0.7 * change, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(given.change(residual), change, rtol=1e-4, atol=1e-4)


async def test_loreft_and_a_feature_of_a_sparse_autoencoder_are_maps() -> None:
    """LoReFT: r' = r + R^T (W r + b - R r), R with orthonormal rows. A feature: r' = r + relu(e . r + b) d."""
    residual = 5 * numbers(4, WIDTH)
    basis = torch.linalg.qr(numbers(WIDTH, 2, seed=1))[0].T
    learned, bias = numbers(2, WIDTH, seed=2), numbers(2, seed=3)
    expected = residual + (residual @ learned.T + bias - residual @ basis.T) @ basis
    found = await applied(residual, await plan_of(LowRankMap.of(learned - basis, basis, bias)))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    encoder, decoder = numbers(2, WIDTH, seed=4)
    feature = LowRankMap.of(encoder[None], decoder[None], torch.tensor([0.3]), "relu")
    expected = residual + (residual @ encoder + 0.3).clamp_min(0.0)[:, None] * decoder
    torch.testing.assert_close(await applied(residual, await plan_of(feature)), expected, rtol=1e-4, atol=1e-4)


async def test_the_dose_of_a_linear_map_is_that_of_its_whole_change() -> None:
    """Also where its write directions point the same way, or cancel: it is written along an orthonormal basis."""
    write = numbers(1, WIDTH).repeat(3, 1) + 0.1 * numbers(3, WIDTH, seed=1)
    plan = await plan_of(LowRankMap.of(numbers(3, WIDTH, seed=2), write))
    (edits,) = plan.layers[1]
    torch.testing.assert_close(edits.write @ edits.write.T, torch.eye(3), rtol=0, atol=1e-5)
    same = LowRankMap.of(numbers(2, WIDTH, seed=2), torch.stack([write[0], 2.0 * write[0]]))
    assert len((await plan_of(same)).layers[1][0].kinds) == 1


async def test_a_map_that_reads_nothing_is_a_constant_with_a_planned_dose() -> None:
    constant = LowRankMap.of(torch.zeros(1, WIDTH), numbers(1, WIDTH), torch.tensor([2.0]))
    item = {"vector": "mapped", "operation": "apply", "layers": [1]}
    info = replace(INFO, typical_norms=(4.0, 4.0, 4.0))
    plan = await plan_for([item], {"mapped": vector(constant)}, info)
    expected = 2.0 * float(constant.write.norm()) / 4.0
    assert plan.interventions[0].planned_dose == {1: pytest.approx(expected)}


@pytest.mark.parametrize("activation", ["linear", "relu"])
async def test_the_planned_dose_of_a_constant_map_is_that_of_its_sum(activation: Any) -> None:
    """At rank 16, where the lengths of its parts together are several times that; what a rectifier holds back counts nothing."""
    biases, info = numbers(16, seed=2), replace(INFO, typical_norms=(4.0, 4.0, 4.0))
    constant = LowRankMap.of(torch.zeros(16, WIDTH), numbers(16, WIDTH), biases, activation)
    amounts = biases.clamp_min(0.0) if activation == "relu" else biases
    expected = amounts @ constant.write
    item = {"vector": "mapped", "operation": "apply", "layers": [1]}
    plan = await plan_for([item], {"mapped": vector(constant)}, info)
    assert plan.interventions[0].planned_dose == {1: pytest.approx(float(expected.norm()) / 4.0)}
    residual = numbers(3, WIDTH, seed=3)
    torch.testing.assert_close(await applied(residual, plan), residual + expected, rtol=1e-4, atol=1e-4)
    silent = LowRankMap.of(torch.zeros(1, WIDTH), numbers(1, WIDTH), torch.tensor([-2.0]), "relu")
    plan = await plan_for([item], {"mapped": vector(silent)}, info)
    assert plan.empty
    assert plan.interventions[0].planned_dose == {1: 0.0}


async def test_a_weak_write_direction_with_a_strong_probe_is_kept() -> None:
    a, b = torch.eye(WIDTH)[:2]
    given = LowRankMap.of(torch.stack([1e-7 * a, b]), torch.stack([1e7 * a, 0.5 * b]))
    residual = numbers(3, WIDTH)
    torch.testing.assert_close(given.orthonormal().change(residual), given.change(residual), rtol=1e-4, atol=1e-5)
    expected = residual.clone()
    expected[:, 0], expected[:, 1] = 2.0 * residual[:, 0], 1.5 * residual[:, 1]
    torch.testing.assert_close(await applied(residual, await plan_of(given)), expected, rtol=1e-4, atol=1e-5)


async def test_a_map_with_the_numbers_of_a_removal_is_not_joined_with_others() -> None:
    direction = torch.eye(WIDTH)[:1]
    given = LowRankMap.of(-direction, direction)
    item = {"vector": "mapped", "operation": "apply", "layers": [1], "strength": 0.5}
    plan = await plan_for([item, item], {"mapped": vector(given)}, INFO)
    residual = 5 * numbers(2, WIDTH)
    expected = residual.clone()
    expected[:, 0] = 0.0
    torch.testing.assert_close(await applied(residual, plan), expected)


async def test_what_cannot_be_applied_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="needs a map, which vector 'mapped' does not have"):
        await plan_for([{"vector": "mapped", "operation": "apply"}], {"mapped": vector(None)}, INFO)
    given = LowRankMap.of(numbers(16, WIDTH), numbers(16, WIDTH, seed=1))
    with pytest.raises(InvalidRequest, match="'apply' takes no hold"):
        await plan_of(given, hold={"score": 1.0}, scope={"tokens": "generated"})
    items = [{"vector": "mapped", "operation": "apply", "layers": "all"}] * 11
    with pytest.raises(LimitExceeded, match="264 operations are computed at every token"):
        await plan_for(items, {"mapped": vector(given, layers=(0, 1, 2))}, INFO)
    constant = LowRankMap.of(torch.zeros(16, WIDTH), numbers(16, WIDTH), torch.ones(16))
    with pytest.raises(LimitExceeded, match="act 2064 times, counted over their layers and the rank of maps"):
        await plan_for([items[0]] * 43, {"mapped": vector(constant, layers=(0, 1, 2))}, INFO)


def test_the_direction_of_a_map_is_where_it_writes_most() -> None:
    strong, weak = torch.eye(WIDTH)[:2]
    read = torch.stack([3.0 * numbers(WIDTH), numbers(WIDTH, seed=1)])
    found = LowRankMap.of(read, torch.stack([-2.0 * strong, weak])).direction()
    assert float(found.norm()) == pytest.approx(2.0)
    assert float(found @ -strong) > 1.9
    one = LowRankMap.of(read[:1], 3.0 * weak[None])
    torch.testing.assert_close(one.direction(), 3.0 * weak)
    made = registered(INFO, "given", {}, maps={"1": one})
    assert made.layers[1].scale == pytest.approx(3.0)
    assert made.layers[1].map is one


def test_a_sum_of_maps_adds_what_its_terms_add() -> None:
    one, other = (LowRankMap.of(numbers(2, WIDTH, seed=s), numbers(2, WIDTH, seed=s + 9), numbers(2)) for s in (1, 2))
    residual = numbers(3, WIDTH)
    total = combine("sum", [(vector(one), 0.5), (vector(other, seed=6), -2.0)]).layers[1].map
    assert total is not None
    torch.testing.assert_close(total.change(residual), 0.5 * one.change(residual) - 2.0 * other.change(residual))
    away = vector(None, seed=7)
    apart = combine("sum", [(vector(one), 1.0)], orthogonal_to=[away]).layers[1].map
    assert apart is not None
    assert float((apart.write @ away.layers[1].direction).abs().max()) < 1e-5
    relu = replace(one, activation="relu")
    for wrong, message in (
        (vector(None), "mapped@1 has no map at layer 1"),
        (vector(relu, seed=6), "different activations"),
        (vector(LowRankMap.of(numbers(15, WIDTH), numbers(15, WIDTH)), seed=6), "have rank 17 together"),
    ):
        with pytest.raises(InvalidRequest, match=message):
            combine("sum", [(vector(one), 1.0), (wrong, 1.0)])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"read": torch.zeros(17, WIDTH), "write": torch.ones(17, WIDTH)}, InvalidRequest, "1 to 16, got 17"),
        ({"write": torch.zeros(2, WIDTH)}, InvalidRequest, "writes nothing"),
        ({"read": torch.full((2, WIDTH), 1e39, dtype=torch.float64)}, InvalidRequest, "finite in float32"),
        ({"read": torch.ones(2, WIDTH - 1)}, VectorModelMismatch, r"'read' of the map has shape \(2, 15\)"),
        ({"bias": torch.ones(3)}, VectorModelMismatch, r"'bias' of the map has shape \(3,\)"),
    ],
)
def test_what_is_no_map_is_refused(change: dict[str, torch.Tensor], error: type[Exception], message: str) -> None:
    fields = {"read": torch.ones(2, WIDTH), "write": torch.ones(2, WIDTH), "bias": torch.ones(2)} | change
    with pytest.raises(error, match=message):
        vector(LowRankMap.of(fields["read"], fields["write"], fields["bias"]))


def test_a_file_brings_a_map_back_and_says_what_does_not_fit() -> None:
    given = LowRankMap.of(numbers(2, WIDTH), numbers(2, WIDTH, seed=1), numbers(2, seed=2), "relu")
    content = encode(vector(given))
    back = decode(content).layers[1].map
    assert back is not None
    assert (back.rank, back.activation) == (2, "relu")
    assert all(torch.equal(getattr(back, name), getattr(given, name)) for name in ("read", "write", "bias"))
    assert set(load(encode(vector(None)))) == {"layer.1"}
    tensors, metadata = load(content), metadata_in(content)
    other_rank = metadata["layers"]["1"] | {"map": {"rank": 1, "activation": "relu"}}
    for change, fields, message in (
        ({"layer.1.write": None}, {}, "a map has the tensors 'read', 'write' and 'bias'"),
        ({"layer.1.wrote": numbers(2)}, {}, "'layer.1.wrote' is not expected"),
        ({}, {"layers": {"1": other_rank}}, "rank 2, the metadata says 1"),
        ({}, {"layers": {"1": {"scale": 2.0}}}, "a map that the metadata does not name"),
        ({"layer.1.read": numbers(WIDTH)}, {}, r"expected \(rank, d_model\)"),
        ({"layer.1": None}, {}, "has no tensor 'layer.1'"),
    ):
        kept = {name: values for name, values in (tensors | change).items() if values is not None}
        with pytest.raises((InvalidRequest, VectorModelMismatch), match=message):
            decode(file_of(kept, metadata | fields))


def test_a_bare_file_of_a_map_alone_is_a_linear_map() -> None:
    given = LowRankMap.of(numbers(1, WIDTH), 3.0 * torch.eye(WIDTH)[:1])
    content = file_of({"layer.1.read": given.read.half(), "layer.1.write": given.write.half()}, None)
    made = decode(content, name="mine", model=INFO.name, model_fingerprint=INFO.fingerprint)
    entry = made.layers[1]
    assert entry.map is not None
    assert entry.map.activation == "linear"
    assert entry.scale == pytest.approx(3.0)
    torch.testing.assert_close(entry.direction, torch.eye(WIDTH)[0])
