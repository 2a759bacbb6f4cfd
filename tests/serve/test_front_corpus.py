"""Hostile HTTP on the one port: smuggling, oversize, slowness, paths."""

from __future__ import annotations

import pytest
from front_rig import FakeTransport, Rig, chunked, get, only, post, replies

HOST = b"Host: localhost\r\n"
POST = b"POST /echo HTTP/1.1\r\n" + HOST
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"

SMUGGLING = {
    "two framings": POST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two framings, other order": POST + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
    "two lengths": POST + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
    "two equal lengths": POST + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
    "a list of lengths": POST + b"Content-Length: 3, 4\r\n\r\nabc",
    "a list of equal lengths": POST + b"Content-Length: 3, 3\r\n\r\nabc",
    "a signed length": POST + b"Content-Length: +3\r\n\r\nabc",
    "a negative length": POST + b"Content-Length: -3\r\n\r\nabc",
    "a spaced length": POST + b"Content-Length: 1 2\r\n\r\nabc",
    "a hex length": POST + b"Content-Length: 0x3\r\n\r\nabc",
    "an underscored length": POST + b"Content-Length: 1_0\r\n\r\nabc",
    "an empty length": POST + b"Content-Length:\r\n\r\nabc",
    "a huge length": POST + b"Content-Length: " + b"9" * 40 + b"\r\n\r\nabc",
    "a folded coding": POST + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    "a folded header": get("/tell", "X-A: b", " folded"),
    "chunked twice": POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "two codings": POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "gzip coding": POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "identity coding": POST + b"Transfer-Encoding: identity\r\n\r\nabc",
    "a misspelt coding": POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "a vertical tab before the coding": POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "a coding in HTTP/1.0": b"POST /echo HTTP/1.0\r\n"
    + HOST
    + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a space before the colon": POST + b"Content-Length : 3\r\n\r\nabc",
    "bad chunk size": CHUNKED + b"zz\r\n",
    "signed chunk size": CHUNKED + b"+3\r\nabc\r\n0\r\n\r\n",
    "prefixed chunk size": CHUNKED + b"0x3\r\nabc\r\n0\r\n\r\n",
    "negative chunk size": CHUNKED + b"-1\r\n\r\n",
    "huge chunk size": CHUNKED + b"" + b"f" * 30 + b"\r\n",
    "a chunk without its end": CHUNKED + b"3\r\nabcXX0\r\n\r\n",
    "a chunk line with LF": CHUNKED + b"3\nabc\r\n0\r\n\r\n",
    "a last line with LF": chunked("/echo", b"abc", end=b"0\r\n\n"),
    "a trailer": chunked("/echo", b"abc", end=b"0\r\nX-Trailer: a\r\n\r\n"),
    "a trailer with LF": chunked("/echo", b"abc", end=b"0\r\nX-Trailer: a\n\n"),
    "a long chunk extension": chunked("/echo", end=b"3;" + b"x" * (1 << 20) + b"\r\nabc\r\n0\r\n\r\n"),
    "LF only": get("/tell").replace(b"\r\n", b"\n"),
    "one LF": get("/tell", "X-A: b").replace(b"X-A: b\r\n", b"X-A: b\n"),
    "a bare CR": get("/tell", "X-A: b\rc"),
    "NUL in a value": get("/tell", "X-A: b\0c"),
    "NUL in a name": get("/tell", "X\0A: b"),
    "NUL in the path": get("/te\0ll"),
    "DEL in a value": get("/tell", "X-A: \x7f"),
    "no colon": get("/tell", "nonsense"),
    "empty name": get("/tell", ": a"),
    "no host": b"GET /tell HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /tell HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
    "two keys": get("/tell", "Authorization: Bearer a", "Authorization: Bearer b"),
    "two origins": get("/tell", "Origin: http://localhost", "Origin: http://localhost"),
    "no version": b"GET /tell\r\n" + HOST + b"\r\n",
    "HTTP/2.0": get("/tell").replace(b"HTTP/1.1", b"HTTP/2.0"),
    "HTTP/1.2": get("/tell").replace(b"HTTP/1.1", b"HTTP/1.2"),
    "the HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "two spaces": get("/tell").replace(b"GET /", b"GET  /"),
    "a leading space": b" " + get("/tell"),
    "a TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "another host in the target": get("http://evil.example/tell"),
    "an authority": get("localhost:80"),
    "a star": get("*"),
    "a fragment": get("/tell#a"),
    "a broken escape": get("/te%zzll"),
    "a path that is no UTF-8": get("/te%ffll"),
    "a query that is no UTF-8": get("/tell?a=%ff"),
    "too many query pairs": get("/tell?" + "&".join(f"a{n}=1" for n in range(33))),
}


