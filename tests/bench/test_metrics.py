from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from bench_runs import run, trace
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.bench.metrics import Bounds, compare, summarise
from headrace.bench.record import Trace

NO_BOUNDS = Bounds()


def one(*traces: Trace, bounds: Bounds = NO_BOUNDS) -> dict[str, Any]:
    """The summary of a single repeat."""
    return summarise([run(traces)], bounds)


def test_one_request_by_hand() -> None:
    found = one(trace(0, 0, [30, 40, 52, 60], ended=61))
    assert found["median_ttft_ms"] == 30
    assert found["median_itl_ms"] == 10
    assert found["mean_itl_ms"] == 10
    assert found["max_itl_ms"] == 12
    assert found["median_tpot_ms"] == 10
    assert found["median_e2el_ms"] == 60
    assert found["max_gap_p50_ms"] == 12
    assert found["total_output_tokens"] == 4 and found["total_input_tokens"] == 10
    assert found["output_throughput"] == pytest.approx(4 / 0.061)
    assert found["total_token_throughput"] == pytest.approx(14 / 0.061)
    assert found["request_throughput"] == pytest.approx(1 / 0.061)
    assert found["merged_token_share"] == 0
    assert found["stalls"] == 0
    assert (found["completed"], found["failed"], found["requests"]) == (1, 0, 1)
    assert found["valid"] and found["problems"] == [] and found["errors"] == []


def test_merged_chunks_are_one_gap_and_zeros() -> None:
    # 6 tokens in 3 chunks: gaps 20 and 40, and one zero for the first chunk, two for the last.
    found = one(trace(0, 0, [(10, 2), (30, 1), (70, 3)]))
    assert found["merged_token_share"] == pytest.approx(3 / 6)
    assert found["mean_itl_ms"] == pytest.approx(60 / 5)
    assert found["median_itl_ms"] == 0
    assert found["max_itl_ms"] == 40
    assert found["median_tpot_ms"] == pytest.approx(60 / 5)
    assert found["mean_itl_ms"] == found["mean_tpot_ms"]
    assert found["total_output_tokens"] == 6
    assert found["median_ttft_ms"] == 10


def test_zeros_do_not_turn_ordinary_gaps_into_stalls() -> None:
    chunks = [(10.0 * step, 3) for step in range(1, 20)]
    assert one(trace(0, 0, chunks))["stalls"] == 0
    stalled = one(trace(0, 0, [*chunks, (190 + 30.5, 3)]))
    assert stalled["stalls"] == 1
    assert stalled["stall_share"] == pytest.approx(1 / 19)


def test_jitter_is_p99_above_median() -> None:
    at = np.cumsum([5.0] * 99 + [105.0])
    found = one(trace(0, 0, list(at)))
    assert found["itl_jitter_ms"] == pytest.approx(np.percentile([5.0] * 98 + [105.0], 99) - 5)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(
        st.tuples(
            st.floats(0, 500),
            st.lists(st.tuples(st.floats(0.01, 90), st.integers(1, 4)), min_size=1, max_size=20),
        ),
        min_size=1,
        max_size=12,
    )
)
def test_percentiles_are_those_of_numpy(requests: list[tuple[float, list[tuple[float, int]]]]) -> None:
    traces, ttfts, itls, tpots = [], [], [], []
    for number, (sent, steps) in enumerate(requests):
        at = sent + np.cumsum([step for step, _ in steps])
        traces.append(trace(number, sent, list(zip(at, [tokens for _, tokens in steps], strict=True))))
        ttfts.append(steps[0][0])
        tokens = sum(tokens for _, tokens in steps)
        itls += [step for step, _ in steps[1:]] + [0.0] * (tokens - len(steps))
        if tokens > 1:
            tpots.append((at[-1] - at[0]) / (tokens - 1))
    found = one(*traces)
    for name, values in (("ttft", ttfts), ("itl", itls), ("tpot", tpots)):
        expected = {
            "mean": np.mean,
            "median": np.median,
            "std": np.std,
            "max": np.max,
            "p90": lambda of: np.percentile(of, 90),
            "p99": lambda of: np.percentile(of, 99),
            "p999": lambda of: np.percentile(of, 99.9),
        }
        for statistic, function in expected.items():
            value = found[f"{statistic}_{name}_ms"]
            # Stamps are whole nanoseconds.
            assert value == (pytest.approx(function(values), abs=1e-5) if values else None)
    assert found["total_output_tokens"] == len(itls) + len(requests)
    json.dumps(found, allow_nan=False)


