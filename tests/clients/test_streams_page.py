"""The examples of docs/streams.md run as they stand there."""

from __future__ import annotations

import asyncio
import functools
import math
import re
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_prompter import CARD
from live_server import LiveServer

from headrace.clients import client as client_module
from headrace.runtime.pace import Pace

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "streams.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^## ([^\n]+)\n(?:(?!^## ).)*?```python\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE)


@pytest.fixture
def live() -> Iterator[LiveServer]:
    """Gated: no answer runs away from an example that has something to say to it."""
    # What the fake engine says depends on the tokens before it alone, as a deterministic engine's must.
    server = LiveServer(card=replace(CARD, weights="sha256:none", computing="sha256:fake"), gated=True)
    # Without an idea of the engine's times nothing would be promised, nor refused.
    server.app.loop.foresight.pace = Pace((64,), 1e-3, math.inf)
    yield server
    server.stop()


@pytest.mark.parametrize(("title", "code"), EXAMPLES, ids=[title for title, _ in EXAMPLES])
async def test_an_example_runs(title: str, code: str, live: LiveServer) -> None:
    assert len(code.splitlines()) <= 10, "short enough to be read"
    found: dict[str, Any] = {
        "URL": live.url,
        "connect": functools.partial(client_module.connect, open_timeout=120, reconnect_within=120),
    }
    exec("async def example():\n" + textwrap.indent(code, "    "), found)

    async def land() -> None:
        # A few steps for each turn of the example's own loop: where it gets no time, the engine gets none.
        while True:
            await asyncio.to_thread(live.land, 4)

    landing = asyncio.create_task(land())
    await found["example"]()
    landing.cancel()
    await asyncio.wait([landing])


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 9
