"""The examples of docs/clients.md, taken out of it and run against a live server over the fake engine."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_prompter import letters
from live_server import LiveServer
from short_answers import END, EOS

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "clients.md").read_text()
EXAMPLES = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
ADDRESS = "http://127.0.0.1:8000"
PYTHON = [text for language, text in EXAMPLES if language == "python"]
AGENTS = str(Path(sys.prefix) / "agents" / "bin" / "python")  # made by .ci/agents
SHELL = [text for language, text in EXAMPLES if language == "sh"]


def a_hundred(tokens: list[int], seed: int, width: int) -> int:
    """A hundred letters and blanks, then the end: agents want an answer that ends by itself."""
    start = bytes(tokens).rindex(b": ") + 2
    return END if len(tokens) - start >= 100 else letters(tokens, seed, width)


@pytest.fixture(scope="module")
def live() -> Iterator[LiveServer]:
    server = LiveServer(choose=a_hundred, eos=EOS)
    yield server
    server.baseline()
    server.stop()


@pytest.mark.parametrize(
    "example", PYTHON, ids=lambda text: re.findall(r"^from (\w+)", text, re.MULTILINE)[0]
)
def test_a_python_example_answers(live: LiveServer, example: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "LITELLM_LOCAL_MODEL_COST_MAP", "True"
    )  # its price list comes over the network otherwise
    ran = subprocess.run(
        [AGENTS if "agents" in example else sys.executable, "-P", "-c", example.replace(ADDRESS, live.url)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr
    # The fake model writes one letter or blank per token and every example asks for 100; how much of the blanks at
    # its ends a client keeps is its own affair.
    answers = [line for line in ran.stdout.splitlines() if len(line) >= 90]
    assert answers and all(re.fullmatch(r"[a-z ]{90,100}", line) for line in answers), ran.stdout
    assert len(answers) == {"OpenAI": 2, "completion": 3}.get(re.findall(r"import (\w+)", example)[0], 1)


@pytest.mark.parametrize("example", SHELL, ids=lambda text: text.split()[2])
def test_a_shell_example_answers(live: LiveServer, example: str) -> None:
    # The words of the command, sent by hand: what it asks for is under test, not whether this machine has curl.
    words = shlex.split(example.replace("\\\n", " "))
    assert words[:2] == ["curl", "-sN"]
    flags = list(zip(words[3::2], words[4::2], strict=True))
    headers = dict(value.split(": ") for name, value in flags if name == "-H")
    (body,) = [value for name, value in flags if name == "-d"]
    request = urllib.request.Request(words[2].replace(ADDRESS, live.url), body.encode(), headers)
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=300) as reply:
        text = reply.read().decode()
    found = re.findall(r'"(?:content|text|response)":"([a-z ]*)"', text)
    # The beginning that an answer was given counts among the hundred, and is not told again.
    begun = re.findall(r'"assistant", "content": "(\w+)"', body)
    assert len("".join(found)) == 100 - len("".join(begun)), text


def test_the_page_has_an_example_for_every_client() -> None:
    for client in ("OpenAI", "ChatOpenAI", "Anthropic", "Agent", "ollama", "litellm"):
        assert any(client in example for example in PYTHON), client
    assert len(SHELL) == 4
    for target in re.findall(r"\]\(([^)#]+)\)", PAGE):
        assert (ROOT / "docs" / target).exists(), f"the page points to {target}, which is not there"
