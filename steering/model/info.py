"""ModelInfo: what the rest of the house may know of a loaded model. Torch-free."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A loaded model in plain words.

    fingerprint: digest of architecture and sampled weights, equal for the same weights in any dtype.
    typical_norms: median residual norm after each block on neutral text, first position left out; what a planned
    relative dose is measured against. Empty when not measured.
    """

    name: str
    architecture: str
    fingerprint: str
    d_model: int
    layer_count: int
    vocab_size: int
    context_length: int
    dtype: str
    device: str
    parameter_count: int
    chat_template: bool
    typical_norms: tuple[float, ...] = ()
    revision: str | None = None
