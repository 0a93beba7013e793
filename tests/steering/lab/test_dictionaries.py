"""Sparse autoencoders from folders: what is read, what is refused, and that searches find planted features."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from steering.engine.api import CapturePrompt, CaptureSpec
from steering.errors import InvalidRequest, VectorModelMismatch
from steering.lab.controls import planned
from steering.lab.dictionaries import DOSE, PROBE_PROMPT, open_dictionary, output_scores, search
from steering.spec import InterventionSpec
from steering.vectors import ConceptVector, LayerDirection
from tests.engines import engine_over, family_engine
from tests.families import D_MODEL, FAMILIES, LAYERS, VOCABULARY
from tests.steering.lab.planted_folder import FEATURES, planted_folder


def test_a_folder_is_opened_without_reading_its_weights(tmp_path: Path) -> None:
    direction = torch.arange(1.0, 9.0)
    found = open_dictionary(planted_folder(tmp_path / "small", 8, {3: direction}))
    assert (found.name, found.layer, found.features, found.d_model, found.model) == ("small", 1, FEATURES, 8, "tiny")
    torch.testing.assert_close(found.rows((3, 1)), found.decoder()[[3, 1]])
    torch.testing.assert_close(found.rows((3,))[0], direction / direction.norm())
    assert found.decoder().shape == (FEATURES, 8)
    with pytest.raises(InvalidRequest, match="features 0 to 11, got 12"):
        found.rows((3, 12))


@pytest.mark.parametrize(
    ("config", "active"),
    [
        ({}, lambda before: before.relu()),
        ({"architecture": "jumprelu"}, lambda before: before * (before > 0.1)),
        ({"architecture": "topk", "k": 2}, lambda before: before.relu() * (before >= before.topk(2).values[:, -1:])),
        ({"metadata": {"hook_name": "blocks.2.hook_resid_pre"}, "hook_name": "x"}, lambda before: before.relu()),
    ],
)
def test_activations_equal_a_direct_computation(tmp_path: Path, config: dict[str, Any], active: Any) -> None:
    found = open_dictionary(planted_folder(tmp_path / "one", 8, {}, **config))
    residual = torch.randn(5, 8, generator=torch.Generator().manual_seed(2))
    encoder, expected = found.encoder(), active(residual @ found.decoder().T)
    torch.testing.assert_close(encoder.encode(residual), expected)
    torch.testing.assert_close(encoder.total(residual), expected.sum(0))
    assert found.layer == 1


def test_a_long_text_is_encoded_in_pieces_with_weights_that_were_read_once(tmp_path: Path) -> None:
    folder = planted_folder(tmp_path / "one", 8, {})
    encoder = open_dictionary(folder).encoder()
    (folder / "sae_weights.safetensors").unlink()
    residual = torch.randn(7, 8, generator=torch.Generator().manual_seed(2))
    pieces = list(encoder.pieces(residual, limit=3 * FEATURES + 1))
    assert [len(piece) for piece in pieces] == [3, 3, 1]
    torch.testing.assert_close(torch.cat(pieces), encoder.encode(residual))
    assert [len(piece) for piece in encoder.pieces(residual, limit=1)] == [1] * 7


def test_a_folder_that_changes_is_read_again(tmp_path: Path) -> None:
    folder = planted_folder(tmp_path / "one", 8, {})
    before = open_dictionary(folder)
    assert open_dictionary(folder) is before
    (folder / "cfg.json").write_text(json.dumps({"hook_name": "blocks.2.hook_resid_post"}))
    after = open_dictionary(folder)
    assert (before.layer, after.layer) == (1, 2)
    (folder / "sae_weights.safetensors").unlink()
    for read in (after.decoder, after.encoder, lambda: after.rows((0,))):
        with pytest.raises(InvalidRequest, match="dictionary 'one': its files cannot be read") as refused:
            read()
        assert str(tmp_path) not in refused.value.message
    with pytest.raises(InvalidRequest, match=r"no sae_weights\.safetensors"):
        open_dictionary(folder)


def test_a_folder_that_the_system_refuses_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    for name in ("file", "x" * 300):
        with pytest.raises(InvalidRequest, match=f"dictionary '{name}': its files cannot be read"):
            open_dictionary(tmp_path / name)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"architecture": "gated"}, "'gated' is not one of"),
        ({"architecture": "topk"}, "needs 'k'"),
        ({"hook_name": "blocks.1.hook_mlp_out"}, "not the residual stream"),
        ({"hook_name": "blocks.0.hook_resid_pre"}, "not the residual stream"),
        ({"normalize_activations": "expected_average_only_in"}, "normalize_activations"),
        ({"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 2}}, "activation function 'topk'"),
        ({"rescale_acts_by_decoder_norm": True}, "rescale_acts_by_decoder_norm"),
    ],
)
def test_what_cannot_be_computed_is_refused(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        open_dictionary(planted_folder(tmp_path / "bad", 8, {}, **config))


def test_a_broken_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    folder.mkdir()
    with pytest.raises(InvalidRequest, match=r"no cfg\.json"):
        open_dictionary(folder)
    (folder / "cfg.json").write_text(json.dumps([1]))
    with pytest.raises(InvalidRequest, match="not an object"):
        open_dictionary(folder)
    (folder / "cfg.json").write_text(json.dumps({"hook_name": "blocks.1.hook_resid_post"}))
    with pytest.raises(InvalidRequest, match=r"no sae_weights\.safetensors"):
        open_dictionary(folder)
    (folder / "sae_weights.safetensors").write_bytes(b"not a file")
    with pytest.raises(InvalidRequest, match="not a safetensors file"):
        open_dictionary(folder)


async def test_searches_find_planted_features(hf_byte_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """By a vector, and by what is active on texts; and a feature that writes a token has an output score."""
    async with family_engine("llama", hf_byte_tokenizer) as engine:
        read = await engine.capture([CapturePrompt("xxxxxxxx"), CapturePrompt("other text")], CaptureSpec((1,), "mean"))
        shift = read[0].activations[0, 0] - read[1].activations[0, 0]
        vector = torch.randn(D_MODEL, generator=torch.Generator().manual_seed(9))
        found = open_dictionary(planted_folder(tmp_path / "sae", D_MODEL, {4: shift, 7: vector}))
        near = await search(engine, found, vector=vector, top=3)
        active = await search(engine, found, texts=("xxxxxxxx",), against=("other text",), top=3)
        alike = await search(engine, found, texts=("other text",), against=("other text",), top=3)
        default = await search(engine, found, texts=("xxxxxxxx",), top=1)
        scored = await search(engine, found, vector=vector, top=3, min_output_score=0.0)
        strict = await search(engine, found, vector=vector, min_output_score=1.0)
        with pytest.raises(VectorModelMismatch, match="d_model 8"):
            await search(engine, open_dictionary(planted_folder(tmp_path / "other", 8, {})), texts=("a",))
    assert near[0].feature == 7
    assert near[0].score == pytest.approx(1.0, abs=1e-4)
    assert active[0].feature == 4
    assert all(one.score > 0.0 for one in active)
    assert alike == [], "no feature is more active in a text than in itself"
    assert len(default) == 1
    assert len(near[0].promoted) == 8
    assert near[0].output_score is None
    assert [one.feature for one in scored] == [one.feature for one in near]
    assert all(one.output_score is not None and 0.0 <= one.output_score <= 1.0 for one in scored)
    assert strict == []


async def test_the_output_score_finds_the_feature_that_writes_a_token(
    hf_byte_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """The head writes token 65 along one direction, and reads nothing along another; the vector is equally near to both."""
    model = FAMILIES["llama"]()
    writes, ignored = torch.eye(D_MODEL)[1], torch.eye(D_MODEL)[0]
    head = model.get_output_embeddings().weight
    head[:, 0] = 0.0
    head[65] = 6.0 * writes
    folder = planted_folder(tmp_path / "sae", D_MODEL, {3: head[65], 6: ignored}, layer=LAYERS - 1)
    async with engine_over(model, hf_byte_tokenizer) as engine:
        found = open_dictionary(folder)
        vector = writes + ignored
        both = await search(engine, found, vector=vector, top=2)
        scored = await search(engine, found, vector=vector, top=2, min_output_score=0.0)
        kept = await search(engine, found, vector=vector, min_output_score=0.25)
        direct = await output_scores(engine, LAYERS - 1, found.rows((3, 6)), [[65], [65]])
    assert {one.feature for one in both} == {one.feature for one in scored} == {3, 6}
    score = {one.feature: one.output_score or 0.0 for one in scored}
    assert score[3] > 0.25
    assert score[6] < 0.02
    assert [one.feature for one in kept] == [3]
    assert (kept[0].promoted[0].id, kept[0].promoted[0].text) == (65, "A")
    assert direct == [pytest.approx(score[3]), pytest.approx(0.0, abs=0.02)]


async def test_the_output_score_is_that_of_a_change_at_the_last_position(
    hf_byte_tokenizer: PreTrainedTokenizerFast,
) -> None:
    """Layer 0, so that a change of earlier positions would reach the last one by attention."""
    async with family_engine("llama", hf_byte_tokenizer) as engine:
        row = torch.randn(1, D_MODEL, generator=torch.Generator().manual_seed(3))
        found = await output_scores(engine, 0, row, [range(VOCABULARY)])
        given = LayerDirection(torch.nn.functional.normalize(row[0], dim=0), scale=1.0)
        vector = ConceptVector("one", "tiny", engine.info.fingerprint, D_MODEL, "given", {0: given}, version=1)
        probabilities = {}
        for scope in ("last", "all"):
            item = {"vector": "one", "strength": DOSE, "unit": "relative", "layers": [0], "scope": {"tokens": scope}}
            plan = await planned(engine.info, vector, InterventionSpec.model_validate(item))
            (read,) = await engine.capture([CapturePrompt(PROBE_PROMPT, plan)], CaptureSpec((), logits=True))
            probabilities[scope] = read.logits[-1].softmax(-1)  # type: ignore[index]
        (plain,) = await engine.capture([CapturePrompt(PROBE_PROMPT)], CaptureSpec((), logits=True))
    before = plain.logits[-1].softmax(-1)  # type: ignore[index]

    def expected(after: torch.Tensor) -> float:
        best = int(after.argmax())
        return max(float(after[best] - before[best]), 0.0)

    assert found == [pytest.approx(expected(probabilities["last"]), rel=1e-3)]
    assert expected(probabilities["last"]) != pytest.approx(expected(probabilities["all"]), rel=0.05)
