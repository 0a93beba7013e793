"""Which token of a text attends most to a phrase before it, layer by layer."""

from collections.abc import Sequence
from typing import Any

import torch

from steering.engine.transformers.attention import PagedAttention, Queries, Scores, visible, weights_of
from steering.injection.rows import CaptureState
from steering.model.hook_points import layer_of
from steering.model.hooks import ResidualHooks, StopForward
from steering.shapes import Residual, Tensor
from steering.uploads import uploaded


class AttentionReader:
    """Finds, for texts that are to be read at a phrase's most attending token, that token at each layer they are read at. The weight of
    a phrase is the sum over its tokens, the mean over the heads. The model is not steered, and its passes have no cache.

    Choosing the token by its attention to a phrase is due to Davarmanesh et al., arXiv 2602.00333.
    """

    def __init__(self, model: Any, attention: PagedAttention, hooks: ResidualHooks, device: torch.device) -> None:
        self._model, self._attention, self._hooks, self._device = model, attention, hooks, device

    def choose(self, ids: Sequence[int], state: CaptureState) -> None:
        """Fills in `attending` of a text by a pass over it."""
        assert state.phrase is not None
        (begin, end), behind = state.phrase, state.window[0]
        wanted, found = {layer_of(point) for point in state.layers}, dict[int, int]()

        def observe(layer: int, query: Queries, key: Tensor, scores: Scores) -> None:
            if layer in wanted:
                at = torch.arange(behind, len(ids), device=query.device)[None]
                weights = weights_of(query[:, :, behind:], key, visible(at, len(ids), scores.window), scores)
                of_phrase = weights[..., begin:end].sum(-1).view(query.shape[1], -1).mean(0)
                found[layer] = behind + int(of_phrase.argmax())

        def stop(_layer: int, _residual: Residual) -> Residual | None:
            raise StopForward

        self._attention.observe = observe
        try:
            with torch.no_grad(), self._hooks.step(stop, [max(wanted)]):
                self._model(
                    input_ids=uploaded([list(ids)], self._device, torch.int64),
                    position_ids=torch.arange(len(ids), device=self._device)[None],
                    use_cache=False,
                )
        except StopForward:
            pass
        finally:
            self._attention.observe = None
        state.attending = tuple(found[layer_of(point)] for point in state.layers)
