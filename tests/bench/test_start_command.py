"""`headrace bench start` starts real processes, tells what it saw, and says why one did not start."""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path

import pytest

from headrace.bench import start

# A server without a model: healthy at its second question, then a stream whose first chunk carries a role only.
SERVER = """
import http.server, sys

class Answer(http.server.BaseHTTPRequestHandler):
    asked = 0

    def do_GET(self):
        Answer.asked += 1
        self.send_response(200 if Answer.asked > 1 and self.path == "/up" else 503)
        self.end_headers()

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()
        for delta in ('{"role": "assistant", "content": ""}', SAID):
            self.wfile.write(b'data: {"choices": [{"delta": ' + delta.encode() + b'}]}\\n\\n')
        self.wfile.write(b"data: [DONE]\\n\\n")

    def log_message(self, *rest): ...

print("  0.25 s     12 MiB  model loaded: made", flush=True)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Answer).serve_forever()
"""


REFUSING = SERVER.replace("send_response(200)\n", "send_response(418)\n").replace("SAID", "''")


def script(folder: Path, text: str) -> str:
    path = folder / "server.py"
    path.write_text(text)
    return f"{sys.executable} {path} {{port}}"


def test_headrace_itself_starts(capsys: pytest.CaptureFixture[str]) -> None:
    assert start.main(["--repeats", "1"]) == 0
    result = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    run = result["first"]
    assert 0 < run["healthy_s"] < run["first_token_s"]
    assert run["first_ttft_ms"] > 0 and run["second_ttft_ms"] > 0
    assert list(run["stages"])[-1] == "listening"
    if Path("/proc/self/status").exists():
        assert run["rss_mib"] <= run["peak_mib"]
    assert {"date", "git_rev", "torch"} <= set(result["machine"])


def test_another_server_is_asked_its_own_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = script(tmp_path, SERVER.replace("SAID", repr('{"content": "x"}')))
    out = tmp_path / "results" / "start.json"
    given = ["made", "--command", command, "--healthy", "/up", "--repeats", "2", "--out", str(out)]
    assert start.main(given) == 0
    result = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert json.loads(out.read_text()) == result
    assert len(result["runs"]) == 2 and result["first"] == result["runs"][0]
    assert result["first"]["stages"] == {"model loaded": 0.25}
    assert result["median_of_later"]["healthy_s"] == result["runs"][1]["healthy_s"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("raise SystemExit('no weights here')", "no weights here"),
        (SERVER.replace("SAID", repr('{"content": ""}')), "without a token"),
        (REFUSING, "418"),
    ],
    ids=["ends", "says nothing", "refuses"],
)
def test_a_server_that_fails_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, why: str
) -> None:
    assert (
        start.main(["made", "--command", script(tmp_path, text), "--healthy", "/up", "--repeats", "1"]) == 1
    )
    assert why in capsys.readouterr().err


def test_patience_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = script(tmp_path, "import signal; print('still loading', flush=True); signal.pause()")
    assert start.main(["made", "--command", command, "--patience", "0"]) == 1
    assert "not healthy after 0 s" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "carries"),
    [
        (b'data: {"choices": [{"delta": {"role": "assistant"}}]}\n', False),
        (b'data: {"choices": [{"delta": {"role": "assistant", "content": ""}}]}\n', False),
        (b'data: {"choices": [{"delta": {"content": "a"}}]}\n', True),
        (b'data: {"choices": [{"delta": {"reasoning_content": "a"}}]}\n', True),
        (b'data: {"choices": [{"text": "a"}]}\n', True),
        (b'data: {"choices": [], "usage": {"completion_tokens": 1}}\n', False),
        (b"data: [DONE]\n", False),
        (b": ping\n", False),
        (b"\n", False),
    ],
)
def test_only_text_is_a_token(line: bytes, carries: bool) -> None:
    assert start.carries_text(line) is carries


def test_a_family_has_its_parent_first() -> None:
    assert start.family(os.getpid())[0] == os.getpid()


def test_a_free_port_can_be_listened_on() -> None:
    with start.free_port() as port, socket.create_server(("127.0.0.1", port)):
        pass
