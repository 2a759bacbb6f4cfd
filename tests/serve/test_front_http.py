"""HTTP/1.1 on the one port: what is read, what is refused, and in which order it is answered."""

from __future__ import annotations

import logging
from typing import Any

import h11
import pytest
from front_rig import Rig, ScriptedAnswer, chunked, get, only, post, replies
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.server.exchange import STREAM_END, HttpReply, StreamHead

MiB = 1 << 20


def test_a_page_carries_the_security_headers() -> None:
    reply = only(Rig().ask(get("/")).sent)
    assert reply.status == 200
    assert reply.body == b"<p>page"
    policy = reply.headers["content-security-policy"]
    for rule in (
        "default-src 'self'",
        "script-src 'self'",
        "object-src 'none'",
        "img-src 'self' data: blob:",
        "connect-src 'self'",
        "frame-ancestors 'none'",
    ):
        assert rule in policy.split("; ")
    assert reply.headers["x-request-id"].startswith("req_")
    assert reply.headers["date"].endswith(" GMT")


def test_request_ids_are_echoed_or_made() -> None:
    rig = Rig()
    made = {only(rig.ask(get("/tell")).sent).headers["x-request-id"] for _ in range(3)}
    assert len(made) == 3
    for good in ("a", "A-z_9", "x" * 64):
        assert only(rig.ask(get("/tell", f"X-Request-Id: {good}")).sent).headers["x-request-id"] == good
        assert rig.faces.requests[-1].request_id == good
    # A proxy's id that is too long or too strange to be repeated is no reason to refuse what it proxies.
    for bad in ("x" * 65, "x" * 4000, "a b", "a\tb", "é", "a;b", ""):
        reply = only(
            rig.ask(get("/tell").replace(b"\r\n\r\n", f"\r\nX-Request-Id: {bad}\r\n\r\n".encode())).sent
        )
        assert reply.status == 200, bad
        own = reply.headers["x-request-id"]
        assert own.startswith("req_") and own not in made
        assert rig.faces.requests[-1].request_id == own
        made.add(own)


