"""The table of closed-loop control in docs/dose_response_results.md."""

from benchmarks.quality.page import results, table


def holding_table() -> str:
    """Shows how near the mean readout of an answer comes to the set point, held and at the same mean strength."""
    rows = [
        (
            concept,
            f"{row['score']:+.1f}",
            f"{row['mean']:+.2f}",
            f"{row['deviation']:.2f}",
            f"{row['near']:.0%}",
            f"{row['fixed_deviation']:.2f}",
            f"{row['strength']:+.2f}",
            f"{row['dose']:.2f}",
        )
        for concept, found in results().get("holding", {}).items()
        for row in found
    ]
    columns = (
        "concept", "set point", "mean readout", "deviation", "within 0.15", "deviation at a fixed strength",
        "mean strength", "relative dose",
    )  # fmt: skip
    return table(columns, rows)
