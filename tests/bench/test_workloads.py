from __future__ import annotations

import itertools
import json
import random
import statistics
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from headrace.bench import arrivals, workloads
from headrace.bench.prompts import Prompts, calibrate, letters
from headrace.bench.record import Planned
from headrace.bench.words import WORDS
from headrace.bench.workloads import WorkloadError, WorkloadSettings, again, defaults, plan

EVERY_NAME = (*workloads.CELLS, *workloads.PRESETS, *workloads.SHAPES)


def planned(name: str, seed: int = 1, **changes: Any) -> list[Planned]:
    return plan(name, replace(defaults(name), **changes), seed)


@pytest.mark.parametrize("name", EVERY_NAME)
def test_every_workload_plans_and_its_seed_decides_everything(name: str) -> None:
    one, same, other = planned(name), planned(name), planned(name, seed=2)
    assert one == same
    assert one != other
    assert [request.number for request in one] == list(range(len(one)))
    assert all(request.output_tokens >= 1 and all(request.turns) for request in one)


@pytest.mark.parametrize("name", EVERY_NAME)
@pytest.mark.parametrize("prompt", ["ids", "words", "bytes"])
def test_no_prompt_is_sent_twice_unless_the_workload_says_so(name: str, prompt: str) -> None:
    requests = planned(name, prompt=prompt)
    if name == "reconnect-storm":
        firsts = [request for request in requests if request.part == "lost"]
        assert [request.turns for request in requests if request.part == "again"] == [f.turns for f in firsts]
        requests = firsts
    # Of a typed message the text so far is sent again and again: that is what it measures.
    requests = [request for request in requests if request.part != "typing"]
    last = [request.turns[-1] for request in requests]
    assert len(set(last)) == len(last)
    heads = {request.turns[0][:64] for request in requests}
    assert len(heads) == (1 if name.startswith("prefix") else len(requests))


def test_ids_have_the_exact_length_and_stay_in_their_range() -> None:
    requests = planned("c8_512_256", first_id=100, end_id=103)
    assert {len(request.turns[0]) for request in requests} == {512}
    assert {id_ for request in requests for id_ in request.turns[0]} == {100, 101, 102}
    assert len(requests) == 80
    assert all(request.output_tokens == 256 for request in requests)


@settings(deadline=None, derandomize=True)
@given(count=st.integers(1, 400), seed=st.integers(0, 2**32))
def test_bytes_are_exact_and_survive_stripping(count: int, seed: int) -> None:
    text = letters(count, random.Random(seed))
    assert len(text.encode()) == count
    assert text.strip() == text and "  " not in text


def test_bytes_with_a_shared_prefix_and_a_template_are_exact() -> None:
    requests = planned(
        "closed", prompt="bytes", input_tokens=300, shared_prefix_tokens=120, template_tokens=20.0, requests=5
    )
    texts = [str(request.turns[0]) for request in requests]
    assert {len(text) for text in texts} == {280}
    assert len({text[:120] for text in texts}) == 1
    assert len({text[:140] for text in texts}) == 5


def test_words_follow_the_calibration() -> None:
    # A server that counts 7 tokens of template and 1.5 per word.
    found = calibrate([(10, 22), (100, 157), (300, 457)])
    assert found.tokens_per_word == pytest.approx(1.5)
    assert found.template_tokens == pytest.approx(7)
    [request] = planned(
        "closed", requests=1, prompt="words", input_tokens=457, tokens_per_word=1.5, template_tokens=7.0
    )
    words = str(request.turns[0]).split(" ")
    assert len(words) == 300
    assert set(words) <= set(WORDS)


@pytest.mark.parametrize(
    "samples", [[], [(10, 12)], [(10, 12), (10, 13)], [(10, 30), (20, 30)], [(10, 9), (20, 5)]]
)
def test_a_calibration_that_cannot_be_is_refused(samples: list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match=r"calibration|counted"):
        calibrate(samples)


def test_the_words_are_many_short_and_different() -> None:
    assert len(set(WORDS)) == len(WORDS) > 300
    assert all(word.isascii() and word.isalpha() and word.islower() and len(word) <= 10 for word in WORDS)


