"""A process that opens streams and counts the bytes that come back, so that reading costs the server's host little.

    python -P -m headrace.bench.count PORT KIND STREAMS PER TOKENS

KIND: ws (Responses events, PER streams on each websocket), steps (the same, each step told with x_telemetry),
responses or chat (SSE, one connection each). Prompts differ in length, so that streams do not all cross their page
edges in the same step.
"""

from __future__ import annotations

import json
import select
import socket
import sys

from headrace.bench.frames import TEXT, frame
from headrace.bench.http_wire import Target, allow_sockets

LONGEST = 128  # tokens of a prompt
PATHS = {"responses": "/v1/responses", "chat": "/v1/chat/completions"}


def opening(kind: str, target: Target, first: int, per: int, tokens: int) -> bytes:
    """What one connection sends: its streams are number `first` on."""

    def ask(number: int) -> dict[str, object]:
        text = "x" * (1 + number * 37 % LONGEST)
        sampled = {"model": "default", "stream": True, "temperature": 1.0, "seed": number, "ignore_eos": True}
        if kind == "chat":
            return {**sampled, "messages": [{"role": "user", "content": text}], "max_tokens": tokens}
        return {**sampled, "input": text, "max_output_tokens": tokens, "store": False}

    if kind not in ("ws", "steps"):
        return target.post(PATHS[kind], json.dumps(ask(first)).encode())
    parts = [target.upgrade(PATHS["responses"], bytes(16))]
    for number in range(first, first + per):
        more = {} if per == 1 else {"stream_id": f"lane-{number}"}
        if kind == "steps":
            more["x_telemetry"] = "step"
        event = {"type": "response.create", **ask(number), **more}
        parts.append(frame(TEXT, json.dumps(event).encode(), masked=True))
    return b"".join(parts)


def main(port: int, kind: str, streams: int, per: int, tokens: int) -> None:
    """Open, read everything until the server closes, print how many bytes came."""
    allow_sockets()
    target = Target("127.0.0.1", "127.0.0.1", port)
    epoll = select.epoll()
    socks: dict[int, socket.socket] = {}
    for first in range(0, streams, per):
        sock = socket.create_connection((target.address, target.port))
        sock.sendall(opening(kind, target, first, min(per, streams - first), tokens))
        sock.setblocking(False)
        socks[sock.fileno()] = sock
        epoll.register(sock, select.EPOLLIN)
    buffer = bytearray(1 << 18)
    total = 0
    while socks:
        for number, _ in epoll.poll():
            try:
                size = socks[number].recv_into(buffer)
            except ConnectionResetError:
                size = 0
            total += size
            if not size:
                epoll.unregister(number)
                socks.pop(number).close()
    print(total, flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:6]))
