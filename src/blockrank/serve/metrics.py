"""Metrics of a server for Prometheus, in a registry of its own: several servers in one process do not mix."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from blockrank.serve.refusals import CAUSES, Cause

Stage = Literal["tokenise", "queue", "forward", "readout"]
# Why a connection was ended: the timeout that passed, or room needed for another one.
Ending = Literal["idle", "header", "body", "write", "full"]
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_TOKENS = tuple(float(1 << power) for power in range(5, 18))
_REQUESTS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
# Values read when Prometheus asks: name -> (help, function).
Gauges = dict[str, tuple[str, Callable[[], float]]]


class Metrics:
    """Counters and histograms; `watch` adds values that are read when they are asked for."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._requests = self._counter("requests", "Requests answered.", "route", "status")
        self._latency = self._histogram("request_seconds", "From arrival to answer.", _SECONDS, "route")
        self._stages = self._histogram("stage_seconds", "A request's time in each stage.", _SECONDS, "stage")
        self._batch_tokens = self._histogram("batch_tokens", "Tokens of a forward.", _TOKENS)
        self._batch_requests = self._histogram("batch_requests", "Requests that shared a forward.", _REQUESTS)
        self._refusals = self._counter("rejections", "Requests that got no ranking, by cause.", "cause")
        self._documents = self._counter("documents", "Documents ranked.")
        self._tokens = self._counter("tokens", "Tokens of requests ranked.")
        self._cut_documents = self._counter("truncated_documents", "Documents cut to fit.")
        self._cut_queries = self._counter("truncated_queries", "Queries cut to fit.")
        self._endings = self._counter("connections_ended", "Connections ended by the server, by cause.", "cause")
        for ending in get_args(Ending):
            self._endings.labels(ending)
        for cause in CAUSES:
            self._refusals.labels(cause)  # initialised to 0, so that rates exist before the first event

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"blockrank_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"blockrank_{name}", text, labels, registry=self.registry, buckets=buckets)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """A request of a route got its answer."""
        self._requests.labels(route, status).inc()
        self._latency.labels(route).observe(seconds)

    def stage(self, name: Stage, seconds: float) -> None:
        """A request spent time in a stage."""
        self._stages.labels(name).observe(seconds)

    def forward(self, requests: int, tokens: int) -> None:
        """A forward ran."""
        self._batch_tokens.observe(tokens)
        if requests:
            self._batch_requests.observe(requests)

    def refused(self, cause: Cause) -> None:
        """A request got no ranking."""
        self._refusals.labels(cause).inc()

    def ended(self, why: Ending) -> None:
        """A connection was ended before its client did."""
        self._endings.labels(why).inc()

    def ranked(self, documents: int, tokens: int, cut_documents: int, cut_query: bool) -> None:
        """A request was ranked."""
        self._documents.inc(documents)
        self._tokens.inc(tokens)
        self._cut_documents.inc(cut_documents)
        self._cut_queries.inc(cut_query)

    def watch(self, gauges: Gauges, counters: Gauges) -> None:
        """Read values of the server whenever metrics are asked for."""
        self.registry.register(_Watched(gauges, counters))

    def text(self) -> bytes:
        """Everything, in the format of Prometheus."""
        return generate_latest(self.registry)


class _Watched(Collector):
    """Values that are read when they are asked for."""

    def __init__(self, gauges: Gauges, counters: Gauges) -> None:
        self._gauges, self._counters = gauges, counters

    def collect(self) -> Iterator[Metric]:
        """The values now."""
        for name, (text, read) in self._gauges.items():
            yield GaugeMetricFamily(f"blockrank_{name}", text, value=read())
        for name, (text, read) in self._counters.items():
            yield CounterMetricFamily(f"blockrank_{name}", text, value=read())
