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
Directions: TypeAlias = Float[Tensor, "token k d_model"]
Parameters: TypeAlias = Float[Tensor, "token n"]
Direction: TypeAlias = Float[Tensor, "d_model"]
Scores: TypeAlias = Float[Tensor, "token"]
Decisions: TypeAlias = Bool[Tensor, "token"]
Activations: TypeAlias = Float[Tensor, "example d_model"]
LayerActivations: TypeAlias = Float[Tensor, "layer token d_model"]
Logits: TypeAlias = Float[Tensor, "row vocab"]
TokenIds: TypeAlias = Int[Tensor, "token"]

__all__ = [
    "Activations", "Bool", "Decisions", "Direction", "Directions", "Float", "Int", "LayerActivations",
    "Logits", "Parameters", "Residual", "Scores", "Shaped", "Tensor", "TokenIds",
]  # fmt: skip
