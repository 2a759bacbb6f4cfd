"""HTTP answers and websocket frames come out the same however the network cuts them."""

from __future__ import annotations

import pytest
from bench_wire import chunked, cuts

from headrace.bench import frames
from headrace.bench.http_wire import AnswerReader, Target, WireError

PIECES = [b"data: one\n\n", b"data: two\n\ndata: three\n\n", b": quiet\n\n"]


def feed(parts: list[bytes]) -> tuple[AnswerReader, bytes]:
    reader = AnswerReader()
    body = b"".join(piece for part in parts for piece in reader.feed(part))
    return reader, body


def test_chunks_lose_their_framing_at_every_cut() -> None:
    for parts in cuts(chunked(PIECES)):
        reader, body = feed(parts)
        assert (body, reader.status, reader.ended, reader.keeps) == (b"".join(PIECES), 200, True, True)


def test_chunk_extensions_and_trailers_are_passed_over() -> None:
    answer = b"HTTP/1.1 200 OK\r\ntransfer-encoding: Chunked\r\n\r\n4;a=b\r\nbody\r\n0\r\nSum: 1\r\n\r\n"
    for parts in cuts(answer):
        reader, body = feed(parts)
        assert (body, reader.ended) == (b"body", True)


def test_a_length_ends_an_answer_and_the_next_one_follows() -> None:
    first = b"HTTP/1.1 404 Not Found\r\nContent-Length: 5\r\n\r\nwrong"
    second = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
    for parts in cuts(first):
        reader, body = feed(parts)
        assert (body, reader.status, reader.reason, reader.ended) == (b"wrong", 404, "Not Found", True)
    reader, _ = feed([first + second])
    assert reader.rest == second
    reader.reset()
    assert (reader.status, reader.ended) == (0, False)
    assert reader.feed(b"") == [] and (reader.status, reader.ended, reader.rest) == (200, True, b"")


def test_an_answer_without_length_ends_with_its_connection() -> None:
    answer = b"HTTP/1.1 200 OK\r\n\r\ndata: a\n\n"
    for parts in cuts(answer):
        reader, body = feed(parts)
        assert (body, reader.ended, reader.keeps) == (b"data: a\n\n", False, False)
        assert reader.end_of_file()


def test_a_cut_answer_is_no_end() -> None:
    whole = chunked(PIECES)
    for end in range(len(whole)):
        reader, _ = feed([whole[:end]])
        assert not reader.ended and not reader.end_of_file()


@pytest.mark.parametrize(
    ("head", "keeps"),
    [
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\n", False),
        (b"HTTP/1.0 200 OK\r\n", False),
        (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n", True),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n", True),
    ],
)
def test_whether_a_connection_is_kept(head: bytes, keeps: bool) -> None:
    for parts in cuts(head + b"Content-Length: 2\r\n\r\nok"):
        reader, body = feed(parts)
        assert (body, reader.status, reader.keeps) == (b"ok", 200, keeps)


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"x" * (70 << 10),
    ],
)
def test_what_is_no_http_is_refused(answer: bytes) -> None:
    with pytest.raises(WireError):
        feed([answer])


def test_requests_carry_host_key_and_length() -> None:
    target = Target("gpu:8000", "10.0.0.1", 8000, "/api", "secret")
    head, _, body = target.post("/v1/responses", b"{}").partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert lines[0] == "POST /api/v1/responses HTTP/1.1" and body == b"{}"
    assert {"Host: gpu:8000", "Authorization: Bearer secret", "Content-Length: 2"} <= set(lines)
    assert b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n" in target.upgrade("/v1/responses", bytes(16))


@pytest.mark.parametrize("size", [0, 1, 125, 126, 300])
@pytest.mark.parametrize("masked", [False, True])
def test_frames_come_back_at_every_cut(size: int, masked: bool) -> None:
    sent = frames.frame(frames.TEXT, b"a" * size, masked=masked) + frames.frame(
        frames.PING, b"x", masked=masked
    )
    for parts in cuts(sent):
        reader = frames.FrameReader()
        got = [message for part in parts for message in reader.feed(part)]
        assert got == [(frames.TEXT, b"a" * size), (frames.PING, b"x")] and reader.rest == b""


def test_a_large_frame_comes_back() -> None:
    payload = b"b" * (70 << 10)
    reader = frames.FrameReader()
    sent = frames.frame(frames.TEXT, payload, masked=False)
    assert reader.feed(sent[:9]) == reader.feed(sent[9:100]) == []
    assert reader.feed(sent[100:]) == [(frames.TEXT, payload)]


def test_fragments_are_joined_around_control_frames() -> None:
    sent = b"\x01\x02he" + b"\x89\x00" + b"\x00\x01l" + b"\x80\x02lo"
    for parts in cuts(sent):
        reader = frames.FrameReader()
        got = [message for part in parts for message in reader.feed(part)]
        assert got == [(frames.PING, b""), (frames.TEXT, b"hello")]


def test_a_real_mask_is_taken_off() -> None:
    masked = b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58"  # RFC 6455, 5.7
    assert frames.FrameReader().feed(masked) == [(frames.TEXT, b"Hello")]


@pytest.mark.parametrize("sent", [b"\x80\x00", b"\x01\x00\x81\x00", b"\xc1\x00"])
def test_frames_out_of_order_are_refused(sent: bytes) -> None:
    with pytest.raises(WireError):
        frames.FrameReader().feed(sent)


def test_close_reasons_are_told() -> None:
    assert frames.close_reason(b"\x03\xf3oh no") == "1011 oh no" and frames.close_reason(b"") == "no code"
    assert frames.acceptance("dGhlIHNhbXBsZSBub25jZQ==") == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  # RFC 6455, 1.3
