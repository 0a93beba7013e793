"""verify_layout: short forward passes that show a layout to be true before anybody steers by it."""

from dataclasses import replace

import torch
from transformers import PreTrainedModel

from steering.errors import UnsupportedModel
from steering.model.attention_probe import uses_attention_interface
from steering.model.layout import BlockOutput, Layout, residual_of
from steering.shapes import Tensor

PROBE = [[0, 1], [0, 2]]
"""Two rows that differ in their last token only: a causal model shows the same residual at the first."""


def verify_layout(model: PreTrainedModel, layout: Layout) -> Layout:
    """The layout, its `attention` now known and not only stated by the model's class.

    Raises UnsupportedModel unless each block runs once, in order, puts out [row, seq, d_model], and looks back only.
    """
    token_ids = torch.tensor(PROBE, device=next(layout.embedding.parameters()).device)
    seen: list[tuple[int, Tensor]] = []

    def record(layer: int, output: BlockOutput) -> None:
        seen.append((layer, residual_of(output)))

    handles = [
        block.register_forward_hook(lambda _block, _arguments, output, layer=layer: record(layer, output))
        for layer, block in enumerate(layout.blocks)
    ]
    try:
        with torch.no_grad():
            model(token_ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    reason = _objection(seen, layout)
    if reason:
        raise UnsupportedModel(f"{layout.architecture} cannot be steered: {reason}")
    if layout.attention == "interface" and not uses_attention_interface(model, token_ids, layout.layer_count):
        return replace(layout, attention="own")
    return layout


def _objection(seen: list[tuple[int, Tensor]], layout: Layout) -> str | None:
    if [layer for layer, _ in seen] != list(range(layout.layer_count)):
        return "its blocks do not run once each, in order"
    wanted = (len(PROBE), len(PROBE[0]), layout.d_model)
    for layer, residual in seen:
        if tuple(residual.shape) != wanted:
            return f"block {layer} puts out {tuple(residual.shape)} where a residual stream would be {wanted}"
    first = seen[-1][1][:, 0].float()
    # Rows of one batch may differ by rounding on some devices; a model that looks ahead differs by far more.
    if not torch.allclose(first[0], first[1], rtol=1e-2, atol=1e-2 * float(first.abs().mean())):
        return "it looks ahead: a later token changes what an earlier position holds"
    return None
