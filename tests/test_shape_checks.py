"""Shapes that a signature states are checked in the engine, the model and the workflows, across one call."""

from typing import Any

import pytest
import torch
from jaxtyping import Float, jaxtyped

from steering.engine.api import Capture
from steering.engine.transformers.sampling import gumbel
from steering.rowwise import dot
from tests.shape_checks import check_shapes


@jaxtyped(typechecker=check_shapes)
def scaled(
    rows: Float[torch.Tensor, "row d"], scale: Float[torch.Tensor, " row"] | None, **_: Any
) -> tuple[Float[torch.Tensor, "row d"], int]:
    return (rows if scale is None else rows * scale[:, None])[:, :2], 1


def test_shapes_agree_over_arguments_and_result() -> None:
    rows = torch.ones(3, 2)
    assert scaled(rows, torch.ones(3))[1] == 1
    assert scaled(rows, None)[1] == 1
    for wrong in (torch.ones(2), torch.ones(3, 1), torch.ones(3, dtype=torch.int64)):
        with pytest.raises(TypeError):
            scaled(rows, wrong)
    with pytest.raises(TypeError, match="return value"):
        scaled(torch.ones(3, 5), None)


def test_the_library_is_checked() -> None:
    with pytest.raises(TypeError):
        gumbel(torch.ones(3))
    with pytest.raises(TypeError):
        Capture((1,), torch.ones(1, 2))
    with pytest.raises(TypeError):
        dot(torch.ones(2, 3), torch.ones(2, 4))
