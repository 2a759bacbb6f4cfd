"""A model that sees, behind the whole server: pictures over HTTP and websocket, answered as transformers does."""

from __future__ import annotations

import base64
import http.client
import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from live_server import WAIT, LiveServer
from vision_rig import SeeingModel, build_qwen3_vl, noise, png
from websockets.sync.client import connect

from headrace.runtime.config import EngineConfig
from headrace.server.app import load_model
from headrace.server.config import ServerConfig

PICTURE, OTHER = noise(56, 40, 1), noise(24, 64, 2)
ASKED = "what is this?"
COUNT = 12


def url(pixels: Any) -> str:
    return f"data:image/png;base64,{base64.b64encode(png(pixels)).decode()}"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> SeeingModel:
    return build_qwen3_vl(tmp_path_factory.mktemp("seeing") / "tiny-eyes")


class Pictures(http.server.BaseHTTPRequestHandler):
    """A host of one picture."""

    def do_GET(self) -> None:
        data = png(PICTURE)
        self.send_response(200 if self.path == "/one.png" else 404)
        self.send_header("content-type", "image/png")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def host() -> Iterator[str]:
    """Where PICTURE is to be had, at /one.png."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pictures) as found:
        thread = threading.Thread(target=found.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{found.server_address[1]}"
        found.shutdown()


@pytest.fixture(scope="module")
def server(model: SeeingModel, host: str) -> Iterator[LiveServer]:
    settings = EngineConfig(device="cpu", dtype="float32", threads=1, kv_memory_mb=8, chunk_tokens=32)
    config = ServerConfig(model=str(model.folder), engine=settings)
    live = LiveServer(parts=load_model(config), engine=settings, image_url_allow=(host,))
    try:
        yield live
    finally:
        live.stop()


def answered(server: LiveServer, model: SeeingModel, ids: list[int], pictures: list[Any]) -> str:
    """The text that transformers would say, as this server would tell it."""
    tokens, margin = model.answer(ids, pictures, COUNT)
    assert margin > 1e-4, "a tie would be decided by rounding"
    prompter = server.ask(lambda app: app.runtime.prompter)
    text: str = prompter.detokenize(tokens)
    return text


def prompt(server: LiveServer, *messages: Any) -> list[int]:
    from headrace.runtime.interface import Ask

    prompter = server.ask(lambda app: app.runtime.prompter)
    return list(prompter.prepare(Ask(messages=messages)).ids)


def post(server: LiveServer, path: str, body: dict[str, Any]) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=WAIT)
    connection.request("POST", path, json.dumps({"model": "default", **body}))
    reply = connection.getresponse()
    found = reply.status, json.loads(reply.read())
    connection.close()
    return found


def test_chat_over_http(server: LiveServer, model: SeeingModel) -> None:
    from headrace.runtime.interface import Message, Picture

    content = [
        {"type": "text", "text": "a "},
        {"type": "image_url", "image_url": {"url": url(PICTURE)}},
        {"type": "image_url", "image_url": {"url": url(OTHER)}},
        {"type": "text", "text": ASKED},
    ]
    status, reply = post(
        server,
        "/v1/chat/completions",
        {
            "messages": [{"role": "user", "content": content}],
            "max_tokens": COUNT, "temperature": 0, "ignore_eos": True,
        },
    )  # fmt: skip
    assert status == 200, reply
    shown = Picture(2, png(PICTURE)), Picture(2, png(OTHER))
    ids = prompt(server, Message("user", "a " + ASKED, pictures=shown))
    assert reply["usage"]["prompt_tokens"] == len(ids)
    assert reply["choices"][0]["message"]["content"] == answered(server, model, ids, [PICTURE, OTHER])


def test_two_turns_over_a_websocket(server: LiveServer, model: SeeingModel) -> None:
    from headrace.runtime.interface import Message, Picture

    with connect(server.url.replace("http", "ws") + "/v1/responses", open_timeout=WAIT) as socket:

        def ask(content: Any, **fields: Any) -> Any:
            create = {
                "type": "response.create",
                "model": "default",
                "max_output_tokens": COUNT,
                "temperature": 0,
            }
            items = [{"role": "user", "content": content}]
            socket.send(json.dumps({**create, "ignore_eos": True, "input": items, **fields}))
            while True:
                event = json.loads(socket.recv(timeout=WAIT))
                assert event["type"] != "error", event
                if event["type"] in ("response.completed", "response.incomplete", "response.failed"):
                    return event["response"]

        parts = [{"type": "input_image", "image_url": url(PICTURE)}, {"type": "input_text", "text": ASKED}]
        first = ask(parts)
        said = first["output"][0]["content"][0]["text"]
        turn = Message("user", ASKED, pictures=(Picture(0, png(PICTURE)),))
        assert said == answered(server, model, prompt(server, turn), [PICTURE])
        second = ask("and now?", previous_response_id=first["id"])
        ids = prompt(server, turn, Message("assistant", said), Message("user", "and now?"))
        assert second["output"][0]["content"][0]["text"] == answered(server, model, ids, [PICTURE])
        cached = second["usage"]["input_tokens_details"]["cached_tokens"]
        assert cached > len(prompt(server, turn)) - 20, "the picture of the first turn was not computed again"


def test_a_picture_by_its_address_is_the_picture(server: LiveServer, model: SeeingModel, host: str) -> None:
    from headrace.runtime.interface import Message, Picture

    def ask(url: str) -> tuple[int, Any]:
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": ASKED}]
        turns = [{"role": "user", "content": content}]
        fields = {"max_tokens": COUNT, "temperature": 0, "ignore_eos": True}
        return post(server, "/v1/chat/completions", {"messages": turns, **fields})

    status, reply = ask(f"{host}/one.png")
    assert status == 200, reply
    ids = prompt(server, Message("user", ASKED, pictures=(Picture(0, png(PICTURE)),)))
    assert reply["choices"][0]["message"]["content"] == answered(server, model, ids, [PICTURE])
    for url, why in (
        (f"{host}/two.png", "status 404"),
        (server.url + "/icon.svg", "not on this server's list"),
        ("http://localhost/one.png", "not on this server's list"),
    ):
        status, reply = ask(url)
        assert status == 400 and why in reply["error"]["message"]
        assert reply["error"]["param"] == "messages[0].content[0].image_url.url"


def test_a_realtime_item_by_address(server: LiveServer, model: SeeingModel, host: str) -> None:
    from headrace.runtime.interface import Message, Picture

    with connect(
        server.url.replace("http", "ws") + "/v1/realtime?model=default", open_timeout=WAIT
    ) as socket:

        def told(kind: str) -> Any:
            while (event := json.loads(socket.recv(timeout=WAIT)))["type"] != kind:
                assert kind == "error" or event["type"] != "error", event
            return event

        def show(url: str) -> None:
            content = [{"type": "input_image", "image_url": url}, {"type": "input_text", "text": ASKED}]
            item = {"type": "message", "role": "user", "content": content}
            socket.send(json.dumps({"type": "conversation.item.create", "item": item}))

        show("http://other.example/x.png")
        refused = told("error")["error"]
        assert refused["code"] == "invalid_value" and refused["param"] == "item.content[0].image_url"
        show(f"{host}/one.png")
        told("conversation.item.done")
        socket.send(json.dumps({"type": "response.create", "response": {"max_output_tokens": 4}}))
        done = told("response.done")["response"]
        ids = prompt(server, Message("user", ASKED, pictures=(Picture(0, png(PICTURE)),)))
        assert done["usage"]["input_tokens"] == len(ids) and done["status"] in ("completed", "incomplete")


def test_what_encodes_take_is_learnt(server: LiveServer) -> None:
    """The tests above had some; whoever runs this one alone has this one."""
    content = [{"type": "image_url", "image_url": {"url": url(noise(64, 48, 77))}}]
    turns = [{"role": "user", "content": content}]
    status, _ = post(server, "/v1/chat/completions", {"messages": turns, "max_tokens": 2})
    assert status == 200
    assert server.ask(lambda app: app.loop.encodes.seen) >= 1


def test_a_bad_picture_is_its_senders_alone(server: LiveServer) -> None:
    broken = "data:image/png;base64," + base64.b64encode(png(PICTURE)[:200]).decode()
    status, reply = post(
        server,
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": broken}}]}]},
    )
    assert status == 400
    assert reply["error"]["param"] == "messages[0].content[0].image_url.url"
    assert "damaged or cut off" in reply["error"]["message"]
    status, reply = post(
        server, "/v1/responses", {"input": "hello", "max_output_tokens": 2, "temperature": 0}
    )
    assert status == 200


def test_the_models_page_says_that_it_sees(server: LiveServer) -> None:
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=WAIT)
    connection.request("GET", "/v1/models")
    (card,) = json.loads(connection.getresponse().read())["data"]
    connection.close()
    assert card["x_pictures"] is True and card["x_architecture"] == "Qwen3VLForConditionalGeneration"
