"""WebSocket on the one port: handshake, frames in, frames out, pings, budgets (WS-03, WS-05 to WS-10)."""

from __future__ import annotations

import logging

import pytest
from front_rig import (
    FakeTransport,
    Rig,
    close_code,
    frame,
    frames,
    get,
    handshake,
    only,
    text,
    texts,
)
from websockets.frames import Opcode

from headrace.server.auth import KEY_PROTOCOL

MiB = 1 << 20


def settle(rig: Rig, transport: FakeTransport) -> None:
    """The peer answers the end of our side with the end of its own."""
    assert transport.eof
    transport.feed_eof()
    rig.loop.run()
    assert transport.lost


# -- handshake ---


def test_the_reply_to_a_handshake() -> None:
    rig = Rig()
    transport = rig.ask(handshake("/ws", X_Request_Id="mine"))
    head = bytes(transport.sent).decode().lower()
    assert head.startswith("http/1.1 101 ")
    assert "sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=" in head
    assert "x-request-id: mine" in head
    assert "sec-websocket-extensions" not in head and "sec-websocket-protocol" not in head
    assert rig.session.request.path == "/ws" and rig.session.request.request_id == "mine"


def test_ws10_offered_compression_is_ignored() -> None:
    rig = Rig()
    for offer in ("permessage-deflate; client_max_window_bits", "permessage-deflate", "x-nonsense;;;"):
        transport = rig.ask(handshake("/ws", Sec_WebSocket_Extensions=offer))
        assert b"101" in transport.sent and b"xtensions" not in transport.sent
        transport.sent.clear()
        transport.feed(text("plain"))
        rig.loop.run()
        assert texts(transport.sent) == ["plain"]
    transport.sent.clear()
    transport.feed(frame(1, b"x" * 100, rsv=4))
    rig.loop.run()
    assert close_code(transport.sent) == 1002, "SEC-41: a compressed frame without negotiation"


@pytest.mark.parametrize(
    ("offered", "selected"),
    [
        ("text", "text"),
        ("text, bin", "bin"),
        (f"text, {KEY_PROTOCOL}SECRET, openai-beta.realtime-v1", "text"),
        (f"{KEY_PROTOCOL}SECRET", None),
        (f"{KEY_PROTOCOL}SECRET, {KEY_PROTOCOL}SECRET2", None),
        ("nonsense", None),
        ("Text", None),
        ("", None),
    ],
)
def test_subprotocols(offered: str, selected: str | None) -> None:
    rig = Rig()
    raw = handshake("/both")[:-2] + f"Sec-WebSocket-Protocol: {offered}\r\n\r\n".encode()
    sent = bytes(rig.ask(raw).sent)
    if selected is None:
        reply = only(sent)
        assert reply.status == 400 and reply.error["param"] == "sec-websocket-protocol"
        assert not rig.faces.sessions
    else:
        assert f"sec-websocket-protocol: {selected}\r\n" in sent.decode().lower()
        assert rig.session.request.subprotocol == selected
    assert b"SECRET" not in sent, "a key is never echoed"


def test_a_path_without_subprotocols_refuses_every_offer_and_no_offer_is_fine() -> None:
    rig = Rig()
    assert only(rig.ask(handshake("/ws", Sec_WebSocket_Protocol="text")).sent).status == 400
    assert b" 101 " in rig.ask(handshake("/ws")).sent
    assert b" 101 " in rig.ask(handshake("/both")).sent


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Sec_WebSocket_Version": "12"}, 426),
        ({"Sec_WebSocket_Version": "8"}, 426),
        ({"Sec_WebSocket_Version": "x"}, 426),
        ({"Sec_WebSocket_Version": ""}, 400),
        ({"Sec_WebSocket_Key": ""}, 400),
        ({"Sec_WebSocket_Key": "short"}, 400),
        ({"Sec_WebSocket_Key": "a" * 200}, 400),
        ({"Upgrade": "websocket, h2c"}, 426),
        ({"Upgrade": "h2c"}, 426),
        ({"Connection": "keep-alive"}, 426),
        ({"Content_Length": "2"}, 400),
        ({"Transfer_Encoding": "chunked"}, 400),
    ],
)
def test_bad_handshakes_get_a_plain_answer(headers: dict[str, str], status: int) -> None:
    rig = Rig()
    reply = only(rig.ask(handshake("/ws", **headers)).sent)
    assert reply.status == status and reply.error["message"]
    if status == 426:
        assert reply.headers["upgrade"] == "websocket"
    if headers.get("Sec_WebSocket_Version"):
        assert reply.headers["sec-websocket-version"] == "13"
    assert not rig.faces.sessions


