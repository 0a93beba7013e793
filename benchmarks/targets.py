"""The targets of a run, in the order of the printed table."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Target:
    """what: describes the ratio. bound: its minimum, or its maximum with at_most; None: no target. percent: printed in percent."""

    what: str
    bound: float | None
    at_most: bool = False
    percent: bool = False

    def met(self, value: float) -> bool | None:
        """Returns whether a value meets the target; None without a bound."""
        if self.bound is None:
            return None
        return value <= self.bound if self.at_most else value >= self.bound

    def format(self, value: float) -> str:
        """Formats a value."""
        return f"{100 * value:.1f} %" if self.percent else f"{value:.2f}x"

    def required(self) -> str:
        """Formats the bound."""
        return "" if self.bound is None else f"{'≤' if self.at_most else '≥'} {self.format(self.bound)}"


DISTINCT = "32 distinct all-layer plans"
TARGETS: Mapping[str, Target] = {
    "vllm 32": Target(f"32 requests, {DISTINCT} / vLLM CPU, compiled, unsteered, the faster setting: tokens/s", 1.5),
    "vllm 8": Target("8 requests, distinct all-layer plans / vLLM, the same", 1.5),
    "vllm 1": Target("1 request, all-layer plan / vLLM, the same", 1.5),
    "vllm unsteered 32": Target("32 requests, unsteered / vLLM, the same", None),
    "vllm long 1": Target("1 request, a prompt of 1,820 tokens, all-layer plan / vLLM, the same", 1.3),
    "vllm long first": Target("the same, first token: ours / vLLM: seconds", 1.2, at_most=True),
    "long products": Target("the same, first token / every linear layer once on 1,820 rows: seconds", 1.5, at_most=True),
    "vllm long 8": Target("8 requests, prompts of 1,820 tokens, distinct all-layer plans / vLLM, the same", 1.3),
    "memory limit": Target("1 row, all-layer plan, decoding / reading the weights of all linear layers, as the engine stores them, from memory once a token", 0.75),
    "linears 1": Target("1 row, all-layer plan, decoding / the linear layers alone: tokens/s", 0.9),
    "linears 8": Target("8 rows, distinct all-layer plans, decoding / the linear layers alone", 0.85),
    "linears 32": Target(f"32 rows, {DISTINCT}, decoding / the linear layers alone", 0.65),
    "one at a time": Target(f"32 requests, {DISTINCT} / a global hook, one configuration at a time: tokens/s", 15.0),
    "one layer": Target("32 rows, steered at one layer / unsteered: tokens/s", 0.98),
    "all layers": Target("32 rows, one plan of adds at all layers / unsteered", 0.98),
    "distinct plans": Target("32 rows, distinct adds at all layers / unsteered", 0.98),
    "mixed operations": Target("32 rows, mixed operations with conditions / unsteered", 0.95),
    "maps": Target("32 rows, maps of rank 4 at four layers / unsteered", 0.95),
    "1 monitors": Target("32 rows, unsteered, 1 monitor / none: tokens/s", 0.98),
    "4 monitors": Target("32 rows, unsteered, 4 monitors at as many layers / none", None),
    "generate": Target("1 request, all-layer plan / plain transformers.generate: tokens/s", 1.6),
    "first token": Target("prompt of 512, steered at all layers: first token / a plain forward pass: seconds", 1.15, at_most=True),
    "first token unsteered": Target("prompt of 512, unsteered: first token / a plain forward pass", None, at_most=True),
    "extraction": Target("pairs/s, texts to directions at all layers / the faster peer at its best batch size", 2.0),
    "extraction with card": Target("the same, with our quality card from held-out pairs", None),
    "server": Target("32 streams: throughput lost between the bare engine and its clients over HTTP", 0.05, at_most=True, percent=True),
    "mixed load": Target("mixed load, 6 per second, distinct all-layer plans / vLLM, unsteered, the faster setting: tokens/s", 1.2),
    "mixed load offered": Target("the same, of a server that answers at once / vLLM: tokens/s", None),
    "mixed load first": Target("the same, first token, median: ours / vLLM, the setting with the earlier one", 1.0, at_most=True),
    "mixed load first p99": Target("the same, first token, p99", 1.0, at_most=True),
    "saturated": Target("mixed load, 12 per second, distinct all-layer plans / vLLM, unsteered, the faster setting: tokens/s", 1.2),
    "saturated offered": Target("the same, of a server that answers at once / vLLM: tokens/s", None),
    "saturated first": Target("the same, first token, median: ours / vLLM, the setting with the earlier one", 1.0, at_most=True),
    "saturated first p99": Target("the same, first token, p99", 1.0, at_most=True),
    "busy 1": Target("another process keeps one processor busy: 1 request, all-layer plan / vLLM in the same situation: tokens/s", 1.0),
    "busy 8": Target("the same, 8 requests, distinct all-layer plans", 1.0),
    "busy 32": Target("the same, 32 requests", 1.0),
    "two busy 1": Target("two processors kept busy: 1 request, all-layer plan / vLLM in the same situation: tokens/s", 1.0),
    "two busy 8": Target("the same, 8 requests, distinct all-layer plans", 1.0),
    "two busy 32": Target("the same, 32 requests", 1.0),
    "gap": Target("8 streams, a prompt of 2,000 arrives: gap between tokens, p99 / median", 4.0, at_most=True),
}  # fmt: skip