def test_a_request_does_not_depend_on_how_many_there_are() -> None:
    few, many = planned("closed", requests=10), planned("closed", requests=30)
    assert few == many[:10]


def test_shared_prefix_is_shared_and_counts_as_input() -> None:
    requests = planned("prefix_2048_64_32")
    assert len(requests) == 160
    assert {len(request.turns[0]) for request in requests} == {2112}
    assert len({request.turns[0][:2048] for request in requests}) == 1
    assert len({request.turns[0][:2056] for request in requests}) == 160
    assert {request.stream for request in requests} == set(range(16))


def test_closed_loop_goes_round_its_streams() -> None:
    requests = planned("closed", concurrency=3, requests=7)
    assert [request.stream for request in requests] == [0, 1, 2, 0, 1, 2, 0]
    assert all(request.at is None and request.until == 0 for request in requests)


def test_a_timed_closed_loop_plans_one_request_per_stream_and_never_repeats_a_prompt() -> None:
    requests = planned("closed", concurrency=4, duration=5.0)
    assert [(request.stream, request.until) for request in requests] == [(stream, 5.0) for stream in range(4)]
    rounds = [again(requests[0], round_) for round_ in range(20)]
    assert rounds[0] == requests[0]
    assert len({request.turns for request in rounds}) == 20
    assert {len(request.turns[0]) for request in rounds} == {512}
    assert again(requests[0], 3) == again(requests[0], 3)


@pytest.mark.parametrize("prompt", ["ids", "words", "bytes"])
def test_again_keeps_every_length(prompt: str) -> None:
    [request] = planned("closed", concurrency=1, duration=5.0, prompt=prompt, turns=2)
    other = again(request, 1)
    for before, after in zip(request.turns, other.turns, strict=True):
        assert before != after
        assert len(before) == len(after)
        assert sorted(before) == sorted(after)  # type: ignore[type-var]
        if isinstance(before, str) and isinstance(after, str):
            assert sorted(before.split(" ")) == sorted(after.split(" "))


def test_turns_are_all_drawn() -> None:
    requests = planned("multi-turn")
    assert all(len(request.turns) == 5 for request in requests)
    assert all({len(turn) for turn in request.turns} == {64} for request in requests)
    assert len({turn for request in requests for turn in request.turns}) == 5 * len(requests)


def test_constant_arrivals() -> None:
    assert [request.at for request in planned("constant", rate=4.0, requests=5)] == [0, 0.25, 0.5, 0.75, 1.0]
    assert len(planned("constant", rate=4.0, duration=6.0)) == 24


def test_poisson_arrivals_have_the_rate_and_the_spread_of_an_exponential() -> None:
    times = [request.at or 0.0 for request in planned("poisson", rate=50.0, requests=4000, input_tokens=1)]
    gaps = [after - before for before, after in itertools.pairwise([0.0, *times])]
    assert times == sorted(times)
    assert statistics.mean(gaps) == pytest.approx(1 / 50, rel=0.06)
    assert statistics.pstdev(gaps) == pytest.approx(1 / 50, rel=0.08)


def test_bursts_come_together() -> None:
    times = [request.at for request in planned("bursts", burst=3, every=2.0, requests=7)]
    assert times == [0, 0, 0, 2, 2, 2, 4]


def test_a_ramp_rises_as_its_integral_says() -> None:
    times = [request.at or 0.0 for request in planned("ramp", rate=10.0, final_rate=90.0, duration=40.0)]
    assert len(times) == 2000
    assert times == sorted(times)
    # 10 t + t^2 arrivals are expected within t seconds: 600 of 2000 in the first half.
    assert sum(at < 20 for at in times) == pytest.approx(600, rel=0.12)
    assert max(times) <= 40


@settings(deadline=None, derandomize=True)
@given(rate=st.floats(0.5, 50), final=st.floats(0.5, 50), seed=st.integers(0, 9))
def test_a_ramp_stays_in_its_time(rate: float, final: float, seed: int) -> None:
    times = arrivals.ramp(rate, final, 7.0, random.Random(seed))
    assert len(times) == round((rate + final) / 2 * 7)
    assert all(0 <= at <= 7 * (1 + 1e-9) for at in times)