@pytest.mark.parametrize("name", SMUGGLING)
@pytest.mark.parametrize("size", [1, 1 << 21], ids=["bytewise", "whole"])
def test_sec31_what_two_readers_could_read_differently_is_refused(name: str, size: int) -> None:
    rig = Rig()
    transport = rig.connect()
    raw = SMUGGLING[name]
    for start in range(0, min(len(raw), 200_000) if size == 1 else len(raw), size):
        transport.feed(raw[start : start + size])
    transport.feed(get("/tell?smuggled=1"))
    rig.loop.run()
    reply = only(transport.sent)
    assert reply.status == 400, reply
    assert reply.error["type"] == "invalid_request_error"
    assert reply.headers["connection"] == "close" and transport.eof
    assert not rig.faces.requests, "no face sees any of it"


def test_sec31_targets_are_judged_by_the_table_alone() -> None:
    rig = Rig()
    assert only(rig.ask(get("http://localhost/tell")).sent).status == 200
    assert only(rig.ask(get("HTTP://localhost/tell")).sent).status == 400
    for path in (
        "//tell",
        "/tell/",
        "/./tell",
        "/x/../tell",
        "/%2e%2e/tell",
        "/x/%2e%2e/tell",
        "/tell%2f",
        "/%2ftell",
        "/v1%2ftell",
        "/v1%2Ftell",
        "/v1//tell",
        "/v1/x/../tell",
        "/%74ell/../tell",
        "/TELL",
        "/tell;a",
        "/tell%00",
        "/models/",
        "/models/../tell",
        "/models/a/../../tell",
        "/models/a//b",
        "/models/%2e%2e",
        "/models%2fa",
        "/items/a/b/cancel",
        "/items//cancel",
        "/items/../cancel",
        "/items/" + "x" * 201 + "/cancel",
    ):
        assert only(rig.ask(get(path)).sent).status == 404, path
    for upgrade in ("h2c", "TLS/1.0"):
        raw = get(
            "/tell", "Connection: Upgrade, HTTP2-Settings", f"Upgrade: {upgrade}", "HTTP2-Settings: AAMA"
        )
        assert only(rig.ask(raw).sent).status == 200, "other upgrades are offers that nobody has to take"
    assert only(rig.ask(get("/%74ell?a=%2e&a=2")).sent).status == 200
    assert rig.faces.requests[-1].path == "/tell" and rig.faces.requests[-1].query == {"a": "2"}
    assert only(rig.ask(get("/models/org/name-1.5B")).sent).status == 200
    assert rig.faces.requests[-1].parameters == {"id": "org/name-1.5B"}
    assert only(rig.ask(get("/models/org%2Fname-1.5B")).sent).status == 200
    assert rig.faces.requests[-1].parameters == {"id": "org/name-1.5B"}
    assert only(rig.ask(post("/items/resp_1/cancel", b"")).sent).status == 200
    assert rig.faces.requests[-1].parameters == {"id": "resp_1"}


