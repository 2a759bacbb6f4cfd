"""Versions of a message: made while others are still being written, kept side by side, found again."""

from __future__ import annotations

from selenium.webdriver.common.keys import Keys


def again(page):
    page.click(".assistant [aria-label='Another answer']")


def versions(page):
    """What the steps of the last message that has versions say, as a screen reader would have it."""
    labels = (
        "return [...document.querySelectorAll('.branches .pick')].map((e) => e.getAttribute('aria-label'))"
    )
    return page.js(labels)


def test_another_answer_is_written_beside_the_one_that_runs(page, server, turn):
    first, second = turn(["Plan A ", "is long"], hold_at=1), turn(["Plan B ", "is short"], hold_at=1)
    server.script(first, second)
    page.open().connected().type("plan?")
    page.until(lambda: page.answers() == ["Plan A"], "the first to begin")
    again(page)
    page.until(lambda: page.answers() == ["Plan B"], "the second beside it")
    asked = server.of("response.create")
    assert len({frame["stream_id"] for frame in asked}) == 2, "in one lane it would wait for the first"
    assert server.of("response.cancel") == [], "nothing was stopped for it"
    assert versions(page) == ["Version 2 of 2, another one is being written. Show all"]
    assert page.all(".step.busy[aria-label='Previous version']")
    first.release()
    page.until(lambda: versions(page) == ["Version 2 of 2. Show all"], "the first to end in the background")
    assert page.answers() == ["Plan B"], "nothing of one version may show up in the other"
    second.release()
    page.answer("Plan B is short")
    page.click("[aria-label='Previous version']")
    page.answer("Plan A is long")


def test_editing_an_earlier_message_leaves_the_running_branch_alone(page, server, turn):
    running = turn(["On ", "and on"], hold_at=1)
    server.script(turn(["A1"]), running, turn(["B2"]), turn(["B3"]))
    page.open().connected().type("first")
    page.answer("A1")
    page.type("second")
    page.until(lambda: page.answers() == ["A1", "On"], "the running answer")
    page.all(".user [aria-label='Edit and resend']")[1].click()
    page.until(lambda: page.all(".editing textarea"), "the message as a form")
    page.press(Keys.CONTROL, "a")
    page.press("another second", Keys.ENTER)
    page.answer("B2")
    asked = server.of("response.create")
    assert asked[2]["previous_response_id"] == asked[1]["previous_response_id"] == "resp_1"
    assert asked[2]["stream_id"] != asked[1]["stream_id"], "a fork on a lane of its own"
    assert [entry["content"] for entry in asked[2]["input"]] == ["another second"]
    assert page.one("#send").get_attribute("aria-label") == "Send", "this branch waits for nothing"
    page.type("third")
    page.answer("B3")
    assert server.of("response.create")[3]["previous_response_id"] == "resp_3"
    page.click(".user [aria-label='Previous version']")
    page.until(lambda: page.answers() == ["A1", "On"], "the branch that still runs")
    assert page.one("#send").get_attribute("aria-label") == "Stop"
    running.release()
    page.answer("On and on")
    page.click(".user [aria-label='Next version']")
    page.until(lambda: page.answers() == ["A1", "B2", "B3"], "the other branch, whole")


def test_stop_stops_the_branch_that_is_shown(page, server, turn):
    first, second = turn(["One ", "more"], hold_at=1), turn(["Two ", "more"], hold_at=1)
    server.script(first, second)
    page.open().connected().type("go")
    page.until(lambda: page.answers() == ["One"], "the first")
    again(page)
    page.until(lambda: page.answers() == ["Two"], "the second")
    page.press(Keys.ESCAPE)
    page.until(lambda: page.text(".assistant .note") == "Stopped.", "the stop")
    assert server.of("response.cancel") == [{"type": "response.cancel", "response_id": "resp_2"}]
    page.click("[aria-label='Previous version']")
    page.until(lambda: page.answers() == ["One"] and page.all(".streaming"), "the first, still running")
    first.release()
    page.answer("One more")


def test_deleting_a_chat_stops_all_its_branches(page, server, turn):
    server.script(turn(["One ", "more"], hold_at=1), turn(["Two ", "more"], hold_at=1))
    page.open().connected().type("go")
    page.until(lambda: page.answers() == ["One"], "the first")
    again(page)
    page.until(lambda: page.answers() == ["Two"], "the second")
    page.click("#conversations .current")
    page.js("document.querySelector(\"[aria-label='Delete go']\").click()")
    server.wait(lambda: len(server.of("response.cancel")) == 2, "both cancels")


def test_versions_are_walked_by_keyboard_and_heard(page, server, turn):
    server.script(turn(["A"]), turn(["B"]), turn(["C"]))
    page.open().connected().type("letter?")
    page.answer("A")
    for letter in "BC":
        again(page)
        page.answer(letter)
    page.js("document.querySelector('.branches .pick').focus()")
    page.press(Keys.ARROW_LEFT)
    page.answer("B")
    assert page.js("return document.activeElement.dataset.tool") == "previous", "the focus came along"
    page.press(Keys.ARROW_LEFT)
    page.answer("A")
    assert page.js("return document.activeElement.dataset.tool") == "versions", (
        "a step that leads nowhere has none"
    )
    page.press(Keys.ARROW_LEFT)
    page.press(Keys.ARROW_RIGHT)
    page.answer("B")
    heard = page.js("return [...document.querySelectorAll('#announcer p')].map((p) => p.textContent)")
    assert heard[-3:] == ["Version 2 of 3.", "Version 1 of 3.", "Version 2 of 3."]
    group = page.one(".branches")
    assert group.get_attribute("role") == "group" and group.get_attribute("aria-label")