def test_head_options_and_methods() -> None:
    rig = Rig()
    head = only(rig.ask(get("/tell").replace(b"GET", b"HEAD", 1)).sent, heads=[0])
    assert head.status == 200 and int(head.headers["content-length"]) > 0
    assert rig.faces.requests[-1].method == "GET"
    options = only(rig.ask(get("/tell").replace(b"GET", b"OPTIONS", 1)).sent)
    assert options.status == 204 and options.headers["allow"] == "GET, HEAD, OPTIONS, POST"
    assert "content-type" not in options.headers and "content-length" not in options.headers
    assert only(rig.ask(b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n").sent).status == 204
    for method in (b"DELETE", b"BREW", b"get", b"CONNECT"):
        reply = only(rig.ask(get("/tell").replace(b"GET", method, 1)).sent)
        assert reply.status == 405 and "GET" in reply.headers["allow"]
    assert only(rig.ask(get("/echo")).sent).status == 405
    assert only(rig.ask(get("/ws")).sent).status == 426
    assert only(rig.ask(get("/both")).sent).status == 426
    assert only(rig.ask(post("/ws", b"{}")).sent).status == 405


def test_no_cors_header_is_ever_sent() -> None:
    reply = only(
        Rig()
        .ask(
            get("/tell", "Origin: http://localhost", "Access-Control-Request-Method: POST").replace(
                b"GET", b"OPTIONS", 1
            )
        )
        .sent
    )
    assert not [name for name in reply.headers if name.startswith("access-control")]


def test_head_of_a_stream_sends_no_body_and_cancels() -> None:
    rig = Rig()
    transport = rig.ask(get("/stream").replace(b"GET", b"HEAD", 1))
    rig.answer.say(StreamHead(), b"data: 1\n\n")
    rig.loop.run()
    assert only(transport.sent, heads=[0]).status == 200
    assert rig.answer.closed_count == 1
    transport.feed(get("/tell"))
    assert [reply.status for reply in replies(transport.sent, heads=[0])] == [200, 200]


# -- keep-alive and pipelining ---


def test_pipelined_requests_are_answered_in_order_and_in_one_write() -> None:
    rig = Rig()
    transport = rig.ask(get("/tell?n=1") + post("/echo", b"two") + get("/nothing") + get("/tell?n=4"))
    first, second, third, fourth = replies(transport.sent)
    assert b'"n": "1"' in first.body and second.body == b"two"
    assert third.status == 404 and b'"n": "4"' in fourth.body
    assert len(transport.writes) == 1
    assert not transport.closing


def test_a_pipelined_request_waits_for_the_answer_before_it() -> None:
    rig = Rig()
    transport = rig.ask(get("/stream") + get("/tell?n=2"))
    assert not transport.sent and len(rig.faces.requests) == 1
    rig.answer.say(StreamHead(), b"data: 1\n\n")
    rig.loop.run()
    assert len(rig.faces.requests) == 1
    rig.answer.say(b"data: 2\n\n", STREAM_END)
    rig.loop.run()
    stream, told = replies(transport.sent)
    assert stream.body == b"data: 1\n\ndata: 2\n\n"
    assert b'"n": "2"' in told.body


def test_many_pipelined_requests_share_the_loop() -> None:
    rig = Rig(limits={"max_pipelined": 1 << 20})
    transport = rig.connect()
    transport.feed(get("/tell") * 200)
    assert len(rig.faces.requests) == 16, "then others get their turn"
    assert not transport.reading
    rig.loop.run()
    assert len(replies(transport.sent)) == 200
    assert transport.reading


@pytest.mark.parametrize(("extra", "answered"), [(-1, True), (0, True), (1, False)])
def test_what_waits_behind_an_answer_is_bounded(extra: int, answered: bool) -> None:
    rig = Rig(limits={"max_pipelined": 4096})
    transport = rig.ask(get("/stream"))
    filler = get("/tell")
    filler = get("/tell", "X-Fill: " + "x" * (4096 + extra - len(filler) - len("X-Fill: \r\n")))
    assert len(filler) == 4096 + extra
    for byte in filler:
        transport.feed(bytes((byte,)))
    assert transport.reading, "a disconnect must stay visible"
    rig.answer.say(HttpReply(200, b"done"))
    rig.loop.run()
    assert len(replies(transport.sent)) == 1 + answered
    assert transport.eof is not answered


def test_connection_close_and_http_1_0_end_the_connection() -> None:
    rig = Rig()
    for raw in (
        get("/tell", "Connection: close"),
        get("/tell", "Connection: Keep-Alive, Close"),
        get("/tell").replace(b"HTTP/1.1", b"HTTP/1.0"),
        b"GET /tell HTTP/1.0\r\n\r\n",
    ):
        transport = rig.ask(raw)
        reply = only(transport.sent)
        assert reply.status == 200 and reply.headers["connection"] == "close"
        assert transport.eof
        transport.feed_eof()
        rig.loop.run()
        assert transport.lost


def test_a_stream_to_http_1_0_ends_with_the_connection() -> None:
    rig = Rig()
    transport = rig.ask(get("/stream").replace(b"HTTP/1.1", b"HTTP/1.0"))
    rig.answer.say(StreamHead(), b"data: 1\n\n")
    rig.loop.run()
    assert not transport.eof
    rig.answer.say(b"data: [DONE]\n\n", STREAM_END)
    rig.loop.run()
    reply = only(transport.sent)
    assert "transfer-encoding" not in reply.headers
    assert reply.body == b"data: 1\n\ndata: [DONE]\n\n" and transport.eof


def test_an_empty_line_between_requests_is_forgiven_once() -> None:
    rig = Rig()
    transport = rig.ask(post("/echo", b"a") + b"\r\n" + get("/tell"))
    assert [reply.status for reply in replies(transport.sent)] == [200, 200]
    assert only(rig.ask(b"\r\n\r\n" + get("/tell")).sent).status == 400


# -- streamed answers ---


def test_one_write_per_flush_and_one_chunk() -> None:
    rig = Rig()
    transport = rig.ask(get("/stream"))
    rig.answer.say(StreamHead())
    for number in range(10):
        rig.answer.say(b"data: %d\n\n" % number)
    rig.outbox.flush()
    assert len(transport.writes) == 1
    assert transport.writes[0].count(b"\r\n\r\n") == 1
    before = len(transport.writes)
    rig.outbox.flush()
    rig.loop.run()
    assert len(transport.writes) == before, "nothing to tell, nothing written"
    rig.answer.say(b"data: a\n\n", b"data: b\n\n", STREAM_END)
    rig.loop.run()
    assert len(transport.writes) == before + 1
    assert only(transport.sent).body.endswith(b"data: a\n\ndata: b\n\n")
    assert rig.answer.closed_count == 0


def test_a_reply_that_takes_time() -> None:
    rig = Rig()
    transport = rig.ask(get("/stream"))
    assert not transport.sent
    rig.answer.say(HttpReply(429, b"{}", headers={"retry-after": "2"}))
    rig.loop.run()
    reply = only(transport.sent)
    assert reply.status == 429 and reply.headers["retry-after"] == "2"
    rig.answer.wire.dirty()
    rig.loop.run()
    assert rig.answer.renders <= 3, "an answer that is over is not asked again"


def test_header_values_cannot_start_a_new_line() -> None:
    rig = Rig()
    transport = rig.ask(get("/stream"))
    rig.answer.say(HttpReply(200, b"", headers={"x-ignored-fields": "a\r\nSet-Cookie: b\x00\u00e9"}))
    rig.loop.run()
    assert only(transport.sent).headers["x-ignored-fields"] == "a??Set-Cookie: b??"


@pytest.mark.parametrize("how", ["eof", "reset"])
def test_a_peer_that_leaves_cancels_its_answer_once(how: str) -> None:
    rig = Rig()
    transport = rig.ask(get("/stream"))
    rig.answer.say(StreamHead())
    rig.loop.run()
    if how == "eof":
        transport.feed_eof()
    else:
        transport.lose(ConnectionResetError())
    assert rig.answer.closed_count == 1, "at once, not at the next turn"
    rig.answer.say(b"data: late\n\n")
    rig.loop.run()
    assert rig.answer.closed_count == 1 and rig.answer.renders == 2
    assert rig.port.census.open == 0 and not rig.port.connections
    assert rig.loop.pending_timers == 0


def test_silence_is_broken_by_a_comment() -> None:
    rig = Rig()
    transport = rig.ask(get("/stream"))
    rig.loop.advance(14.9)
    assert rig.answer.pings == 0
    rig.loop.advance(0.2)
    assert rig.answer.pings == 1
    assert bytes(transport.sent).endswith(b": ping\n\n\r\n")
    rig.loop.advance(10)
    rig.answer.say(b"data: 1\n\n")
    rig.loop.advance(14.9)
    assert rig.answer.pings == 1, "silence counts from the last write"
    rig.loop.advance(0.2)
    assert rig.answer.pings == 2
    rig.answer.say(STREAM_END)
    rig.loop.run()
    assert only(transport.sent).body == b": ping\n\ndata: 1\n\n: ping\n\n"
    rig.loop.advance(60)
    assert rig.answer.pings == 2


def test_no_comments_when_turned_off_or_while_the_peer_is_stalled() -> None:
    rig = Rig(sse_ping=0.0)
    rig.ask(get("/stream"))
    rig.loop.advance(3000)
    assert rig.answer.pings == 0
    rig = Rig()
    transport = rig.ask(get("/stream"))
    transport.stall()
    rig.answer.say(StreamHead(), b"x" * 70_000)
    rig.loop.advance(100)
    assert transport.writing_paused and rig.answer.pings == 0
    transport.read_on()
    rig.loop.advance(16)
    assert rig.answer.pings == 1


# -- a slow reader ---


def test_a_stalled_reader_is_not_rendered_for_and_dropped_in_the_end() -> None:
    rig = Rig()
    transport = rig.ask(get("/stream"))
    transport.stall()
    rig.answer.say(StreamHead(), b"x" * 70_000)
    rig.loop.run()
    renders = rig.answer.renders
    other = rig.ask(get("/stream"))
    for _ in range(1000):
        rig.faces.answers[0].say(b"y" * 1000)
        rig.outbox.flush()
    assert rig.faces.answers[0].renders == renders
    assert len(transport.unsent) < 71_000, "nothing piles up behind the brake"
    rig.faces.answers[1].say(HttpReply(200, b"fast"))
    rig.loop.run()
    assert only(other.sent).body == b"fast", "the others are served"
    rig.loop.advance(599)
    assert rig.faces.answers[0].closed_count == 0
    rig.loop.advance(2)
    assert rig.faces.answers[0].closed_count == 1 and transport.lost


def test_a_peer_that_stalls_between_mark_and_flush_is_not_asked() -> None:
    rig = Rig()
    transport = rig.ask(get("/stream"))
    renders = rig.answer.renders
    rig.answer.say(StreamHead(), b"data: 1\n\n")
    transport.protocol.pause_writing()
    rig.outbox.flush()
    rig.loop.run()
    assert rig.answer.renders == renders and not transport.sent
    transport.protocol.resume_writing()
    rig.loop.run()
    assert rig.answer.renders == renders + 1 and b"data: 1" in transport.sent


def test_a_reader_that_wakes_gets_everything() -> None:
    rig = Rig()
    transport = rig.ask(get("/stream"))
    transport.stall()
    rig.answer.say(StreamHead(), b"x" * 70_000)
    rig.loop.run()
    rig.answer.say(b"y" * 10, STREAM_END)
    rig.loop.advance(500)
    transport.read_on()
    rig.loop.run()
    assert only(transport.sent).body == b"x" * 70_000 + b"y" * 10
    rig.loop.advance(70)
    assert not transport.closing, "the slow-reader clock stopped"


def test_pipelined_requests_wait_while_replies_are_not_read() -> None:
    rig = Rig(limits={"max_pipelined": 1 << 20})
    transport = rig.connect()
    transport.stall()
    transport.feed(post("/big", b"x" * 100_000))
    for _ in range(500):
        transport.feed(post("/big", b"y" * 5_000))
    rig.loop.run()
    assert len(transport.unsent) < 200_000
    assert not transport.reading, "the rest waits in the kernel"
    transport.read_on()
    rig.loop.run()
    transport.read_on()
    assert len(replies(transport.sent)) == 501


# -- mistakes of ours stay with one client ---


@pytest.mark.parametrize("where", ["respond", "render", "render-late"])
def test_a_mistake_in_a_face_ends_one_connection(where: str, caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig()
    caplog.set_level(logging.CRITICAL)
    other = rig.ask(get("/stream"))
    if where == "respond":
        transport = rig.ask(get("/fail"))
    else:
        transport = rig.ask(get("/stream"))
        if where == "render-late":
            rig.answer.say(StreamHead(), b"data")
            rig.loop.run()
        rig.answer.say(b"bytes before any head" if where == "render" else StreamHead())
    rig.faces.answers[0].say(HttpReply(200, b"fine"))
    rig.loop.run()
    if where == "render-late":
        assert transport.lost and not bytes(transport.sent).endswith(b"0\r\n\r\n")
    else:
        reply = only(transport.sent)
        assert reply.status == 500 and reply.error["message"] == "internal error"
        assert b"Traceback" not in reply.body and transport.eof
    assert only(other.sent).body == b"fine"
    assert rig.metrics.crashes == 1


# -- any chunking ---

_TRAFFIC = (
    get("/tell?a=1")
    + post("/echo", b"hello")
    + chunked("/echo", b"ab", b"c" * 300, b"\r\n0\r\n")
    + get("/nothing", "X-Request-Id: fixed")
    + post("/echo", b"", "X-Request-Id: z")
    + get("/tell", "Connection: close")
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, len(_TRAFFIC)), max_size=40))
def test_any_chunking_reads_the_same(cuts: list[int]) -> None:
    def outcome(edges: list[int]) -> list[tuple[int, bytes]]:
        rig = Rig()
        transport = rig.connect()
        for start, end in zip([0, *edges], [*edges, len(_TRAFFIC)], strict=True):
            transport.feed(_TRAFFIC[start:end])
        rig.loop.run()
        assert transport.eof
        return [(reply.status, reply.body) for reply in replies(transport.sent)]

    whole = outcome([])
    assert [status for status, _ in whole] == [200, 200, 200, 404, 200, 200]
    assert outcome(sorted(cuts)) == whole


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.binary(max_size=200), st.integers(1, 50))
def test_any_bytes_get_a_clear_answer_or_silence(data: bytes, size: int) -> None:
    rig = Rig()
    transport = rig.connect()
    for start in range(0, len(data), size):
        transport.feed(data[start : start + size])
    rig.loop.advance(11)
    found = replies(transport.sent)
    assert all(reply.status < 500 for reply in found), "some bytes happen to be requests"
    assert not rig.faces.requests and rig.metrics.crashes == 0


