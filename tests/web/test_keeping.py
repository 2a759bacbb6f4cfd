"""What the browser keeps, and how the page is used: storage, files, keyboard, colours, phone, screen reader."""

# ruff: noqa: E501 - the long lines are scripts for the page and texts, which a break would change

from __future__ import annotations

import json

import pytest
from selenium.webdriver.common.keys import Keys


def _saved(page):
    """Conversations as the database has them, once nothing is waiting to be written."""
    return page.module(
        """
        const { Store } = await import("/store.js");
        const store = await Store.open(); return store.list();
        """
    )


def test_conversations_survive_a_reload(page, server, turn):
    server.script(turn(["**Kept** well."]), turn(["Also kept."]), turn(["Continued."]))
    page.open().connected().type("first chat")
    page.answer("Kept well.")
    page.fresh()
    page.type("second chat")
    page.answer("Also kept.")
    page.reload().connected()
    assert page.titles() == ["second chat", "first chat"]
    assert page.answers() == ["Also kept."], "the chat that was open is open again"
    page.click("#conversations a[title='first chat']")
    page.answer("Kept well.")
    assert page.text(".assistant strong") == "Kept"
    assert "Tokens1" in page.text(".assistant .numbers")
    page.type("go on")
    page.answer("Continued.")
    assert len(server.of("response.create")[-1]["input"]) == 3


def test_leaving_in_the_middle_of_an_answer_keeps_the_part_and_says_so(page, server, turn):
    server.script(turn(["Half ", "way"], hold_at=1), turn(["Whole."]))
    page.open().connected().type("tell me")
    page.until(lambda: page.answers() == ["Half"], "a token")
    page.reload().connected()
    assert page.answers() == ["Half"]
    assert "page was closed" in page.text(".note.error p")
    page.click(".note.error button")
    page.answer("Whole.")


def test_unsent_text_survives_a_reload_in_each_chat(page):
    page.open().connected().type("hello")
    page.answer("All is well.")
    page.type("half a thou", send=False)
    page.fresh()
    page.type("another", send=False)
    page.reload().connected()
    assert page.js("return document.querySelector('#prompt').value") in ("another", "half a thou")
    page.open("#").connected()
    page.until(
        lambda: page.js("return document.querySelector('#prompt').value") == "another", "the first draft"
    )
    page.click("#conversations a")
    page.until(
        lambda: page.js("return document.querySelector('#prompt').value") == "half a thou", "the other draft"
    )


def test_rename_delete_and_undo(page):
    page.open().connected().type("old name")
    page.answer("All is well.")
    page.click("#conversations [aria-label='Rename old name']")
    page.press(Keys.CONTROL, "a")
    page.press("new <i>name</i>", Keys.ENTER)
    page.until(lambda: page.titles() == ["new <i>name</i>"], "the new name")
    assert page.text("#title") == "new <i>name</i>"
    page.click("#conversations .current [aria-label^=Delete]")
    page.until(lambda: page.titles() == [] and not page.all(".message"), "the chat to go")
    page.click("#toast button")
    page.until(
        lambda: page.titles() == ["new <i>name</i>"] and page.answers() == ["All is well."], "it to come back"
    )
    page.click("#conversations .current [aria-label^=Delete]")
    page.until(lambda: page.titles() == [], "the chat to go for good")
    page.reload().connected()
    assert page.titles() == []


def test_deleting_a_chat_stops_its_answer(page, server, turn):
    server.script(turn(["Endless ", "text"], hold_at=1))
    page.open().connected().type("go")
    page.until(lambda: page.answers() == ["Endless"], "a token")
    page.click("#conversations [aria-label^=Delete]")
    server.wait(lambda: server.of("response.cancel"), "a cancel")
    page.until(lambda: page.titles() == [], "the chat to go")


def test_search_looks_into_the_messages(page, server, turn):
    server.script(turn(["about granite"]), turn(["about willows"]))
    page.open().connected().type("stones")
    page.answer("about granite")
    page.fresh()
    page.type("trees")
    page.answer("about willows")
    page.one("#search").send_keys("GRAN about")
    page.until(lambda: page.titles() == ["stones"], "the one that was found")
    page.press("x")
    page.until(lambda: page.text("#conversations") == "Nothing found.", "nothing")
    page.press(Keys.ESCAPE)
    page.until(lambda: page.titles() == ["trees", "stones"], "all of them")


