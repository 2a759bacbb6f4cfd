"""Type-ahead in the browser chat: a message is read while it is typed, and nothing shows of it but speed (M5)."""

# ruff: noqa: E501 - the long lines are scripts for the page, which a break would change

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from live_server import LiveServer
from selenium.webdriver.common.keys import Keys

WORDS = "the water of the river turns the wheel of the mill "
PASTE = """
const p = document.querySelector('#prompt');
p.setRangeText(arguments[0], arguments[1], arguments[1], 'end');
p.dispatchEvent(new InputEvent('input', { inputType: 'insertFromPaste', bubbles: true }));
"""
SPY = """
window.sent = []; const send = WebSocket.prototype.send;
WebSocket.prototype.send = function (data) { sent.push(JSON.parse(data)); send.call(this, data); }
"""


@pytest.fixture(scope="module")
def live() -> Iterator[LiveServer]:
    server = LiveServer()
    yield server
    server.stop()


@pytest.fixture
def chat(page: Any, live: LiveServer) -> Any:
    """The page at the real server, in a chat with a seed, so that equal questions have equal answers."""
    page.url = live.url + "/"
    page.open()
    page.js("localStorage.clear()")
    page.open().connected()
    page.fresh()
    page.click("#settings-open")
    page.one("#fields [name=seed]").send_keys("5")
    page.one("#fields [name=max_output_tokens]").send_keys("20")
    page.click("#settings-default")
    page.click("#settings .primary")
    page.js(SPY)
    return page


def stats(live: LiveServer) -> dict[str, float]:
    return live.ask(lambda app: app.runtime.stats())


def read(page: Any, live: LiveServer, text: str) -> None:
    """Until the server has read exactly this, as far as it is certain."""

    def done(app: Any) -> bool:
        (draft,) = app.runtime.drafting._all or (None,)
        if draft is None or draft.text != text.strip() or draft.reading or draft.read != draft.text:
            return False
        return app.runtime.drafting.ready(draft) == draft.stable > 0

    live.until(done)


def answered(page: Any, count: int) -> str:
    page.until(lambda: len(page.answers()) == count and not page.all(".streaming"), "the answer")
    assert not page.all(".note.error")
    return str(page.answers()[-1])


def test_what_is_typed_corrected_and_pasted_is_answered_as_a_plain_message(
    chat: Any, live: LiveServer
) -> None:
    chat.type("Why does the weel turn? ", send=False)
    read(chat, live, "Why does the weel turn?")
    chat.one("#prompt").send_keys(*[Keys.LEFT] * 10, "h")  # we|el: an edit in the middle
    text = "Why does the wheel turn? "
    read(chat, live, text)
    chat.js(PASTE, WORDS * 6 + "🚀 ", 4)
    pasted = 4 + len(WORDS * 6 + "🚀 ")
    text = text[:4] + WORDS * 6 + "🚀 " + text[4:]
    read(chat, live, text)
    chat.type("in 2 words, ")
    first = answered(chat, 1)
    text = text[:pasted] + "in 2 words, " + text[pasted:]
    shown = chat.text(".user .body")
    kinds = [frame["type"] for frame in chat.js("return sent")]
    assert kinds[0] == "x.input.append" and kinds[-1] == "x.input.commit" and "x.input.replace" in kinds
    assert "response.create" not in kinds
    line = chat.text(".assistant .numbers")
    assert "Read ahead" in line and stats(live)["draft_tokens_used"] > 300
    # The next turn continues it, typed as well.
    chat.type("and the mill " * 8, send=False)
    read(chat, live, "and the mill " * 8)
    chat.press(Keys.ENTER)
    second = answered(chat, 2)
    assert chat.js("return sent")[-1]["type"] == "x.input.commit"
    before = {name: stats(live)[name] for name in ("draft_tokens_computed", "drafts_opened")}
    # The same two turns where nothing is read ahead.
    chat.fresh()
    chat.js("window.plain = WebSocket.prototype.send; sent.length = 0")
    chat.module("return import('/ahead.js').then(({ Ahead }) => { Ahead.prototype.typed = () => {}; })")
    chat.js(
        "const p = document.querySelector('#prompt'); p.value = arguments[0]; p.dispatchEvent(new Event('input'))",
        shown,
    )
    chat.press(Keys.ENTER)
    assert answered(chat, 1) == first
    chat.type("and the mill " * 8)
    assert answered(chat, 2) == second
    assert [frame["type"] for frame in chat.js("return sent")] == ["response.create"] * 2
    assert {name: stats(live)[name] for name in before} == before
    assert shown == text.strip() and first != second
    live.baseline()


