"""Pictures through the faces: chat and Responses, whole, streamed and over the socket; what is refused, and how."""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import Any

from face_bench import FaceBench
from fake_prompter import CARD

CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
URL = "data:image/png;base64," + base64.b64encode(b"a picture").decode()
SEES = replace(CARD, sees=True)


def chat_body(*parts: Any) -> dict[str, Any]:
    return {
        "model": "fake", "max_tokens": 3, "seed": 1, "messages": [{"role": "user", "content": list(parts)}]
    }  # fmt: skip


def response_body(*parts: Any) -> dict[str, Any]:
    return {
        "model": "fake", "max_output_tokens": 3, "seed": 1, "input": [{"role": "user", "content": list(parts)}]
    }  # fmt: skip


def text(value: str) -> dict[str, Any]:
    return {"type": "text", "text": value}


def prompt_of(bench: FaceBench, at: int = -1) -> str:
    return bytes(bench.prompts[at]).decode()
