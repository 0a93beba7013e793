"""The steering library: concept vectors in the residual stream of a language model. Knows nothing of HTTP."""

__version__ = "0.1.0"