def test_refusals_come_before_the_upgrade_and_the_connection_lives() -> None:
    rig = Rig()
    transport = rig.ask(handshake("/ws?model=nope"))
    assert only(transport.sent).status == 404
    transport.sent.clear()
    assert only(rig.ask(handshake("/tell")).sent).status == 200, "an upgrade is an offer, not a demand"
    assert only(rig.ask(handshake("/nowhere")).sent).status == 404
    transport.feed(handshake("/ws"))
    rig.loop.run()
    assert b" 101 " in transport.sent


def test_an_upgrade_behind_other_requests() -> None:
    rig = Rig()
    transport = rig.ask(get("/tell") + handshake("/ws") + text("with the handshake") + text("again"))
    rig.loop.run()
    head, _, rest = bytes(transport.sent).partition(b"HTTP/1.1 101 ")
    assert only(head).status == 200
    assert texts(rest.partition(b"\r\n\r\n")[2]) == ["with the handshake", "again"]


def test_a_failed_open_is_our_mistake(caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig()
    caplog.set_level(logging.CRITICAL)
    rig.faces.sessions = None  # type: ignore[assignment]
    assert only(rig.ask(handshake("/ws")).sent).status == 500
    assert rig.metrics.crashes == 1


# -- messages ---


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536, 200_000])
def test_messages_of_every_header_size(size: int) -> None:
    rig = Rig()
    transport = rig.upgrade()
    transport.feed(text("x" * size))
    rig.loop.run()
    assert texts(transport.sent) == ["x" * size]
    assert len(transport.sent) == size + (2 if size < 126 else 4 if size < 65536 else 10)


def test_all_messages_of_a_flush_leave_in_one_write() -> None:
    rig = Rig()
    transport = rig.upgrade()
    writes = len(transport.writes)
    for number in range(50):
        rig.session.say(str(number))
    rig.outbox.flush()
    assert len(transport.writes) == writes + 1
    assert texts(transport.sent) == [str(number) for number in range(50)]
    rig.loop.run()
    assert rig.session.renders == 1 and len(transport.writes) == writes + 1


def test_fragments_and_control_frames_between_them() -> None:
    rig = Rig()
    transport = rig.upgrade()
    whole = "naïve – 日本 🙂".encode()
    for index, byte in enumerate(whole):
        transport.feed(frame(0 if index else 1, bytes((byte,)), fin=index == len(whole) - 1))
        transport.feed(frame(9, b"%d" % index))
        assert frames(transport.sent)[-1].opcode is Opcode.PONG, "control frames do not wait"
    rig.loop.run()
    found = frames(transport.sent)
    assert [bytes(f.data) for f in found[:-1]] == [b"%d" % index for index in range(len(whole))]
    assert bytes(found[-1].data) == whole


def test_binary_needs_a_protocol_that_has_it() -> None:
    rig = Rig()
    transport = rig.upgrade()
    transport.feed(frame(2, b"\x00", fin=False))
    assert close_code(transport.sent) == 1003, "refused with the first frame"
    assert rig.session.closed_with == [1003] and not rig.session.received_messages
    transport = rig.upgrade("/both", Sec_WebSocket_Protocol="bin")
    transport.feed(frame(2, b"\x00\xff", fin=False) + frame(0, b"\xfe"))
    rig.loop.run()
    assert rig.session.received_messages == [b"\x00\xff\xfe"]
    assert [(f.opcode, bytes(f.data)) for f in frames(transport.sent)] == [(Opcode.BINARY, b"\x00\xff\xfe")]
    transport = rig.upgrade("/both", Sec_WebSocket_Protocol="text")
    transport.feed(frame(2, b"\x00"))
    assert close_code(transport.sent) == 1003


@pytest.mark.parametrize(
    "pieces",
    [
        [b"\xff"],
        [b"\xc3"],
        [b"ok", b"\xed\xa0\x80"],
        [b"\xce\xba\xe1\xbd", b"\xb9\xcf", b"\x83\xf4\x90\x80\x80"],
        [b"\xf0\x9f", b"\x99\x82", b"\xf0\x9f"],
        [b"\xc0\xaf"],
    ],
)
def test_bad_utf8_closes_with_1007(pieces: list[bytes]) -> None:
    rig = Rig()
    transport = rig.upgrade()
    for index, piece in enumerate(pieces):
        transport.feed(frame(0 if index else 1, piece, fin=index == len(pieces) - 1))
    assert close_code(transport.sent) == 1007
    assert rig.session.closed_with == [1007] and not rig.session.received_messages
    settle(rig, transport)


