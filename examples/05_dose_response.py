"""How much of the concept does the text show at each strength? Needs `make serve` and a vector (see 04_client.py)."""

import sys

from steering.client import Client

STRENGTHS = (-1.0, -0.5, 0.0, 0.5, 1.0)


def main(url: str = "http://127.0.0.1:8000", vector: str = "gladness", *, samples: int = 4) -> dict[float, float]:
    """Mean readout of the written tokens by strength, in natural scales; the table is printed."""
    with Client(url) as client:
        answer = client.compare(
            "My day was",
            intervention={"vector": vector},
            strengths=STRENGTHS,
            readout=[vector],
            n=samples,
            max_tokens=24,
            seed=1,
        )
    readouts: dict[float, float] = {}
    print("strength  readout      KL  perplexity  repetition")
    for arm in answer.arms:
        strength = 0.0 if arm.name == "base" else float(arm.name)
        assert arm.metrics is not None, arm.error
        readouts[strength] = arm.metrics.readout[vector].mean
        against = arm.against_baseline
        kl = against.kl_mean if against is not None and against.kl_mean is not None else 0.0
        perplexity = arm.metrics.perplexity or float("nan")
        print(
            f"{strength:+8.2f} {readouts[strength]:+8.2f} {kl:7.3f} {perplexity:11.1f} {arm.metrics.repetition:11.2f}"
        )
    return dict(sorted(readouts.items()))


if __name__ == "__main__":
    main(*sys.argv[1:])