def test_an_open_loop_sees_every_request_that_a_freeze_kept_waiting() -> None:
    # One request is due every 10 ms; the server answers each in 1 ms, but stands still from 1000 to 2000. A client
    # that waits for the frozen server sends what was due in between only at 2000: measured from sending, 99 of the
    # 100 requests of that second would look perfect.
    traces = []
    for number in range(300):
        due = number * 10.0
        sent = due if not 1000 < due < 2000 else 2000.0
        first = max(sent, 2000.0) + 1 if 1000 <= due < 2000 else sent + 1
        traces.append(trace(number, sent, [first, first + 1], due=due))
    found = one(*traces)
    assert found["max_ttft_ms"] == pytest.approx(1001)
    waits = [1 + (2000 - number * 10 if 1000 <= number * 10 < 2000 else 0) for number in range(300)]
    assert found["mean_ttft_ms"] == pytest.approx(np.mean(waits))
    assert found["p90_ttft_ms"] == pytest.approx(np.percentile(waits, 90))
    assert found["max_send_delay_ms"] == pytest.approx(990)
    assert max(ttft for _, ttft, _ in found["samples"]["course"]["requests"]) == pytest.approx(1001)


def test_a_closed_loop_is_due_when_it_sends() -> None:
    found = one(trace(0, 0, [5, 6]), trace(1, 100, [107, 108]))
    assert found["median_ttft_ms"] == 6
    assert found["max_send_delay_ms"] == 0


def test_a_count_that_usage_contradicts_is_an_error_and_touches_no_average() -> None:
    good = trace(0, 0, [30, 40, 50])
    bad = trace(1, 0, [900, 1900, 2900], output_tokens=4)
    found = one(good, bad)
    assert (found["completed"], found["failed"], found["miscounted"]) == (1, 1, 1)
    assert found["errors"] == [{"message": "counted 3 tokens where usage says 4", "count": 1, "request": 1}]
    assert not found["valid"] and "token counts" in found["problems"][0]
    assert found["max_ttft_ms"] == 30 and found["max_itl_ms"] == 10
    assert found["total_output_tokens"] == 3


def test_more_tokens_than_asked_for_is_an_error() -> None:
    found = one(trace(0, 0, [30, 40, 50], wanted_tokens=2, output_tokens=None))
    assert found["miscounted"] == 1 and not found["valid"]


def test_fewer_tokens_than_asked_for_are_told() -> None:
    found = one(trace(0, 0, [30, 40], wanted_tokens=5, finish="stop"))
    assert found["ended_early"] == 1 and found["valid"]


def test_answers_without_usage_are_told() -> None:
    assert one(trace(0, 0, [30, 40], output_tokens=None))["unverified"] == 1


def test_failures_are_counted_by_message_and_are_part_of_no_latency() -> None:
    found = one(
        trace(0, 0, [30, 40]),
        trace(1, 0, [700], error="429"),
        trace(2, 0, [], error="429"),
        trace(3, 0, []),
    )
    assert found["failed"] == 3 and found["completed"] == 1
    assert found["errors"] == [
        {"message": "429", "count": 2, "request": 1},
        {"message": "ended without a token", "count": 1, "request": 3},
    ]
    assert found["max_ttft_ms"] == 30
    assert found["valid"]


def test_nothing_that_succeeded_is_no_result() -> None:
    found = one(trace(0, 0, [], error="refused", ended=10))
    assert not found["valid"]
    assert found["median_ttft_ms"] is None and found["max_gap_p99_ms"] is None
    assert found["output_throughput"] == 0
    json.dumps(found, allow_nan=False)


def test_requests_left_on_purpose_are_no_failures_and_no_answers() -> None:
    found = one(
        trace(0, 0, [30, 40, 50, 60]),
        trace(1, 0, [10, 50], left=True, output_tokens=None, wanted_tokens=100),
        trace(2, 0, [], left=True, output_tokens=None, wanted_tokens=100, ended=5),
        bounds=Bounds(ttft_ms=1000),
    )
    assert (found["completed"], found["left"], found["failed"]) == (1, 2, 0)
    assert found["max_itl_ms"] == 40  # what it saw before it left counts
    assert found["max_tpot_ms"] == 40
    assert found["max_e2el_ms"] == 60  # but it is no whole answer
    assert found["request_goodput"] == pytest.approx(1 / 0.06)
    assert found["ended_early"] == 0 and found["unverified"] == 0


