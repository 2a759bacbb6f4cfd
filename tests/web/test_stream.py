"""An answer on its way: streaming, stopping, continuing, branching, several at once."""

from __future__ import annotations

from selenium.webdriver.common.keys import Keys


def test_tokens_appear_while_the_answer_is_still_coming(page, server, turn):
    held = turn(["The ", "river ", "runs ", "on."], hold_at=2)
    server.script(held)
    page.open().connected().type("Where does it go?")
    page.until(lambda: page.answers() == ["The river"], "the first two tokens")
    assert page.all(".streaming"), "the answer must not look finished"
    assert page.one("#send").get_attribute("aria-label") == "Stop"
    held.release()
    page.answer("The river runs on.")
    assert page.one("#send").get_attribute("aria-label") == "Send"
    asked = server.of("response.create")[0]
    assert asked["model"] == "river-1b"
    assert asked["input"] == [{"type": "message", "role": "user", "content": "Where does it go?"}]
    assert "previous_response_id" not in asked


def test_every_token_is_drawn_in_order_however_they_are_cut(page, server, turn):
    words = [f"w{i} " for i in range(400)]
    server.script(turn(words))
    page.open().connected().type("Many words")
    page.answer("".join(words).strip())


def test_stop_button_cancels_on_the_server_and_keeps_what_came(page, server, turn):
    server.script(turn(["One ", "two ", "three"], hold_at=2))
    page.open().connected().type("Count")
    page.until(lambda: page.answers() == ["One two"], "two tokens")
    page.click("#send")
    cancel = server.wait(lambda: server.of("response.cancel"), "a cancel")[0]
    assert cancel == {"type": "response.cancel", "response_id": "resp_1"}
    page.until(lambda: not page.all(".streaming"), "the end")
    assert page.answers() == ["One two"]
    assert page.text(".assistant .note") == "Stopped."


def test_escape_stops_too(page, server, turn):
    server.script(turn(["Never ", "ending"], hold_at=1))
    page.open().connected().type("Go")
    page.until(lambda: page.answers() == ["Never"], "a token")
    page.press(Keys.ESCAPE)
    server.wait(lambda: server.of("response.cancel"), "a cancel")
    page.until(lambda: page.text(".assistant .note") == "Stopped.", "the stop on screen")


def test_the_next_turn_sends_only_what_is_new(page, server, turn):
    server.script(turn(["First."]), turn(["Second."]))
    page.open().connected().type("one")
    page.answer("First.")
    page.type("two")
    page.answer("Second.")
    first, second = server.of("response.create")
    assert second["previous_response_id"] == "resp_1"
    assert second["stream_id"] == first["stream_id"]
    assert second["input"] == [{"type": "message", "role": "user", "content": "two"}]


def test_a_stopped_answer_can_be_continued_from(page, server, turn):
    server.script(turn(["Part", "ial"], hold_at=1), turn(["More."]))
    page.open().connected().type("one")
    page.until(lambda: page.answers() == ["Part"], "a token")
    page.press(Keys.ESCAPE)
    page.until(lambda: not page.all(".streaming"), "the stop")
    page.type("two")
    page.answer("More.")
    assert server.of("response.create")[1]["previous_response_id"] == "resp_1"


def test_a_forgotten_response_is_answered_with_the_whole_history(page, server, turn):
    server.script(turn(["First."]), turn(["unused"]), turn(["Second."]))
    page.open().connected().type("one")
    page.answer("First.")
    server.known.clear()
    page.type("two")
    page.answer("Second.")
    _, refused, full = server.of("response.create")
    assert refused["previous_response_id"] == "resp_1"
    assert "previous_response_id" not in full
    assert [(i["role"], i["content"]) for i in full["input"]] == [
        ("user", "one"), ("assistant", "First."), ("user", "two"),
    ]  # fmt: skip


def test_two_chats_stream_at_once_over_one_socket(page, server, turn):
    slow, other = turn(["Slow ", "but sure."], hold_at=1), turn(["Quick ", "one."], hold_at=1)
    server.script(slow, other)
    page.open().connected().type("first chat")
    page.until(lambda: page.answers() == ["Slow"], "the first chat to stream")
    page.fresh()
    page.type("second chat")
    page.until(lambda: page.answers() == ["Quick"], "the second chat to stream")
    assert len(page.all("#conversations .busy")) == 2
    lanes = {frame["stream_id"] for frame in server.of("response.create")}
    assert len(lanes) == 2
    assert server.sockets_opened == 1
    slow.release()
    page.until(lambda: len(page.all("#conversations .busy")) == 1, "the first to finish in the background")
    assert page.answers() == ["Quick"], "nothing of one chat may show up in the other"
    other.release()
    page.answer("Quick one.")
    page.until(lambda: not page.all("#conversations .busy"), "both to finish")
    page.click("#conversations a[title='first chat']")
    page.answer("Slow but sure.")


def test_more_chats_than_lanes_share_them(page, server):
    page.open().connected()
    for i in range(34):
        page.fresh()
        page.type(f"chat {i}")
        page.answer("All is well.")
    asked = server.of("response.create")
    assert len(asked) == 34
    assert len({frame["stream_id"] for frame in asked}) == 32, "the server allows 32 lanes for one socket"
    assert server.sockets_opened == 1


