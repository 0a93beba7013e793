"""The operator `steering::edit`: what the edits of a layer do to all tokens of a pass, as one kernel of the device.

On CUDA devices it is a Triton kernel (kernel.py), and on a CPU, where only tests call it, `LayerEdits.apply`.
"""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, TypeAlias

import structlog
import torch

from steering.injection.apply import LayerEdits
from steering.injection.slots import LayerForm
from steering.plan.types import LINEAR, RELU, ROTATE
from steering.shapes import Residual, Tensor

log = structlog.get_logger()
_untyped: Any = torch.library  # a call of torch.library.custom_op takes five times as long (benchmarks/README.md)
LIBRARY = _untyped.Library("steering", "FRAGMENT")
LIBRARY.define(
    "edit(Tensor residual, Tensor vectors, Tensor numbers, Tensor codes, Tensor rows, Tensor slots, Tensor weights, "
    "Tensor(a!) left, Tensor(b!) edits, Tensor(c!) changes, Tensor(d!) scaled, int place, int note) -> Tensor"
)
LIBRARY._register_fake("edit", lambda residual, *_: torch.empty_like(residual))
edit: Callable[..., Residual] = torch.ops.steering.edit.default
"""Called as `by_operations`."""
WIDEST = 1 << 15
"""The widest residual that a program holds."""
HasKernel: TypeAlias = Callable[[torch.device, int, torch.dtype], bool]
"""See `has_kernel`."""


def by_operations(residual: Residual, *tables: Any) -> Residual:
    """Returns the residual, of any dtype, after the edits of a layer, and notes what they did.

    The tables are those of `Injection.tables`, all contiguous; then come the place of the layer in `rows`, and where it notes doses.
    """
    vectors, numbers, codes, rows, slots, weights, left, edits, changes, scaled, place, note = tables
    count = edits.shape[2]
    form = LayerForm(count, reads=True, relative=True, relu=True, mandatory=True, rotations=tuple(range(count)))
    here = rows[:, place, :count].index_select(0, slots)
    found = LayerEdits.of((vectors, numbers, codes), here, [form])
    edited = found.apply(residual.float(), found.weights(weights), left)
    assert edited.share is not None
    edits[note], changes[note], scaled[note] = edited.doses, edited.change, edited.share < 1.0
    return edited.after.to(residual.dtype)


def by_kernel(residual: Residual, *tables: Any) -> Residual:
    """See `by_operations`."""
    from steering.injection.kernel import launch  # noqa: PLC0415 - Triton is imported where there is a GPU

    *given, place, note = tables
    return launch(residual, given, place, note)


LIBRARY.impl("edit", by_operations, "CPU")
LIBRARY.impl("edit", by_kernel, "CUDA")


def has_kernel(device: torch.device, d_model: int, dtype: torch.dtype) -> bool:
    """Whether the kernel runs on a device and does there what `LayerEdits.apply` does: both are tried on a few tokens, once at the start,
    which compiles the kernel."""
    if device.type != "cuda" or find_spec("triton") is None or d_model > WIDEST:
        return False
    try:
        difference = differs(device, d_model, dtype)
    except Exception as error:  # whatever it is: Triton needs a C compiler and a folder for its cache
        log.warning("edit_kernel_refused", reason=str(error)[:300] or type(error).__name__)
        return False
    if difference > (allowed := 1e-4 if dtype == torch.float32 else 4 * torch.finfo(dtype).eps):
        log.warning("edit_kernel_refused", reason=f"it differs by {difference:.2g}, of at most {allowed:.2g}")
    return difference <= allowed


def differs(device: torch.device, d_model: int, dtype: torch.dtype) -> float:
    """Returns by how much the operator differs from `by_operations`, as a share of the largest number of each result.

    Its edits are constant, relative, reading and turning ones, some of them mandatory, of tokens with and without a bound.
    """
    generator = torch.Generator().manual_seed(0)

    def random(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    vectors = torch.nn.functional.normalize(random(7, d_model), dim=1)
    vectors[0] = 0.0
    numbers = torch.tensor(
        [[0.0, 0.0, 0.0], [2.0, 0.0, 1.0], [0.1, 0.2, 1.0], [-0.3, 0.0, 1.0], [0.0, 0.0, 0.5], [0.4, 0.1, 1.0]]
    )
    kinds = [LINEAR, LINEAR, LINEAR, RELU, ROTATE, LINEAR]
    codes = torch.tensor([[kind, 6 if row in (2, 3, 5) else 0, row % 2, 0, row == 5] for row, kind in enumerate(kinds)])
    rows = torch.tensor([[[0, 0, 0, 0]], [[1, 2, 3, 5]], [[4, 3, 5, 0]], [[2, 1, 0, 0]]])
    slots, left = torch.tensor([0, 1, 2, 3, 1, 2]), torch.tensor([torch.inf, torch.inf, 0.05, 0.5, 0.1, torch.inf])
    noted = torch.zeros(2, 6, 4), torch.zeros(2, 6), torch.zeros(2, 6)
    given = vectors, numbers, codes.long(), rows, slots, random(6, 2), left, *noted
    residual, found = (3.0 * random(6, d_model)).to(device, dtype), list[tuple[Tensor, ...]]()
    for apply in (edit, by_operations):
        tables = [one.to(device, copy=True) for one in given]
        found.append((apply(residual, *tables, 0, 1), *tables[6:]))
    return max(_difference(one.float(), other.float()) for one, other in zip(*found, strict=True))


def _difference(found: Tensor, expected: Tensor) -> float:
    difference = torch.where(found == expected, 0.0, found - expected).abs().nan_to_num(nan=torch.inf).max()
    return float(difference / expected[expected.isfinite()].abs().max())