_ops = st.lists(
    st.one_of(
        st.tuples(st.just("get"), st.integers(0, 9)),
        st.tuples(st.just("head"), st.integers(0, 9)),
        st.tuples(st.just("post"), st.integers(0, 3000)),
        st.tuples(st.just("missing"), st.integers(0, 9)),
        st.tuples(st.just("stream"), st.lists(st.binary(max_size=50), max_size=4)),
    ),
    max_size=8,
)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(_ops, st.integers(1, 4000))
def test_another_parser_reads_our_replies(ops: list[tuple[str, Any]], size: int) -> None:
    rig = Rig()
    transport = rig.connect()
    client = h11.Connection(h11.CLIENT)
    for kind, value in ops:
        path, method, body = "/tell", "GET", b""
        if kind == "head":
            method = "HEAD"
        elif kind == "post":
            path, method, body = "/echo", "POST", b"x" * value
        elif kind == "missing":
            path = "/missing"
        elif kind == "stream":
            path = "/stream"
        headers = [("Host", "localhost")] + ([("Content-Length", str(len(body)))] if body else [])
        raw = client.send(h11.Request(method=method, target=path, headers=headers))
        assert raw is not None
        if body:
            raw += client.send(h11.Data(data=body)) or b""
        raw += client.send(h11.EndOfMessage()) or b""
        for start in range(0, len(raw), size):
            transport.feed(raw[start : start + size])
        rig.loop.run()
        if kind == "stream":
            rig.answer.say(StreamHead())
            for piece in value:
                rig.answer.say(piece)
                rig.loop.run()
            rig.answer.say(STREAM_END)
            rig.loop.run()
        client.receive_data(bytes(transport.sent))
        transport.sent.clear()
        head = client.next_event()
        assert isinstance(head, h11.Response)
        assert head.status_code == (404 if kind == "missing" else 200)
        found = b""
        while isinstance(event := client.next_event(), h11.Data):
            found += event.data
        assert isinstance(event, h11.EndOfMessage)
        if kind in ("post", "stream", "head"):
            assert found == (body if kind == "post" else b"".join(value) if kind == "stream" else b"")
        client.start_next_cycle()
    assert not transport.closing and not transport.eof


def test_answers_are_scripted() -> None:
    """The rig itself: an answer that nobody ends stays open, and one that ends is asked no more."""
    rig = Rig()
    rig.ask(get("/stream"))
    answer = rig.answer
    assert isinstance(answer, ScriptedAnswer) and answer.renders == 1 and not answer.over
