"""Names for tensor shapes. Checked under pytest by jaxtyping with beartype, plain annotations otherwise."""

from typing import TYPE_CHECKING, TypeAlias

import torch

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int, Shaped
else:
    try:
        from jaxtyping import Bool, Float, Int, Shaped
    except ImportError:  # jaxtyping is a development dependency; at run time the names say the same to a reader

        class _Plain:
            def __class_getitem__(cls, item):
                return item[0]

        Bool = Float = Int = Shaped = _Plain

Tensor: TypeAlias = torch.Tensor

Residual: TypeAlias = Float[Tensor, "token d_model"]
Parameters: TypeAlias = Float[Tensor, "token n"]
Direction: TypeAlias = Float[Tensor, "d_model"]
Scores: TypeAlias = Float[Tensor, "token"]
Activations: TypeAlias = Float[Tensor, "example d_model"]
Logits: TypeAlias = Float[Tensor, "row vocab"]

__all__ = [
    "Activations", "Bool", "Direction", "Float", "Int", "Logits", "Parameters", "Residual", "Scores", "Shaped", "Tensor",
]  # fmt: skip
