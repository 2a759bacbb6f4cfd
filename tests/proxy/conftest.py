"""A server behind a real nginx."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest
from fake_prompter import CARD, letters
from live_server import LiveServer
from nginx_process import Nginx, flags
from short_answers import END, EOS

from headrace.server.flags import parse

HERE = Path(__file__).parent
KEY = "sk-behind"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where nginx cannot be had, `make test` says so and sets HEADRACE_NO_PROXY. Else its absence fails."""
    if os.environ.get("HEADRACE_NO_PROXY") != "1":
        return
    ours = [item for item in items if HERE in item.path.parents]
    config.hook.pytest_deselected(items=ours)
    items[:] = [item for item in items if item not in ours]


def forty(tokens: list[int], seed: int, width: int) -> int:
    """Forty letters and blanks, then the end."""
    start = bytes(tokens).rindex(b"assistant: ") + 11
    return END if len(tokens) - start >= 40 else letters(tokens, seed, width)


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    """The server as the page starts it, over the fake engine; no step of it lands before `land` or `open_gate`."""
    told = parse(flags())
    running = LiveServer(
        gated=True,
        keys=(KEY,),
        choose=forty,
        eos=EOS,
        card=replace(CARD, sees=True),
        form={"sees": True},  # type: ignore[dict-item]
        allow_host=told.allow_host,
        allow_origin=told.allow_origin,
    )
    yield running
    running.baseline()
    running.stop()


@pytest.fixture(scope="module")
def nginx(server: LiveServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    running = Nginx(tmp_path_factory.mktemp("nginx"), server.url)
    yield running
    running.stop()


@pytest.fixture(autouse=True)
def gate(server: LiveServer) -> Iterator[None]:
    """Every test begins with the gate closed and leaves nothing behind."""
    server.close_gate()
    yield
    server.open_gate()
    server.baseline()


@pytest.fixture
def client(nginx: Nginx) -> Iterator[openai.OpenAI]:
    """The unmodified client, behind nginx."""
    with nginx.openai(KEY) as made:
        yield made


@pytest.fixture
def connect(client: openai.OpenAI, nginx: Nginx) -> Callable[[], Any]:
    """Opens a Responses socket through nginx; to be used with `with`."""
    options: Any = nginx.socket_options()
    return lambda: client.responses.connect(websocket_connection_options=options)
