"""The file of a vector is untrusted input: every part of it is validated."""

import json
import struct
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from steering.errors import InvalidRequest, LimitExceeded, SteeringError, UnsupportedFormat, VectorModelMismatch
from steering.store.blob import OWN, decode, encode
from steering.vectors import ConceptVector
from tests.steering.store.files import KEY, METADATA, TENSORS, VECTOR, changed, file_of, with_header


def tensors(**changes: torch.Tensor) -> dict[str, torch.Tensor]:
    return {**TENSORS, **{name.replace("_", ".", 1): value for name, value in changes.items()}}


NAN, INF = float("nan"), float("inf")
BAD_TENSORS: dict[str, dict[str, torch.Tensor]] = {
    "nan": tensors(layer_0=torch.tensor([NAN] + [0.0] * 7)),
    "infinity": tensors(layer_0=torch.tensor([INF] + [0.0] * 7)),
    "half-precision infinity": tensors(layer_0=torch.tensor([INF] + [0.0] * 7, dtype=torch.float16)),
    "zero": tensors(layer_0=torch.zeros(8)),
    "not unit": tensors(layer_0=torch.ones(8)),
    "float64": tensors(layer_0=TENSORS["layer.0"].double()),
    "int8": tensors(layer_0=torch.ones(8, dtype=torch.int8)),
    "bool": tensors(layer_0=torch.ones(8, dtype=torch.bool)),
    "two-dimensional": tensors(layer_0=torch.ones(1, 8)),
    "a scalar": tensors(layer_0=torch.tensor(1.0)),
    "empty": tensors(layer_0=torch.zeros(0)),
    "shorter": tensors(layer_0=torch.tensor([1.0])),
    "longer": tensors(layer_0=torch.ones(9) / 3),
    "an extra tensor": {**TENSORS, "extra": torch.ones(8)},
    "a traversal": {**TENSORS, "../../x": torch.ones(8)},
    "a layer with a leading zero": {**TENSORS, "layer.01": TENSORS["layer.0"]},
    "a negative layer": {**TENSORS, "layer.-1": TENSORS["layer.0"]},
    "a layer in other digits": {**TENSORS, "layer.٣": TENSORS["layer.0"]},
    "a name with a line end": {**TENSORS, "layer.3\n": TENSORS["layer.0"]},
    "a layer the metadata does not know": {**TENSORS, "layer.5": TENSORS["layer.0"]},
    "a layer fewer": {"layer.0": TENSORS["layer.0"]},
    "none": {},
    "more layers than any model": {f"layer.{layer}": torch.ones(1) for layer in range(513)},
}


@pytest.mark.parametrize("name", BAD_TENSORS)
def test_tensors_that_are_no_directions_are_refused(name: str) -> None:
    with pytest.raises(InvalidRequest):
        decode(file_of(BAD_TENSORS[name], METADATA))


def test_the_wrong_length_is_a_mismatch_with_the_model() -> None:
    with pytest.raises(VectorModelMismatch, match=r"\(9,\), expected \(8,\)"):
        decode(file_of(BAD_TENSORS["longer"], METADATA))


LAYERS = METADATA["layers"]
BAD_METADATA: dict[str, dict[str, Any] | str] = {
    "no JSON": "{",
    "no object": "[]",
    "another format": changed(format=2),
    "an unknown key": changed(owner="me"),
    "a missing key": {key: value for key, value in METADATA.items() if key != "model"},
    "a duplicate key": json.dumps(METADATA)[:-1] + ',"model":"other"}',
    "NaN as a scale": changed(layers={**LAYERS, "0": {"scale": NAN}}),
    "infinity as a mean": json.dumps(METADATA).replace('"scale"', '"positive_mean":1e400,"scale"', 1),
    "a negative scale": changed(layers={**LAYERS, "0": {"scale": -1.0}}),
    "a scale of zero": changed(layers={**LAYERS, "0": {"scale": 0.0}}),
    "a scale as text": changed(layers={**LAYERS, "0": {"scale": "1"}}),
    "a scale as true": changed(layers={**LAYERS, "0": {"scale": True}}),
    "a layer key with a sign": changed(layers={**LAYERS, "+0": {"scale": 1.0}}),
    "an unknown number of a layer": changed(layers={**LAYERS, "0": {"scale": 1.0, "gain": 2.0}}),
    "NaN in provenance": changed(provenance={"deep": [NAN]}),
    "provenance that is a list": changed(provenance=[]),
    "deep nesting": changed(provenance={"x": json.loads("[" * 100 + "]" * 100)}),
    "nesting beyond the stack": json.dumps(METADATA)[:-1] + ',"x":' + "[" * 15_000 + "]" * 15_000 + "}",
    "an integer of 5,000 digits": json.dumps(METADATA)[:-1] + ',"x":' + "9" * 5_000 + "}",
    "a lone surrogate": changed(model="\ud800"),
    "a NUL": changed(model="\x00"),
    "a method that is no name": changed(method="../x"),
    "a name that is no name": changed(labels={"name": "../x"}),
    "a tag that is no name": changed(labels={"name": "x", "tags": ["<b>"]}),
    "a description that is a number": changed(labels={"name": "x", "description": 1}),
    "a path among the labels": changed(labels={"name": "x", "path": "/etc/passwd"}),
    "an unknown key of the card": changed(quality={**METADATA["quality"], "extra": 1}),
    "a card with NaN": changed(quality={"pairs": 1, "holdout": 1, "layers": {"1": {"auroc": NAN}}}),
    "a card without pairs": changed(quality={"holdout": 1, "layers": {}}),
    "a recommended layer it has not": changed(recommended={"layers": [5], "strength": [0.0, 1.0]}),
    "no recommended layer": changed(recommended={"layers": [], "strength": [0.0, 1.0]}),
    "a range that runs backwards": changed(recommended={"layers": [1], "strength": [1.0, 0.0]}),
    "a d_model of zero": changed(d_model=0),
    "a d_model as a fraction": changed(d_model=8.0),
    "a model of great length": changed(model="m" * 513),
}


