"""Pictures through the faces: chat and Responses, whole, streamed and over the socket; what is refused, and how."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import replace
from typing import Any

import pytest
from face_bench import ALICE, BOB, FaceBench
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


@pytest.mark.parametrize("stream", [False, True])
async def test_chat_pictures_keep_their_places(stream: bool) -> None:
    bench = FaceBench(card=SEES)
    body = chat_body(
        {"type": "image_url", "image_url": {"url": URL}},
        text("left "),
        {"type": "image_url", "image_url": {"url": URL, "detail": "low"}},
        {"type": "image_url", "image_url": URL},
        text("right"),
    )
    fetch = await bench.fetch(CHAT, {**body, "stream": stream}).done()
    assert fetch.status == 200
    one = f"[whole picture of {len(URL)}]"
    small = one.replace("whole", "small")
    assert prompt_of(bench) == f"user: {one}left {small}{one}right\nassistant: "
    (ask,) = bench.asks
    assert [shown.name for shown in ask.messages[0].pictures] == [
        "messages[0].content[0].image_url.url",
        "messages[0].content[2].image_url.url",
        "messages[0].content[3].image_url",
    ]
    await bench.baseline()


async def test_responses_pictures_over_http_and_the_socket() -> None:
    bench = FaceBench(card=SEES)
    parts = [
        {"type": "input_text", "text": "what is "},
        {"type": "input_image", "image_url": URL, "detail": "high"},
        {"type": "input_text", "text": "this?"},
    ]
    fetch = await bench.fetch(RESPONSES, response_body(*parts)).done()
    assert fetch.status == 200
    wanted = f"user: what is [whole picture of {len(URL)}]this?\nassistant: "
    assert prompt_of(bench) == wanted
    socket = bench.socket()
    socket.create([{"role": "user", "content": parts}])
    await socket.until_over()
    assert socket.types()[-1] == "response.incomplete" and prompt_of(bench) == wanted
    # The next turn sees the picture again, and the stored input shows it as it was sent.
    first = fetch.json["id"]
    again = await bench.fetch(
        RESPONSES,
        {**response_body({"type": "input_text", "text": "and now?"}), "previous_response_id": first},
    ).done()
    assert again.status == 200 and prompt_of(bench).startswith(wanted.removesuffix("assistant: "))
    items = bench.fetch(f"{RESPONSES}/{first}/input_items").json["data"]
    assert items[0]["content"] == [
        {"type": "input_text", "text": "what is "},
        {"type": "input_image", "image_url": URL, "detail": "high"},
        {"type": "input_text", "text": "this?"},
    ]
    socket.drop()


async def test_stored_pictures_are_charged() -> None:
    bench = FaceBench(card=SEES, store={"bytes_limit": 200_000})
    large = URL + "A" * 40_000
    ids = []
    for _ in range(8):
        fetch = await bench.fetch(
            RESPONSES, response_body({"type": "input_image", "image_url": large})
        ).done()
        ids.append(fetch.json["id"])
    assert bench.store.kept <= 200_000
    assert bench.store.get(ALICE, ids[0]) is None and bench.store.get(ALICE, ids[-1]) is not None
    assert bench.store.get(BOB, ids[-1]) is None
    bench.store.check()


BAD_URLS = (
    "http://127.0.0.1/x", "https://example.org/cat.png", "HTTPS://example.org/cat.png", "file:///etc/passwd",
    "/etc/passwd", "C:\\x.png", "gopher://127.0.0.1:70/", "ftp://127.0.0.1/x", "http://127.1/", "http://2130706433/",
    "http://0x7f.1/", "http://[::ffff:169.254.169.254]/latest", "http://017700000001/", "http://user@host/x",
    "http://good.example#@127.0.0.1/", "//127.0.0.1/x", "javascript:alert(1)", "blob:https://example.org/x", "",
    "ref:sha256:00", " data:image/png;base64,AAAA", "jar:file:///x!/y", "s3://bucket/x", "gs://bucket/x",
    "unix:/run/x.sock", "ldap://127.0.0.1/", "dict://127.0.0.1:11211/stat", "tftp://127.0.0.1/x", "netdoc:///x",
)  # fmt: skip


@pytest.mark.parametrize("url", BAD_URLS)
async def test_sec_30_nothing_is_fetched(url: str) -> None:
    bench = FaceBench(card=SEES)
    for path, body, param in (
        (
            CHAT,
            chat_body(text("x"), {"type": "image_url", "image_url": {"url": url}}),
            "messages[0].content[1].image_url.url",
        ),
        (
            RESPONSES,
            response_body({"type": "input_image", "image_url": url}),
            "input[0].content[0].image_url",
        ),
    ):
        fetch = bench.fetch(path, body)
        assert fetch.over and fetch.status == 400, "answered without waiting for anything"
        error = fetch.error
        assert (error["code"], error["param"]) == ("invalid_value", param)
        assert "data: URL" in error["message"] and len(error["message"]) < 300
    assert not bench.asks


@pytest.mark.parametrize(
    ("part", "param", "code"),
    [
        ({"type": "input_image"}, "input[0].content[0].image_url", "missing_required_parameter"),
        (
            {"type": "input_image", "file_id": "file_1"},
            "input[0].content[0].file_id",
            "unsupported_parameter",
        ),
        ({"type": "input_image", "image_url": 5}, "input[0].content[0].image_url", "invalid_value"),
        (
            {"type": "input_image", "image_url": {}},
            "input[0].content[0].image_url.url",
            "missing_required_parameter",
        ),
        (
            {"type": "input_image", "image_url": URL, "detail": "x"},
            "input[0].content[0].detail",
            "invalid_value",
        ),
    ],
)
async def test_malformed_parts(part: dict[str, Any], param: str, code: str) -> None:
    bench = FaceBench(card=SEES)
    fetch = bench.fetch(RESPONSES, response_body(part))
    assert fetch.status == 400 and (fetch.error["param"], fetch.error["code"]) == (param, code)
    socket = bench.socket()
    socket.send(json.dumps({"type": "response.create", **response_body(part)}))
    await socket.until_over()
    assert socket.said[0]["error"]["param"] == param


async def test_a_model_without_eyes_refuses_by_name() -> None:
    bench = FaceBench()
    fetch = await bench.fetch(CHAT, chat_body({"type": "image_url", "image_url": {"url": URL}})).done()
    assert fetch.status == 400 and "takes no pictures" in fetch.error["message"]
    assert fetch.error["param"] == "messages[0].content[0].image_url.url"
    assert bench.fetch("/v1/models").json["data"][0]["x_pictures"] is False
    seeing = FaceBench(card=SEES)
    assert seeing.fetch("/v1/models").json["data"][0]["x_pictures"] is True
    await bench.baseline()


# -- binary messages of a socket ---------------------------------------------------------------------------------

FILE = b"\x89PNG\r\n\x1a\n and the rest of it"
FILE_URL = "data:image/png;base64," + base64.b64encode(FILE).decode()


def named(ref: str, **more: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "input_image", "image_url": f"ref:{ref}", **more}]}]


async def test_a_binary_message_is_a_picture_that_requests_name() -> None:
    bench = FaceBench(card=SEES)
    socket = bench.socket()
    socket.send(FILE)
    socket.pump()
    (held,) = socket.said
    assert held == {
        "type": "x.image", "image_ref": f"sha256:{hashlib.sha256(FILE).hexdigest()}", "bytes": len(FILE)
    }  # fmt: skip
    socket.create(named(held["image_ref"], detail="low"))
    await socket.until_over()
    assert prompt_of(bench) == f"user: [small picture of {len(FILE_URL)}]\nassistant: "
    (ask,) = bench.asks
    assert ask.messages[0].pictures[0].source == FILE_URL
    # Another connection, even of the same tenant, holds nothing; nor does this one after its end.
    other = bench.socket()
    other.create(named(held["image_ref"]))
    await other.until_over()
    error = other.said[-1]["error"]
    assert (error["code"], error["param"]) == ("invalid_value", "input[0].content[0].image_url")
    socket.drop()
    other.drop()
    await bench.baseline()


async def test_a_socket_holds_the_newest_pictures() -> None:
    bench = FaceBench(card=SEES)
    socket = bench.socket()
    for number in range(20):
        socket.send(FILE + bytes([number]))
    socket.send(FILE + bytes([4]))  # forgotten by then, and new again
    socket.pump()
    refs = [event["image_ref"] for event in socket.said]
    assert len(set(refs)) == 20 and refs[-1] == refs[4]
    budget = socket.session._lanes.budget
    assert budget.used == 16 * (len(FILE) + 1)
    socket.create(named(refs[3]))
    await socket.until_over()
    assert socket.said[-1]["type"] == "error"
    socket.create(named(refs[4]))
    await socket.until_over(2)
    assert socket.said[-1]["type"] == "response.incomplete"
    socket.drop()
    assert budget.used == 0
    await bench.baseline()


async def test_binary_messages_that_are_no_picture_are_events_as_ever() -> None:
    bench = FaceBench(card=SEES)
    socket = bench.socket()
    socket.send(
        json.dumps(
            {"type": "response.create", "model": "fake", "input": "x", "max_output_tokens": 2}
        ).encode()
    )
    await socket.until_over()
    assert socket.said[-1]["type"] == "response.incomplete"
    socket.send(b"\x00\x01")
    socket.pump()
    assert socket.said[-1]["error"]["code"] == "invalid_json"
    socket.drop()
    await bench.baseline()


# -- the other protocols ----------------------------------------------------------------------------------------


CODED = URL.partition(",")[2]
ANTHROPIC, OLLAMA, GENERATE = "/v1/messages", "/api/chat", "/api/generate"


def block(**source: Any) -> dict[str, Any]:
    return {"type": "image", "source": source}


@pytest.mark.parametrize(
    "source",
    [
        {"type": "url", "url": "https://example.org/x.png"},
        {"type": "file", "file_id": "file_1"},
        {"type": "base64", "data": CODED},
        {"type": "base64", "media_type": "image/png"},
    ],
)
async def test_anthropic_sources_that_are_no_picture(source: dict[str, str]) -> None:
    bench = FaceBench(card=SEES)
    turn = {"role": "user", "content": [block(**source)]}
    fetch = await bench.fetch(ANTHROPIC, {"model": "fake", "max_tokens": 3, "messages": [turn]}).done()
    assert fetch.status == 400 and b"messages[0].content[0].source" in fetch.body
    assert not bench.asks


async def test_ollama_images() -> None:
    bench = FaceBench(card=SEES)
    turn = {"role": "user", "content": "what?", "images": [CODED, CODED]}
    fetch = await bench.fetch(
        OLLAMA, {"model": "fake", "stream": False, "messages": [turn], "options": {"num_predict": 3}}
    ).done()
    assert fetch.status == 200, fetch.body
    one = f"[whole picture of {len(URL)}]"
    assert prompt_of(bench) == f"user: {one}{one}what?\nassistant: "
    body = {
        "model": "fake",
        "stream": False,
        "prompt": "what?",
        "images": [CODED],
        "options": {"num_predict": 3},
    }
    assert (await bench.fetch(GENERATE, body).done()).status == 200
    assert prompt_of(bench) == f"user: {one}what?\nassistant: "
    assert (await bench.fetch(GENERATE, {**body, "raw": True}).done()).status == 400
    assert "vision" in bench.fetch("/api/show", {"model": "fake"}).json["capabilities"]
    assert "vision" not in FaceBench().fetch("/api/show", {"model": "fake"}).json["capabilities"]
