"""A line that breaks in the middle of an answer: the page goes on reading, and nothing is computed twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from live_server import LiveServer
from selenium.webdriver.common.keys import Keys


@pytest.fixture
def live() -> Iterator[LiveServer]:
    server = LiveServer(gated=True)
    yield server
    server.stop()


@pytest.fixture
def chat(page: Any, live: LiveServer) -> Any:
    page.url = live.url + "/"
    return page.open().connected()


def cut(live: LiveServer) -> None:
    """Every connection breaks, without a close frame."""

    def abort(app: Any) -> None:
        for connection in list(app.listener._port.connections):
            connection.abort()

    live.ask(abort)


def land_until(page: Any, live: LiveServer, holds: Callable[[], Any], what: str) -> None:
    def step() -> Any:
        live.land()
        return holds()

    page.until(step, what)


def limit(chat: Any, tokens: int) -> None:
    chat.click("#settings-open")
    chat.one("#fields [name=max_output_tokens]").send_keys(str(tokens))
    chat.one("#fields [name=seed]").send_keys("3")
    chat.click("#settings .primary")


def last(chat: Any) -> str:
    return str((chat.answers() or [""])[-1])


def test_an_answer_goes_on_over_another_socket_without_a_lost_letter(chat: Any, live: LiveServer) -> None:
    limit(chat, 60)
    chat.type("tell me")
    for reached in (8, 20):
        land_until(chat, live, lambda n=reached: len(last(chat)) > n, "text")
        cut(live)
        live.land(3)  # it goes on for a reader who is away
        chat.until(lambda: live.ask(lambda app: app.held.stats()["detached_streams"]) == 0, "a resume")
    land_until(chat, live, lambda: chat.answers() and not chat.all(".streaming"), "the end")
    assert not [note for note in chat.all(".note.error") if note.is_displayed()]
    live.open_gate()
    chat.fresh()
    limit(chat, 60)
    chat.type("tell me")
    chat.until(lambda: last(chat) and not chat.all(".streaming"), "the same answer, uncut")
    whole = last(chat)
    chat.click("#conversations li:last-child a")
    chat.until(lambda: chat.answers() == [whole], "the answer that was cut to be the same")
    stats = live.ask(lambda app: app.runtime.stats())
    assert stats["decode_tokens_computed"] == 120, "no token was computed twice"


def test_a_stop_while_the_line_is_away_reaches_the_server_later(chat: Any, live: LiveServer) -> None:
    chat.type("never mind")
    land_until(chat, live, lambda: last(chat), "text")
    live.ask(lambda app: setattr(app.listener._port, "draining", True))  # nobody is let in for a while
    cut(live)
    chat.until(lambda: chat.text("#link-text") == "Reconnecting", "the dead link on screen")
    chat.press(Keys.ESCAPE)
    chat.until(lambda: chat.text(".assistant .note") == "Stopped.", "the stop on screen")
    live.ask(lambda app: setattr(app.listener._port, "draining", False))
    land_until(chat, live, lambda: not live.ask(lambda app: app.loop.live), "an empty batch")
    stats = live.ask(lambda app: app.runtime.stats())
    assert stats["requests_cancelled"] == 1


def test_an_answer_that_the_server_forgot_is_told_as_lost(chat: Any, live: LiveServer) -> None:
    chat.type("tell me")
    land_until(chat, live, lambda: last(chat), "text")
    live.ask(lambda app: app.held._all.clear())
    cut(live)
    chat.until(lambda: chat.all(".note.error"), "an error in the conversation")
    assert chat.text(".note.error p") == "The connection was lost while this answer was coming in."
