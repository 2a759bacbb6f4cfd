"""A WebSocket client made of bytes, for tests that must end a connection in ways no library would."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import struct
from typing import Any


def frame(text: str) -> bytes:
    """One masked text frame (the mask is zero: it changes nothing, and it is one)."""
    data = text.encode()
    if len(data) < 126:
        head = bytes([0x81, 0x80 | len(data)])
    else:
        head = struct.pack("!BBH", 0x81, 0x80 | 126, len(data))
    return head + bytes(4) + data


def handshake(path: str = "/v1/responses") -> bytes:
    key = base64.b64encode(os.urandom(16)).decode()
    return (
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n"
    ).encode()


class Frames:
    """Server frames off a stream: unmasked, unfragmented, as the server promises to send them."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self.reader = reader

    async def next(self) -> dict[str, Any]:
        first, size = await self.reader.readexactly(2)
        assert first == 0x81, f"not a whole text frame: {first:#x}"
        if size == 126:
            (size,) = struct.unpack("!H", await self.reader.readexactly(2))
        elif size == 127:
            (size,) = struct.unpack("!Q", await self.reader.readexactly(8))
        event: dict[str, Any] = json.loads(await self.reader.readexactly(size))
        return event
