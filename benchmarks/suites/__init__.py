"""The suites of a run, in order; `--only` names them."""

from collections.abc import Callable, Mapping

from benchmarks.bench import Bench
from benchmarks.suites import (
    busy_processor,
    extraction,
    first_token,
    long_prompt,
    mixed_load,
    server,
    steering_cost,
    throughput,
)

SUITES: Mapping[str, Callable[[Bench], None]] = {
    "throughput": throughput.run,
    "steering-cost": steering_cost.run,
    "first-token": first_token.run,
    "extraction": extraction.run,
    "server": server.run,
    "long-prompt": long_prompt.run,
    "mixed-load": mixed_load.run,
    "busy-processor": busy_processor.run,
}
