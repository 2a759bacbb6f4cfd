"""Stored responses over restarts of the real server: an orderly stop, a kill, another set of keys."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from live_server import WAIT, LiveServer
from strict_responses import check_sequence
from websockets.sync.client import ClientConnection, connect


def ask(where: str, method: str, path: str, body: Any = None, key: str = "k1") -> tuple[int, bytes]:
    link = http.client.HTTPConnection(where, timeout=WAIT)
    headers = {"authorization": f"Bearer {key}"}
    link.request(method, path, None if body is None else json.dumps(body), headers)
    reply = link.getresponse()
    data = reply.read()
    link.close()
    return reply.status, data


def place(server: LiveServer) -> str:
    return server.url.removeprefix("http://")


@contextlib.contextmanager
def running(path: Path, *keys: str, **config: Any) -> Iterator[LiveServer]:
    server = LiveServer(store=str(path), keys=keys or ("k1",), **config)
    try:
        yield server
        server.baseline()
    finally:
        server.stop()


@contextlib.contextmanager
def socket(server: LiveServer, key: str = "k1") -> Iterator[ClientConnection]:
    headers = {"authorization": f"Bearer {key}"}
    with connect(f"ws://{place(server)}/v1/responses", additional_headers=headers) as ws:
        yield ws


def converse(ws: ClientConnection, text: str, **fields: Any) -> list[str]:
    """One request and everything said of it."""
    event = {"type": "response.create", "model": "fake", "input": text, "max_output_tokens": 6, "seed": 1}
    ws.send(json.dumps({**event, **fields}))
    raws: list[str] = []
    while not raws or json.loads(raws[-1])["type"] not in ("response.incomplete", "error"):
        raws.append(str(ws.recv(timeout=WAIT)))
    return raws


def test_a_conversation_goes_on_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    with running(path) as server, socket(server) as ws:
        first = converse(ws, "one", metadata={"a": "b"})
        one = check_sequence(first)[-1]["response"]
        hidden = check_sequence(converse(ws, "hidden", previous_response_id=one["id"], store=False))[-1]
        two = check_sequence(converse(ws, "two", previous_response_id=hidden["response"]["id"]))[-1][
            "response"
        ]
    with running(path, "k0", "k1") as server, socket(server) as ws:
        where = place(server)
        status, body = ask(where, "GET", f"/v1/responses/{one['id']}")
        assert status == 200 and json.loads(body) == one
        status, body = ask(where, "GET", f"/v1/responses/{one['id']}?stream=true&starting_after=1")
        replayed = [line[6:] for line in body.decode().split("\n") if line.startswith("data: {")]
        assert replayed == first[2:], "the same bytes, from another process"
        status, body = ask(where, "GET", f"/v1/responses/{two['id']}/input_items")
        assert [item["content"][0]["text"] for item in json.loads(body)["data"]] == ["two"]
        assert ask(where, "GET", f"/v1/responses/{two['id']}", key="k0")[0] == 404, "keys keep their owners"
        three = check_sequence(converse(ws, "three", previous_response_id=two["id"]))[-1]["response"]
        texts = [
            hidden["response"]["output"][0]["content"][0]["text"],
            *(r["output"][0]["content"][0]["text"] for r in (one, two)),
        ]
        asked = ["one", "hidden", "two", "three"]
        length = sum(len(f"user: {text}\n") for text in asked) + len("assistant: ")
        length += sum(len(f"assistant: {text}\n") for text in texts)
        assert three["usage"]["input_tokens"] == length, "the whole chain was read back"
        status, body = ask(
            where,
            "POST",
            "/v1/responses",
            {"model": "fake", "input": "four", "max_output_tokens": 3, "previous_response_id": one["id"]},
        )
        assert status == 200
        unknown = json.loads(converse(ws, "x", previous_response_id=hidden["response"]["id"])[-1])
        assert unknown["error"]["code"] == "previous_response_not_found"
        assert ask(where, "DELETE", f"/v1/responses/{two['id']}")[0] == 200
        assert ask(where, "DELETE", f"/v1/responses/{two['id']}")[0] == 404
    with running(path) as server:
        where = place(server)
        assert ask(where, "GET", f"/v1/responses/{two['id']}")[0] == 404
        assert ask(where, "GET", f"/v1/responses/{three['id']}")[0] == 200
        assert ask(where, "GET", f"/v1/responses/{one['id']}")[0] == 200


def test_while_one_lane_reads_the_file_others_go_on_and_its_own_order_stays(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    with running(path) as server, socket(server) as ws:
        one = check_sequence(converse(ws, "one"))[-1]["response"]
    with running(path, gated=True) as server, socket(server) as ws:
        for lane, text, previous in (
            ("a", "first", one["id"]),
            ("a", "second", None),
            ("b", "other", one["id"]),
        ):
            event = {"type": "response.create", "model": "fake", "input": text, "max_output_tokens": 4}
            ws.send(json.dumps({**event, "stream_id": lane, "previous_response_id": previous}))
        ws.send(json.dumps({"type": "response.cancel", "stream_id": "a"}))
        ws.send(json.dumps({"type": "no.such.event"}))
        raws: list[str] = []
        # Messages of a socket are taken in order: when this one is refused, the cancel has been read, and no token
        # was computed before it.
        while not raws or json.loads(raws[-1])["type"] != "error":
            raws.append(str(ws.recv(timeout=WAIT)))
        server.open_gate()
        while sum('"response.incomplete"' in raw for raw in raws) < 3:
            raws.append(str(ws.recv(timeout=WAIT)))
    events = [event for raw in raws if (event := json.loads(raw))["type"] != "error"]
    mine = [e for e in events if e["stream_id"] == "a" and e["type"] == "response.created"]
    assert [e["response"]["previous_response_id"] for e in mine] == [one["id"], None]
    ends = [e["response"] for e in events if e["stream_id"] == "a" and e["type"] == "response.incomplete"]
    assert ends[0]["status"] == "cancelled", (
        "the cancel found the request that was being looked up, or running"
    )
    assert ends[1]["status"] == "incomplete"


def test_background_work_is_finished_and_stored_at_a_stop(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    body = {"model": "fake", "input": "x", "background": True, "max_output_tokens": 400}
    server = LiveServer(store=str(path), keys=("k1",), gated=True)
    ids = [json.loads(ask(place(server), "POST", "/v1/responses", body)[1])["id"] for _ in range(2)]
    server.until(lambda app: app.loop.live == 2)
    server.land(5)
    server.stop()
    with running(path) as later:
        for response_id in ids:
            told = json.loads(ask(place(later), "GET", f"/v1/responses/{response_id}")[1])
            assert told["status"] == "cancelled" and told["output"][0]["content"][0]["text"]


COMMAND = [sys.executable, "-P", "-m", "headrace.server", "--port", "0"]


def test_what_was_written_survives_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    answers = []
    for number in range(2):
        process = subprocess.Popen([*COMMAND, "--store", str(path)], stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            where = process.stdout.readline().removeprefix("ready: http://").strip()
            for response in answers:
                assert json.loads(ask(where, "GET", f"/v1/responses/{response['id']}")[1]) == response
            body: dict[str, Any] = {"model": "default", "input": "Hello!", "max_output_tokens": 8}
            if answers:
                body["previous_response_id"] = answers[-1]["id"]
            answers.append(json.loads(ask(where, "POST", "/v1/responses", body)[1]))
            end = time.monotonic() + WAIT
            while not re.search(
                rb"\nheadrace_archive_responses %d" % (number + 1), ask(where, "GET", "/metrics")[1]
            ):
                assert time.monotonic() < end, "the response was not written"
            process.send_signal(signal.SIGKILL)
        finally:
            process.kill()
            process.communicate()
    assert answers[1]["usage"]["input_tokens"] > answers[0]["usage"]["input_tokens"]


def test_a_file_that_cannot_be_used_ends_the_start_with_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("remember the milk\n" * 100)
    with pytest.raises(Exception, match=r"--store .*notes\.txt"):
        LiveServer(store=str(path))
    assert path.read_text() == "remember the milk\n" * 100