def test_lognormal_lengths_have_their_median_and_bounds() -> None:
    requests = planned(
        "poisson",
        requests=3000,
        lengths="lognormal",
        sigma=0.7,
        input_tokens=100,
        output_tokens=50,
        most_tokens=300,
    )
    lengths = [len(request.turns[0]) for request in requests]
    assert statistics.median(lengths) == pytest.approx(100, rel=0.06)
    assert statistics.median(request.output_tokens for request in requests) == pytest.approx(50, rel=0.06)
    assert max(lengths) == 300 and min(lengths) >= 16


def test_uniform_lengths_fill_their_range() -> None:
    requests = planned("offline")
    lengths = [len(request.turns[0]) for request in requests]
    assert len(requests) == 256
    assert 100 <= min(lengths) < 120 and 1000 < max(lengths) <= 1024


def test_interference_decodes_all_the_time_while_long_prompts_arrive() -> None:
    requests = planned("interfere")
    decode = [request for request in requests if request.part == "decode"]
    long = [request for request in requests if request.part == "long"]
    assert len(decode) == 32 and all(request.until == 30 and request.at is None for request in decode)
    assert [request.at for request in long] == [2.0 * step for step in range(1, 15)]
    assert all(len(request.turns[0]) == 8192 and request.output_tokens == 16 for request in long)
    assert len({request.output_tokens for request in decode}) == 32
    assert {request.stream for request in decode}.isdisjoint(request.stream for request in long)


def test_slow_readers_sit_beside_fast_ones() -> None:
    requests = planned("slow-readers", concurrency=4, requests=8, slow=1)
    assert [request.part for request in requests] == ["slow", "fast", "fast", "fast"] * 2
    assert all((request.read_pause > 0) is (request.part == "slow") for request in requests)


def test_an_abort_storm_leaves_in_every_way_beside_steady_streams() -> None:
    requests = planned("abort-storm", duration=7.0, every=2.0, burst=6, cut_after=4, concurrency=5)
    storm = [request for request in requests if request.part == "abort"]
    assert sum(request.part == "decode" for request in requests) == 5
    assert [request.at for request in storm] == [2.0] * 6 + [4.0] * 6 + [6.0] * 6
    assert {request.cut for request in storm} == {"cancel", "close", "reset"}
    assert {request.cut_after for request in storm} == {1, 2, 3, 4}


def test_a_reconnect_storm_asks_again_on_the_same_stream() -> None:
    requests = planned("reconnect-storm", concurrency=3, requests=3, cut_after=8)
    assert [request.part for request in requests] == ["lost", "again"] * 3
    for lost, back in zip(requests[::2], requests[1::2], strict=True):
        assert (lost.cut, lost.cut_after) == ("reset", 8)
        assert back.cut_after is None
        assert (back.stream, back.turns, back.output_tokens) == (lost.stream, lost.turns, lost.output_tokens)


@pytest.mark.parametrize("prompt", ["ids", "words", "bytes"])
def test_typed_text_grows_until_it_is_sent(prompt: str) -> None:
    requests = planned("typed", concurrency=1, requests=2, prompt=prompt)
    times = [request.at or 0.0 for request in requests]
    assert times == sorted(times) and times[0] > 0
    messages: list[list[Planned]] = [[]]
    for request in requests:
        messages[-1].append(request)
        if request.part == "sent":
            messages.append([])
    assert messages.pop() == [] and len(messages) == 2
    for message in messages:
        texts = [request.turns[0] for request in message]
        assert len(texts) > 3
        for before, after in itertools.pairwise(texts):
            assert len(before) < len(after) and after[: len(before)] == before
        assert [request.output_tokens for request in message] == [1] * (len(message) - 1) + [64]