def test_bad_utf8_is_refused_before_the_message_ends() -> None:
    rig = Rig()
    transport = rig.upgrade()
    transport.feed(frame(1, b"fine so far", fin=False) + frame(0, b"\xff", fin=False))
    assert close_code(transport.sent) == 1007


# -- limits (WS-03, WS-09) ---


@pytest.mark.parametrize(("size", "good"), [(4095, True), (4096, True), (4097, False)])
@pytest.mark.parametrize("split", [1, 3])
def test_ws09_message_size(size: int, good: bool, split: int) -> None:
    rig = Rig(limits={"ws_max_message": 4096})
    transport = rig.upgrade()
    body = b"x" * size
    cut = size // split
    pieces = [body[i * cut : (i + 1) * cut if i < split - 1 else size] for i in range(split)]
    for index, piece in enumerate(pieces):
        transport.feed(frame(0 if index else 1, piece, fin=index == split - 1))
    rig.loop.run()
    if good:
        assert texts(transport.sent) == ["x" * size]
    else:
        assert close_code(transport.sent) == 1009 and rig.session.closed_with == [1009]


def test_ws09_a_declared_size_is_enough_to_refuse() -> None:
    rig = Rig()
    transport = rig.upgrade()
    transport.feed(b"\x81\xff" + (1 << 40).to_bytes(8, "big"))
    assert close_code(transport.sent) == 1009


def test_ws09_the_default_cap_is_32_mib_in_one_frame() -> None:
    rig = Rig()
    transport = rig.upgrade()
    raw = text("x" * (32 * MiB))
    for start in range(0, len(raw), 256 << 10):
        transport.feed(raw[start : start + (256 << 10)])
        assert rig.port.input.total <= start + (256 << 10)
        rig.loop.run()
    assert len(rig.session.received_messages[0]) == 32 * MiB
    assert rig.port.input.total == 0
    transport = rig.upgrade()
    transport.feed(frame(1, b"", mask=True)[:1] + b"\xff" + (32 * MiB + 1).to_bytes(8, "big"))
    assert close_code(transport.sent) == 1009


@pytest.mark.parametrize(("count", "good"), [(4095, True), (4096, True), (4097, False)])
def test_ws03_fragment_count(count: int, good: bool) -> None:
    rig = Rig()
    transport = rig.upgrade()
    transport.feed(frame(1, b"a", fin=False) + frame(0, b"", fin=False) * (count - 2) + frame(0, b"b"))
    rig.loop.run()
    if good:
        assert texts(transport.sent) == ["ab"]
    else:
        assert close_code(transport.sent) == 1009 and rig.session.closed_with == [1009]


def test_ws03_a_million_empty_fragments_hold_neither_memory_nor_loop() -> None:
    rig = Rig()
    transport = rig.upgrade()
    flood = frame(0, b"", fin=False) * 40_000
    transport.feed(frame(1, b"a", fin=False))
    for _ in range(25):
        transport.feed(flood)
        rig.loop.run()
    assert close_code(transport.sent) == 1009
    assert rig.session.closed_with == [1009]
    assert len(rig.port.input._held) == 0
    rig.loop.advance(11)
    assert transport.lost, "a peer that does not close is cut off"


def test_ws09_unreadable_messages_are_counted() -> None:
    rig = Rig()
    transport = rig.upgrade()
    for _ in range(32):
        transport.feed(text("!malformed"))
    assert close_code(transport.sent) is None
    rig.loop.advance(10.1)
    for _ in range(32):
        transport.feed(text("!malformed"))
    assert close_code(transport.sent) is None, "32 in any 10 s are forgiven"
    transport.feed(text("!malformed"))
    assert close_code(transport.sent) == 1008 and rig.session.closed_with == [1008]


def test_ws09_junk_at_full_speed_ends_quickly() -> None:
    rig = Rig()
    transport = rig.upgrade()
    transport.feed(text("!malformed") * 10_000)
    rig.loop.run()
    assert close_code(transport.sent) == 1008
    assert len(rig.session.received_messages) == 33


def test_tiny_messages_share_the_loop() -> None:
    rig = Rig()
    transport = rig.upgrade()
    transport.feed(text("a") * 5_000)
    first = len(rig.session.received_messages)
    assert first < 1_300 and not transport.reading
    rig.loop.run()
    assert len(rig.session.received_messages) == 5_000 and transport.reading
    assert len(texts(transport.sent)) == 5_000


def test_a_peer_that_asks_without_reading_is_ended() -> None:
    rig = Rig()
    transport = rig.upgrade()
    transport.stall()
    rig.session.say("x" * 70_000)
    rig.loop.run()
    transport.feed(text("a") * 256)
    rig.loop.run()
    assert rig.session.closed_with == []
    transport.feed(text("a"))
    assert rig.session.closed_with == [1008]