def test_sec39_no_path_leads_to_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig()
    opened: list[object] = []
    monkeypatch.setattr("builtins.open", lambda *args, **kwargs: opened.append(args))
    tails = ["etc/passwd", "server/front.py", "index.html", ".env"]
    ways = [
        "../",
        "..%2f",
        "..%5c",
        "..\\",
        "%2e%2e/",
        "//",
        "/",
        "./",
        "%2f",
        "..%00/",
        "%ef%bc%8f",
        "\u2215",
        "~/",
    ]
    for way in ways:
        for depth in (1, 3):
            for tail in tails:
                raw = f"/{way * depth}{tail}"
                reply = only(rig.ask(get(raw)).sent)
                assert reply.status in ((404,) if raw.isascii() else (400, 404)), raw
    assert not opened and not rig.faces.requests


# -- size (SEC-32) ---


def padded(path_size: int) -> bytes:
    """A request line of `path_size` bytes, CR LF included."""
    return get("/tell?" + "x" * (path_size - len("GET /tell? HTTP/1.1\r\n")))


@pytest.mark.parametrize(("size", "status"), [(8191, 200), (8192, 200), (8193, 414)])
def test_sec32_request_line(size: int, status: int) -> None:
    raw = padded(size)
    assert raw.index(b"\n") + 1 == size
    rig = Rig()
    assert only(rig.ask(raw).sent).status == status
    endless = rig.ask(b"GET /" + b"x" * 8188)
    assert only(endless.sent).status == 414, "refused before its end is seen"


@pytest.mark.parametrize(("size", "status"), [(8191, 200), (8192, 200), (8193, 431)])
def test_sec32_header_line(size: int, status: int) -> None:
    rig = Rig()
    assert only(rig.ask(get("/tell", "X-Fill: " + "x" * (size - len("X-Fill: \r\n")))).sent).status == status
    endless = rig.ask(get("/tell")[:-2] + b"X-Fill: " + b"x" * 8185)
    assert only(endless.sent).status == 431


@pytest.mark.parametrize(("count", "status"), [(127, 200), (128, 200), (129, 431)])
def test_sec32_header_count(count: int, status: int) -> None:
    raw = get("/tell", *(f"X-{n}: a" for n in range(count - 1)))
    assert only(Rig().ask(raw).sent).status == status


@pytest.mark.parametrize(("size", "status"), [(65535, 200), (65536, 200), (65537, 431)])
def test_sec32_whole_head(size: int, status: int) -> None:
    fill = [f"X-{n}: " + "x" * 8000 for n in range(8)]
    raw = get("/tell", *fill)
    raw = get("/tell", *fill, "X-Last: " + "x" * (size - len(raw) - len("X-Last: \r\n")))
    assert len(raw) == size
    assert only(Rig().ask(raw).sent).status == status


