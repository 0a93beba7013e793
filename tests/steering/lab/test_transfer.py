"""Transfer finds a planted map between two models, carries directions by it, and measures an honest loss."""

import math
from collections.abc import AsyncIterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from transformers import PreTrainedTokenizerFast

from steering.concepts.loader import load_concept
from steering.engine.api import CapturePrompt, CaptureSpec
from steering.engine.transformers.engine import TransformersEngine
from steering.errors import InvalidRequest
from steering.lab.transfer import (
    MAX_ANCHORS,
    PENALTIES,
    TransferRequest,
    anchor_groups,
    check_transfer,
    default_anchors,
    fit_map,
    transfer,
)
from steering.pairs import groups_of
from steering.schemas.messages import SpanPosition
from steering.store.blob import decode, encode
from steering.workflows.texts import default_position
from tests.engines import engine_over
from tests.steering.lab.rotated import ANCHORS, PAIRS, planted

REQUEST = TransferRequest("mood", PAIRS, anchors=ANCHORS, from_layer=1, to_layer=1, position=default_position(PAIRS))


@pytest.fixture
async def engines(
    hf_byte_tokenizer: PreTrainedTokenizerFast,
) -> AsyncIterator[tuple[TransformersEngine, TransformersEngine]]:
    """The turned model, and the model whose directions are carried to it."""
    found = planted()
    async with (
        engine_over(found.turned, hf_byte_tokenizer) as target,
        engine_over(found.model, hf_byte_tokenizer) as source,
    ):
        yield target, source


async def test_a_planted_map_loses_nothing(engines: tuple[TransformersEngine, TransformersEngine]) -> None:
    """Both models read the pairs alike, so the carried direction is the native one and reads as well."""
    target, source = engines
    (one,) = await source.capture([CapturePrompt("a text")], CaptureSpec((1,)))
    (other,) = await target.capture([CapturePrompt("a text")], CaptureSpec((1,)))
    torch.testing.assert_close(one.activations @ planted().rotation, other.activations, rtol=1e-3, atol=1e-3)
    found = await transfer(target, source, REQUEST)
    assert found.explained > 0.99
    assert found.cosine > 0.99
    assert found.auroc["native"] is not None
    assert found.auroc["transferred"] is not None
    assert found.auroc["source"] is not None
    assert found.auroc["random"] is not None
    assert found.auroc["transferred"].mean == pytest.approx(found.auroc["native"].mean, abs=0.03)
    assert found.auroc["source"].mean == pytest.approx(found.auroc["native"].mean, abs=0.03)
    assert found.auroc["transferred"].mean > found.auroc["random"].mean
    assert found.auroc["transferred"].interval is not None
    vector = found.vector
    assert (vector.method, tuple(vector.layers)) == ("transferred", (1,))
    assert vector.quality is not None
    assert vector.quality.auroc == pytest.approx(found.auroc["transferred"].mean)
    assert vector.provenance["from_layer"] == 1
    assert vector.layers[1].centred
    assert not found.warnings


@pytest.mark.parametrize("span", [{"span": ":"}, {"span": ":", "read": "attending"}])
async def test_a_vector_read_at_a_phrase_can_be_stored(
    engines: tuple[TransformersEngine, TransformersEngine], span: dict[str, str]
) -> None:
    target, source = engines
    found = await transfer(target, source, replace(REQUEST, position=SpanPosition.model_validate(span)))
    assert decode(encode(found.vector)).provenance["position"] == span


async def test_a_given_direction_is_carried_and_layers_are_chosen(
    engines: tuple[TransformersEngine, TransformersEngine],
) -> None:
    target, source = engines
    direction = torch.randn(32, generator=torch.Generator().manual_seed(5))
    found = await transfer(target, source, replace(REQUEST, direction=direction, to_layer=None))
    assert found.to_layer == 1, "the only one in the middle of three"
    expected = torch.nn.functional.normalize(direction @ planted().rotation, dim=0)
    carried = found.vector.layers[found.to_layer].direction
    assert abs(float(expected @ carried)) > 0.99


async def test_a_direction_of_the_wrong_sign_is_turned_and_the_loss_is_of_the_stored_one(
    engines: tuple[TransformersEngine, TransformersEngine],
) -> None:
    target, source = engines
    plain = await transfer(target, source, REQUEST)
    given = plain.vector.layers[1].direction @ planted().rotation.T
    turned = await transfer(target, source, replace(REQUEST, direction=-given))
    assert any("opposite sign" in warning for warning in turned.warnings)
    assert plain.auroc["transferred"] is not None
    assert turned.auroc["transferred"] is not None
    assert turned.auroc["transferred"].mean == pytest.approx(plain.auroc["transferred"].mean, abs=0.05)
    assert turned.auroc["transferred"].mean > 0.5
    assert turned.cosine > 0.99


async def test_what_cannot_be_carried_is_refused(engines: tuple[TransformersEngine, TransformersEngine]) -> None:
    target, source = engines
    for change, message in (
        ({"anchors": ANCHORS[:3]}, "a map needs 20 to 2000"),
        ({"anchors": (*ANCHORS, PAIRS.positive[0])}, "1 anchors are texts of the pairs"),
        ({"to_layer": 9}, "9"),
        ({"from_layer": 9}, "9"),
        ({"direction": torch.ones(32), "from_layer": None}, "needs 'from_layer'"),
        ({"direction": torch.ones(7)}, "has 7 numbers"),
        ({"name": "No"}, "is not a name"),
    ):
        with pytest.raises(InvalidRequest, match=message):
            check_transfer(replace(REQUEST, **change), target, source)


