"""Collects what monitors measured, labelled by their names, when Prometheus scrapes."""

from collections.abc import Callable, Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from steering.engine.readings import EDGES, Monitor


class MonitorCollector(Collector):
    """Names of monitors are labels: an admin chooses them, and a policy has few."""

    def __init__(self, monitors: Callable[[], Sequence[Monitor]]) -> None:
        self._monitors = monitors

    def collect(self) -> Iterator[Metric]:
        """Yields the metrics of every monitor."""
        labels = ["monitor"]
        # the format has no sum and count of a histogram with negative values
        scores = HistogramMetricFamily("steering_monitor_score", "Scores of a monitor.", labels=labels)
        counted = CounterMetricFamily("steering_monitor_scores", "Scores of a monitor, counted.", labels=labels)
        raised = CounterMetricFamily(
            "steering_monitor_raised", "Scores beyond the bound of a monitor.", labels=[*labels, "action"]
        )
        answers = CounterMetricFamily(
            "steering_monitor_answers", "Answers in which a monitor was raised.", labels=[*labels, "action"]
        )
        for one in self._monitors():
            statistics, total = one.statistics, 0
            buckets: list[tuple[str, float]] = []
            for edge, count in zip((*map(str, EDGES), "+Inf"), statistics.buckets, strict=True):
                total += count
                buckets.append((edge, total))
            scores.add_metric([one.name], buckets=buckets, sum_value=None)
            counted.add_metric([one.name], total)
            raised.add_metric([one.name, one.action], statistics.raised)
            answers.add_metric([one.name, one.action], statistics.answers)
        yield scores
        yield counted
        yield raised
        yield answers
