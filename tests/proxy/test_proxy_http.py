"""HTTP through nginx: whole answers, streams without buffering, errors, names, large bodies, who hangs up."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest
from live_server import LiveServer
from nginx_process import NAME, WAIT, Nginx

KEY = "sk-behind"
BEARER = {"authorization": f"Bearer {KEY}"}
QUESTION: Any = [{"role": "user", "content": "Hello"}]


def test_whole_bodies(server: LiveServer, client: openai.OpenAI) -> None:
    server.open_gate()
    chat = client.chat.completions.create(model="fake", messages=QUESTION)
    response = client.responses.create(model="fake", input="Hello")
    assert chat.choices[0].finish_reason == "stop" and response.status == "completed"
    assert len(chat.choices[0].message.content or "") == len(response.output_text) == 40
    assert [model.id for model in client.models.list()] == ["fake"]


def chat_deltas(nginx: Nginx) -> Iterator[str]:
    with nginx.openai(KEY) as client:
        for chunk in client.chat.completions.create(model="fake", messages=QUESTION, stream=True):
            yield chunk.choices[0].delta.content or ""


def response_deltas(nginx: Nginx) -> Iterator[str]:
    with nginx.openai(KEY) as client:
        for event in client.responses.create(model="fake", input="Hello", stream=True):
            yield event.delta if event.type == "response.output_text.delta" else ""


def ollama_deltas(nginx: Nginx) -> Iterator[str]:
    body = {"model": "fake", "messages": QUESTION}
    with (
        nginx.http() as http,
        http.stream("POST", f"https://{NAME}/api/chat", json=body, headers=BEARER) as reply,
    ):
        for line in reply.iter_lines():
            yield json.loads(line)["message"]["content"]


STREAMS = pytest.mark.parametrize("deltas", [chat_deltas, response_deltas, ollama_deltas])


@STREAMS
def test_each_token_arrives_before_the_next_is_computed(
    server: LiveServer, nginx: Nginx, deltas: Callable[[Nginx], Iterator[str]]
) -> None:
    with ThreadPoolExecutor(1) as reader:  # the client waits in it for the head of the reply too
        parts = (part for part in deltas(nginx) if part)
        text = ""
        for count in range(1, 6):
            coming = reader.submit(next, parts)
            server.until(lambda app: server.engine.held)
            server.land(1)  # one token; the gate holds the next one until this one's delta was read
            text += coming.result(WAIT)
            assert len(text) == count
        server.open_gate()
        assert len(text + "".join(parts)) == 40


@STREAMS
def test_who_hangs_up_in_a_stream_is_cancelled_at_the_server(
    server: LiveServer, nginx: Nginx, deltas: Callable[[Nginx], Generator[str, None, None]]
) -> None:
    with ThreadPoolExecutor(1) as reader:
        parts = deltas(nginx)
        coming = reader.submit(lambda: next(part for part in parts if part))
        server.until(lambda app: server.engine.held)
        server.land(1)
        coming.result(WAIT)
    assert server.ask(lambda app: app.scheduler.pages_in_use) > 0
    parts.close()
    server.until(lambda app: app.loop.live == 0 and not app.listener.connections)
    server.baseline()


def test_who_hangs_up_before_a_whole_answer_is_cancelled_at_the_server(
    server: LiveServer, nginx: Nginx
) -> None:
    body = json.dumps({"model": "fake", "input": "Never mind"}).encode()
    head = f"POST /v1/responses HTTP/1.1\r\nhost: {NAME}\r\nauthorization: {BEARER['authorization']}\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    with nginx.connect() as asker:
        asker.sendall(head.encode() + body)
        server.until(lambda app: server.engine.held)
    server.until(lambda app: app.loop.live == 0 and not app.listener.connections)
    server.baseline()


def test_errors_pass_as_they_are(server: LiveServer, client: openai.OpenAI) -> None:
    direct = openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0)
    said = []
    for each in (direct, client):
        with pytest.raises(openai.BadRequestError) as refused:
            each.chat.completions.create(model="fake", messages=QUESTION, max_tokens=-1)
        assert refused.value.request_id and refused.value.param == "max_tokens"
        said.append(refused.value.response.content)
        with pytest.raises(openai.AuthenticationError) as unknown:
            each.with_options(api_key="sk-wrong").models.list()
        assert unknown.value.request_id and unknown.value.response.headers["www-authenticate"] == "Bearer"
        with pytest.raises(openai.NotFoundError) as missing:
            each.responses.retrieve("resp_none")
        said.append(missing.value.response.content)
    assert said[:2] == said[2:]


@pytest.mark.parametrize(
    ("headers", "status", "param"),
    [
        ({"host": NAME}, 200, None),
        ({"host": f"{NAME}:8443"}, 200, None),
        ({"host": "127.0.0.1"}, 200, None),
        ({"host": "evil.example.com"}, 421, "host"),
        ({"host": NAME, "origin": f"https://{NAME}"}, 200, None),
        ({"host": NAME, "origin": "https://evil.example.com"}, 403, "origin"),
        ({"host": NAME, "sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}, 403, "sec-fetch-site"),
    ],
    ids=lambda value: "-".join(value.values()) if isinstance(value, dict) else "",
)
def test_the_server_sees_the_name_and_the_page_that_the_client_named(
    nginx: Nginx, headers: dict[str, str], status: int, param: str | None
) -> None:
    with nginx.http() as http:
        reply = http.get(f"https://{NAME}/v1/models", headers={**BEARER, **headers})
    assert reply.status_code == status
    assert (reply.json()["error"]["param"] if param else None) == param


def test_the_chat_page(nginx: Nginx) -> None:
    with nginx.http() as http:
        page = http.get(f"https://{NAME}/")
    assert page.status_code == 200 and "<title>" in page.text
    assert "default-src 'self'" in page.headers["content-security-policy"]


def test_a_picture_larger_than_nginx_takes_unasked(server: LiveServer, client: openai.OpenAI) -> None:
    server.open_gate()
    picture = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(3 << 20)).decode()  # 4 MiB; nginx takes 1 unasked
    parts = [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}}]
    chat = client.chat.completions.create(model="fake", messages=[{"role": "user", "content": parts}])  # type: ignore[typeddict-item,misc]
    assert len(chat.choices[0].message.content or "") == 40


def test_a_body_larger_than_the_server_takes_is_refused_in_its_words(
    server: LiveServer, nginx: Nginx
) -> None:
    limit = server.config.limits.max_body
    with nginx.http() as http:
        reply = http.post(
            f"https://{NAME}/v1/chat/completions",
            content=bytes(limit + 1),
            headers={**BEARER, "content-type": "application/json"},
        )
    assert isinstance(reply, httpx.Response) and reply.status_code == 413
    assert reply.json()["error"]["code"] == "request_too_large" and reply.headers["x-request-id"]