def test_export_and_import_carry_everything(page, server, turn, tmp_path):
    server.script(turn(["A"]), turn(["B"]))
    page.open().connected().click("#settings-open")
    page.one("#system").send_keys("Be brief.")
    page.one("#fields [name=temperature]").send_keys("0.25")
    page.click("#settings .primary")
    page.type("question")
    page.answer("A")
    page.click(".assistant [aria-label='Another answer']")
    page.answer("B")
    page.cdp("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    page.click("#export")
    found = page.until(lambda: list(tmp_path.glob("headrace-*.json")), "the file")[0]
    text = found.read_text()
    page.click("#conversations [aria-label^=Delete]")
    page.until(lambda: page.titles() == [], "an empty list")
    page.one("#import-file").send_keys(str(found))
    page.until(lambda: page.titles() == ["question"], "the chat again")
    page.click("#conversations a")
    page.until(lambda: page.answers() == ["B"], "its last branch")
    assert page.text(".assistant .branches span") == "2/2"
    before = json.loads(text)["conversations"][0]
    after = page.module(
        'const { Store } = await import("/store.js"); return JSON.parse((await Store.open()).export());'
    )
    page.until(lambda: _saved(page), "the import to be written")
    after = _saved(page)[0]
    assert before == after


@pytest.mark.parametrize("text", ["not json", "{}", "[]", '{"format":"headrace.conversations"}', "null"])
def test_a_foreign_file_is_refused_in_words(page, tmp_path, text):
    odd = tmp_path / "odd.json"
    odd.write_text(text)
    page.open().connected().one("#import-file").send_keys(str(odd))
    page.until(lambda: page.text("#toast").startswith("This file"), "the refusal")
    assert page.titles() == []


def test_hostile_files_lose_what_does_not_belong(page):
    kept = page.open().module(
        """
        const { checked } = await import("/store.js");
        const loop = [{ id: "a", parent: "b", role: "user", text: "x" }, { id: "b", parent: "a", role: "user", text: "y" }];
        const odd = { id: "c", title: { toString: "x" }, nodes: [
          { id: "1", parent: null, role: "user", text: "hi", html: "<b>", __proto__: { evil: 1 } },
          { id: "2", parent: "1", role: "system", text: "no" },
          { id: "3", parent: "1", role: "assistant", text: 5, status: "done", gaps: [1, "2", null, 3], measured: { ttft: "x", tokens: 4 } },
          { id: "1", parent: null, role: "user", text: "twice" } ],
          leaf: "nowhere", settings: { temperature: 99, top_p: 0.5, top_k: 1.5, seed: "1", other: 1 }, updated: "soon" };
        const fine = checked(odd);
        return [checked({ nodes: loop }), checked(null), checked({ nodes: [] }), fine.nodes, fine.settings, fine.title, fine.leaf];
        """
    )
    assert kept[:3] == [None, None, None]
    assert [node["id"] for node in kept[3]] == ["1", "3"]
    assert "html" not in kept[3][0]
    assert kept[3][1]["text"] == ""
    assert kept[3][1]["gaps"] == [1, 3]
    assert kept[4] == {"top_p": 0.5}
    assert kept[5:] == ["hi", "3"]


def test_two_tabs_see_the_same_chats(page, server, driver):
    page.open().connected()
    first = driver.current_window_handle
    driver.switch_to.new_window("tab")
    try:
        page.open().connected().type("from the second tab")
        page.answer("All is well.")
        driver.switch_to.window(first)
        page.until(lambda: page.titles() == ["from the second tab"], "the chat in the first tab")
    finally:
        driver.switch_to.window(driver.window_handles[-1])
        driver.close()
        driver.switch_to.window(first)


def test_shift_enter_makes_a_line_and_a_composing_enter_does_not_send(page, server):
    page.open().connected()
    page.type("one", send=False)
    page.type(Keys.SHIFT + Keys.ENTER, send=False)
    page.type("two", send=False)
    page.js(
        "document.querySelector('#prompt').dispatchEvent("
        "new KeyboardEvent('keydown', { key: 'Enter', isComposing: true, bubbles: true, cancelable: true }))"
    )
    assert not page.all(".message")
    page.one("#prompt").send_keys(Keys.ENTER)
    page.answer("All is well.")
    assert server.of("response.create")[0]["input"][0]["content"] == "one\ntwo"


def test_text_written_while_an_answer_runs_is_kept(page, server, turn):
    held = turn(["One ", "two"], hold_at=1)
    server.script(held)
    page.open().connected().type("go")
    page.until(lambda: page.answers() == ["One"], "a token")
    page.type("next question")
    assert "Stop the running answer first" in page.text("#hint")
    assert page.js("return document.querySelector('#prompt').value") == "next question"
    held.release()
    page.answer("One two")


def test_the_keyboard_reaches_everything_and_focus_is_seen(page):
    page.open().connected().type("hello")
    page.answer("All is well.")
    reached = set()
    for _ in range(40):
        page.press(Keys.TAB)
        reached.add(
            page.js(
                "const e = document.activeElement; return e.id || e.getAttribute('aria-label') || e.textContent.slice(0, 30)"
            )
        )
    for wanted in ("new", "search", "hello", "Rename hello", "Delete hello", "export", "import", "link", "theme",
                   "settings-open", "prompt", "Copy message", "Edit and resend", "Another answer"):  # fmt: skip
        assert wanted in reached, reached
    page.js("document.querySelector('#new').focus()")
    page.press(Keys.TAB, Keys.SHIFT + Keys.TAB)
    assert page.js("return getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_arrow_keys_go_between_chats_and_settings_return_the_focus(page):
    page.open().connected()
    for words in ("one", "two"):
        page.fresh()
        page.type(words)
        page.answer("All is well.")
    page.press(Keys.ALT + Keys.ARROW_DOWN)
    page.until(lambda: page.text("#title") == "one", "the older chat")
    page.one("#settings-open").send_keys(Keys.ENTER)
    page.until(lambda: page.one("#settings").is_displayed(), "the dialog")
    page.press(Keys.ESCAPE)
    page.until(lambda: not page.one("#settings").is_displayed(), "the dialog to close")
    assert page.js("return document.activeElement.id") == "settings-open"


def test_a_screen_reader_hears_sentences_not_tokens(page, server, turn, milliseconds):
    page.open()
    # What is said piece by piece is said by this timer: it fires when the test says so.
    page.js(
        "window.speak = []; const timer = window.setTimeout;"
        "window.setTimeout = (run, ms, ...given) => ms === arguments[0] ? (speak.push(run), 0) : timer(run, ms, ...given);",
        milliseconds("thread.js", r"SPEAK_MS = ([\d_]+)"),
    )
    page.js(
        "window.heard = [];"
        "new MutationObserver((all) => all.forEach((m) => m.addedNodes.forEach((n) => heard.push(n.textContent))))"
        ".observe(document.querySelector('#announcer'), { childList: true })"
    )
    held = turn(["Wa", "ter ", "ru", "ns. "] * 30, hold_at=50)
    server.script(held)
    page.connected().type("hello")
    page.until(lambda: page.answers() == [("Water runs. " * 13)[:-6].strip()], "fifty tokens")
    page.until(lambda: page.js("return speak.splice(0).map((run) => run()).length"), "the time to speak")
    held.release()
    page.until(
        lambda: any("Answer finished" in said for said in page.js("return heard")), "the end to be announced"
    )
    heard = page.js("return heard")
    assert heard[0] == "Answering."
    assert heard[1].split() == ("Water runs. " * 12).split(), "whole sentences"
    assert len(heard) == 4, "one hundred and twenty tokens must not be one hundred and twenty announcements"
    spoken = " ".join(heard[1:-1])
    assert spoken.split() == ("Water runs. " * 30).split(), "and nothing is left out"
    assert page.one("#announcer").get_attribute("aria-live") == "polite"
    assert page.one("#log").get_attribute("role") == "log"
    assert page.one("#log").get_attribute("aria-live") == "off", "else each token would be read out"


def test_every_control_has_a_name_and_the_page_its_landmarks(page):
    page.open().connected().type("hello")
    page.answer("All is well.")
    nameless = page.js(
        "return [...document.querySelectorAll('button, input, textarea, canvas, progress')]"
        ".filter((e) => !(e.getAttribute('aria-label') || e.textContent.trim() || e.labels?.length || e.hidden))"
        ".map((e) => e.outerHTML)"
    )
    assert nameless == []
    for landmark in ("nav[aria-label]", "main", "header", "form[aria-label]", "[role=log]", "h1"):
        assert page.all(landmark), landmark
    assert page.js("return document.documentElement.lang") == "en"


LUMINANCE = """
const paint = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
const rgb = (colour) => { paint.fillStyle = colour; paint.fillRect(0, 0, 1, 1); return [...paint.getImageData(0, 0, 1, 1).data]; };
const light = ([r, g, b]) => [r, g, b].map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const ground = (e) => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor; if (!/, 0\\)$|transparent/.test(c)) return rgb(c); } };
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_both_colour_schemes_are_readable(page, server, turn, scheme):
    page.cdp("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    text = "Text [link](https://a.example) `code`\n\n> quote\n\n```python\ndef f(x):  # why\n    return 'a' + 1\n```\n\n1. item"
    server.script(turn([text]), turn([], error={"type": "x", "code": None, "message": "Broken."}))
    page.open().connected().type("hello")
    page.until(lambda: page.all(".hl-k") and not page.all(".streaming"), "the answer")
    page.type("again")
    page.until(lambda: page.all(".note.error"), "the error")
    dark = page.js(LUMINANCE + "return light(rgb(getComputedStyle(document.body).backgroundColor)) < 0.2")
    assert dark == (scheme == "dark")
    poor = page.js(
        LUMINANCE
        + """
        const bad = [];
        for (const e of document.querySelectorAll("body *")) {
          const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
          if (!own || !e.checkVisibility({ opacityProperty: true, visibilityProperty: true }) || e.closest("button:disabled, svg")) continue;
          const [a, b] = [light(rgb(getComputedStyle(e).color)), light(ground(e))].sort((x, y) => y - x);
          const ratio = (a + 0.05) / (b + 0.05);
          if (ratio < 4.5) bad.push([e.className || e.tagName, e.textContent.slice(0, 20), ratio.toFixed(2)]);
        }
        return bad;
        """
    )
    assert poor == []


def test_the_colour_choice_is_kept(page):
    page.open().connected()
    scheme = "return getComputedStyle(document.documentElement).colorScheme"
    page.click("#theme")
    assert page.js(scheme) == "light"
    page.click("#theme")
    assert page.js(scheme) == "dark"
    page.reload()
    assert page.js(scheme) == "dark"
    page.click("#theme")
    assert page.js(scheme) == "light dark"


@pytest.mark.parametrize("width", [320, 390, 820])
def test_a_narrow_screen_has_no_sideways_scrolling_and_a_drawer(page, server, turn, width):
    page.cdp("Emulation.setDeviceMetricsOverride", width=width, height=740, deviceScaleFactor=2, mobile=True)
    long = "unbroken" * 40
    wide = "| " + " | ".join(f"column {i}" for i in range(12)) + " |\n|" + "---|" * 12 + "\n|" + " x |" * 12
    server.script(
        turn(
            [
                f"{long}\n\n```\n{long}\n```\n\n{wide}\n\n`{long}`\n\n- {long}\n  - {long}\n\n> {long}\n\n# {long}"
            ]
        )
    )
    page.open().connected().type(long)
    page.until(lambda: page.all(".assistant table") and not page.all(".streaming"), "the answer")
    for element in ("document.documentElement", "document.querySelector('#scroller')"):
        assert page.js(f"return {element}.scrollWidth - {element}.clientWidth") == 0
    outside = page.js(
        "return [...document.querySelectorAll('header *, #composer *, .message')].filter((e) => e.checkVisibility())"
        ".filter((e) => e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.outerHTML.slice(0, 80))"
    )
    assert outside == []
    assert page.js("return document.querySelector('#sidebar').inert") is True
    page.click("#drawer-open")
    page.until(lambda: page.js("return document.activeElement.id") == "new", "the focus in the drawer")
    assert page.js("return document.querySelector('main').inert") is True
    page.press(Keys.ESCAPE)
    assert page.js("return document.activeElement.id") == "drawer-open"
    small = page.js(
        "return [...document.querySelectorAll('textarea, input')].filter((e) => e.checkVisibility())"
        ".filter((e) => parseFloat(getComputedStyle(e).fontSize) < 16).map((e) => e.id)"
    )
    assert small == [], "a phone zooms into fields with small type"


def test_without_a_wish_for_motion_nothing_moves(page, server, turn):
    page.cdp("Emulation.setEmulatedMedia", features=[{"name": "prefers-reduced-motion", "value": "reduce"}])
    held = turn(["a"], hold_at=0)
    server.script(held)
    page.open().connected().type("hello")
    page.until(lambda: page.all(".waiting"), "the wait")
    assert page.js("return document.getAnimations().filter((a) => a.playState === 'running').length") == 0
    held.release()
    page.answer("a")


def test_the_suggestions_ask_at_once(page, server):
    page.open().connected()
    page.all("#chips button")[1].click()
    page.answer("All is well.")
    assert server.of("response.create")[0]["input"][0]["content"].startswith("Write a haiku")
    assert not page.one("#empty").is_displayed()
