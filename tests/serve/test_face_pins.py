"""Cache leases: pins with an end and a quota, the favour of a lane's latest response, lifetimes (M13)."""

from __future__ import annotations

from typing import Any

import pytest
from face_bench import BOB, FaceBench, Socket
from face_said import finals

PAGES, SIZE = 64, 16


def bench_of(pages: int = PAGES, **settings: Any) -> FaceBench:
    return FaceBench(page_count=pages, page_size=SIZE, settings=settings)


async def respond(socket: Socket, text: str, **fields: Any) -> dict[str, Any]:
    """One whole response: its object."""
    over = sum(event["type"] in ("response.incomplete", "error") for event in socket.said)
    socket.create(text, **fields)
    await socket.until_over(over + 1)
    last = [event for event in socket.said if event["type"] in ("response.incomplete", "error")][-1]
    assert last["type"] == "response.incomplete", last
    return last["response"]


async def verb(socket: Socket, **fields: Any) -> dict[str, Any]:
    """The answer to one verb."""
    before = len(socket.said)
    socket.send(fields)
    await socket.until(lambda: len(socket.said) > before)
    return socket.said[before]


async def crowd(bench: FaceBench, pages: int, mark: str = "w") -> None:
    """Traffic that takes so many pages of the cache, of others who keep no connection."""
    each = 10
    for number in range(pages // each):
        text = f"{mark}{number:04d} ".ljust(each * SIZE - 40, "z")
        await bench.fetch(
            "/v1/responses",
            {"model": "fake", "input": text, "max_output_tokens": 8, "store": False},
            tenant=BOB,
        ).done()


def cached(response: dict[str, Any]) -> int:
    found: int = response["usage"]["input_tokens_details"]["cached_tokens"]
    return found


async def test_a_pin_outlives_five_times_the_cache_and_ends_when_it_says() -> None:
    """M13's acceptance."""
    bench = bench_of()
    socket = bench.socket()
    story = "once upon a time ".ljust(200, "y")
    first = await respond(socket, story)
    pinned = await verb(socket, type="x.pin", response_id=first["id"], ttl_s=600, event_id="e1")
    assert pinned["type"] == "x.pinned" and pinned["event_id"] == "e1"
    whole = (first["usage"]["total_tokens"] - 1) // SIZE * SIZE
    assert pinned["tokens"] == whole and pinned["bytes"] == whole * 1024
    assert pinned["expires_at"] == int(bench.settings.now() + 600)
    socket.drop(1000)  # a pin is the key's, and outlives the connection
    await crowd(bench, 5 * PAGES)
    again = await respond(bench.socket(), story)
    assert cached(again) == (first["usage"]["input_tokens"] - 1) // SIZE * SIZE, "all of it is warm"
    bench.clock.advance(601)
    assert bench.running.pins.stats() == {
        "pinned_responses": 0, "pins_refused": 0, "pins_expired": 1, "pins_evicted": 0,
    }  # fmt: skip
    for each in bench.readers:
        if isinstance(each, Socket) and not each.gone:
            each.drop(1000)
    await crowd(bench, 2 * PAGES, "v")
    assert cached(await respond(bench.socket(), story)) == 0, "nothing is promised after the end"
    assert bench.scheduler.pages_in_use == 0


async def test_the_eleventh_pin_is_refused_and_another_key_has_its_own() -> None:
    bench = bench_of(256)
    socket = bench.socket()
    for number in range(11):
        last = await respond(socket, f"{number} is a number".ljust(40, "x"), stream_id=f"l{number}")
        answer = await verb(socket, type="x.pin", response_id=last["id"], ttl_s=60)
        assert answer["type"] == ("x.pinned" if number < 10 else "x.error"), answer
    assert answer["error"]["code"] == "pin_quota_exceeded" and answer["error"]["param"] == "response_id"
    ids = [final["id"] for final in finals(socket)]
    assert (await verb(socket, type="x.pin", response_id=ids[0], ttl_s=90))["type"] == "x.pinned", "renewed"
    released = await verb(socket, type="x.pin", response_id=ids[0], ttl_s=0)
    assert released == {"type": "x.pinned", "response_id": ids[0], "tokens": 0, "bytes": 0, "expires_at": 0}
    assert (await verb(socket, type="x.pin", response_id=ids[10], ttl_s=60))["type"] == "x.pinned"
    other = bench.socket(BOB)
    mine = await respond(other, "of another key".ljust(40, "x"))
    assert (await verb(other, type="x.pin", response_id=mine["id"], ttl_s=60))["type"] == "x.pinned"
    foreign = await verb(other, type="x.pin", response_id=ids[3], ttl_s=60)
    assert foreign["error"]["code"] == "response_not_found"


async def test_pins_hold_their_share_at_most_and_give_way_before_anybody_waits_for_ever() -> None:
    bench = bench_of()
    bench.scheduler.pins.limit = PAGES // 2
    socket = bench.socket(ext="1")
    kinds = []
    for number in range(4):
        last = await respond(socket, f"{number} ".ljust(9 * SIZE, "x"), stream_id=f"l{number}")
        answer = await verb(socket, type="x.pin", response_id=last["id"], ttl_s=60)
        kinds.append(answer["type"])
    assert kinds == ["x.pinned", "x.pinned", "x.pinned", "x.error"]
    ids = [final["id"] for final in finals(socket)]
    await crowd(bench, 3 * PAGES)
    assert bench.scheduler.pins.broken == 0, "while there is another way, a pin holds"
    big = bench.fetch(
        "/v1/responses",
        {"model": "fake", "input": "b" * 800, "max_output_tokens": 100, "store": False},
        tenant=BOB,
    )
    await big.done()
    assert big.status == 200
    told = [event for event in socket.said if event["type"] == "x.cache.evicted"]
    assert told and [event["response_id"] for event in told] == ids[: len(told)], "the oldest go first"
    assert all(event["tokens"] > 0 for event in told)
    assert bench.running.pins.stats()["pins_evicted"] == len(told)


async def test_the_latest_response_of_an_open_lane_is_evicted_last() -> None:
    bench = bench_of()
    open_, gone = bench.socket(), bench.socket()
    kept, lost = "kept ".ljust(200, "k"), "lost ".ljust(200, "l")
    await respond(open_, kept)
    await respond(gone, lost)
    gone.drop(1000)
    await crowd(bench, 2 * PAGES)
    await bench.until(lambda: bench.loop.flight == 0)
    assert bench.scheduler.pages_in_use == 0, "a favour is no claim"
    assert cached(await respond(bench.socket(), kept)) > 150
    assert cached(await respond(bench.socket(), lost)) == 0


@pytest.mark.parametrize("ttl", ["30m", "12h"])
async def test_a_lifetime_that_came_with_the_request_is_kept(ttl: str) -> None:
    bench = bench_of(pins_per_key=2)
    seconds = {"30m": 1800, "12h": 43_200}[ttl]
    text = "a long system prompt ".ljust(150, "s")
    options = {"ttl": ttl}
    body = {"model": "fake", "input": text, "max_output_tokens": 5, "prompt_cache_options": options}
    first = (await bench.fetch("/v1/responses", body).done()).json
    second = {**body, "input": "and then", "previous_response_id": first["id"]}
    await bench.fetch("/v1/responses", second).done()
    assert len(bench.running.pins) == 1, "a continuation takes the place of what it continues"
    for number in range(3):
        await bench.fetch("/v1/responses", {**body, "input": f"{number} other"}).done()
    assert len(bench.running.pins) == 2, "the oldest lifetime makes room"
    await bench.fetch("/v1/responses", second).done()
    await crowd(bench, 3 * PAGES)
    third = (await bench.fetch("/v1/responses", {**second, "prompt_cache_options": None}).done()).json
    assert cached(third) > 150
    bench.clock.advance(seconds + 1)
    assert len(bench.running.pins) == 0 and bench.scheduler.pins.pages == 0


@pytest.mark.parametrize("ttl", ["", "soon", "30", "-1m", "0s", "25h", "9999999s", "٣m"])
async def test_a_lifetime_that_is_none_is_refused(ttl: str) -> None:
    socket = bench_of().socket()
    socket.create("hello", prompt_cache_options={"ttl": ttl})
    await socket.until_over()
    (error,) = socket.said
    assert error["error"]["code"] == "invalid_value"
    assert error["error"]["param"] == "prompt_cache_options.ttl"


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"ttl_s": 5}, "missing_required_parameter", "response_id"),
        ({"response_id": "r"}, "missing_required_parameter", "ttl_s"),
        ({"response_id": "r", "ttl_s": -1}, "invalid_value", "ttl_s"),
        ({"response_id": "r", "ttl_s": 86_401}, "invalid_value", "ttl_s"),
        ({"response_id": "r", "ttl_s": 5, "pages": 3}, "unknown_parameter", "pages"),
        ({"response_id": "r", "ttl_s": 5}, "response_not_found", "response_id"),
    ],
)
async def test_a_bad_pin_is_answered_by_name(fields: dict[str, Any], code: str, param: str) -> None:
    answer = await verb(bench_of().socket(), type="x.pin", event_id="e", **fields)
    assert answer["type"] == "x.error" and answer["event_id"] == "e"
    assert (answer["error"]["code"], answer["error"]["param"]) == (code, param)


async def test_what_is_not_pinned_loses_no_more_than_the_pinned_share() -> None:
    """The same traffic with and without pins: it finds less in the cache, by about what pins hold."""
    hits = []
    for pins in (0, 3):
        bench = bench_of()
        for number in range(pins):
            socket = bench.socket()
            last = await respond(socket, f"pin{number}".ljust(80, "p"))
            await verb(socket, type="x.pin", response_id=last["id"], ttl_s=600)
        share = bench.scheduler.pins.pages / PAGES
        found = 0
        for turn in range(60):
            text = f"doc {turn % 6}".ljust(100, "d")
            body = {"model": "fake", "input": text, "max_output_tokens": 4, "store": False}
            found += cached((await bench.fetch("/v1/responses", body, tenant=BOB).done()).json) > 0
        hits.append(found / 60)
    assert hits[1] >= hits[0] - share - 0.02 and hits[0] > 0.8