def test_all_versions_in_one_list(page, server, turn):
    running = turn(["Being ", "written"], hold_at=1)
    server.script(turn(["A short one"]), turn(["Another"], end="length"), running)
    page.open().connected().type("tell me")
    page.answer("A short one")
    again(page)
    page.answer("Another")
    again(page)
    page.until(lambda: page.answers() == ["Being"], "the third")
    page.click(".branches .pick")
    page.until(lambda: page.one("#versions").is_displayed(), "the list")
    rows = page.js(
        "return [...document.querySelectorAll('.version')].map((e) => "
        "[...e.children].map((c) => c.textContent))"
    )
    assert [row[:2] for row in rows] == [["1", "A short one"], ["2", "Another"], ["3", "Being"]]
    assert rows[0][2].startswith("1 token · river-1b · ")
    assert rows[1][2].startswith("cut at the token limit") and rows[2][2].startswith("being written")
    assert page.js("return document.activeElement.getAttribute('aria-current')") == "true"
    page.press(Keys.ESCAPE)
    page.until(lambda: not page.one("#versions").is_displayed(), "the list to close")
    assert page.answers() == ["Being"]
    assert page.js("return document.activeElement.dataset.tool") == "versions"
    page.click(".branches .pick")
    page.click(".version")
    page.answer("A short one")
    assert page.js("return document.activeElement.dataset.tool") == "versions"
    running.release()
    page.until(lambda: versions(page) == ["Version 1 of 3. Show all"], "the third to end")


def test_a_way_back_leads_to_where_one_was(page, server, turn):
    """Also over a reload: which of several ends was shown belongs to the conversation."""
    server.script(*(turn([name]) for name in ("A", "A1", "A2", "B")))
    page.open().connected().type("root")
    page.answer("A")
    page.type("next")
    page.answer("A1")
    page.all(".assistant [aria-label='Another answer']")[1].click()
    page.answer("A2")
    page.click(".assistant:nth-of-type(4) [aria-label='Previous version']")
    page.until(lambda: page.answers() == ["A", "A1"], "the older end")
    page.js("document.querySelector(\".assistant [aria-label='Another answer']\").click()")
    page.answer("B")
    page.reload().connected()
    page.until(lambda: page.answers() == ["B"], "the branch after the reload")
    page.click(".assistant [aria-label='Previous version']")
    page.until(lambda: page.answers() == ["A", "A1"], "the end that was shown, not the newest one")


def test_what_runs_beside_is_kept_when_the_line_is_cut(page, server, turn):
    first, second = turn(["One ", "more"], hold_at=1), turn(["Two ", "more"], hold_at=1)
    server.script(first, second, turn(["After"]))
    page.open().connected().type("go")
    page.until(lambda: page.answers() == ["One"], "the first")
    again(page)
    page.until(lambda: page.answers() == ["Two"], "the second")
    server.cut()
    page.until(lambda: page.all(".note.error"), "the loss of the one that is shown")
    page.click("[aria-label='Previous version']")
    page.until(lambda: page.answers() == ["One"] and page.all(".note.error"), "and of the other")
    page.connected().type("well?")
    page.answer("After")
    asked = server.of("response.create")[-1]
    assert [(entry["role"], entry["content"]) for entry in asked["input"]] == [
        ("user", "go"), ("assistant", "One "), ("user", "well?"),
    ]  # fmt: skip


def test_names_and_colours_of_the_list_hold_in_the_dark_too(page, server, turn):
    page.cdp("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    server.script(turn(["<b>A</b>"]), turn(["B"]))
    page.open().connected().type("x")
    page.answer("<b>A</b>")
    again(page)
    page.answer("B")
    page.click(".branches .pick")
    page.until(lambda: page.one("#versions").is_displayed(), "the list")
    assert page.text(".version .words") == "<b>A</b>", "text stays text"
    nameless = page.js(
        "return [...document.querySelectorAll('#versions button, .branches button')]"
        ".filter((e) => !(e.getAttribute('aria-label') || e.textContent.trim())).length"
    )
    assert nameless == 0


def test_the_list_fits_a_narrow_screen(page, server, turn):
    page.cdp("Emulation.setDeviceMetricsOverride", width=320, height=700, deviceScaleFactor=2, mobile=True)
    server.script(turn(["unbroken" * 60]), turn(["many words " * 60]))
    page.open().connected().type("x")
    page.answer("unbroken" * 60)
    again(page)
    page.until(lambda: not page.all(".streaming") and page.all(".branches .pick"), "the second")
    page.click(".branches .pick")
    page.until(lambda: page.one("#versions").is_displayed(), "the list")
    outside = page.js(
        "return [...document.querySelectorAll('#versions *')]"
        ".filter((e) => e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.outerHTML.slice(0, 80))"
    )
    assert outside == []
    tall = page.js("return document.querySelector('#versions').getBoundingClientRect().height <= innerHeight")
    assert tall, "long versions are cut, and the list scrolls"
    small = page.js(
        "return [...document.querySelectorAll('.version, .branches button')]"
        ".filter((e) => Math.min(e.offsetWidth, e.offsetHeight) < 24).length"
    )
    assert small == 0, "every target is large enough for a finger"