def test_pings_of_a_peer_that_does_not_read_leave_nothing_behind() -> None:
    rig = Rig()
    transport = rig.upgrade()
    transport.stall()
    rig.session.say("x" * 70_000)
    rig.loop.run()
    before = len(transport.unsent)
    for _ in range(100):
        transport.feed(frame(9, b"y" * 100) * 100)
        rig.loop.run()
    assert len(transport.unsent) == before
    transport.read_on()
    transport.sent.clear()
    transport.feed(frame(9, b"now"))
    assert [bytes(f.data) for f in frames(transport.sent)] == [b"now"]


def test_input_over_the_budget_closes_the_newest_with_1013() -> None:
    rig = Rig(limits={"input_budget": MiB})
    first, second = rig.upgrade(), rig.upgrade()
    first.feed(text("a" * 900_000)[:-1])
    second.feed(text("b" * 900_000)[:-1])
    assert not second.reading and first.reading
    assert rig.session.closed_with == []
    rig.loop.advance(5.1)
    assert close_code(second.sent) == 1013 and rig.session.closed_with == [1013]
    first.feed(text("a" * 900_000)[-1:])
    rig.loop.run()
    assert texts(first.sent) == ["a" * 900_000]
    second.lose()
    assert rig.port.input.total == 0


# -- a slow reader ---


def test_a_stalled_socket_is_not_rendered_for_and_gets_1013_in_the_end() -> None:
    rig = Rig()
    stalled, healthy = rig.upgrade(), rig.upgrade()
    stalled.stall()
    slow, fast = rig.faces.sessions
    slow.say("x" * 70_000)
    rig.loop.run()
    renders = slow.renders
    for number in range(1000):
        slow.say("token")
        fast.say(str(number))
        rig.outbox.flush()
    assert slow.renders == renders and len(stalled.unsent) < 71_000
    assert len(texts(healthy.sent)) == 1000
    for _ in range(20):
        rig.loop.advance(29)
        for ping in frames(healthy.sent):
            if ping.opcode is Opcode.PING:
                healthy.feed(frame(10, bytes(ping.data)))
        healthy.sent.clear()
    assert slow.closed_with == [], "a paused reader is not pinged to death"
    rig.loop.advance(21)
    assert slow.closed_with == [1013]
    rig.loop.advance(11)
    assert stalled.lost and not healthy.closing
    stalled_frames = stalled.writes[-1]
    assert close_code(stalled_frames) == 1013


def test_a_stalled_socket_that_wakes_goes_on() -> None:
    rig = Rig()
    transport = rig.upgrade()
    transport.stall()
    rig.session.say("x" * 70_000)
    rig.loop.run()
    rig.session.say("after")
    rig.loop.advance(500)
    transport.read_on()
    rig.loop.run()
    assert texts(transport.sent)[-1] == "after"
    transport.sent.clear()
    rig.loop.advance(20.1)
    assert [f.opcode for f in frames(transport.sent)] == [Opcode.PING], "pings begin again"


# -- pings ---


def test_pings_and_their_timeout() -> None:
    rig = Rig()
    transport = rig.upgrade()
    rig.loop.advance(19.9)
    assert not transport.sent
    rig.loop.advance(0.2)
    (ping,) = frames(transport.sent)
    assert ping.opcode is Opcode.PING
    transport.feed(frame(10, b"unasked"))
    rig.loop.advance(10)
    transport.feed(frame(10, bytes(ping.data)))
    transport.sent.clear()
    rig.loop.advance(19.9)
    assert not transport.sent
    rig.loop.advance(0.2)
    (second,) = frames(transport.sent)
    assert second.data != ping.data
    rig.loop.advance(19.8)
    assert rig.session.closed_with == []
    rig.loop.advance(0.2)
    assert close_code(transport.sent) == 1011 and rig.session.closed_with == [1011]
    rig.loop.advance(10.1)
    assert transport.lost and rig.loop.pending_timers == 0


@pytest.mark.parametrize("blocked", [1, 5, 15, 25, 60])
def test_ws05_a_blocked_loop_kills_nobody(blocked: float) -> None:
    rig = Rig()
    transport = rig.upgrade()
    rig.loop.advance(20.1)
    (ping,) = frames(transport.sent)
    rig.loop.jump(blocked)
    assert rig.session.closed_with == []
    transport.feed(frame(10, bytes(ping.data)))
    rig.loop.advance(19)
    assert rig.session.closed_with == []


def test_ws06_a_silent_peer_is_gone_in_time() -> None:
    rig = Rig()
    rig.upgrade()
    rig.loop.advance(20 + 20 + 1)
    assert rig.session.closed_with == [1011]
