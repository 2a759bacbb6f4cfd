"""The golden evaluation of the demo model through `headrace serve`: as right, however answers are computed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.bench import eval as evaluation
from headrace.bench.demo.dialogue import Dialogue
from headrace.bench.demo.draw import Draw
from headrace.bench.demo.kinds import KINDS, question

SCORES = Path(__file__).resolve().parents[2] / "bench" / "results" / "demo-scores.json"
COUNT = 3  # questions of each kind
# float32: what is rounded differently in another batch then changes no answer that the model is sure of.
COMMAND = [sys.executable, "-P", "-m", "headrace.server", "--port", "0", "--dtype", "float32"]
ASKED: dict[str, list[Dialogue]] = {}
for _kind in KINDS:
    _draw = Draw(evaluation.SEED + KINDS.index(_kind) * 1000, evaluation=True)
    ASKED[_kind] = [question(_kind, _draw) for _ in range(COUNT)]
LEARNED = {each["kind"] for each in json.loads(SCORES.read_text()) if each["right"] >= 0.97 * each["asked"]}


@contextlib.contextmanager
def serving(*flags: str) -> Iterator[str]:
    """The server's url."""
    process = subprocess.Popen(
        [*COMMAND, *flags], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line.startswith("ready: "), line
        yield line.removeprefix("ready: ").strip()
    finally:
        process.kill()
        process.communicate()


def answers(url: str, at_once: int) -> dict[str, list[str]]:
    """What it says to every question, kind by kind."""
    every = [dialogue for asked in ASKED.values() for dialogue in asked]
    said = iter(asyncio.run(evaluation.ask_all(url, every, at_once, None)))
    return {kind: [next(said) for _ in asked] for kind, asked in ASKED.items()}


def counted(url: str, name: str) -> float:
    """A counter of the server's metrics."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=120) as reply:
        found = re.search(rf"^headrace_{name}_total ([0-9.e+]+)$", reply.read().decode(), re.MULTILINE)
    assert found, name
    return float(found[1])


def share(said: dict[str, list[str]], kinds: set[str]) -> float:
    right = [
        dialogue.score(text) for kind in kinds for dialogue, text in zip(ASKED[kind], said[kind], strict=True)
    ]
    return sum(right) / len(right)


@pytest.fixture(scope="module")
def usual() -> Iterator[tuple[str, dict[str, list[str]]]]:
    """The url of a server with the usual settings, and its first answers, many of them in a batch."""
    with serving() as url:
        yield url, answers(url, 16)


def test_it_is_as_right_as_its_card_says(usual: tuple[str, dict[str, list[str]]]) -> None:
    _, said = usual
    assert len(LEARNED) >= 58
    assert share(said, LEARNED) >= 0.97
    assert share(said, set(KINDS)) >= 0.9


def test_beginnings_out_of_the_cache_change_no_answer(usual: tuple[str, dict[str, list[str]]]) -> None:
    url, said = usual
    before = counted(url, "cached_tokens")
    again = answers(url, 5)
    assert counted(url, "cached_tokens") > before + 1000
    assert {kind: again[kind] for kind in LEARNED} == {kind: said[kind] for kind in LEARNED}


def test_short_chunks_and_little_memory_change_no_answer(usual: tuple[str, dict[str, list[str]]]) -> None:
    """Prompts of up to 300 tokens in chunks of 32, and pages for 600 tokens, so that most of the questions wait."""
    _, said = usual
    flags = ("--no-prefix-cache", "--chunk-tokens", "32", "--kv-memory-mb", "6", "--max-context", "512")
    with serving(*flags) as url:
        other = answers(url, 16)
        assert counted(url, "cached_tokens") == 0
    assert {kind: other[kind] for kind in LEARNED} == {kind: said[kind] for kind in LEARNED}
