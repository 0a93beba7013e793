"""BARS: what must be reached, in the order of the table that is printed."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Bar:
    """what: the two sides in words. bound: the least (or, with at_most, the most) that the ratio may be; None: shown only.
    percent: the figure is a share, shown in percent."""

    what: str
    bound: float | None
    at_most: bool = False
    percent: bool = False

    def met(self, value: float) -> bool | None:
        """None where there is no bound."""
        if self.bound is None:
            return None
        return value <= self.bound if self.at_most else value >= self.bound

    def shown(self, value: float) -> str:
        return f"{100 * value:.1f} %" if self.percent else f"{value:.2f}x"

    def required(self) -> str:
        """The bound in words."""
        return "" if self.bound is None else f"{'≤' if self.at_most else '≥'} {self.shown(self.bound)}"


DISTINCT = "32 distinct all-layer plans"
BARS: Mapping[str, Bar] = {
    "vllm 32": Bar(f"32 requests, {DISTINCT} / vLLM CPU, compiled, unsteered: tokens/s", 1.5),
    "vllm 8": Bar("8 requests, distinct all-layer plans / vLLM, the same", 1.5),
    "vllm 1": Bar("1 request, all-layer plan / vLLM, the same", 1.5),
    "vllm unsteered 32": Bar("32 requests, unsteered / vLLM, the same", None),
    "linears 1": Bar("1 row, all-layer plan, decoding / the linear layers alone: tokens/s", 0.9),
    "linears 8": Bar("8 rows, distinct all-layer plans, decoding / the linear layers alone", 0.85),
    "linears 32": Bar(f"32 rows, {DISTINCT}, decoding / the linear layers alone", 0.65),
    "one at a time": Bar(f"32 requests, {DISTINCT} / a global hook, one configuration at a time: tokens/s", 15.0),
    "one layer": Bar("32 rows, steered at one layer / unsteered: tokens/s", 0.98),
    "distinct plans": Bar("32 rows, distinct adds at all layers / unsteered", 0.95),
    "mixed operations": Bar("32 rows, mixed operations with conditions / unsteered", 0.85),
    "generate": Bar("1 request, all-layer plan / plain transformers.generate: tokens/s", 1.6),
    "first token": Bar("prompt of 512, steered at all layers: first token / a plain forward pass: seconds", 1.15, at_most=True),
    "first token unsteered": Bar("prompt of 512, unsteered: first token / a plain forward pass", None, at_most=True),
    "extraction": Bar("pairs/s, texts to directions at all layers / the faster peer at its best batch size", 2.0),
    "extraction with card": Bar("the same, with our quality card from held-out pairs", None),
    "server": Bar("32 streams: throughput lost between the bare engine and its clients over HTTP", 0.05, at_most=True, percent=True),
    "gap": Bar("8 streams, a prompt of 2,000 arrives: gap between tokens, p99 / median", 4.0, at_most=True),
}  # fmt: skip
