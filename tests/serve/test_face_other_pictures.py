"""Pictures on Anthropic's and Ollama's faces: their places, their shapes, and what is refused."""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import Any

import pytest
from face_bench import FaceBench, Fetch
from face_said import prompt_of
from fake_prompter import CARD
from strict_messages import check_error, check_message

SEES = replace(CARD, sees=True)
DATA = base64.b64encode(b"a picture").decode()
URL = f"data:image/png;base64,{DATA}"
SHOWN = f"[whole picture of {len(URL)}]"
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": DATA}}
BY_URL = {"type": "image", "source": {"type": "url", "url": URL}}


def text(said: str) -> dict[str, Any]:
    return {"type": "text", "text": said}


def messages(bench: FaceBench, *turns: Any, **fields: Any) -> Fetch:
    body = {"model": "fake", "max_tokens": 3, "messages": list(turns), **fields}
    return bench.fetch("/v1/messages", body)


def user(*blocks: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(blocks)}


async def test_anthropic_s_images_keep_their_places() -> None:
    bench = FaceBench(card=SEES)
    turns = (user(IMAGE, text("left "), BY_URL, text("right")), user(IMAGE), user(text("what?")))
    check_message((await messages(bench, *turns).done()).json)
    assert prompt_of(bench) == f"user: {SHOWN}left {SHOWN}right\n\n{SHOWN}\n\nwhat?\nassistant: "
    (ask,) = bench.asks
    assert ask.messages is not None
    assert ask.messages[0].pictures[1].name == "messages[0].content[2].source.url"
    count = {"model": "fake", "messages": list(turns)}
    counted = await bench.fetch("/v1/messages/count_tokens", count).done()
    assert counted.json["input_tokens"] == len(prompt_of(bench))
    await bench.baseline()


@pytest.mark.parametrize(
    ("block", "named"),
    [
        ({"type": "image"}, "source"),
        ({"type": "image", "source": {"type": "base64", "data": DATA}}, "media_type"),
        ({"type": "image", "source": {"type": "base64", "media_type": "image/png"}}, "data"),
        ({"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}}, "never fetched"),
        ({"type": "image", "source": {"type": "file", "file_id": "file_1"}}, "no files are kept"),
        ({"type": "image", "source": {"type": "zork"}}, "source.type"),
    ],
)
async def test_what_is_no_picture_is_refused_by_name(block: Any, named: str) -> None:
    bench = FaceBench(card=SEES)
    fetch = messages(bench, user(text("x"), block))
    assert fetch.status == 400 and named in check_error(fetch.json, "invalid_request_error")
    assert not bench.asks


async def test_a_model_that_reads_text_alone_says_so() -> None:
    bench = FaceBench()
    fetch = await messages(bench, user(IMAGE, text("what?"))).done()
    assert fetch.status == 400 and "pictures" in check_error(fetch.json, "invalid_request_error")
    asked = {"model": "fake", "messages": [{"role": "user", "content": "what?", "images": [DATA]}]}
    fetch = await bench.fetch("/api/chat", asked).done()
    assert fetch.status == 400 and "pictures" in fetch.json["error"]
    assert "vision" not in bench.fetch("/api/show", {"model": "fake"}).json["capabilities"]


async def test_ollama_s_images_stand_in_front() -> None:
    bench = FaceBench(card=SEES)
    options = {"num_predict": 2}
    turn = {"role": "user", "content": "what?", "images": [DATA, DATA]}
    fetch = await bench.fetch("/api/chat", {"model": "fake", "messages": [turn], "options": options}).done()
    assert fetch.status == 200 and prompt_of(bench) == f"user: {SHOWN}{SHOWN}what?\nassistant: "
    asked = {"model": "fake", "prompt": "what?", "images": [DATA], "options": options}
    fetch = await bench.fetch("/api/generate", asked).done()
    assert fetch.status == 200 and prompt_of(bench) == f"user: {SHOWN}what?\nassistant: "
    assert "vision" in bench.fetch("/api/show", {"model": "fake"}).json["capabilities"]
    fetch = bench.fetch("/api/generate", {**asked, "raw": True})
    assert fetch.status == 400 and "images" in fetch.json["error"]
    said = {"role": "assistant", "content": "x", "images": [DATA]}
    fetch = bench.fetch("/api/chat", {"model": "fake", "messages": [said, turn]})
    assert fetch.status == 400 and "messages[0].images" in fetch.json["error"]
    await bench.baseline()
