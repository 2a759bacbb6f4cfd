"""Numbers for operators, as Prometheus text. Knows counters and labels; must not know requests' contents.

Every label value comes from a list written here or from the route table, so no client can grow the label set.
Counting is plain integers on the loop thread; prometheus-client turns them into text at scrape time.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})
NO_ROUTE = "none"  # the template of requests that matched nothing

_SECONDS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0,
)  # fmt: skip
_SHORT = (
    0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 5.0,
)  # fmt: skip

# Names of runtime stats that only ever grow; all others are gauges.
COUNTERS = frozenset(
    {
        "prefill_tokens_computed",
        "decode_tokens_computed",
        "steps",
        "graph_replays",
        "eager_steps",
        "admissions",
        "retractions",
        "slots_yielded",
        "pins_refused",
        "pins_expired",
        "pins_evicted",
        "evicted_pages",
        "copied_pages",
        "reader_pauses",
        "drafts_opened",
        "drafts_sent",
        "drafts_given_up",
        "draft_tokens_computed",
        "draft_tokens_used",
        "draft_tokens_wasted",
        "stream_resumes",
        "branches_begun",
        "branches_pruned",
        "branches_promoted",
        "cached_tokens",
        "prompt_tokens",
        "requests_finished",
        "requests_failed",
        "requests_cancelled",
        "archive_failures",
    }
)
_TINY = (
    1e-5, 2e-5, 5e-5, 1e-4, 1.5e-4, 2e-4, 3e-4, 5e-4, 7e-4, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05,
    0.2,
)  # fmt: skip
_HOST = (
    5e-5, 1e-4, 2e-4, 3e-4, 5e-4, 7e-4, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5, 30.0,
)  # fmt: skip
# `_total` is how Prometheus spells counters: a gauge of that name would be read as one.
RENAMED = {"kv_pages_total": "kv_pages"}


class Histogram:
    """Counts of observations by upper bound. `observe` costs a binary search and two additions."""

    __slots__ = ("bounds", "counts", "help", "name", "sum")

    def __init__(self, name: str, help: str, bounds: Sequence[float]) -> None:
        self.name = name
        self.help = help
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count one value (seconds), so many times."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    def family(self) -> Metric:
        """The histogram in the client library's form, counts cumulated."""
        total = 0
        buckets: list[tuple[str, float]] = []
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            total += count
            buckets.append((bound, total))
        return HistogramMetricFamily(self.name, self.help, buckets=buckets, sum_value=self.sum)


