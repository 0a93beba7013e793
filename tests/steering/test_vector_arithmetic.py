"""ConceptVector refuses what cannot be one, and its arithmetic is that of the amounts it adds."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from steering.cards import Recommended
from steering.errors import InvalidRequest, VectorModelMismatch
from steering.vectors import SCALES, ConceptVector, LayerDirection, VectorId, check_name, combine, cosine, unit

D_MODEL = 6
weights = st.floats(-3.0, 3.0).filter(lambda weight: abs(weight) > 1e-3)
seeds = st.integers(0, 10_000)


def vector(seed: int, layers: tuple[int, ...] = (1, 2), name: str = "v", model: str = "m") -> ConceptVector:
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for layer in layers:
        direction, length = unit(torch.randn(D_MODEL, generator=generator), layer)
        made[layer] = LayerDirection(direction, scale=length)
    return ConceptVector(name, model, model, D_MODEL, "mean_difference", made, version=1, sha256="f" * 64)


def amount(made: ConceptVector, layer: int) -> torch.Tensor:
    """What strength 1 adds to the residual stream."""
    return made.layers[layer].scale * made.layers[layer].direction


@given(seeds, seeds, weights, weights)
def test_the_sum_adds_what_its_terms_add(one: int, other: int, first: float, second: float) -> None:
    if one == other:
        other += 1
    left, right = vector(one), vector(other)
    total = combine("sum", [(left, first), (right, second)])
    for layer in (1, 2):
        expected = first * amount(left, layer) + second * amount(right, layer)
        torch.testing.assert_close(amount(total, layer), expected, atol=1e-5, rtol=1e-4)
        assert float(total.layers[layer].direction.norm()) == pytest.approx(1.0, abs=1e-5)
        assert total.layers[layer].scale > 0


@given(seeds, weights)
def test_one_term_keeps_its_line_and_takes_its_weight(seed: int, weight: float) -> None:
    made, one = vector(seed), combine("one", [(vector(seed), weight)])
    for layer in (1, 2):
        sign = 1.0 if weight > 0 else -1.0
        torch.testing.assert_close(one.layers[layer].direction, sign * made.layers[layer].direction)
        assert one.layers[layer].scale == pytest.approx(abs(weight) * made.layers[layer].scale, rel=1e-4)


@given(seeds, st.integers(1, 3))
def test_orthogonal_means_orthogonal_to_every_one_of_them(seed: int, count: int) -> None:
    others = [vector(20_000 + seed + i) for i in range(count)]
    made = combine("rest", [(vector(seed), 1.0)], orthogonal_to=others)
    for other in others:
        for value in cosine(made, other).values():
            assert value == pytest.approx(0.0, abs=1e-4)
    again = combine("again", [(made, 1.0)], orthogonal_to=others)
    assert cosine(made, again)[1] == pytest.approx(1.0, abs=1e-5)


@given(seeds)
def test_being_orthogonal_to_the_same_line_twice_is_being_so_once(seed: int) -> None:
    other = vector(seed + 30_000)
    once = combine("once", [(vector(seed), 1.0)], orthogonal_to=[other])
    twice = combine("twice", [(vector(seed), 1.0)], orthogonal_to=[other, other])
    for layer in (1, 2):
        torch.testing.assert_close(amount(once, layer), amount(twice, layer), atol=1e-4, rtol=1e-3)


def test_terms_that_cancel_but_for_rounding_are_refused() -> None:
    terms = [(vector(1), 0.1), (vector(1), 0.2), (vector(1), -0.3)]
    with pytest.raises(InvalidRequest, match="the combination is zero at layer 1"):
        combine("nothing", terms)


def test_nothing_left_is_refused() -> None:
    made = vector(1)
    with pytest.raises(InvalidRequest, match="the combination is zero"):
        combine("zero", [(made, 1.0), (made, -1.0)])
    with pytest.raises(InvalidRequest, match="the combination is zero"):
        combine("zero", [(made, 1.0)], orthogonal_to=[made])


def scaled(seed: int, scale: float) -> ConceptVector:
    made = vector(seed)
    return dataclasses.replace(
        made, layers={layer: LayerDirection(entry.direction, scale=scale) for layer, entry in made.layers.items()}
    )


@pytest.mark.parametrize("scale", [1e-37, 1e-30, 1e-20, 1e19, 1e30, 1e38])
@pytest.mark.parametrize("others", [0, 1])
def test_every_natural_scale_can_be_combined(scale: float, others: int) -> None:
    orthogonal = [vector(2)][:others]
    plain = combine("plain", [(scaled(1, 1.0), 2.0), (scaled(3, 0.5), -1.0)], orthogonal)
    made = combine("made", [(scaled(1, scale), 2.0), (scaled(3, 0.5), -scale)], orthogonal)
    for layer, entry in made.layers.items():
        torch.testing.assert_close(entry.direction, plain.layers[layer].direction)
        assert entry.scale == pytest.approx(scale * plain.layers[layer].scale, rel=1e-6, abs=0.0)


@pytest.mark.parametrize(("scale", "weight"), [(SCALES.max, 2.0), (1.0, 1e308), (SCALES.max, -1e308), (1.0, 1e-60)])
@pytest.mark.parametrize("others", [0, 1])
def test_a_scale_beyond_float32_is_refused_as_that(scale: float, weight: float, others: int) -> None:
    with pytest.raises(
        InvalidRequest, match=r"layer 1: the scale must lie between 1.2e-38 and 3.4e\+38, got"
    ) as refusal:
        combine("much", [(scaled(1, scale), weight)], [vector(2)][:others])
    assert refusal.value.param == "terms"


@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
def test_weights_must_be_finite(weight: float) -> None:
    with pytest.raises(InvalidRequest):
        combine("odd", [(vector(1), weight)])


def test_only_shared_layers_are_combined() -> None:
    made = combine("both", [(vector(1, (1, 2, 3)), 1.0), (vector(2, (2, 3, 4)), 1.0)])
    assert sorted(made.layers) == [2, 3]
    with pytest.raises(InvalidRequest, match="share no layer"):
        combine("none", [(vector(1, (1,)), 1.0), (vector(2, (2,)), 1.0)])


def test_another_model_is_refused_as_a_term_and_as_a_reference() -> None:
    with pytest.raises(VectorModelMismatch):
        combine("odd", [(vector(1), 1.0), (vector(2, model="other"), 1.0)])
    with pytest.raises(VectorModelMismatch):
        combine("odd", [(vector(1), 1.0)], orthogonal_to=[vector(2, model="other")])


def test_a_combination_is_a_new_vector_that_says_where_it_comes_from() -> None:
    first = dataclasses.replace(vector(1, (1, 2, 3), name="a"), recommended=Recommended((1,), (0.2, 0.9)))
    made = combine(
        "mix", [(first, 0.5), (vector(2, (2, 3), name="b"), -1.0)], orthogonal_to=[vector(3, (2, 3), name="c")]
    )
    assert (made.name, made.version, made.sha256, made.quality, made.method) == ("mix", 0, "", None, "combine")
    assert made.recommended is None  # strengths of a term do not hold for a sum of another scale
    assert [term["vector"] for term in made.provenance["terms"]] == ["a@1", "b@1"]
    assert [term["weight"] for term in made.provenance["terms"]] == [0.5, -1.0]
    assert made.provenance["orthogonal_to"] == ["c@1"]


@given(seeds, seeds)
def test_cosine_is_symmetric_and_one_with_itself(one: int, other: int) -> None:
    left, right = vector(one, (1, 2)), vector(other, (2, 3))
    assert cosine(left, right) == pytest.approx(cosine(right, left))
    assert list(cosine(left, right)) == [2]
    assert cosine(left, left) == pytest.approx({1: 1.0, 2: 1.0}, abs=1e-5)


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=2, max_size=8).filter(lambda row: max(map(abs, row)) > 1e-3))
def test_unit_times_length_is_the_value(row: list[float]) -> None:
    direction, length = unit(torch.tensor(row, dtype=torch.float64), 3)
    assert direction.dtype == torch.float32
    assert float(direction.norm()) == pytest.approx(1.0, abs=1e-5)
    torch.testing.assert_close(direction * length, torch.tensor(row), atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("size", [1e-45, 1e-40, 1e-30, 1e-20, 1e19, 1e38])
def test_unit_measures_lengths_whose_squares_are_beyond_float32(size: float) -> None:
    row = torch.full((D_MODEL,), size)
    direction, length = unit(row, 3)
    assert length == pytest.approx(float(row[0]) * math.sqrt(D_MODEL), rel=1e-6, abs=0.0)
    torch.testing.assert_close(direction, torch.full((D_MODEL,), 1 / math.sqrt(D_MODEL)))


@given(seeds, st.floats(-30.0, 30.0))
def test_the_bits_of_ordinary_directions_are_those_whose_digests_records_have(seed: int, exponent: float) -> None:
    row = 2.0**exponent * torch.randn(576, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(unit(row, 3)[0], row / row.norm())


@pytest.mark.parametrize("row", [[0.0, 0.0], [1.0, float("nan")], [float("inf"), 0.0]])
def test_unit_refuses_what_has_no_direction(row: list[float]) -> None:
    with pytest.raises(InvalidRequest, match="layer 3"):
        unit(torch.tensor(row), 3)


def test_a_vector_refuses_directions_that_are_none() -> None:
    made = vector(1)
    good = made.layers[1]
    cases = {
        "for at least one layer": {},
        "is negative": {-1: good},
        "expected": {1: LayerDirection(torch.ones(D_MODEL + 1), scale=1.0)},
        "finite": {1: LayerDirection(torch.full((D_MODEL,), float("nan")), scale=1.0)},
        "scale must": {1: LayerDirection(good.direction, scale=1e-40)},
    }
    for words, layers in cases.items():
        with pytest.raises(InvalidRequest, match=words):
            dataclasses.replace(made, layers=layers)


def test_layers_to_steer_at_are_the_measured_ones_or_the_middle() -> None:
    made = vector(1, (4, 8, 12))
    assert made.recommended_layers() == (8,)
    assert dataclasses.replace(made, recommended=Recommended((12,), (0.2, 1.0))).recommended_layers() == (12,)
    assert made.at(4) is made.layers[4]
    with pytest.raises(InvalidRequest, match=r"it has \[4, 8, 12\]"):
        made.at(5)


@pytest.mark.parametrize("text", ["sentiment", "sentiment@3", "a", "a.b-c_d@12", "0" * 64])
def test_ids_read_as_they_are_written(text: str) -> None:
    assert str(VectorId.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "A",
        "-a",
        "a b",
        "a/b",
        "a\n",
        "é",
        "a" * 65,
        "a@",
        "a@0",
        "a@-1",
        "a@x",
        "a@1@2",
        "a@٣",
        "a@1.0",
        "a@" + "1" * 10,
    ],
)
def test_ids_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        VectorId.parse(text)


def test_a_refused_name_is_cut_short() -> None:
    with pytest.raises(InvalidRequest) as refusal:
        check_name("x" * 10_000)
    assert len(refusal.value.message) < 300