def test_the_map_is_affine_and_its_fit_is_measured_on_other_texts() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(6, 4, generator=generator), torch.randn(4, generator=generator)
    source = torch.randn(200, 6, generator=generator)
    found = fit_map(source, source @ weight + bias, np.arange(200))
    torch.testing.assert_close(found.weight.float(), weight, rtol=0.02, atol=0.02)
    torch.testing.assert_close(found.bias.float(), bias, rtol=0.02, atol=0.02)
    assert found.explained > 0.999
    noise = fit_map(source, torch.randn(200, 4, generator=generator), np.arange(200))
    assert noise.explained < 0.1, "nothing to explain in what is held out"


def alike(generator: torch.Generator, texts: int, rows: int, width: int, shared: float) -> torch.Tensor:
    """Rows (texts * rows, width) of variance 1, of which the rows of one text have the share `shared` in common."""
    common, own = (torch.randn(texts, count, width, generator=generator) for count in (1, rows))
    return (math.sqrt(shared) * common + math.sqrt(1.0 - shared) * own).reshape(-1, width)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("rows", [1, 2])
def test_the_penalty_is_the_one_with_the_smallest_error_at_texts_left_out(rows: int, seed: int) -> None:
    """Against a plain loop that fits again without each text."""
    generator = torch.Generator().manual_seed(seed)
    x, noise = (alike(generator, 12, rows, width, 0.9).double().numpy() for width in (5, 3))
    y = x[:, :3] + 2.0 * noise
    unit, errors = float(x.var(0).mean()) * len(x), dict[float, float]()
    for penalty in PENALTIES:
        model = Ridge(alpha=penalty * unit)
        parts = [slice(start, start + rows) for start in range(0, len(x), rows)]
        missed = [y[part] - model.fit(np.delete(x, part, 0), np.delete(y, part, 0)).predict(x[part]) for part in parts]
        errors[penalty] = sum(float((one**2).sum()) for one in missed)
    found = fit_map(torch.from_numpy(x).float(), torch.from_numpy(y).float(), np.arange(len(x)) // rows)
    assert found.penalty == min(errors, key=errors.__getitem__)
    whole = Ridge(alpha=found.penalty * unit).fit(x, y)
    torch.testing.assert_close(found.weight, torch.from_numpy(whole.coef_.T.copy()), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found.bias, torch.from_numpy(whole.intercept_), rtol=1e-3, atol=1e-4)


def test_what_the_rows_of_one_text_share_is_not_taken_for_the_map() -> None:
    """Both rows of a text have one noise: a row of the text itself would predict it, rows of other texts do not."""
    generator = torch.Generator().manual_seed(2)

    def texts(count: int, width: int) -> torch.Tensor:
        return alike(generator, count, 2, width, 0.95)

    weight = torch.randn(40, 30, generator=generator) / 40**0.5
    source, fresh = texts(60, 40), texts(400, 40)
    found = fit_map(source, source @ weight + texts(60, 30), np.arange(120) // 2)
    target = fresh @ weight + texts(400, 30)
    missed = target - (fresh.double() @ found.weight + found.bias).float()
    assert float(1.0 - missed.square().sum() / (target - target.mean(0)).square().sum()) > 0.15
    assert found.penalty == 1.0, "0.1 with one row of the text left in"


def test_both_texts_of_a_pair_are_held_out_together() -> None:
    """In any order of the anchors; texts of no starter concept are alone, and equal ones together."""
    pairs = load_concept("formality")
    anchors = default_anchors(load_concept("sentiment"))
    numbers = dict(zip(anchors, anchor_groups(anchors), strict=True))
    assert all(numbers[one] == numbers[other] for one, other in pairs)
    assert len({numbers[one] for one in pairs.positive}) == len(set(groups_of(pairs)[0]))
    mixed = ("one", pairs.positive[0], "two", pairs.negative[0], "one", "three", "four")
    assert anchor_groups(mixed).tolist() == [0, 1, 2, 1, 0, 3, 4]
    assert anchor_groups(mixed[:5]).tolist() == [0, 1, 2, 3, 4], "too few groups to hold out every fifth"


def test_what_the_texts_of_one_group_share_is_not_explained() -> None:
    """Groups of two, four and six rows, each with a noise of its own in both models: rows of the group itself would tell it."""
    generator = torch.Generator().manual_seed(4)
    groups = np.repeat(np.arange(60), [2, 4, 6] * 20)
    source, target = (torch.randn(60, width, generator=generator)[groups] for width in (40, 30))
    assert fit_map(source, target, np.arange(240)).explained > 0.3
    assert fit_map(source, target, groups).explained < 0.05


def test_default_anchors_are_none_of_the_pairs() -> None:
    pairs = load_concept("sentiment")
    anchors = default_anchors(pairs)
    assert 400 < len(anchors) <= MAX_ANCHORS
    assert not {*pairs.positive, *pairs.negative} & set(anchors)