@pytest.mark.parametrize(("size", "status"), [((1 << 20) - 1, 200), (1 << 20, 200), ((1 << 20) + 1, 413)])
@pytest.mark.parametrize("coding", ["length", "chunked"])
def test_sec32_body_of_a_route(size: int, status: int, coding: str) -> None:
    body = b"x" * size
    rig = Rig()
    raw = (
        post("/echo", body) if coding == "length" else chunked("/echo", body[: size // 2], body[size // 2 :])
    )
    reply = only(rig.ask(raw).sent)
    assert reply.status == status
    if status == 200:
        assert reply.body == body
    else:
        assert reply.error["code"] == "request_too_large" and not rig.faces.requests


@pytest.mark.parametrize(("size", "status"), [(4095, 200), (4096, 200), (4097, 413)])
def test_sec32_body_of_the_server(size: int, status: int) -> None:
    assert only(Rig(limits={"max_body": 4096}).ask(post("/big", b"x" * size)).sent).status == status


@pytest.mark.parametrize(("count", "status"), [(15, 200), (16, 200), (17, 413)])
def test_sec32_chunk_count(count: int, status: int) -> None:
    assert only(Rig(limits={"max_chunks": 16}).ask(chunked("/big", *[b"x"] * count)).sent).status == status


def test_sec32_an_oversize_body_is_refused_before_it_is_sent() -> None:
    rig = Rig()
    announced = rig.ask(post("/echo", b"")[:-2].replace(b"Length: 0", b"Length: 2000000") + b"\r\n")
    assert only(announced.sent).status == 413 and announced.eof
    asked = rig.ask(POST + b"Content-Length: 2000000\r\nExpect: 100-continue\r\n\r\n")
    assert only(asked.sent).status == 413
    # The sender may not look before it has sent all: it is read from, and its bytes go nowhere.
    for _ in range(100):
        asked.feed(b"x" * 20_000)
    assert not rig.faces.requests and len(replies(asked.sent)) == 1


def test_sec32_expect_100_continue() -> None:
    rig = Rig()
    head = POST + b"Content-Length: 3\r\nExpect: 100-Continue\r\n\r\n"
    transport = rig.ask(head)
    assert only(transport.sent).status == 100
    transport.feed(b"abc")
    assert [reply.status for reply in replies(transport.sent)] == [100, 200]
    assert only(rig.ask(head + b"abc").sent).status == 200, "the body is already here: nobody waits"
    strange = rig.ask(head.replace(b"100-Continue", b"200-ok"))
    assert only(strange.sent).status == 417
    keyed = Rig(keys=["k"]).ask(head)
    assert only(keyed.sent).status == 401 and keyed.eof, "no key, no body"


@pytest.mark.parametrize("coding", ["gzip", "br", "identity", "deflate, gzip", "zstd"])
def test_sec32_compressed_bodies_are_refused(coding: str) -> None:
    rig = Rig()
    reply = only(rig.ask(post("/echo", b"\x1f\x8b", f"Content-Encoding: {coding}")).sent)
    assert reply.status == 415 and not rig.faces.requests


def test_sec31_a_hundred_thousand_chunks_share_the_loop() -> None:
    rig = Rig()
    transport = rig.connect()
    raw = chunked("/echo", *[b"x"] * 100_000)
    turns = 0
    for start in range(0, len(raw), 1 << 16):
        transport.feed(raw[start : start + (1 << 16)])
        while rig.loop.ready:
            before = len(rig.loop.ready)
            for _ in range(before):
                handle = rig.loop.ready.popleft()
                if handle.call is not None:
                    handle.call()
            turns += 1
    assert only(transport.sent).body == b"x" * 100_000
    assert turns > 100_000 // 512, "no turn reads more than its share"


# -- time (SEC-32) ---


def test_sec32_a_head_must_come_in_time() -> None:
    rig = Rig()
    transport = rig.connect()
    rig.loop.advance(5)
    for byte in get("/tell")[:8]:
        transport.feed(bytes((byte,)))
        rig.loop.advance(1)
    assert not transport.sent
    rig.loop.advance(2.5)
    reply = only(transport.sent)
    assert reply.status == 408 and reply.error["code"] == "timeout" and transport.eof
    rig.loop.advance(2.1)
    assert transport.lost, "lingering ends"


def test_a_last_reply_is_waited_for_while_its_peer_goes_on_taking_it() -> None:
    rig = Rig()
    body = bytes(range(256)) * 4000
    transport = rig.connect()
    transport.stall()
    transport.feed(post("/echo", body, "Connection: close"))
    rig.loop.run()
    assert transport.eof
    while transport.unsent:
        rig.loop.advance(1.9)
        assert not transport.closing
        transport.take(20_000)
    assert only(transport.sent).body == body
    rig.loop.advance(4.1)
    assert transport.lost
    deaf = rig.connect()
    deaf.stall()
    deaf.feed(post("/echo", b"x" * 30_000, "Connection: close"))
    rig.loop.advance(4.1)
    assert deaf.lost, "a peer that takes nothing is not waited for"


@pytest.mark.parametrize("coding", ["length", "chunked"])
def test_sec32_a_body_must_come_in_time(coding: str) -> None:
    rig = Rig()
    raw = post("/echo", b"x" * 100) if coding == "length" else chunked("/echo", *[b"x"] * 100)
    start = raw.index(b"\r\n\r\n") + 4
    transport = rig.ask(raw[:start])
    for byte in raw[start : start + 59]:
        transport.feed(bytes((byte,)))
        rig.loop.advance(1)
    assert not transport.sent, "dripping does not move the deadline"
    rig.loop.advance(1.1)
    assert only(transport.sent).status == 408 and transport.eof and not rig.faces.requests


def test_silent_connections_are_closed_without_a_word() -> None:
    rig = Rig()
    fresh = rig.connect()
    rig.loop.advance(9.9)
    assert not fresh.closing
    rig.loop.advance(0.2)
    assert fresh.lost and not fresh.sent
    used = rig.ask(get("/tell"))
    rig.loop.advance(74)
    assert not used.closing
    used.feed(get("/tell"))
    rig.loop.advance(74)
    assert not used.closing
    rig.loop.advance(2)
    assert used.lost and len(replies(used.sent)) == 2


def test_no_deadline_runs_while_an_answer_is_made() -> None:
    rig = Rig(sse_ping=0.0)
    transport = rig.ask(get("/stream"))
    rig.loop.advance(10_000)
    assert not transport.closing


# -- the input budget ---


def body_start(transport: FakeTransport, rig: Rig, size: int) -> None:
    transport.feed(post("/big", b"")[:-4].replace(b"Length: 0", b"Length: %d" % size) + b"\r\n\r\n")


def test_input_over_the_budget_waits_and_the_newest_is_shed() -> None:
    rig = Rig(limits={"input_budget": 1 << 20})
    first, second, third = (rig.connect() for _ in range(3))
    for transport in (first, second, third):
        body_start(transport, rig, 700_000)
    first.feed(b"a" * 600_000)
    second.feed(b"b" * 600_000)
    assert not second.reading and first.reading
    third.feed(b"c" * 10)
    assert not third.reading
    rig.loop.advance(5.1)
    assert only(third.sent).status == 413, "the newest goes first"
    first.feed(b"a" * 100_000)
    assert not first.sent or only(first.sent).status == 200
    rig.loop.run()
    assert only(first.sent).status == 200
    assert second.reading, "there is room again"
    second.feed(b"b" * 100_000)
    rig.loop.run()
    assert only(second.sent).status == 200
    assert rig.port.input.total == 0
    rig.loop.advance(60)
    assert rig.port.input.total == 0


def test_heads_count_against_the_budget_too() -> None:
    rig = Rig(limits={"input_budget": 1 << 20})
    head = get("/tell", *(f"X-{n}: " + "x" * 8000 for n in range(7)))[:-2]
    many = [rig.ask(head) for _ in range(20)]
    assert rig.port.input.total == 20 * len(head), "over by what the last two brought, and by no more"
    assert [transport.reading for transport in many] == [True] * 18 + [False] * 2
    rig.loop.advance(5.1)
    assert only(many[19].sent).status == 413
    many[0].feed(b"\r\n")
    rig.loop.run()
    assert only(many[0].sent).status == 200 and many[18].reading
    for transport in many:
        transport.lose()
    assert rig.port.input.total == 0


def test_a_lost_connection_gives_its_input_back() -> None:
    rig = Rig(limits={"input_budget": 1 << 20})
    first, second = rig.connect(), rig.connect()
    body_start(first, rig, 2 << 20)
    body_start(second, rig, 800_000)
    first.feed(b"a" * 1_000_000)
    second.feed(b"b" * 700_000)
    assert not second.reading
    first.lose()
    rig.loop.run()
    assert second.reading and rig.port.input.total == 700_000