def test_goodput_needs_every_bound() -> None:
    traces = [
        trace(0, 0, [30, 40, 50, 100]),  # tpot 23.3, gap 50
        trace(1, 0, [80, 90, 100]),  # ttft 80
        trace(2, 0, [20, 30, 40]),
        trace(3, 0, [20]),  # a single token breaks neither TPOT nor gap
    ]

    def goodput(**bounds: float) -> float:
        found = one(*traces, bounds=Bounds(**bounds))
        return round(found["request_goodput"] * found["duration"], 6)

    assert goodput(ttft_ms=30) == 3
    assert goodput(ttft_ms=29.9) == 2
    assert goodput(tpot_ms=10) == 3
    assert goodput(max_gap_ms=10) == 3
    assert goodput(e2el_ms=40) == 2
    assert goodput(ttft_ms=30, tpot_ms=10) == 2
    assert one(*traces)["request_goodput"] is None
    ladder = one(*traces)["goodput"]
    assert {key: round(value * 0.1, 6) for key, value in ladder.items()} == {
        "2000/100": 4,
        "500/30": 4,
        "100/10": 3,
    }


def test_steady_throughput_leaves_out_the_first_and_the_last_wave() -> None:
    # Two streams, four waves of 2 tokens: the first is slow (cold), the last runs half empty.
    traces = [
        trace(0, 0, [100, 200]),
        trace(1, 0, [100, 210]),
        trace(2, 201, [220, 230]),
        trace(3, 211, [220, 240]),
        trace(4, 231, [250, 260]),
        trace(5, 241, [250, 270]),
        trace(6, 261, [280, 500]),
        trace(7, 271, [900]),
    ]
    found = one(*traces)
    # From 210, when the first wave had ended, to 261, when the first request of the last one was sent.
    assert found["steady_window"] == "waves"
    assert found["steady_duration"] == pytest.approx(0.051)
    assert found["steady_output_throughput"] == pytest.approx(7 / 0.051)
    assert found["output_throughput"] == pytest.approx(15 / 0.9)
    assert found["first_wave_requests"] == 2
    assert found["first_wave_median_ttft_ms"] == 100
    assert found["later_waves_median_ttft_ms"] == pytest.approx(19)
    assert found["max_concurrent_requests"] == 2


def test_steady_throughput_of_a_single_wave_is_that_of_full_company() -> None:
    found = one(trace(0, 0, [10, 20, 30, 40, 50]), trace(1, 0, [25, 35, 45, 55, 65]))
    # Both decode from 25 to 50.
    assert found["steady_window"] == "decode"
    assert found["steady_output_throughput"] == pytest.approx(5 / 0.025)


def test_there_may_be_no_steady_time() -> None:
    found = one(trace(0, 0, [10]), trace(1, 5, [12]))
    assert found["steady_output_throughput"] is None and found["steady_window"] is None


def test_parts_are_told_apart() -> None:
    found = one(trace(0, 0, [10, 20, 30], part="decode"), trace(1, 5, [200, 201], part="long"))
    assert sorted(found["parts"]) == ["decode", "long"]
    assert found["parts"]["decode"]["median_ttft_ms"] == 10
    assert found["parts"]["long"]["median_ttft_ms"] == 195
    assert found["parts"]["decode"]["max_itl_ms"] == 10
    assert found["spread"]["parts"]["long"]["median_ttft_ms"] == [195, 195]
    assert sorted(found["samples"]["parts"]) == ["decode", "long"]
    assert "parts" not in one(trace(0, 0, [10, 20]))


def test_the_servers_own_split_is_in_ms() -> None:
    found = one(
        trace(0, 0, [10, 20], split={"queue": 0.001, "prefill": 0.004}),
        trace(1, 0, [10, 20], split={"queue": 0.003}),
    )
    assert found["split"]["queue"] == {
        "mean_ms": pytest.approx(2),
        "median_ms": pytest.approx(2),
        "p99_ms": pytest.approx(2.98),
        "max_ms": pytest.approx(3),
    }
    assert found["split"]["prefill"]["median_ms"] == pytest.approx(4)


def test_repeats_give_medians_sums_and_the_worst() -> None:
    runs = [
        run([trace(0, 0, [9000])], warmup=True),
        run([trace(0, 0, [10, 20])], cpu_s=0.2),
        run([trace(0, 0, [40, 90])], cpu_s=0.3),
        run([trace(0, 0, [20, 26]), trace(1, 0, [], error="reset", ended=1)], cpu_s=0.1),
    ]
    found = summarise(runs, NO_BOUNDS)
    assert found["median_ttft_ms"] == 20
    assert found["spread"]["median_ttft_ms"] == [10, 40]
    assert found["max_itl_ms"] == 50  # the worst, not the median
    assert found["median_itl_ms"] == 10
    assert (found["requests"], found["completed"], found["failed"]) == (4, 3, 1)
    assert found["client_cpu_pct"] == pytest.approx(30)
    assert found["client_events_per_s"] == 100
    assert len(found["repeats"]) == 3 and found["warmup_runs"] == 1
    assert found["repeats"][1]["median_ttft_ms"] == 40
    assert found["samples"]["parts"]["main"]["ttft_ms"]["count"] == 3
    json.dumps(found, allow_nan=False)


