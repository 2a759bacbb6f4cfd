"""/start_profile and /stop_profile as the clients of SGLang and vLLM call them, over real HTTP."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from live_server import WAIT, LiveServer

from headrace.server.auth import BadSetting

CHAT = {"model": "fake", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("profiles") / "made by the server"


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[LiveServer]:
    running = LiveServer(profile_dir=str(folder), keys=("sk-test",))
    yield running
    running.stop()


@pytest.fixture
def http(server: LiveServer) -> Iterator[httpx.Client]:
    headers = {"authorization": "Bearer sk-test"}
    with httpx.Client(base_url=server.url, headers=headers, trust_env=False, timeout=WAIT) as client:
        yield client


def refused(reply: httpx.Response, code: str, param: str | None = None) -> str:
    error = reply.json()["error"]
    assert (reply.status_code, error["code"], error["param"]) == (400, code, param), error
    message: str = error["message"]
    return message


def trace(folder: Path, reply: httpx.Response) -> list[dict[str, Any]]:
    """The events of the file that the reply names."""
    assert reply.status_code == 200, reply.text
    name = reply.text.removeprefix("Profile written: ").strip()
    return json.loads(gzip.decompress((folder / name).read_bytes()))["traceEvents"]


@pytest.mark.parametrize(
    "body",
    [
        None,
        {},
        {"activities": ["CPU", "GPU"], "num_steps": None, "profile_by_stage": False, "output_dir": "/etc"},
        {**CHAT, "prompt": "the whole request of vLLM's benchmark", "stream": True},
    ],
)
def test_from_start_to_stop(http: httpx.Client, folder: Path, body: Any) -> None:
    reply = http.post("/start_profile") if body is None else http.post("/start_profile", json=body)
    assert (reply.status_code, reply.text) == (200, "Profiling started.\n")
    assert "already" in refused(http.post("/start_profile", json={}), "invalid_value")
    assert http.post("/v1/chat/completions", json=CHAT).status_code == 200
    assert trace(folder, http.post("/stop_profile", json=body or {}))
    assert "the last one is steps-" in refused(http.post("/stop_profile"), "invalid_value")
    unknown = {"prompt", "messages", "stream"} & set(body or {})
    assert unknown <= set(reply.headers.get("x-ignored-fields", "").split(", "))


def test_it_ends_by_itself_after_so_many_steps(http: httpx.Client, server: LiveServer, folder: Path) -> None:
    asked = {"num_steps": "3", "profile_prefix": "short", "with_stack": True, "record_shapes": True}
    assert http.post("/start_profile", json=asked).status_code == 200
    assert http.post("/v1/chat/completions", json=CHAT).status_code == 200
    said = refused(http.post("/stop_profile"), "invalid_value")
    name = said.partition("the last one is ")[2]
    assert name.startswith("short-")
    # A next one is written behind it, so the first is there now.
    assert http.post("/start_profile").status_code == 200
    trace(folder, http.post("/stop_profile"))
    assert (folder / name).exists() and not list(folder.glob(".*"))


def test_it_begins_with_a_step_that_is_named(http: httpx.Client, server: LiveServer, folder: Path) -> None:
    steps = server.ask(lambda app: app.runtime.profiler._steps)
    if not steps:
        assert http.post("/v1/chat/completions", json=CHAT).status_code == 200
        steps = server.ask(lambda app: app.runtime.profiler._steps)
    late = http.post("/start_profile", json={"start_step": steps})
    assert "is over" in refused(late, "invalid_value", "start_step")
    assert http.post("/start_profile", json={"start_step": str(steps + 3), "num_steps": 1}).status_code == 200
    assert "before its first step" in refused(http.post("/stop_profile"), "invalid_value")
    assert http.post("/start_profile", json={"start_step": steps + 3}).status_code == 200
    assert http.post("/v1/chat/completions", json=CHAT).status_code == 200
    assert trace(folder, http.post("/stop_profile"))


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"activities": ["RPD"]}, "unsupported_parameter", "activities"),
        ({"activities": ["ZORK"]}, "invalid_value", "activities[0]"),
        ({"activities": []}, "invalid_value", "activities"),
        ({"num_steps": 0}, "invalid_value", "num_steps"),
        ({"num_steps": "0"}, "invalid_value", "num_steps"),
        ({"num_steps": "many"}, "invalid_value", "num_steps"),
        ({"start_step": -1}, "invalid_value", "start_step"),
        ({"profile_prefix": "../x"}, "invalid_value", "profile_prefix"),
        ({"x_zork": 1}, "unknown_parameter", "x_zork"),
    ],
)
def test_what_cannot_be_is_refused_by_name(http: httpx.Client, body: Any, code: str, param: str) -> None:
    refused(http.post("/start_profile", json=body), code, param)


def test_a_file_that_cannot_be_written_is_said(http: httpx.Client, server: LiveServer, folder: Path) -> None:
    assert http.post("/start_profile").status_code == 200
    for each in folder.iterdir():
        each.unlink()
    folder.rmdir()
    try:
        reply = http.post("/stop_profile")
        assert reply.status_code == 500 and "could not be written" in reply.json()["error"]["message"]
    finally:
        folder.mkdir()
    assert http.post("/start_profile").status_code == 200
    assert trace(folder, http.post("/stop_profile"))


def test_without_the_flag_or_a_key_there_is_none(server: LiveServer) -> None:
    plain = LiveServer()
    try:
        for path in ("/start_profile", "/stop_profile"):
            reply = httpx.post(plain.url + path, json={}, trust_env=False, timeout=WAIT)
            assert "--profile-dir" in refused(reply, "unsupported_parameter")
            assert httpx.post(server.url + path, json={}, trust_env=False, timeout=WAIT).status_code == 401
    finally:
        plain.stop()


def test_what_runs_at_a_stop_is_written(tmp_path: Path) -> None:
    leaving = LiveServer(profile_dir=str(tmp_path))
    try:
        assert httpx.post(leaving.url + "/start_profile", trust_env=False, timeout=WAIT).status_code == 200
    finally:
        leaving.stop()
    (written,) = tmp_path.iterdir()
    assert json.loads(gzip.decompress(written.read_bytes()))["traceEvents"] is not None


def test_a_folder_that_cannot_be_one_ends_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(BadSetting, match="--profile-dir"):
        LiveServer(profile_dir=str(tmp_path / "file"))
