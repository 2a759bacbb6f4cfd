"""`headrace serve` as a process: the ready line, the way out, and what a wrong setting prints."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import http.client
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import uvloop
from fake_engine import FakeEngine
from fake_prompter import CARD, BytePrompter
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from headrace.server import app as app_module
from headrace.server.app import EXIT_ENGINE_FAULT
from headrace.server.config import ServerConfig

COMMAND = [sys.executable, "-P", "-m", "headrace.server", "--port", "0"]


@contextlib.contextmanager
def serving(*flags: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process on the model inside the package, and host:port of its ready line."""
    process = subprocess.Popen([*COMMAND, *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line.startswith("ready: http://127.0.0.1:"), (line, process.stderr and process.stderr.read())
        yield process, line.removeprefix("ready: http://").strip()
    finally:
        process.kill()
        process.communicate()


def get(where: str, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(where, timeout=120)
    connection.request("GET", path)
    reply = connection.getresponse()
    return reply.status, reply.read()


def create(**fields: Any) -> str:
    return json.dumps({"type": "response.create", "model": "default", "input": "Hello!", **fields})


def test_ready_means_ready_and_sigterm_drains() -> None:
    with serving() as (process, where):
        assert get(where, "/health")[0] == 200
        assert get(where, "/ready")[0] == 200
        status, body = get(where, "/v1/models")
        model = json.loads(body)["data"][0]
        assert status == 200
        assert model["x_embedded"] is True
        assert model["x_notice"], "the page is told plainly what this model is"
        assert b"<html" in get(where, "/")[1]
        with connect(f"ws://{where}/v1/responses", open_timeout=120) as ws:
            ws.send(create(max_output_tokens=200, temperature=0, ignore_eos=True))
            while json.loads(ws.recv(timeout=120))["type"] != "response.output_text.delta":
                pass
            process.send_signal(signal.SIGTERM)
            kinds, closed = [], None
            while closed is None:
                try:
                    kinds.append(json.loads(ws.recv(timeout=120))["type"])
                except ConnectionClosed as error:
                    closed = error.rcvd
            assert kinds[-1] in ("response.incomplete", "response.completed"), "what ran was let finish"
            assert closed.code == 1012
        assert process.wait(120) == 0
        with pytest.raises(OSError, match="refused"):
            get(where, "/health")


def test_a_second_signal_does_not_wait() -> None:
    with (
        serving("--drain", "600") as (process, where),
        connect(f"ws://{where}/v1/responses", open_timeout=120) as ws,
    ):
        ws.send(create(max_output_tokens=900, ignore_eos=True))
        while json.loads(ws.recv(timeout=120))["type"] != "response.output_text.delta":
            pass
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["/no/such/folder at all"], "there is no folder"),
        (["--host", "0.0.0.0"], "--api-key"),
        (["--max-running", "-1"], "--max-running"),
        (["--page-size", "many"], "--page-size"),
        (["--no-such-flag"], "--no-such-flag"),
    ],
)
def test_a_wrong_setting_ends_with_a_sentence(flags: list[str], words: str) -> None:
    done = subprocess.run([*COMMAND, *flags], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert "ready" not in done.stdout


def test_a_port_in_use_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = str(taken.getsockname()[1])
        done = subprocess.run(
            [*COMMAND[:-2], "--port", number], capture_output=True, text=True, timeout=300, check=False
        )
    assert done.returncode == 2
    assert number in done.stderr.splitlines()[-1]


@pytest.fixture
def interpreter() -> Iterator[None]:
    """`serve` sets up its interpreter for good; the other tests of this process get theirs back."""
    interval, thresholds = sys.getswitchinterval(), gc.get_threshold()
    yield
    sys.setswitchinterval(interval)
    gc.set_threshold(*thresholds)
    gc.unfreeze()


@pytest.mark.usefixtures("interpreter")
def test_an_engine_fault_tells_the_clients_and_ends_the_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole of `serve` with an engine whose device goes: streams are told, health says no, the status is 70."""
    engine = FakeEngine(gated=True)
    monkeypatch.setattr(app_module, "load_model", lambda config: (engine, BytePrompter(), CARD))
    seen: list[dict[str, Any]] = []

    async def both() -> int:
        server = asyncio.ensure_future(app_module.serve(ServerConfig(port=0), ()))
        told = ""
        while "\n" not in told and not server.done():
            await asyncio.sleep(0.001)
            told += capsys.readouterr().out
        port = int(told.strip().removeprefix("ready: http://127.0.0.1:"))
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        body = json.dumps({"model": "fake", "input": "hello", "max_output_tokens": 50, "stream": True})
        writer.write(
            f"POST /v1/responses HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
        )
        while not engine.held:
            await asyncio.sleep(0)
        engine.fault = RuntimeError("device lost")
        engine.land()
        data = await reader.read()
        for line in data.decode().splitlines():
            if line.startswith("data: {"):
                seen.append(json.loads(line[6:]))
        writer.close()
        return await server

    assert uvloop.run(asyncio.wait_for(both(), 180)) == EXIT_ENGINE_FAULT
    assert seen[-1]["type"] == "response.failed"
    assert engine.closed
