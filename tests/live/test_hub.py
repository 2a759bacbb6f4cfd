"""A hub id as MODEL: the real download code against a hub of our own on loopback, and what failure reads like."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from headrace.runtime.demo_checkpoint import demo_folder
from headrace.runtime.hub import ModelNotFound, locate

COMMIT = "0123456789abcdef0123456789abcdef01234567"
MODEL = "someone/small"


class Hub:
    """What the hub's API says about one model, as far as a snapshot download asks."""

    def __init__(self, contents: dict[str, bytes]) -> None:
        self.contents = contents
        self.fetched: list[str] = []
        hub = self

        class Answers(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do_HEAD(self) -> None:
                self.do_GET()

            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                if path.startswith(f"/api/models/{MODEL}/tree/"):
                    files = [
                        {
                            "type": "file",
                            "path": name,
                            "size": len(body),
                            "oid": hashlib.sha1(body).hexdigest(),
                        }
                        for name, body in hub.contents.items()
                    ]
                    self._send(200, json.dumps(files).encode(), "application/json")
                elif path.startswith(f"/api/models/{MODEL}"):
                    names = [{"rfilename": name} for name in hub.contents]
                    body = json.dumps(
                        {"id": MODEL, "sha": COMMIT, "siblings": names, "private": False}
                    ).encode()
                    self._send(200, body, "application/json")
                elif path.startswith(f"/{MODEL}/resolve/"):
                    name = path.split("/", 5)[5]
                    if self.command == "GET":
                        hub.fetched.append(name)
                    body = hub.contents[name]
                    etag = hashlib.sha256(body).hexdigest()
                    self._send(
                        200, body, "application/octet-stream", {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}
                    )
                else:
                    self._send(404, b"{}", "application/json", {"X-Error-Code": "RepoNotFound"})

            def _send(
                self, status: int, body: bytes, kind: str, headers: dict[str, str] | None = None
            ) -> None:
                self.send_response(status)
                for name, value in {
                    "Content-Type": kind, "Content-Length": str(len(body)), **(headers or {})
                }.items():  # fmt: skip
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def hub() -> Iterator[Hub]:
    contents = {path.name: path.read_bytes() for path in demo_folder().iterdir()}
    contents |= {
        "pytorch_model.bin": b"pickled",
        "modeling_small.py": b"raise SystemExit",
        "README.md": b"# small",
    }
    found = Hub(contents)
    yield found
    found.stop()


def environment(hub: Hub, home: Path) -> dict[str, str]:
    return {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_ETAG_TIMEOUT": "120",
        "HF_HUB_DOWNLOAD_TIMEOUT": "120",
    }


def test_a_hub_id_is_downloaded_once_and_served(hub: Hub, tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-m", "headrace.server", MODEL, "--port", "0"]
    for run in ("first", "second"):
        process = subprocess.Popen(
            command, env=environment(hub, tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        line = process.stdout.readline()
        process.terminate()
        errors = process.communicate(timeout=300)[1]
        assert line.startswith("ready: "), errors
        assert f"model loaded: {MODEL}:" in errors
        if run == "first":
            assert "model.safetensors" in hub.fetched
            assert not {"pytorch_model.bin", "modeling_small.py"} & set(hub.fetched), (
                "neither pickle nor code"
            )
            hub.fetched.clear()
    assert hub.fetched == [], "what was downloaded is not downloaded again"


def test_a_model_that_the_hub_does_not_have_is_said(hub: Hub, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "headrace.server", "someone/else", "--port", "0"],
        env=environment(hub, tmp_path), capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "someone/else" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_local_folders_and_nonsense(tmp_path: Path) -> None:
    assert locate(str(demo_folder())) == demo_folder()
    (tmp_path / "file").write_text("x")
    for model, words in (
        (str(tmp_path), "config.json"),
        (str(tmp_path / "file"), "is a file"),
        ("../up/and/away", "no folder"),
        ("two words", "no folder"),
    ):
        with pytest.raises(ModelNotFound, match=words):
            locate(model)