def test_another_answer_makes_a_branch_that_can_be_left_and_found_again(page, server, turn):
    server.script(turn(["Plan A"]), turn(["Plan B"]), turn(["On B"]))
    page.open().connected().type("plan?")
    page.answer("Plan A")
    page.click(".assistant [aria-label='Another answer']")
    page.answer("Plan B")
    assert page.text(".assistant .branches span") == "2/2"
    page.type("go on")
    page.answer("On B")
    assert server.of("response.create")[2]["previous_response_id"] == "resp_2"
    page.click(".assistant [aria-label='Previous version']")
    page.until(lambda: page.answers() == ["Plan A"], "the first branch, without what followed the second")
    page.click(".assistant [aria-label='Next version']")
    page.until(lambda: page.answers() == ["Plan B", "On B"], "the second branch whole")


def test_edit_and_resend_forks_at_that_message(page, server, turn):
    server.script(turn(["A1"]), turn(["A2"]), turn(["B2"]))
    page.open().connected().type("first")
    page.answer("A1")
    page.type("seccond")
    page.answer("A2")
    page.press(Keys.ARROW_UP)
    page.until(lambda: page.all(".editing textarea"), "the last message as a form")
    page.press(Keys.CONTROL, "a")
    page.press("second", Keys.ENTER)
    page.answer("B2")
    asked = server.of("response.create")[2]
    assert asked["previous_response_id"] == "resp_1", (
        "the fork continues the answer before the edited message"
    )
    assert asked["input"][0]["content"] == "second"
    page.until(
        lambda: page.text(".user:nth-of-type(3) .branches span") == "2/2", "two versions of the message"
    )
    assert page.js("return document.activeElement.id") == "prompt"


def test_settings_and_system_prompt_go_with_every_request(page, server):
    page.open().connected().click("#settings-open")
    page.one("#system").send_keys("Answer like a miller.")
    for name, value in {
        "temperature": "0.5",
        "top_p": "0.9",
        "top_k": "40",
        "max_output_tokens": "64",
        "seed": "7",
    }.items():
        page.one(f"#fields [name={name}]").send_keys(value)
    page.click("#settings .primary")
    for words in ("one", "two"):
        page.type(words)
        page.answer("All is well.")
    server.wait(lambda: len(server.of("response.create")) == 2, "two requests")
    for asked in server.of("response.create"):
        assert asked["instructions"] == "Answer like a miller."
        sampling = {
            name: asked[name] for name in ("temperature", "top_p", "top_k", "max_output_tokens", "seed")
        }
        assert sampling == {"temperature": 0.5, "top_p": 0.9, "top_k": 40, "max_output_tokens": 64, "seed": 7}
        assert "min_p" not in asked


def test_a_setting_out_of_range_is_marked_and_not_sent(page, server):
    page.open().connected().click("#settings-open")
    page.one("#fields [name=temperature]").send_keys("9")
    page.one("#fields [name=top_k]").send_keys("5")
    assert page.one("#fields [name=temperature]").get_attribute("aria-invalid") == "true"
    page.js("document.querySelector('#settings').close()")
    page.type("hello")
    page.answer("All is well.")
    asked = server.of("response.create")[0]
    assert "temperature" not in asked
    assert asked["top_k"] == 5


def test_the_measured_line_counts_by_deltas_and_ends_with_real_usage(page, server, turn):
    held = turn(["a "] * 10, hold_at=8)
    server.script(held)
    page.open().connected().type("hello there")
    page.until(lambda: "≈" in page.text(".assistant .numbers"), "an estimate while it streams")
    page.until(lambda: page.one(".assistant .timeline").is_displayed(), "the timeline, from two gaps on")
    held.release()
    page.until(lambda: not page.all(".streaming"), "the end")
    line = page.text(".assistant .numbers")
    assert "≈" not in line
    assert "First token" in line
    assert "Tokens10" in line
    assert "Context12 / 4,096" in line
    assert "typically" in page.one(".assistant .timeline").get_attribute("aria-label")
    assert page.text("#meter span") == "12 of 4,096 tokens"
    assert page.all(".assistant .timeline path[d^=M]"), "the timeline is empty"


def test_reasoning_is_folded_away_from_the_answer(page, server, turn):
    server.script(turn(["42"], reasoning=["let me ", "see"]), turn(["<think>in ", "text</think>", "43"]))
    page.open().connected().type("meaning?")
    page.answer("42")
    assert page.js("return document.querySelector('.thought').textContent") == "let me see"
    page.type("again?")
    page.answer("43")
    assert page.js("return [...document.querySelectorAll('.thought')].at(-1).textContent") == "in text"


def test_reading_further_up_is_not_disturbed_by_new_text(page, server, turn):
    held = turn([f"Line {i}\n\n" for i in range(60)] + ["The end."], hold_at=60)
    server.script(held)
    page.open().connected().type("long")
    page.until(lambda: "Line 59" in (page.answers() or [""])[0], "a long answer")
    bottom = (
        "const s = document.querySelector('#scroller'); return s.scrollHeight - s.scrollTop - s.clientHeight"
    )
    page.until(lambda: page.js(bottom) < 2, "the view to follow the text")

    def scrolled_up() -> bool:
        page.js("document.querySelector('#scroller').scrollTop = 100")
        return page.one("#jump").is_displayed()

    page.until(scrolled_up, "the way back down")
    held.release()
    page.until(lambda: not page.all(".streaming"), "the end")
    assert page.js("return document.querySelector('#scroller').scrollTop") == 100
    page.click("#jump")
    page.until(lambda: page.js(bottom) < 2, "the end of the text")
    assert not page.one("#jump").is_displayed()
