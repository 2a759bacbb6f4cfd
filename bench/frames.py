"""Websocket frames (RFC 6455) without extensions, for both ends of a load run.

The client's mask is zero: masking protects proxies from scripts in browsers, and here it would only cost time.
"""

from __future__ import annotations

import base64
import hashlib
import struct

from headrace.bench.http_wire import WireError

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


def frame(opcode: int, payload: bytes, *, masked: bool) -> bytes:
    """One unfragmented frame. masked: as a client sends it."""
    size, bit = len(payload), 0x80 if masked else 0
    if size < 126:
        head = struct.pack("!BB", 0x80 | opcode, bit | size)
    elif size < 1 << 16:
        head = struct.pack("!BBH", 0x80 | opcode, bit | 126, size)
    else:
        head = struct.pack("!BBQ", 0x80 | opcode, bit | 127, size)
    return head + (bytes(4) if masked else b"") + payload


def close_frame(code: int, *, masked: bool) -> bytes:
    return frame(CLOSE, struct.pack("!H", code), masked=masked)


def close_reason(payload: bytes) -> str:
    """A close frame's payload as a sentence's end: `1011 internal error`."""
    if len(payload) < 2:
        return "no code"
    return f"{int.from_bytes(payload[:2])} {payload[2:].decode(errors='replace')}".strip()


def acceptance(key: str) -> str:
    """What a server answers to a Sec-WebSocket-Key."""
    digest = hashlib.sha1(key.encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
    return base64.b64encode(digest).decode()


class FrameReader:
    """Feed bytes as they come; get whole messages. Fragments are joined, control frames come as they are."""

    def __init__(self) -> None:
        self.rest = b""
        self._parts: list[bytes] = []
        self._opcode = 0

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """(opcode, payload) of every message that is complete with `data`."""
        if self.rest:
            data = self.rest + data
        messages: list[tuple[int, bytes]] = []
        at, size = 0, len(data)
        while size - at >= 2:
            first, second = data[at], data[at + 1]
            start, length = at + 2, second & 0x7F
            if length == 126:
                start += 2
                if start > size:
                    break
                length = data[at + 2] << 8 | data[at + 3]
            elif length == 127:
                start += 8
                if start > size:
                    break
                length = int.from_bytes(data[at + 2 : start])
            mask = b""
            if second & 0x80:
                mask = data[start : start + 4]
                start += 4
            end = start + length
            if end > size:
                break
            payload = data[start:end]
            if mask and mask != b"\0\0\0\0":
                payload = unmask(payload, mask)
            at = end
            if first & 0x70:
                raise WireError("a frame with bits of an extension that nobody asked for")
            opcode = first & 0x0F
            if first & 0x80 and (opcode >= 8 or (opcode and not self._opcode)):
                messages.append((opcode, payload))
            else:
                self._join(opcode, payload, bool(first & 0x80), messages)
        self.rest = data[at:] if at < size else b""
        return messages

    def _join(self, opcode: int, payload: bytes, last: bool, messages: list[tuple[int, bytes]]) -> None:
        if opcode >= 8 or bool(opcode) == bool(self._opcode):
            raise WireError("fragments out of order")
        self._opcode = self._opcode or opcode
        self._parts.append(payload)
        if last:
            messages.append((self._opcode, b"".join(self._parts)))
            self._opcode, self._parts = 0, []


def unmask(payload: bytes, mask: bytes) -> bytes:
    size = len(payload)
    repeated = (mask * (size // 4 + 1))[:size]
    return (int.from_bytes(payload) ^ int.from_bytes(repeated)).to_bytes(size)
