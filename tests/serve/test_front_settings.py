"""Settings, flags, limits and meters: every knob spelled once, checked, shown and tested."""

from __future__ import annotations

import dataclasses
import re
import typing
from pathlib import Path

import msgspec
import pytest
from face_bench import FaceBench
from prometheus_client.parser import text_string_to_metric_families

from headrace.runtime.config import EngineConfig
from headrace.server.config import Limits, ServerConfig, describe, field_notes, is_loopback, show
from headrace.server.flags import parse
from headrace.server.metrics import COUNTERS, Histogram, Metrics

STRUCTS = (ServerConfig, Limits, EngineConfig)

# Which test holds each limit at its edge. A new limit without a row fails here.
HELD_BY = {
    "max_sockets": "test_ws08_connections_of_the_process",
    "max_sockets_per_key": "test_ws08_connections_of_one_key",
    "max_sockets_per_ip": "test_ws08_connections_of_one_address",
    "header_timeout": "test_sec32_a_head_must_come_in_time",
    "body_timeout": "test_sec32_a_body_must_come_in_time",
    "idle_timeout": "test_silent_connections_are_closed_without_a_word",
    "linger_timeout": "test_sec32_a_head_must_come_in_time",
    "max_request_line": "test_sec32_request_line",
    "max_header_line": "test_sec32_header_line",
    "max_headers": "test_sec32_header_count",
    "max_head": "test_sec32_whole_head",
    "max_body": "test_sec32_body_of_the_server",
    "max_chunks": "test_sec32_chunk_count",
    "max_pipelined": "test_what_waits_behind_an_answer_is_bounded",
    "ws_max_message": "test_ws09_message_size",
    "ws_max_fragments": "test_ws03_fragment_count",
    "ws_max_malformed": "test_ws09_unreadable_messages_are_counted",
    "ws_ping_interval": "test_pings_and_their_timeout",
    "ws_ping_timeout": "test_pings_and_their_timeout",
    "ws_close_timeout": "test_ws11_a_peer_that_never_answers_a_close_is_cut_off",
    "image_fetch_timeout": "test_sec30_a_slow_host_is_given_up",
    "input_budget": "test_input_over_the_budget_waits_and_the_newest_is_shed",
    "input_patience": "test_input_over_the_budget_waits_and_the_newest_is_shed",
    "write_high_water": "test_ws07_a_stalled_reader_holds_little_and_delays_nobody",
    "slow_reader_limit": "test_a_stalled_reader_is_not_rendered_for_and_dropped_in_the_end",
    "requests_per_socket": "test_the_in_flight_limit_to_the_number",
    "lanes_per_socket": "test_the_named_lane_limit_to_the_number",
    "ws_age_limit": "test_the_age_limit_closes_an_idle_socket_without_a_frame",
    "resume_seconds": "test_limits_of_held_responses_are_settings",
    "resume_bytes": "test_all_that_is_held_is_bounded_and_old_ends_go_first",
    "resume_streams": "test_only_so_many_wait_for_a_reader",
    "resume_tokens": "test_an_abandoned_stream_goes_on_up_to_the_ring_or_pauses_at_once",
    "pins_per_key": "test_the_eleventh_pin_is_refused_and_another_key_has_its_own",
    "pin_share": "test_pins_hold_their_share_at_most_and_give_way_before_anybody_waits_for_ever",
    "drafts_per_socket": "test_drafts_are_few_and_bounded",
    "draft_idle": "test_what_is_not_sent_leaves_nothing",
    "waiting_per_socket": "test_the_waiting_limit_to_the_number",
}


def test_every_limit_names_its_test() -> None:
    assert set(HELD_BY) == {field.name for field in msgspec.structs.fields(Limits)}
    sources = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    for name, test in HELD_BY.items():
        assert f"def {test}(" in sources, name


def test_every_setting_is_described_and_spelled_once() -> None:
    names: list[str] = []
    for struct in STRUCTS:
        notes = field_notes(struct)
        for field in msgspec.structs.fields(struct):
            if isinstance(field.default, msgspec.Struct):
                continue
            names.append(field.name)
            assert notes[field.name][0], f"{field.name} has no description"
    assert len(names) == len(set(names)), "one flag, one meaning"


def test_the_defaults_are_what_no_flags_give() -> None:
    assert parse([]) == ServerConfig()


