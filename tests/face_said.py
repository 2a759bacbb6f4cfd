"""Reading what a socket of the face bench said."""

from __future__ import annotations

import json
from typing import Any

from face_bench import FaceBench, Socket
from strict_responses import check_error_frame


def errors(socket: Socket) -> list[dict[str, Any]]:
    return [check_error_frame(raw) for raw in socket.raw if json.loads(raw)["type"] == "error"]


def by_lane(socket: Socket, lane: str | None) -> list[str]:
    return [raw for raw in socket.raw if json.loads(raw).get("stream_id") == lane]


def finals(socket: Socket) -> list[dict[str, Any]]:
    return [e["response"] for e in socket.said if e["type"] in ("response.completed", "response.incomplete")]


def text(response: dict[str, Any]) -> str:
    return "".join(part["text"] for item in response["output"] for part in item["content"])


def prompt_of(bench: FaceBench) -> str:
    """The prompt of the request that joined last."""
    return bytes(bench.prompts[-1]).decode()
