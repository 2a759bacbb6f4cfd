"""The examples of the README, taken out of it and run against a live server with the page-reading fake engine."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from live_server import LiveServer

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
ADDRESS = "http://127.0.0.1:8000"


def examples(language: str, mark: str) -> list[str]:
    return [text for found, text in EXAMPLES if found == language and mark in text]


@pytest.fixture(scope="module")
def live() -> Iterator[LiveServer]:
    server = LiveServer()
    yield server
    server.stop()


def run(example: str, live: LiveServer) -> str:
    assert ADDRESS in example
    ran = subprocess.run(
        [sys.executable, "-P", "-c", example.replace(ADDRESS, live.url)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_the_python_client_example(live: LiveServer) -> None:
    (example,) = examples("python", "headrace.clients")
    assert len(example.splitlines()) <= 12
    text, _, count = run(example, live).rpartition("\n")[0].rpartition("\n")
    assert count == "200 tokens"
    assert len(text) == 200, "the fake model writes one letter per token"


def test_the_openai_example(live: LiveServer) -> None:
    (example,) = examples("python", "from openai")
    assert len(run(example, live)) == 200


def test_the_curl_example(live: LiveServer) -> None:
    (example,) = examples("sh", "curl")
    # The words of the command, sent by hand: what it asks for is under test, not whether this machine has curl.
    words = shlex.split(example.replace("\\\n", " "))
    assert words[:2] == ["curl", "-sN"]
    flags = dict(zip(words[3::2], words[4::2], strict=True))
    assert set(flags) == {"-H", "-d"}
    name, _, value = flags["-H"].partition(": ")
    request = urllib.request.Request(words[2].replace(ADDRESS, live.url), flags["-d"].encode(), {name: value})
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=300) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        lines = [line.decode().strip() for line in reply if line.strip()]
    assert lines[-1] == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    text = "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"])
    assert len(text) == 200


def test_the_links_of_the_readme_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert "://" in target or (ROOT / target).exists(), (
            f"the README points to {target}, which is not there"
        )


def test_the_two_commands_come_first_and_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    first = EXAMPLES[0][1]
    for command in ("serve", "test"):
        assert f"make {command}" in first
        assert re.search(rf"^{command}:", makefile, re.MULTILINE)
