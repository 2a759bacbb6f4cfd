"""The live timeline under an answer: what waits, what was slow and why, for eyes, fingers, keys and ears."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from live_server import LiveServer
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

TIMELINE = ".assistant .timeline"
MOMENT = ".assistant .moment"


def step(
    token: int | None, ms: float, wait: float = 0.0, prompt: int = 0, graph: str = "hit"
) -> dict[str, Any]:
    row = {"queue_ms": wait, "send_lag_ms": 0.1, "draft_accepted": 0}
    if token is not None:
        row["token_index"] = token
    return {
        "type": "x.step", "step_id": 1, "step_ms": ms, "batch": 3, "bucket": 4, "graph": graph,
        "prefill_tokens_in_step": prompt, "streams": [row],
    }  # fmt: skip


# Token 0 ends the prompt; 1 to 19 are steady but for four of them.
SLOW = {
    5: step(5, 60.0, prompt=512),
    8: step(8, 10.0, wait=300.0),
    11: step(11, 40.0, graph="eager"),
    14: step(14, 45.0),
}


def answer(turn: Any, **more: Any) -> Any:
    """An answer of twenty words with a history."""
    told = [
        (0, step(None, 80.0, wait=1500.0)),
        (0, {"type": "x.prefill.progress", "done": 64, "total": 100, "cached": 0, "eta_ms": 45}),
        (0, step(0, 40.0)),
        (0, {"type": "x.prefill.progress", "done": 100, "total": 100, "cached": 0, "eta_ms": 0}),
    ]
    told += [(token, SLOW.get(token, step(token, 10.0))) for token in range(1, 17)]
    told += [(17, step(None, 200.0, wait=30.0)), (17, step(17, 10.0))]
    told += [(token, step(token, 10.0)) for token in (18, 19)]
    return turn([f"word{index} " for index in range(20)], told=told, **more)


def filled(page: Any) -> set[str]:
    """The kinds of bars that are drawn."""
    found = page.js(
        "return [...document.querySelectorAll('.assistant .timeline path')]"
        ".filter((p) => p.getAttribute('d')).map((p) => p.getAttribute('class'))"
    )
    return set(found) - {"here"}


def test_who_waits_sees_the_place_in_the_line_and_then_the_reading(page, server, turn):
    told = [
        (0, {"type": "x.queue", "position": 3, "eta_ms": 4200}),
        (1, {"type": "x.queue", "position": 1, "eta_ms": None}),
        (2, {"type": "x.prefill.progress", "done": 2000, "total": 9000, "cached": 1000, "eta_ms": 700}),
    ]
    held = turn(["", "", "", "done"], told=told, hold_at=0)
    server.script(held)
    page.open().connected().type("hello")
    page.until(lambda: page.text(".stage") == "Number 3 in the line, about 4.2 s", "the place")
    assert page.one(".stage").is_displayed()
    held.release()
    page.answer("done")
    assert not page.one(".stage").is_displayed()
    asked = server.of("response.create")[0]
    assert asked["x_telemetry"] == "step"


def test_the_words_before_the_first_token(page, server):
    page.open()
    said = page.module(
        """const { Timing } = await import("/timing.js");
        const timing = new Timing();
        const said = [timing.stage()];
        const hear = (event) => { timing.hear(event); said.push(timing.stage()); };
        hear({ type: "x.queue", position: 1200, eta_ms: null });
        hear({ type: "x.prefill.progress", done: 2000, total: 9000, cached: 0, eta_ms: 700 });
        hear({ type: "x.prefill.progress", done: 9000, total: 9000, cached: 0, eta_ms: 0 });
        hear({ type: "x.queue", position: 2, eta_ms: 0 });
        return said;"""
    )
    assert said == [
        "",
        "Number 1,200 in the line",
        "Reading: 2,000 of 9,000 tokens, about 700 ms",
        "",
        "Number 2 in the line, about 1.0 ms",
    ]


def test_bars_have_the_colour_of_what_made_them_slow(page, server, turn):
    server.script(answer(turn))
    page.open().connected().type("hello")
    page.answer("".join(f"word{index} " for index in range(20)).strip())
    assert filled(page) == {"queue", "prefill", "steady", "prompt", "turn", "eager", "slow", "again"}
    label = page.one(TIMELINE).get_attribute("aria-label")
    assert label == (
        "Time between tokens. Waited 1.5 s for its turn. Read 100 tokens in 120 ms. "
        "19 tokens after the first: typically 10 ms, 95 % under 310 ms, longest 310 ms, "
        "300 ms of it waiting for a turn."
    )
    page.reload()
    page.until(lambda: page.all(TIMELINE), "the kept conversation")
    assert page.one(TIMELINE).get_attribute("aria-label") == label
    assert filled(page) == {"queue", "prefill", "steady", "prompt", "turn", "eager", "slow", "again"}


def test_keys_walk_along_it_and_say_each_part(page, server, turn):
    server.script(answer(turn))
    page.open().connected().type("hello")
    page.answer("".join(f"word{index} " for index in range(20)).strip())
    assert not page.one(MOMENT).is_displayed()
    page.js("document.querySelector('#prompt').focus()")
    bar = page.one(TIMELINE)

    def value() -> str:
        return str(bar.get_attribute("aria-valuetext"))

    while page.driver.switch_to.active_element != bar:
        page.press(Keys.SHIFT, Keys.TAB)
    assert value() == "Token 20: 10 ms · 3 in the batch"
    page.press(Keys.HOME)
    assert value() == "Waited 1.5 s for its turn" == page.text(MOMENT)
    page.press(Keys.ARROW_RIGHT)
    assert value() == "Read 100 tokens in 120 ms"
    heard = []
    for _ in range(19):
        page.press(Keys.ARROW_RIGHT)
        heard.append(value())
    assert [words for words in heard if "," in words] == [
        "Token 6: 60 ms, beside 512 tokens of another prompt · 3 in the batch",
        "Token 9: 310 ms, 300 ms of it waiting for a turn · 3 in the batch",
        "Token 12: 40 ms, without a captured graph · 3 in the batch",
        "Token 15: 45 ms, slower than usual · 3 in the batch",
        "Token 18: 240 ms, 230 ms of it reading again what others had pushed out · 3 in the batch",
    ]
    page.press(Keys.ARROW_RIGHT)
    assert value() == heard[-1], "it stays at its end"
    assert bar.get_attribute("aria-valuenow") == bar.get_attribute("aria-valuemax") == "21"
    page.press(Keys.ESCAPE)
    assert not page.one(MOMENT).is_displayed()
    assert bar.get_attribute("aria-valuetext") == bar.get_attribute("aria-label")


def test_the_pointer_tells_and_nothing_leaves_a_phones_screen(page, server, turn):
    page.cdp("Emulation.setDeviceMetricsOverride", width=320, height=640, deviceScaleFactor=2, mobile=False)
    server.script(answer(turn))
    page.open().connected().type("hello")
    page.answer("".join(f"word{index} " for index in range(20)).strip())
    bar = page.one(TIMELINE)
    for share in (-0.49, 0.0, 0.49):
        ActionChains(page.driver, duration=0).move_to_element_with_offset(
            bar, round(share * bar.size["width"]), 0
        ).perform()
        page.until(lambda: page.one(MOMENT).is_displayed(), "the words beside the pointer")
        box = page.js(
            "const b = document.querySelector(arguments[0]).getBoundingClientRect(); return [b.left, b.right]",
            MOMENT,
        )
        assert 0 <= box[0] < box[1] <= 320, (share, box)
    assert page.js("return document.documentElement.scrollWidth <= innerWidth")
    ActionChains(page.driver, duration=0).move_to_element(page.one("#prompt")).perform()
    page.until(lambda: not page.one(MOMENT).is_displayed(), "the words to go")


def test_light_and_dark_have_colours_of_their_own_and_all_kinds_differ(page, server, turn):
    server.script(answer(turn))
    page.open().connected().type("hello")
    page.answer("".join(f"word{index} " for index in range(20)).strip())
    looks = {}
    for theme in ("light", "dark"):
        page.cdp("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
        looks[theme] = page.js(
            "return Object.fromEntries([...document.querySelectorAll('.assistant .timeline path')]"
            ".map((p) => [p.getAttribute('class'), getComputedStyle(p).fill]))"
        )
        del looks[theme]["here"]
        alike = {looks[theme]["queue"], looks[theme]["turn"]}
        assert len(alike) == 1, "both are waiting for a turn"
        assert len(set(looks[theme].values())) == len(looks[theme]) - 1
    assert not set(looks["light"].values()) & set(looks["dark"].values())


def test_a_long_answer_shows_its_newest_part_and_keeps_every_stall(page, server):
    page.open()
    live, whole, packed = page.module(
        """const { Timing, unpacked } = await import("/timing.js");
        const timing = new Timing();
        const step = (token, ms) => timing.hear({ type: "x.step", step_ms: ms, batch: 1, graph: "eager",
          prefill_tokens_in_step: 0, own: { token_index: token, queue_ms: 0, send_lag_ms: 0 } });
        for (let token = 0; token < 5000; token += 1) step(token, token === 77 ? 900 : 10);
        const packed = timing.pack(180);
        return [timing.shown(60, true), unpacked(JSON.parse(JSON.stringify(packed))).bars, packed];"""
    )
    assert [bar["token"] for bar in live] == list(range(4940, 5000))
    assert len(whole) == 180 and [bar["cause"] for bar in whole].count("slow") == 1
    assert next(bar for bar in whole if bar["cause"] == "slow")["ms"] == 900
    assert (packed["count"], packed["usual"], packed["longest"]) == (4999, 10, 900)


def test_the_way_to_the_reader_is_told_apart_from_the_server(page, server):
    page.open()
    causes = page.module(
        """const { Timing } = await import("/timing.js");
        const timing = new Timing();
        for (let token = 0; token < 20; token += 1) {
          timing.hear({ type: "x.step", step_ms: 10, batch: 1, graph: "hit", prefill_tokens_in_step: 0,
            own: { token_index: token, queue_ms: 0, send_lag_ms: 0 } });
          timing.arrived(token === 0 ? null : token === 9 ? 400 : 11);
        }
        const odd = timing.shown(60).filter((bar) => bar.cause !== "steady");
        return odd.map((bar) => [bar.token, bar.cause, bar.amount]);"""
    )
    assert causes == [[9, "way", 390]]


def test_nothing_of_a_file_is_trusted(page, server):
    page.open()
    found = page.module(
        """const { cleaned, unpacked } = await import("/timing.js");
        const bars = [[5, 3, 1, 1, 512, 2], "x", [Infinity, 99, "a"], null];
        const odd = { queue: "1", prefill: -3, tokens: null, bars, more: 1 };
        const causes = unpacked(cleaned(odd)).bars.map((bar) => bar.cause);
        return [cleaned(odd), cleaned(null), cleaned({ bars: 3 }), causes];"""
    )
    assert found[0] == {
        "queue": None, "prefill": 0, "tokens": 0, "cached": 0, "usual": 0, "most": 0, "longest": 0, "count": 0,
        "bars": [[5, 3, 1, 1, 512, 2], [0, 6, 0, 0, 0, 0]],
    }  # fmt: skip
    assert found[1:] == [None, None, ["prompt", "slow"]]


@pytest.fixture
def live() -> Iterator[LiveServer]:
    server = LiveServer(gated=True)
    yield server
    server.stop()


def test_the_real_server_draws_it_while_the_answer_comes_in(page: Any, live: LiveServer) -> None:
    page.url = live.url + "/"
    page.open().connected()
    page.click("#settings-open")
    page.one("#fields [name=max_output_tokens]").send_keys("30")
    page.click("#settings .primary")
    page.type("x" * 150)

    def land(holds: Any, what: str) -> None:
        def stepped() -> Any:
            live.land()
            return holds()

        page.until(stepped, what)

    page.until(lambda: page.text(".stage").startswith("Reading: 0 of "), "the prompt is being read")
    land(lambda: page.all(TIMELINE) and page.one(TIMELINE).is_displayed(), "a timeline")
    assert page.one(TIMELINE).get_attribute("aria-label") == "Timeline of this answer, while it comes in"
    land(lambda: not page.all(".streaming"), "the end")
    label = page.one(TIMELINE).get_attribute("aria-label")
    assert label.startswith("Time between tokens. Waited ") and "Read 1" in label
    assert "29 tokens after the first: typically " in label