def test_typed_text_that_is_never_sent_leaves_nothing_when_the_tab_closes(
    chat: Any, live: LiveServer
) -> None:
    cached = live.ask(lambda app: app.scheduler.pool.used_count)
    chat.type(WORDS * 4, send=False)
    read(chat, live, WORDS * 4)
    assert live.ask(lambda app: app.scheduler.pages_in_use) > 10
    chat.driver.get("about:blank")
    live.until(lambda app: not app.runtime.drafting._all and not app.loop.flight)
    live.baseline()
    assert live.ask(lambda app: app.scheduler.pool.used_count) == cached


def test_a_draft_goes_with_its_chat_and_with_its_text(chat: Any, live: LiveServer) -> None:
    chat.type(WORDS, send=False)
    read(chat, live, WORDS)
    chat.one("#prompt").send_keys(Keys.CONTROL, "a")
    chat.one("#prompt").send_keys(Keys.DELETE)
    live.until(lambda app: not app.runtime.drafting._all)
    chat.type(WORDS, send=False)
    read(chat, live, WORDS)
    chat.type("")
    answered(chat, 1)
    chat.type("something else", send=False)
    read(chat, live, "something else")
    chat.press(Keys.CONTROL, "k")
    live.until(lambda app: not app.runtime.drafting._all)
    assert chat.js("return sent").pop()["type"] == "x.input.discard"
    live.baseline()


def test_changes_are_told_in_code_points(page: Any) -> None:
    page.open()
    told = page.module(
        """
        const { change } = await import('/ahead.js');
        return given.map(([before, after]) => change(before, after));
        """,
        ["", "a"], ["ab", "ab"], ["a🚀b", "a🚀🚀b"], ["🚀", "🛸"], ["hello world", "hell world"], ["aaa", "aa"], ["abc", ""],
    )  # fmt: skip
    assert told == [
        {"from": 0, "to": 0, "text": "a"},
        None,
        {"from": 2, "to": 2, "text": "🚀"},
        {"from": 0, "to": 1, "text": "🛸"},
        {"from": 4, "to": 5, "text": ""},
        {"from": 2, "to": 3, "text": ""},
        {"from": 0, "to": 3, "text": ""},
    ]


def test_a_server_that_has_forgotten_the_draft_is_asked_as_ever(page: Any, server: Any, turn: Any) -> None:
    server.model["x_type_ahead"] = True
    server.script(turn(["Here ", "it is."]))
    page.open().connected().type("hello there", send=False)
    server.wait(lambda: server.of("x.input.append"), "the draft")
    page.type("!")
    page.answer("Here it is.")
    (asked,) = server.of("response.create")
    assert asked["input"][0]["content"] == "hello there!"
    assert len(server.of("x.input.commit")) == 1 and not page.all(".note.error")


def test_a_server_that_does_not_know_drafts_never_hears_of_them(page: Any, server: Any, turn: Any) -> None:
    server.script(turn(["Yes."]))
    page.open().connected().type("hello there", send=False)
    page.until(lambda: page.js("return document.querySelector('#prompt').value") == "hello there", "the text")
    page.type("!")
    page.answer("Yes.")
    assert {frame["type"] for frame in server.frames} == {"response.create"}
