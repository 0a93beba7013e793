"""A concept is carried both ways at the same two layers, and what was measured of it is of either model."""

from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from benchmarks.quality.concepts import QUICK
from benchmarks.quality.transfer.measure import both_ways
from tests.engines import engine_over
from tests.steering.lab.rotated import planted


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


async def test_both_directions_use_the_layers_of_the_first(
    hf_byte_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    found = planted()
    async with (
        engine_over(found.turned, hf_byte_tokenizer) as engine,
        engine_over(found.model, hf_byte_tokenizer) as second,
    ):
        for one, name in ((engine, "turned"), (second, "model")):
            one.info = replace(one.info, name=name, typical_norms=(1.0,) * one.info.layer_count)
        first, other = await both_ways(engine, second, "truthfulness", QUICK, tmp_path)
    assert (first["from"], first["to"]) == ("model", "turned")
    assert (other["from"], other["to"]) == ("turned", "model")
    assert first["layers"] == other["layers"][::-1]
    assert {*first["shift"]} == {*other["shift"]} == {"native", "transferred"}
    assert min(first["chance"], other["chance"]) > 0.0
    assert first["prompts"] == QUICK.reporting
    assert names_in(tmp_path) == {f"transfer.from.{name}.truthfulness.jsonl" for name in ("model", "turned")}
