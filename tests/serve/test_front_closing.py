"""WebSocket on the one port: closes, drain, and any bytes in any chunking (WS-01, WS-02, WS-11)."""

from __future__ import annotations

import logging

import pytest
from front_rig import (
    FakeTransport,
    Rig,
    close_code,
    closing,
    frame,
    frames,
    get,
    handshake,
    only,
    post,
    replies,
    text,
    texts,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.client import ClientProtocol
from websockets.frames import Opcode
from websockets.uri import parse_uri

LEGAL = {1002, 1003, 1007, 1008, 1009}


def settle(rig: Rig, transport: FakeTransport) -> None:
    """The peer answers the end of our side with the end of its own."""
    assert transport.eof
    transport.feed_eof()
    rig.loop.run()
    assert transport.lost


# -- closing (WS-11) ---


@pytest.mark.parametrize("code", [1000, 1001, 1008, 1011, 3000, 3999, 4000, 4999])
def test_ws11_a_clients_close_is_answered_and_told(code: int) -> None:
    rig = Rig()
    transport = rig.upgrade()
    transport.feed(closing(code, b"bye"))
    assert close_code(transport.sent) == code
    assert rig.session.closed_with == [code], "told at once: requests are freed within one step"
    rig.session.say("too late")
    rig.loop.run()
    settle(rig, transport)
    assert rig.session.closed_with == [code]
    assert rig.port.census.open == 0 and not rig.port.connections and rig.loop.pending_timers == 0


def test_ws11_a_close_without_a_code() -> None:
    rig = Rig()
    transport = rig.upgrade()
    transport.feed(closing(None))
    assert close_code(transport.sent) == 1005 and rig.session.closed_with == [1005]


@pytest.mark.parametrize("how", ["eof", "reset"])
def test_ws11_a_lost_connection_is_1006(how: str) -> None:
    rig = Rig()
    transport = rig.upgrade()
    if how == "eof":
        transport.feed_eof()
    else:
        transport.lose(ConnectionResetError())
    assert rig.session.closed_with == [1006], "at once"
    rig.loop.run()
    assert transport.lost and rig.port.census.open == 0 and rig.loop.pending_timers == 0


@pytest.mark.parametrize("code", [1000, 1001, 1008, 1011, 1012, 1013, 4000, 4401])
def test_ws11_a_session_closes_with_its_last_words(code: int) -> None:
    rig = Rig()
    transport = rig.upgrade()
    rig.session.queue.append("last words")
    rig.session.wire.close(code, "because")
    rig.session.wire.close(1000)
    assert rig.session.closed_with == []
    rig.loop.run()
    words, end = frames(transport.sent)
    assert bytes(words.data) == b"last words"
    assert bytes(end.data) == code.to_bytes(2, "big") + b"because"
    assert rig.session.closed_with == [code]
    transport.feed(text("ignored") + closing(code))
    settle(rig, transport)
    assert rig.session.closed_with == [code] and not rig.session.received_messages


def test_a_long_reason_is_cut_between_characters() -> None:
    rig = Rig()
    transport = rig.upgrade()
    rig.session.wire.close(4000, "a" + "é" * 100)
    rig.loop.run()
    (end,) = frames(transport.sent)
    assert bytes(end.data)[2:].decode() == "a" + "é" * 61


def test_ws11_a_peer_that_never_answers_a_close_is_cut_off() -> None:
    rig = Rig()
    transport = rig.upgrade()
    rig.session.wire.close(1000)
    rig.loop.advance(9.9)
    assert not transport.closing
    rig.loop.advance(0.2)
    assert transport.lost


def test_a_close_of_a_stalled_peer_waits_for_it() -> None:
    rig = Rig()
    transport = rig.upgrade()
    transport.stall()
    rig.session.say("x" * 70_000)
    rig.loop.run()
    rig.session.queue.append("last words")
    rig.session.wire.close(4000)
    rig.loop.advance(100)
    assert rig.session.closed_with == []
    transport.read_on()
    rig.loop.run()
    assert texts(transport.sent)[-1] == "last words" and close_code(transport.sent) == 4000


@pytest.mark.parametrize(
    "raw",
    [
        frame(1, b"a", mask=False),
        frame(3),
        frame(7),
        frame(11),
        frame(1, b"a", rsv=1),
        frame(1, b"a", rsv=2),
        frame(0, b"a"),
        frame(1, b"a", fin=False) + frame(1, b"b"),
        frame(1, b"a", fin=False) + closing(1000),
        frame(9, b"x" * 126),
        frame(9, b"x", fin=False),
        frame(8, b"x"),
        frame(8, (999).to_bytes(2, "big")),
        frame(8, (1005).to_bytes(2, "big")),
        frame(8, (1006).to_bytes(2, "big")),
        frame(8, (5000).to_bytes(2, "big")),
    ],
)
def test_ws02_protocol_errors_close_with_1002(raw: bytes) -> None:
    rig = Rig()
    transport = rig.upgrade()
    transport.feed(raw + text("never read"))
    rig.loop.run()
    assert close_code(transport.sent) == 1002
    assert len(rig.session.closed_with) == 1 and not rig.session.received_messages
    settle(rig, transport)


def test_a_close_reason_must_be_utf8() -> None:
    rig = Rig()
    transport = rig.upgrade()
    transport.feed(closing(1000, b"\xff"))
    assert close_code(transport.sent) == 1007


@pytest.mark.parametrize("where", ["!raise", "!render"])
def test_a_mistake_in_a_session_ends_one_connection(where: str, caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig()
    caplog.set_level(logging.CRITICAL)
    other = rig.upgrade()
    transport = rig.upgrade()
    transport.feed(text(where))
    other.feed(text("fine"))
    rig.loop.run()
    assert close_code(transport.sent) == 1011 and rig.session.closed_with == [1011]
    assert texts(other.sent) == ["fine"] and rig.metrics.crashes == 1


def test_a_mistake_in_the_last_words_ends_the_connection_too(caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig()
    caplog.set_level(logging.CRITICAL)
    transport = rig.upgrade()
    transport.feed(text("!render") + closing(1000))
    rig.loop.run()
    assert rig.session.closed_with == [1000] and close_code(transport.sent) == 1000
    settle(rig, transport)


def test_what_is_ready_goes_out_before_the_answer_to_a_close() -> None:
    rig = Rig()
    transport = rig.upgrade()
    transport.feed(text("asked") + closing(1000))
    assert texts(transport.sent) == ["asked"] and close_code(transport.sent) == 1000


@pytest.mark.parametrize(
    ("last", "code"),
    [
        (text("!malformed") * 33, 1008),
        (frame(2, b"binary"), 1003),
        (frame(1, b"\xff"), 1007),
        (frame(3), 1002),
    ],
)
def test_what_is_ready_goes_out_before_our_own_close(last: bytes, code: int) -> None:
    rig = Rig()
    transport = rig.upgrade()
    transport.feed(text("asked") + last)
    assert texts(transport.sent) == ["asked"] and close_code(transport.sent) == code
    assert rig.session.closed_with == [code]
    settle(rig, transport)


# -- drain ---


def test_drain_tells_sessions_and_refuses_new_ones() -> None:
    rig = Rig()
    idle, busy = rig.upgrade(), rig.upgrade()
    rig.session.busy = True
    keep_alive = rig.ask(get("/tell"))
    answering = rig.ask(get("/stream"))
    fresh = rig.connect()
    rig.port.draining = True
    for connection in list(rig.port.connections):
        connection.drain()
    rig.loop.run()
    assert [session.drained for session in rig.faces.sessions] == [1, 1]
    assert close_code(idle.sent) == 1012 and close_code(busy.sent) is None
    assert keep_alive.lost and fresh.lost
    rig.session.say("still here")
    rig.answer.say(*[])
    rig.loop.run()
    assert texts(busy.sent) == ["still here"]
    late = rig.ask(get("/tell"))
    reply = only(late.sent)
    assert reply.status == 503 and reply.headers["connection"] == "close" and reply.headers["retry-after"]
    assert only(rig.ask(handshake("/ws")).sent).status == 503
    assert only(rig.ask(get("/healthz")).sent).status == 200, "what is public answers to the end"
    assert not answering.closing
    for connection in list(rig.port.connections):
        connection.shut()
    rig.loop.run()
    assert close_code(busy.sent) == 1012
    assert only(answering.sent).status == 503
    assert rig.answer.closed_count == 1
    assert [session.closed_with for session in rig.faces.sessions] == [[1012], [1012]]


# -- any chunking, any bytes (WS-02) ---

_CONVERSATION = b"".join(
    [
        handshake("/ws"),
        text("first"),
        frame(1, b"frag", fin=False),
        frame(9, b"ping"),
        frame(0, "mé".encode()[:2], fin=False),
        frame(0, "é".encode()[1:]),
        text("x" * 300),
        frame(10, b"pong"),
        text("y" * 70_000),
        closing(1000),
    ]
)


def played(raw: bytes, edges: list[int]) -> tuple[list[str | bytes], list[int], list[bytes], int | None]:
    rig = Rig()
    transport = rig.connect()
    for start, end in zip([0, *edges], [*edges, len(raw)], strict=True):
        transport.feed(raw[start:end])
    rig.loop.run()
    found = frames(bytes(transport.sent).partition(b"\r\n\r\n")[2])
    pongs = [bytes(f.data) for f in found if f.opcode is Opcode.PONG]
    session = rig.session
    code = close_code(bytes(transport.sent).partition(b"\r\n\r\n")[2])
    return session.received_messages, session.closed_with, pongs, code


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, len(_CONVERSATION)), max_size=60))
def test_ws02_any_chunking_reads_the_same(cuts: list[int]) -> None:
    messages, closed, pongs, code = played(_CONVERSATION, sorted(cuts))
    assert messages == ["first", "fragm\xe9", "x" * 300, "y" * 70_000]
    assert closed == [1000] and pongs == [b"ping"] and code == 1000


