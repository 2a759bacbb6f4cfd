"""An answer edited, or tried again from a place in it: kept on the server as far as it is the same."""

from __future__ import annotations

from selenium.webdriver.common.keys import Keys

GONE = {"type": "invalid_request_error", "code": "response_not_found", "message": "no such answer is held"}


def edit(page, text=None, *, cursor=None):
    """Open the form of the last answer; write `text` instead and go on, or go on from the cursor."""
    page.click(".message:last-child [aria-label='Edit and go on']")
    page.until(lambda: page.all(".rewrite textarea"), "the answer as a form")
    if text is not None:
        page.js("document.querySelector('.rewrite textarea').value = arguments[0]", text)
        page.click(".rewrite .primary")
    else:
        page.js(
            "document.querySelector('.rewrite textarea').setSelectionRange(arguments[0], arguments[0])",
            cursor,
        )
        page.click(".rewrite [data-tool='cursor']")


def test_an_edited_answer_goes_on_from_what_was_written(page, server, turn):
    second = turn(["The river is wide", " and blue."], hold_at=0)
    server.script(turn(["The river is long", " and slow."]), second, turn(["Why?"]))
    page.open().connected().type("rivers")
    page.answer("The river is long and slow.")
    edit(page, "The river is wide")
    (asked,) = server.wait(lambda: server.of("x.fork"), "the fork")
    assert asked == {
        "type": "x.fork", "response_id": "resp_1", "stream_id": asked["stream_id"], "at_char": 13,
        "force_text": "wide",
    }  # fmt: skip
    page.until(
        lambda: page.answers() == ["The river is wide"], "what is kept, before the server has answered"
    )
    second.release()
    page.answer("The river is wide and blue.")
    assert page.text(".branches .pick") == "2/2"
    page.type("and then?")
    page.answer("Why?")
    assert server.of("response.create")[-1]["previous_response_id"] == "resp_2"
    page.click("[aria-label='Previous version']")
    page.answer("The river is long and slow.", 0)


def test_an_answer_is_tried_again_from_the_cursor(page, server, turn):
    server.script(turn(["🌊🌊 one two"]), turn(["🌊🌊 one", " more"]))
    page.open().connected().type("count")
    page.answer("🌊🌊 one two")
    edit(page, cursor=len("🌊🌊 one".encode("utf-16-le")) // 2)
    page.answer("🌊🌊 one more")
    (asked,) = server.of("x.fork")
    assert asked["at_char"] == 6 and "force_text" not in asked, "characters, not halves of them"


def test_what_the_server_no_longer_has_is_asked_for_like_anything_else(page, server, turn):
    server.script(turn(["A long one"]), turn([], error=GONE), turn([" tale"]), turn([" story"]))
    page.open().connected().type("tell")
    page.answer("A long one")
    edit(page, "A short")
    page.answer("A short tale")
    again = server.of("response.create")[-1]
    assert [(item["role"], item["content"]) for item in again["input"]] == [
        ("user", "tell"), ("assistant", "A short"),
    ]  # fmt: skip
    edit(page, "A shorter")
    page.answer("A shorter story")
    assert len(server.of("x.fork")) == 1, "the text of that version is not one response"


def test_after_a_reload_nothing_is_forked(page, server, turn):
    server.script(turn(["Old words"]), turn([" and new"]))
    page.open().connected().type("tell")
    page.answer("Old words")
    page.until(lambda: page.titles() == ["tell"], "the chat in the list")
    page.js("document.dispatchEvent(new Event('visibilitychange'))")
    page.reload().connected()
    page.answer("Old words")
    edit(page, "Older")
    page.answer("Older and new")
    assert not server.of("x.fork")


def test_a_running_answer_is_edited_beside_itself(page, server, turn):
    first, second = turn(["On and ", "on"], hold_at=1), turn(["On the ", "hill"])
    server.script(first, second)
    page.open().connected().type("go")
    page.until(lambda: page.answers() == ["On and"], "the first half")
    edit(page, "On the ")
    page.until(lambda: page.answers() == ["On the hill"], "the other version")
    (asked,) = server.of("x.fork")
    assert asked["stream_id"] != server.of("response.create")[0]["stream_id"]
    assert (asked["at_char"], asked["force_text"]) == (3, "the ")
    first.release()
    page.click("[aria-label='Previous version']")
    page.answer("On and on")


def test_leaving_the_form_changes_nothing(page, server, turn):
    server.script(turn(["As it was"]))
    page.open().connected().type("go")
    page.answer("As it was")
    page.click("[aria-label='Edit and go on']")
    page.until(lambda: page.all(".rewrite textarea"), "the form")
    assert not page.one(".assistant .body").is_displayed()
    page.press("other words", Keys.ESCAPE)
    page.until(lambda: not page.all(".rewrite"), "the answer again")
    assert page.answers() == ["As it was"] and page.one(".assistant .body").is_displayed()
    assert len(server.frames) == 1
