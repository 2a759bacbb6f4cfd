"""A server's own histograms between two looks."""

from __future__ import annotations

import pytest

from headrace.bench.scrape import add, read_histograms, since, told

PAGE = """\
# TYPE headrace_queue_seconds histogram
headrace_queue_seconds_bucket{le="0.1"} 2.0
headrace_queue_seconds_bucket{le="0.2"} 4.0
headrace_queue_seconds_bucket{le="+Inf"} 4.0
headrace_queue_seconds_count 4.0
headrace_queue_seconds_sum 0.5
vllm:request_prefill_time_seconds_bucket{engine="0",le="0.5",model_name="m"} 1.0
vllm:request_prefill_time_seconds_bucket{engine="1",le="0.5",model_name="m"} 2.0
vllm:request_prefill_time_seconds_bucket{engine="0",le="+Inf",model_name="m"} 1.0
vllm:request_prefill_time_seconds_bucket{engine="1",le="+Inf",model_name="m"} 2.0
vllm:request_prefill_time_seconds_sum{engine="0",model_name="m"} 0.3
process_cpu_seconds_total 12.0
"""


def test_stages_are_found_by_any_servers_name() -> None:
    found = read_histograms(PAGE)
    assert set(found) == {"queue", "prefill"}
    assert found["prefill"] == {0.5: 3.0, float("inf"): 3.0, -1.0: 0.3}


def test_quantiles_are_interpolated_within_buckets() -> None:
    stage = told(read_histograms(PAGE))["queue"]
    assert stage["count"] == 4 and stage["mean_ms"] == pytest.approx(125)
    assert stage["median_ms"] == pytest.approx(100) and stage["p99_ms"] == pytest.approx(198)


def test_only_what_came_in_between_counts() -> None:
    later = PAGE.replace('le="0.2"} 4.0', 'le="0.2"} 10.0').replace('le="+Inf"} 4.0', 'le="+Inf"} 10.0')
    between = since(read_histograms(PAGE), read_histograms(later))
    assert set(told(between)) == {"queue"}
    assert told(between)["queue"]["median_ms"] == pytest.approx(150)
    twice = add(between, between)
    assert told(twice)["queue"]["count"] == 12
    assert told(add({}, between)) == told(between)