_frame = st.builds(
    lambda opcode, data, fin, mask, rsv: frame(opcode, data, fin=fin, mask=mask, rsv=rsv),
    st.sampled_from([0, 0, 1, 1, 1, 2, 3, 8, 9, 10, 15]),
    st.one_of(
        st.binary(max_size=140), st.text(max_size=50).map(str.encode), st.just((1000).to_bytes(2, "big"))
    ),
    st.sampled_from([True, True, True, False]),
    st.sampled_from([True] * 9 + [False]),
    st.sampled_from([0] * 9 + [1]),
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.lists(st.one_of(_frame, _frame, _frame, st.binary(max_size=30)), max_size=12),
    st.integers(1, 70_000),
    st.sampled_from(["", "bin"]),
)
def test_ws02_random_frames_in_any_chunking(pieces: list[bytes], size: int, protocol: str) -> None:
    raw = b"".join(pieces)

    def outcome(size: int) -> tuple[list[str | bytes], list[int], int | None]:
        rig = Rig()
        transport = rig.upgrade("/both", Sec_WebSocket_Protocol=protocol) if protocol else rig.upgrade("/ws")
        for start in range(0, len(raw), size):
            transport.feed(raw[start : start + size])
        rig.loop.run()
        assert rig.metrics.crashes == 0
        transport.feed_eof()
        rig.loop.advance(20)
        session = rig.session
        assert len(session.closed_with) == 1 and transport.lost
        return session.received_messages, session.closed_with, close_code(transport.sent)

    messages, closed, code = outcome(size)
    assert (messages, closed, code) == outcome(1 << 20) == outcome(1)
    assert code is None or code in LEGAL or code == closed[0], "never 1011, and no code of our own making"


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.one_of(st.text(max_size=200), st.lists(st.text(max_size=20), max_size=5)), max_size=8),
    st.integers(1, 300),
)
def test_ws01_the_librarys_own_client_is_understood(messages: list[str | list[str]], size: int) -> None:
    rig = Rig()
    client = ClientProtocol(parse_uri("ws://localhost/ws"))
    client.send_request(client.connect())
    transport = rig.connect()

    def exchange() -> None:
        for data in client.data_to_send():
            for start in range(0, len(data), size):
                transport.feed(data[start : start + size])
        rig.loop.run()
        client.receive_data(bytes(transport.sent))
        transport.sent.clear()

    exchange()
    expected = []
    for message in messages:
        if isinstance(message, str):
            client.send_text(message.encode())
        else:
            client.send_text(b"", fin=False)
            for piece in message:
                client.send_continuation(piece.encode(), fin=False)
            client.send_continuation(b"", fin=True)
        client.send_ping(b"p")
        expected.append(message if isinstance(message, str) else "".join(message))
        exchange()
    client.send_close(1000)
    exchange()
    assert client.handshake_exc is None and client.parser_exc is None
    events = client.events_received()[1:]
    assert [bytes(f.data).decode() for f in events if f.opcode is Opcode.TEXT] == expected  # type: ignore[union-attr]
    assert sum(f.opcode is Opcode.PONG for f in events) == len(messages)  # type: ignore[union-attr]
    assert client.close_rcvd is not None and client.close_rcvd.code == 1000


def test_http_goes_on_beside_sockets() -> None:
    rig = Rig()
    transport = rig.upgrade()
    assert [reply.status for reply in replies(rig.ask(post("/both", b"a") + get("/tell")).sent)] == [200, 200]
    transport.feed(text("hello"))
    rig.loop.run()
    assert texts(transport.sent) == ["hello"]
    assert rig.metrics.connections == {"http": 1, "websocket": 1}