class Metrics(Collector):
    """All meters of the server. Whoever measures increments the fields directly, on the loop thread."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, str, int]] = Counter()
        self.refused_connections = 0
        self.connections: Counter[str] = Counter()  # "http", "websocket": open now
        self.bytes_in = 0
        self.messages_in = 0  # WebSocket messages
        self.closes: Counter[str] = Counter()  # WebSocket close codes, ours and theirs
        self.read_at = 0.0  # monotonic seconds: when the bytes that are worked on now were read; 0: none are
        self.crashes = 0  # our own mistakes that ended a connection
        self.ignored_fields: Counter[str] = Counter()  # by route: fields that clients sent and nobody knows
        self.ttft = Histogram("headrace_time_to_first_token_seconds", "request to first token", _SECONDS)
        self.itl = Histogram("headrace_inter_token_latency_seconds", "token to token of one stream", _SHORT)
        self.queue = Histogram("headrace_queue_seconds", "request to its first step", _SECONDS)
        # The way of a first token through the host, in the order of its parts; `queue` is the last two together.
        self.parse = Histogram("headrace_request_parse_seconds", "bytes read to request taken", _HOST)
        self.prepare = Histogram("headrace_prompt_prepare_seconds", "request taken to prompt ready", _HOST)
        self.launch_wait = Histogram("headrace_launch_wait_seconds", "prompt ready to its first step", _HOST)
        self.e2e = Histogram("headrace_request_seconds", "request to last token", _SECONDS)
        self.step = Histogram("headrace_step_seconds", "one step of the engine", _SHORT)
        self.launch_gap = Histogram("headrace_launch_gap_seconds", "device idle for want of a launch", _TINY)
        self.look_lag = Histogram("headrace_look_lag_seconds", "longest time between looks in a step", _TINY)
        self._sources: list[Callable[[], Mapping[str, float]]] = []
        self.by_class: Callable[[], Mapping[str, Mapping[str, float]]] = dict  # name → class → number
        self._output: Callable[[], tuple[int, int]] = lambda: (0, 0)
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def add_source(self, stats: Callable[[], Mapping[str, float]]) -> None:
        """Read `stats()` at every scrape. Its names become headrace_NAME, with _total for those of COUNTERS
        and for no other (RENAMED)."""
        self._sources.append(stats)

    def set_output(self, output: Callable[[], tuple[int, int]]) -> None:
        """`output()` gives bytes written and writes made."""
        self._output = output

    def request(self, method: str, template: str, status: int) -> None:
        """Count one HTTP reply (or upgrade, 101). `template` comes from the route table, or is NO_ROUTE."""
        self.requests[method if method in METHODS else "other", template, status] += 1

    def closed(self, code: int) -> None:
        """Count the end of a WebSocket. Codes that peers may choose freely are counted as ranges."""
        if 1000 <= code <= 1015:
            self.closes[str(code)] += 1
        else:
            self.closes["4xxx" if 4000 <= code < 5000 else "3xxx"] += 1

    def text(self) -> bytes:
        """Everything in Prometheus' text format (CONTENT_TYPE)."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """The client library's call at scrape time."""
        yield _counter(
            "headrace_http_requests",
            "replies by method, route and status",
            ("method", "route", "status"),
            (((m, r, str(s)), n) for (m, r, s), n in self.requests.items()),
        )
        yield _counter(
            "headrace_websocket_closes",
            "closed WebSockets by code",
            ("code",),
            (((code,), n) for code, n in self.closes.items()),
        )
        yield _counter(
            "headrace_ignored_fields",
            "unknown request fields by route",
            ("route",),
            (((route,), n) for route, n in self.ignored_fields.items()),
        )
        connections = GaugeMetricFamily("headrace_connections", "open connections", labels=("kind",))
        for kind in ("http", "websocket"):
            connections.add_metric((kind,), self.connections[kind])
        yield connections
        written, writes = self._output()
        for name, help, value in (
            ("refused_connections", "connections refused for want of room", self.refused_connections),
            ("received_bytes", "bytes read from sockets", self.bytes_in),
            ("sent_bytes", "bytes written to sockets", written),
            ("writes", "writes to sockets", writes),
            ("websocket_messages", "WebSocket messages received", self.messages_in),
            ("crashes", "connections ended by a mistake of the server", self.crashes),
        ):
            yield CounterMetricFamily(f"headrace_{name}", help, value=value)
        for histogram in (
            self.ttft,
            self.itl,
            self.queue,
            self.parse,
            self.prepare,
            self.launch_wait,
            self.e2e,
            self.step,
            self.launch_gap,
            self.look_lag,
        ):
            yield histogram.family()
        for name, counts in self.by_class().items():
            words = name.replace("_", " ")
            by_class: GaugeMetricFamily | CounterMetricFamily
            if name == "queue_length":
                by_class = GaugeMetricFamily(f"headrace_{name}", words, labels=("class",))
            else:
                by_class = CounterMetricFamily(f"headrace_{name}", words, labels=("class",))
            for rank, number in counts.items():
                by_class.add_metric((rank,), number)
            yield by_class
        for source in self._sources:
            for key, number in source().items():
                name = RENAMED.get(key, key)
                words = name.replace("_", " ")
                if name in COUNTERS:
                    yield CounterMetricFamily(f"headrace_{name}", words, value=number)
                else:
                    yield GaugeMetricFamily(f"headrace_{name}", words, value=number)


def _counter(
    name: str, help: str, labels: tuple[str, ...], rows: Iterable[tuple[tuple[str, ...], int]]
) -> Metric:
    family = CounterMetricFamily(name, help, labels=labels)
    for values, count in rows:
        family.add_metric(values, count)
    return family
