"""The chat at the real server: front, faces, scheduler and pages; only the engine's arithmetic is a fake."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from live_server import LiveServer
from selenium.webdriver.common.keys import Keys


@pytest.fixture
def live() -> Iterator[LiveServer]:
    server = LiveServer(gated=True, keys=("mill-stone",))
    yield server
    server.stop()


@pytest.fixture
def chat(page: Any, live: LiveServer) -> Any:
    """The page, opened at the real server with the key that it asks for."""
    page.url = live.url + "/"
    page.open()
    page.until(lambda: page.one("#key").is_displayed(), "the question for the key")
    page.one("#key-input").send_keys("mill-stone", Keys.ENTER)
    return page.connected()


def land_until(page: Any, live: LiveServer, holds: Callable[[], Any], what: str) -> None:
    """Let steps land one by one until the page shows it."""

    def step() -> Any:
        live.land()
        return holds()

    page.until(step, what)


def test_stop_takes_the_request_out_of_the_batch_and_gives_its_pages_back(
    chat: Any, live: LiveServer
) -> None:
    running = "return document.querySelectorAll('.streaming').length"
    free = live.ask(lambda app: app.scheduler.pool.free_count)
    chat.type("a question to the real server")
    land_until(chat, live, lambda: len((chat.answers() or [""])[-1]) > 4, "text")
    assert live.ask(lambda app: len(app.scheduler.running)) == 1
    assert live.ask(lambda app: app.scheduler.pool.free_count) < free
    chat.press(Keys.ESCAPE)
    land_until(chat, live, lambda: chat.js(running) == 0, "the stop")
    assert chat.text(".assistant .note") == "Stopped."
    land_until(chat, live, lambda: not live.ask(lambda app: app.scheduler.running), "an empty batch")
    line = chat.text(".assistant .numbers")
    assert "≈" not in line, "a stopped answer carries the server's own count"


def test_continuing_sends_only_the_new_turn(chat: Any, live: LiveServer) -> None:
    chat.click("#settings-open")
    chat.one("#fields [name=max_output_tokens]").send_keys("24")
    chat.click("#settings .primary")
    chat.js(
        "window.sent = []; const send = WebSocket.prototype.send;"
        "WebSocket.prototype.send = function (data) { sent.push(JSON.parse(data)); send.call(this, data); }"
    )
    for turn in ("first question " * 12, "second question"):
        count = len(chat.answers())
        chat.type(turn.strip())
        land_until(
            chat, live, lambda n=count: len(chat.answers()) > n and not chat.all(".streaming"), "the answer"
        )
        assert not chat.all(".note.error")
    # Who types slowly is read ahead: then it is the opening of the draft that says what the message continues.
    first, second = [f for f in chat.js("return sent") if f["type"] in ("response.create", "x.input.append")]
    assert "previous_response_id" not in first
    assert len(second.get("input", [0])) == 1
    assert second["previous_response_id"].startswith("resp_")


def test_two_chats_are_in_one_batch(chat: Any, live: LiveServer) -> None:
    chat.type("chat one")
    land_until(chat, live, lambda: (chat.answers() or [""])[-1], "text in the first chat")
    chat.fresh()
    chat.type("chat two")
    land_until(chat, live, lambda: (chat.answers() or [""])[-1], "text in the second chat")
    assert live.ask(lambda app: len(app.scheduler.running)) == 2
    assert len(chat.all("#conversations .busy")) == 2


def test_two_versions_are_in_one_batch_and_both_continue_the_same_answer(chat: Any, live: LiveServer) -> None:
    chat.click("#settings-open")
    chat.one("#fields [name=max_output_tokens]").send_keys("40")
    chat.click("#settings .primary")
    chat.type("one question " * 10)
    land_until(chat, live, lambda: chat.answers() and not chat.all(".streaming"), "the first answer")
    chat.type("go on")
    land_until(chat, live, lambda: len(chat.answers()) > 1 and chat.answers()[1], "text of the second")
    cached = live.ask(lambda app: app.runtime.stats()["cached_tokens"])
    chat.all(".assistant [aria-label='Another answer']")[1].click()
    land_until(
        chat, live, lambda: chat.all(".branches .pick") and chat.answers()[1], "text of another one beside it"
    )
    assert live.ask(lambda app: len(app.scheduler.running)) == 2
    assert live.ask(lambda app: app.runtime.stats()["cached_tokens"]) > cached, (
        "the fork computes no prompt twice"
    )
    land_until(chat, live, lambda: not chat.all(".streaming, .step.busy"), "the end of both")
    assert not chat.all(".note.error")
    shown = chat.answers()
    chat.click("[aria-label='Previous version']")
    chat.until(lambda: chat.answers()[0] == shown[0] and chat.answers()[1], "the other version, whole")


def test_an_edited_answer_goes_on_without_computing_anything_again(chat: Any, live: LiveServer) -> None:
    chat.click("#settings-open")
    chat.one("#fields [name=max_output_tokens]").send_keys("30")
    chat.click("#settings .primary")
    chat.type("one question " * 10)
    land_until(chat, live, lambda: chat.answers() and not chat.all(".streaming"), "the answer")
    spent = live.ask(lambda app: app.runtime.stats()["prefill_tokens_computed"])
    chat.click("[aria-label='Edit and go on']")
    chat.until(lambda: chat.all(".rewrite textarea"), "the form")
    kept = chat.js(
        "const t = document.querySelector('.rewrite textarea'); t.setSelectionRange(9, 9); return t.value"
    )
    chat.click(".rewrite [data-tool='cursor']")
    land_until(chat, live, lambda: chat.all(".branches") and not chat.all(".streaming"), "the other version")
    other = chat.js("return document.querySelector('.assistant .body').textContent")
    assert not chat.all(".note.error") and len(other) > 9
    # The fake answer may have blanks side by side or at its ends; the page shows them as a browser does.
    assert " ".join(other.split()).startswith(" ".join(kept[:9].split()))
    assert live.ask(lambda app: app.runtime.stats()["prefill_tokens_computed"]) == spent
    assert live.ask(lambda app: app.runtime.stats()["copied_pages"]) == 1


def test_closing_the_page_cancels_what_it_asked_for(chat: Any, live: LiveServer) -> None:
    chat.type("never mind")
    land_until(chat, live, lambda: (chat.answers() or [""])[-1], "text")
    chat.driver.get("about:blank")
    land_until(chat, live, lambda: not live.ask(lambda app: app.scheduler.running), "an empty batch")


def test_going_back_to_the_page_finds_it_working(chat: Any, live: LiveServer) -> None:
    chat.type("before")
    land_until(chat, live, lambda: (chat.answers() or [""])[-1], "text")
    chat.driver.get("about:blank")
    land_until(chat, live, lambda: not live.ask(lambda app: app.scheduler.running), "an empty batch")
    chat.driver.back()
    chat.connected()
    assert chat.titles() == ["before"]
    chat.until(lambda: chat.all(".note.error button"), "the answer that was cut can be asked for again")


def test_a_prompt_that_cannot_fit_is_explained_in_the_chat(chat: Any, live: LiveServer) -> None:
    chat.js(
        "const p = document.querySelector('#prompt'); p.value = 'too long '.repeat(arguments[0]);"
        "p.dispatchEvent(new Event('input'))",
        live.ask(lambda app: app.engine.page_count * app.engine.page_size),
    )
    chat.click("#send")
    land_until(chat, live, lambda: chat.all(".note.error"), "the refusal")
    assert chat.text(".note.error p").startswith("This conversation no longer fits into the model's context.")