def test_what_one_repeat_lacks_does_not_sink_the_others() -> None:
    found = summarise([run([trace(0, 0, [10])]), run([trace(0, 0, [10, 14])])], NO_BOUNDS)
    assert found["median_itl_ms"] == 4
    assert found["repeats"][0]["median_itl_ms"] is None


def test_a_busy_client_spoils_the_result() -> None:
    assert summarise([run([trace(0, 0, [10, 20])], cpu_s=0.70)], NO_BOUNDS)["valid"]
    found = summarise([run([trace(0, 0, [10, 20])], cpu_s=0.71)], NO_BOUNDS)
    assert not found["valid"] and "71 % busy" in found["problems"][0]


def test_warm_up_alone_is_no_measurement() -> None:
    with pytest.raises(ValueError, match="warm-up"):
        summarise([run([trace(0, 0, [10, 20])], warmup=True)], NO_BOUNDS)


def test_failed_warm_up_requests_are_told() -> None:
    found = summarise(
        [run([trace(0, 0, [], error="500")], warmup=True), run([trace(0, 0, [10, 20])])], NO_BOUNDS
    )
    assert (found["warmup_failed"], found["failed"]) == (1, 0)


def test_comparison_pairs_repeats() -> None:
    # The machine slows down by half during the sitting; the second server is 20 % faster throughout.
    slow = [run([trace(0, 0, [10 * drift, 20 * drift])]) for drift in (1, 2, 4)]
    fast = [run([trace(0, 0, [8 * drift, 16 * drift])]) for drift in (1, 2, 4)]
    found = compare(summarise(slow, NO_BOUNDS), summarise(fast, NO_BOUNDS))
    assert found["median_ttft_ms"]["repeats"] == pytest.approx([0.8, 0.8, 0.8])
    assert found["median_ttft_ms"]["spread"] == pytest.approx([0.8, 0.8])
    assert found["output_throughput"]["median"] == pytest.approx(1.25)
    assert "request_goodput" not in found


def test_comparison_by_part_and_of_unequal_repeats() -> None:
    runs = [run([trace(0, 0, [10, 20], part="a"), trace(1, 0, [30, 40], part="b")])]
    summary = summarise(runs, NO_BOUNDS)
    assert compare(summary, summary)["parts"]["b"]["median_ttft_ms"]["median"] == 1
    with pytest.raises(ValueError, match="pair"):
        compare(summary, summarise(runs * 2, NO_BOUNDS))


def test_the_sketch_keeps_the_extremes_and_the_tail() -> None:
    values = list(range(1, 5001))
    at = np.cumsum([1, *values])
    sketch = one(trace(0, 0, list(at)))["samples"]
    itl = sketch["parts"]["main"]["itl_ms"]
    assert itl["count"] == 5000
    assert (itl["quantiles"][0], itl["quantiles"][-1]) == (1, 5000)
    place = sketch["probabilities"].index(0.999)
    assert itl["quantiles"][place] == pytest.approx(np.quantile(values, 0.999), rel=1e-4)
    assert itl["quantiles"] == sorted(itl["quantiles"])


def test_the_timeline_of_a_small_run_is_whole() -> None:
    timeline = one(trace(7, 2, [12.5, (20, 3), 31]), trace(8, 3, [14, 15, 16]))["samples"]["timeline"]
    assert timeline["whole"] and timeline["answers"] == 2
    first, second = timeline["rows"]
    assert (first["number"], first["sent_ms"], first["at_us"], first["tokens"]) == (
        7,
        2,
        [10500, 7500, 11000],
        [1, 3, 1],
    )
    assert second["at_us"] == [11000, 1000, 1000] and "tokens" not in second


def test_the_timeline_of_a_large_run_stays_small_and_shows_the_longest_gap() -> None:
    traces = []
    for number in range(100):
        steps = np.full(1000, 5.0)
        if number == 61:
            steps[700] = 400.0
        traces.append(trace(number, 0, list(number / 10 + np.cumsum(steps))))
    found = one(*traces)
    timeline = found["samples"]["timeline"]
    assert not timeline["whole"] and timeline["answers"] == 100
    assert len(timeline["rows"]) <= 48
    assert sum(len(row["at_us"]) for row in timeline["rows"]) <= 4000
    [worst] = [row for row in timeline["rows"] if row["number"] == 61]
    assert 400_000 in worst["at_us"][1:]
    assert len(json.dumps(found["samples"])) < 100_000
    assert sum(found["samples"]["course"]["tokens"]) == 100_000