def test_every_flag_reaches_its_field() -> None:
    for struct, read in (
        (ServerConfig, lambda config: config),
        (Limits, lambda config: config.limits),
        (EngineConfig, lambda config: config.engine),
    ):
        hints = typing.get_type_hints(struct)
        notes = field_notes(struct)
        for field in msgspec.structs.fields(struct):
            kind, default = hints[field.name], field.default
            if isinstance(default, msgspec.Struct):
                continue
            flag = "--" + field.name.replace("_", "-")
            value: object
            if kind is bool:
                value = not default
                argv = [flag if value else flag.replace("--", "--no-", 1)]
            elif typing.get_origin(kind) is typing.Literal:
                value = typing.get_args(kind)[-1]
                argv = [flag, str(value)]
            elif typing.get_origin(kind) is tuple:
                value = ("one", "two")
                argv = [flag, "one", flag, "two"]
            elif kind is str:
                value = "text"
                argv = ["text"] if notes[field.name][1].get("positional") else [flag, "text"]
            elif kind is float:
                value = default / 2 if default else 2.5
                argv = [flag, str(value)]
            else:
                value = default + 1 if default else 1
                argv = [flag, str(value)]
            assert getattr(read(parse(argv)), field.name) == value, flag


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--port", "x"], "--port"),
        (["--port", "65536"], "65535"),
        (["--port", "-1"], "--port"),
        (["--max-running", "-1"], "--max-running"),
        (["--ws-max-message", "32X"], "32M"),
        (["--ws-max-message", "1"], "1024"),
        (["--header-timeout", "0"], "--header-timeout"),
        (["--header-timeout", "nan"], "--header-timeout"),
        (["--drain", "inf"], "--drain"),
        (["--dtype", "float64"], "float32"),
        (["--nonsense"], "--nonsense"),
        (["--host", ""], "--host"),
        (["one", "two"], "two"),
    ],
)
def test_a_wrong_value_is_a_sentence_and_code_2(
    argv: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit:
        parse(argv)
    assert exit.value.code == 2
    said = capsys.readouterr().err
    assert words in said and "Traceback" not in said


def test_help_names_every_flag_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        parse(["--help"])
    assert exit.value.code == 0
    said = re.sub(r"\s+", " ", capsys.readouterr().out)
    for struct in STRUCTS:
        notes = field_notes(struct)
        for field in msgspec.structs.fields(struct):
            if isinstance(field.default, msgspec.Struct) or notes[field.name][1].get("positional"):
                continue
            assert "--" + field.name.replace("_", "-") in said
            assert f"[{show(field.default, notes[field.name][1].get('unit', ''))}]" in said


@pytest.mark.parametrize(
    ("text", "size"), [("65536", 65536), ("64K", 65536), ("32m", 32 << 20), ("1GiB", 1 << 30)]
)
def test_sizes_may_carry_a_unit(text: str, size: int) -> None:
    assert parse(["--ws-max-message", text]).limits.ws_max_message == size


def test_what_is_printed_at_start_holds_every_setting_and_no_secret() -> None:
    config = parse(["--api-key", "sesame", "--api-key", "street", "--ws-max-message", "16M"])
    said = describe(config)
    assert "sesame" not in said and "street" not in said
    assert "api_key = (2 set)" in said and "ws_max_message = 16M" in said and "insecure = off" in said
    names = [line.partition(" = ")[0] for line in said.splitlines()]
    assert len(names) == len(set(names))
    expected = {field.name for struct in STRUCTS for field in msgspec.structs.fields(struct)}
    assert set(names) == expected - {"limits", "engine"}


def test_loopback() -> None:
    assert all(
        is_loopback(host) for host in ("127.0.0.1", "localhost", "LOCALHOST", "::1", "[::1]", "127.8.9.1")
    )
    assert not any(
        is_loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "example.org", "localhost.evil", "")
    )


def test_meters_become_prometheus_text() -> None:
    metrics = Metrics()
    metrics.request("GET", "/v1/models", 200)
    metrics.request("GET", "/v1/models", 200)
    metrics.request("BREW", "none", 405)
    for code in (1000, 4001, 4002, 3500):
        metrics.closed(code)
    metrics.bytes_in = 12
    metrics.set_output(lambda: (34, 5))
    metrics.add_source(lambda: {"steps": 7.0, "kv_pages_in_use": 3.0, "waiting": 1.0})
    for seconds in (0.0, 0.001, 0.0011, 1000.0):
        metrics.ttft.observe(seconds)
    found = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(metrics.text().decode())
        for sample in family.samples
    }
    assert (
        found["headrace_http_requests_total", ("method", "GET"), ("route", "/v1/models"), ("status", "200")]
        == 2
    )
    assert (
        found["headrace_http_requests_total", ("method", "other"), ("route", "none"), ("status", "405")] == 1
    )
    assert found["headrace_websocket_closes_total", ("code", "4xxx")] == 2
    assert found["headrace_websocket_closes_total", ("code", "3xxx")] == 1
    assert found["headrace_received_bytes_total",] == 12
    assert found["headrace_sent_bytes_total",] == 34 and found["headrace_writes_total",] == 5
    assert found["headrace_steps_total",] == 7 and found["headrace_kv_pages_in_use",] == 3
    assert "steps" in COUNTERS and "waiting" not in COUNTERS
    name = "headrace_time_to_first_token_seconds"
    assert found[f"{name}_bucket", ("le", "0.001")] == 2
    assert found[f"{name}_bucket", ("le", "0.0025")] == 3
    assert found[f"{name}_bucket", ("le", "+Inf")] == found[f"{name}_count",] == 4
    assert found[f"{name}_sum",] == pytest.approx(1000.0021)


async def test_only_what_grows_for_ever_is_named_total() -> None:
    """Every number of the runtime itself: what its scheduler counts up is a counter, the rest are gauges."""
    metrics = Metrics()
    server = FaceBench().runtime
    metrics.add_source(server.stats)
    kinds = {
        family.name: family.type
        for family in text_string_to_metric_families(metrics.text().decode())
        if any(sample.name.endswith("_total") for sample in family.samples) or family.type == "counter"
    }
    assert set(kinds.values()) == {"counter"}
    counted = {field.name for field in dataclasses.fields(server.loop.scheduler.counters)}
    assert counted & set(server.stats()) <= COUNTERS
    assert {f"headrace_{name}" for name in counted & set(server.stats())} <= set(kinds)
    assert b"\nheadrace_kv_pages " in metrics.text() and b"kv_pages_total" not in metrics.text()


def test_a_histogram_counts_each_value_once() -> None:
    histogram = Histogram("h", "help", (1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 2.5):
        histogram.observe(value)
    assert histogram.counts == [2, 2, 1] and histogram.sum == 7.5
