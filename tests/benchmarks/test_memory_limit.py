"""The limit of a token counts the bytes that the engine reads for it, not those of the model in bfloat16."""

from collections.abc import Mapping
from typing import Any

import pytest

from benchmarks.contenders.registry import LINEARS
from benchmarks.suites.throughput import memory_limit

MEASURED = [{"bytes_per_second": 1000.0, "weight_bytes": 20}, {"bytes_per_second": 2000.0, "weight_bytes": 20}]


@pytest.mark.parametrize(
    ("engine", "expected"),
    [
        (
            {"kernels": "pairs, team, blocks up to 8 rows", "weight_bytes": {"Q4_1": 4, "Q8_0": 1, "bfloat16": 20}},
            [200, 400],
        ),
        (
            {"kernels": "pairs, team, blocks up to 0 rows", "weight_bytes": {"Q4_1": 4, "Q8_0": 1, "bfloat16": 20}},
            [50, 100],
        ),
        ({"kernels": "pairs, team", "weight_bytes": {"Q4_1": 4, "Q8_0": 1}}, [200, 400]),
        ({"kernels": "pairs, team", "weight_bytes": {"bfloat16": 20}}, [50, 100]),
        ({"kernels": "", "weight_bytes": {}}, [50, 100]),
        ({}, [50, 100]),
    ],
)
def test_it_is_that_of_the_form_in_which_one_row_reads_the_weights(
    engine: Mapping[str, Any], expected: list[float]
) -> None:
    assert memory_limit({(LINEARS, "one pass"): MEASURED}, engine) == expected


def test_it_is_unknown_where_memory_was_not_measured() -> None:
    assert memory_limit({}, {}) is None
    assert memory_limit({(LINEARS, "one pass"): [{"bytes_per_second": None, "weight_bytes": 20}]}, {}) is None