@pytest.mark.parametrize("name", BAD_METADATA)
def test_metadata_that_does_not_fit_is_refused_and_not_repeated(name: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        decode(file_of(TENSORS, BAD_METADATA[name]))
    assert len(refusal.value.message) < 500
    refusal.value.message.encode()


def test_metadata_beyond_the_limit_is_rejected_in_uploads_and_accepted_from_the_store() -> None:
    wordy = replace(VECTOR, provenance={"note": "x" * (65 << 10)})
    with pytest.raises(LimitExceeded, match="metadata"):
        decode(encode(wordy))
    assert decode(encode(wordy), limits=OWN).provenance == wordy.provenance
    with pytest.raises(LimitExceeded):
        encode(replace(VECTOR, provenance={"note": "x" * (9 << 20)}))


class TestFiles:
    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"\x00" * 8,
            b"PK\x03\x04" + bytes(200),
            b"GGUF\x03\x00\x00\x00{" + bytes(200),
            b"\x93NUMPY\x01\x00v{" + bytes(200),
            b"\x80\x04\x95\x00\x00\x00\x00\x00{" + bytes(200),
            with_header(b'["layer.0"]'),
            with_header(b"null"),
            b"%PDF-1.7 ...",
        ],
    )
    def test_other_formats_are_another_media_type(self, content: bytes) -> None:
        with pytest.raises(UnsupportedFormat):
            decode(content)

    def test_every_truncation_is_refused(self) -> None:
        content = encode(VECTOR)
        for length in range(len(content)):
            with pytest.raises((InvalidRequest, UnsupportedFormat)):
                decode(content[:length])
        with pytest.raises(InvalidRequest):
            decode(content + b"\x00")

    @pytest.mark.parametrize("length", [1 << 20, 1 << 31, (1 << 63) - 1, (1 << 64) - 1])
    def test_a_huge_header_is_refused_before_it_is_read(self, length: int) -> None:
        with pytest.raises(LimitExceeded, match="header"):
            decode(struct.pack("<Q", length) + b"{}")

    def test_a_huge_file_is_refused(self) -> None:
        with pytest.raises(LimitExceeded, match="bytes"):
            decode(b"{" * ((64 << 20) + 1))

    @pytest.mark.parametrize(
        "header",
        [
            b'{"layer.0":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"layer.0":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
            b'{"__metadata__":{},"__metadata__":{},"layer.0":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
            b'{"layer.0":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
            b'{"layer.0":{"dtype":"F32","shape":[1],"data_offsets":[0,400]}}',
            b'{"layer.0":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}',
            b'{"layer.0":{"dtype":"F32","shape":[1000000000,1000000000,1000000000],"data_offsets":[0,4]}}',
            b'{"layer.0":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}',
            b'{"layer.0":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}',
            b'{"layer.0":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"layer.1":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
            b'{"layer.0":7}',
            b'{"__metadata__":{"a":1},"layer.0":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
            b'{"__metadata__":"a","layer.0":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
            b'{"\\ud800":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
            b'{"layer.0\xff":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
            b"{" + b'"a":{' * 5_000 + b"}" * 5_001,
            b'{"layer.0":NaN}',
            b"{",
        ],
    )
    def test_headers_that_say_two_things_or_nonsense_are_refused(self, header: bytes) -> None:
        with pytest.raises(InvalidRequest):
            decode(with_header(header, struct.pack("<f", 1.0)), name="x", model="tiny")

    def test_metadata_of_other_tools_next_to_ours_is_rejected(self) -> None:
        content = bytes(save(TENSORS, metadata={KEY: json.dumps(METADATA), "format": "pt"}))
        with pytest.raises(InvalidRequest, match="besides"):
            decode(content)

    @given(st.integers(min_value=0, max_value=len(encode(VECTOR)) - 1), st.integers(min_value=1, max_value=255))
    def test_a_flipped_byte_gives_a_vector_or_an_error_of_ours(self, place: int, flip: int) -> None:
        content = bytearray(encode(VECTOR))
        content[place] ^= flip
        try:
            back = decode(bytes(content))
        except SteeringError:
            return
        assert isinstance(back, ConceptVector)

    @given(st.binary(max_size=300))
    def test_any_bytes_at_all_give_an_error_of_ours(self, content: bytes) -> None:
        with pytest.raises(SteeringError):
            decode(content, name="x", model="tiny")
        with pytest.raises(SteeringError):
            decode(with_header(b"{" + content, content), name="x", model="tiny")