def test_a_file_gives_prompts_and_lengths(tmp_path: Path) -> None:
    file = tmp_path / "asks.jsonl"
    lines = [{"prompt": "Why is the sky blue?", "output_tokens": 7}, {"prompt": [5, 6, 7]}]
    file.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    first, second = planned("closed", file=str(file), output_tokens=99)
    assert (first.turns, first.output_tokens) == (("Why is the sky blue?",), 7)
    assert (second.turns, second.output_tokens) == (((5, 6, 7),), 99)
    assert [request.at for request in planned("constant", file=str(file), rate=2.0)] == [0, 0.5]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"prompt": "x"}\n{"prompt": 3}', "line 2"),
        ('{"prompt": "x", "output": 3}', "output"),
        ('{"prompt": ""}', "empty"),
        ('{"prompt": "x", "output_tokens": 0}', "below 1"),
        ("not json", "line 1"),
        ("\n", "no request"),
    ],
)
def test_a_wrong_file_is_refused_by_line(tmp_path: Path, content: str, said: str) -> None:
    file = tmp_path / "asks.jsonl"
    file.write_text(content)
    with pytest.raises(WorkloadError, match=said):
        planned("closed", file=str(file))


def test_a_file_is_never_sent_twice(tmp_path: Path) -> None:
    file = tmp_path / "asks.jsonl"
    file.write_text('{"prompt": "x"}\n' * 3)
    with pytest.raises(WorkloadError, match="holds 3"):
        planned("closed", file=str(file), requests=4)
    with pytest.raises(WorkloadError, match="holds 3"):
        planned("constant", file=str(file), duration=10.0)
    with pytest.raises(WorkloadError, match="holds 3"):
        planned("ramp", file=str(file))
    with pytest.raises(WorkloadError, match=r"missing\.jsonl"):
        planned("closed", file=str(tmp_path / "missing.jsonl"))


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("closed", {"rate": 3.0}, "no use for rate"),
        ("poisson", {"concurrency": 3}, "no use for concurrency"),
        ("poisson", {"requests": 3, "duration": 3.0}, "not both"),
        ("closed", {"requests": 3, "duration": 3.0}, "duration takes neither"),
        ("closed", {"input_tokens": -1}, "input_tokens is -1"),
        ("closed", {"output_tokens": 0}, "output_tokens is 0"),
        ("closed", {"rate": float("nan")}, "rate"),
        ("poisson", {"rate": float("nan")}, "rate is nan"),
        ("poisson", {"rate": float("inf")}, "rate is inf"),
        ("closed", {"shared_prefix_tokens": 512}, "below input_tokens"),
        ("closed", {"first_id": 300}, "empty"),
        ("closed", {"least_tokens": 100, "most_tokens": 50}, "above most_tokens"),
        ("closed", {"shared_prefix_tokens": 5, "duration": 1.0}, "shared prefix"),
        ("slow-readers", {"concurrency": 4, "slow": 4}, "beside fast ones"),
        ("reconnect-storm", {"output_tokens": 16}, "in their middle"),
        ("typed", {"file": "x.jsonl"}, "reads no file"),
        ("closed", {"file": "x.jsonl", "turns": 2}, "what its prompts are"),
        ("typed", {"turns": 2}, "turns"),
    ],
)
def test_settings_that_make_no_sense_are_refused(name: str, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(WorkloadError, match=said):
        planned(name, **changes)


def test_unknown_names_are_told_what_is_known() -> None:
    with pytest.raises(WorkloadError, match="c64_512_256"):
        plan("c64_512", WorkloadSettings(), 1)


def test_cells_take_any_numbers() -> None:
    assert defaults("c3_7_5") == WorkloadSettings(concurrency=3, requests=30, input_tokens=7, output_tokens=5)
    assert defaults("open_2.5rps_64_8").rate == 2.5
    assert len(planned("single_7_5")) == 10


def test_a_turn_for_text_that_is_still_being_typed_is_a_beginning() -> None:
    prompts = Prompts("words", tokens_per_word=2.0)
    whole = prompts.draw(40, random.Random(1))
    assert isinstance(whole, str)
    assert prompts.first(whole, 10) == " ".join(whole.split()[:5])
