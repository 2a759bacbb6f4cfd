"""When the line or the server fails: what the reader sees, and how the page gets back by itself."""

# ruff: noqa: E501 - the long lines are scripts for the page and texts, which a break would change

from __future__ import annotations

import pytest
from selenium.webdriver.common.keys import Keys


def test_a_cut_line_heals_and_the_next_turn_carries_the_history(page, server, turn):
    server.script(turn(["First."]), turn(["Second."]))
    page.open().connected().type("one")
    page.answer("First.")
    server.cut()
    server.wait(lambda: server.sockets_opened == 2, "a new socket")
    page.connected().type("two")
    page.answer("Second.")
    asked = server.of("response.create")[1]
    assert "previous_response_id" not in asked, "ids of an old socket are not relied on"
    assert [item["role"] for item in asked["input"]] == ["user", "assistant", "user"]


def test_a_server_that_is_away_is_shown_and_found_again(page, server):
    page.open().connected()
    server.cut(listening=False)
    page.until(lambda: page.text("#link-text") == "Reconnecting", "the dead link on screen")
    page.type("are you there?")
    page.until(lambda: page.all(".waiting"), "the question to wait for the server")
    server.listen()
    page.answer("All is well.")
    assert page.text("#link-text") == "Connected"
    assert len(server.of("response.create")) == 1


def test_a_line_cut_before_the_first_token_is_asked_again_by_itself(page, server, turn):
    server.script(turn([], end="drop"), turn(["Here it is."]))
    page.open().connected().type("quick")
    page.answer("Here it is.")
    assert len(server.of("response.create")) == 2
    assert not page.one(".assistant .note").is_displayed()


def test_a_question_that_kills_the_line_each_time_is_given_up(page, server, turn):
    server.respond = lambda asked: turn([], end="drop")
    page.open().connected().type("poison")
    page.until(lambda: page.all(".note.error"), "an error")
    assert page.text(".note.error p") == "The connection was lost before an answer came."
    assert len(server.of("response.create")) == 3


def test_a_line_cut_in_the_middle_keeps_the_text_and_offers_another_try(page, server, turn):
    server.script(turn(["Half a ", "sentence"], end="drop"), turn(["Whole sentence."]))
    page.open().connected().type("speak")
    page.until(lambda: page.all(".note.error"), "an error in the conversation")
    assert page.answers() == ["Half a sentence"]
    assert page.text(".note.error p") == "The connection was lost while this answer was coming in."
    page.connected().click(".note.error button")
    page.answer("Whole sentence.")
    assert page.text(".assistant .branches span") == "2/2"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ({"code": "server_is_overloaded", "message": "x"}, "The server is busy right now. Try again in a moment."),
        ({"code": "invalid_value", "message": "top_k must be at least -1"},
         "The server does not accept a setting of this chat. Top_k must be at least -1."),
        ({"code": "context_length_exceeded", "message": "5000 tokens do not fit"},
         "This conversation no longer fits into the model's context. Edit an earlier message or start a new chat."
         " 5000 tokens do not fit."),
        ({"code": None, "message": "<b>odd</b> <img src=x onerror=alert(1)>"},
         "<b>odd</b> <img src=x onerror=alert(1)>."),
    ],
)  # fmt: skip
def test_a_refusal_is_a_sentence_in_the_conversation(page, server, turn, error, said):
    server.script(turn([], error={"type": "invalid_request_error", **error}), turn(["Now it works."]))
    page.open().connected().type("hello")
    page.until(lambda: page.all(".note.error"), "the error")
    assert page.text(".note.error p") == said
    assert not page.all(".note img, .note b")
    page.click(".note.error button")
    page.answer("Now it works.")


def test_a_failed_response_keeps_its_text_and_is_not_continued_from(page, server, turn):
    server.script(turn(["Some ", "words"], end="failed"), turn(["Better."]))
    page.open().connected().type("one")
    page.until(lambda: page.all(".note.error"), "the error")
    assert page.text(".note.error p") == "The model stumbled."
    page.type("two")
    page.answer("Better.")
    assert "previous_response_id" not in server.of("response.create")[1]


def test_an_answer_cut_at_the_limit_says_so(page, server, turn):
    server.script(turn(["Too lo"], end="length"))
    page.open().connected().type("one")
    page.until(lambda: page.text(".assistant .note p") == "Cut at the token limit.", "the note")


def test_an_hour_old_socket_is_replaced_without_the_reader_noticing(page, server, turn):
    expired = {
        "type": "invalid_request_error",
        "code": "websocket_connection_limit_reached",
        "message": "60 minutes",
    }
    server.script(turn(["First."]), turn([], error=expired), turn(["Second."]))
    page.open().connected().type("one")
    page.answer("First.")
    page.type("two")
    page.answer("Second.")
    assert server.sockets_opened == 2
    assert len(server.of("response.create")[2]["input"]) == 3


def test_a_policy_close_is_not_retried_until_the_reader_asks(page, server):
    page.open().connected()
    server.close_sockets(1008, "too many requests from you")
    page.until(lambda: page.text("#link-text") == "Not connected", "the block")
    assert "too many requests from you" in page.text("#toast")
    assert server.sockets_opened == 1
    page.click("#toast button")
    page.connected()


def test_a_key_is_asked_for_once_and_then_kept(page, server):
    server.key = "mill-stone"
    page.open()
    page.until(lambda: page.one("#key").is_displayed(), "the question for the key")
    page.one("#key-input").send_keys("wrong", Keys.ENTER)
    page.until(lambda: "did not accept" in page.text("#key-why"), "the refusal")
    page.until(lambda: page.one("#key").is_displayed(), "the question again")
    page.one("#key-input").send_keys("mill-stone", Keys.ENTER)
    page.connected().type("hello")
    page.answer("All is well.")
    page.reload().connected()
    assert not page.one("#key").is_displayed()


def test_a_key_that_cannot_be_a_subprotocol_is_explained(page, server):
    server.key = "has spaces/and=more"
    page.open()
    page.until(lambda: page.one("#key").is_displayed(), "the question for the key")
    page.one("#key-input").send_keys("has spaces/and=more", Keys.ENTER)
    page.until(lambda: "cannot send" in page.text("#key-why"), "the reason")


def test_the_banner_tells_about_the_built_in_model_until_it_is_put_away(page, server):
    server.model |= {"x_embedded": True, "x_notice": "A small model <b>for trying things</b>."}
    page.open().connected()
    assert page.text("#banner p") == "A small model <b>for trying things</b>."
    page.click("#banner button")
    page.reload().connected()
    assert not page.one("#banner").is_displayed()


FAKE = """
const { Link } = await import("/link.js");
const fake = { time: 0, timers: [], sockets: [], states: [], alive: true, probes: 0 };
fake.clock = {
  now: () => fake.time,
  after(ms, run) { const t = { at: fake.time + ms, run }; fake.timers.push(t); return t; },
  every(ms, run) { const t = { at: fake.time + ms, run, ms }; fake.timers.push(t); return t; },
  forget(t) { fake.timers = fake.timers.filter((other) => other !== t); },
};
fake.turns = async () => { for (let i = 0; i < 20; i += 1) await null; };
fake.pass = async (ms) => {
  const end = fake.time + ms;
  for (;;) {
    fake.timers.sort((a, b) => a.at - b.at);
    const next = fake.timers[0];
    if (!next || next.at > end) break;
    fake.time = Math.max(fake.time, next.at);
    if (next.ms) next.at += next.ms; else fake.timers.shift();
    next.run();
    await fake.turns();
  }
  fake.time = end;
};
fake.link = (extra = {}) => new Link({
  prepare: async () => ({ ok: fake.alive, retry: true, why: "away" }),
  open() { const s = { sent: [], send(d) { s.sent.push(JSON.parse(d)); }, close() { s.closed = true; } }; fake.sockets.push(s); return s; },
  probe() {
    fake.probes += 1;
    if (fake.alive) return Promise.resolve(true);
    return new Promise((resolve) => fake.clock.after(10_000, () => resolve(false)));
  },
  onstate: (state, detail) => fake.states.push([fake.time, state, detail]),
  clock: fake.clock, random: () => 0.5, visible: () => true, ...extra });
const exchange = (log, fields = {}) => ({ owner: "a", body: (lane, epoch) => ({ lane, epoch }),
  event: (e) => log.push(e.type), lost: (why) => log.push(`lost ${why}`), ...fields });
const say = (socket, event) => socket.onmessage({ data: JSON.stringify(event) });
"""


@pytest.mark.parametrize("streaming", [False, True])
def test_a_silently_dead_link_shows_within_45_seconds(page, streaming):
    found = page.open().module(
        FAKE
        + """
        const link = fake.link(); const log = [];
        await link.connect(); fake.sockets[0].onopen();
        if (given[0]) {
          link.send(exchange(log));
          say(fake.sockets[0], { type: "response.created", stream_id: "chat-0", response: { id: "r" } });
          say(fake.sockets[0], { type: "response.output_text.delta", stream_id: "chat-0", delta: "x" });
        }
        await fake.pass(100_000);
        const before = fake.states.filter(([, state]) => state === "waiting").length;
        const cut = fake.time; fake.alive = false;
        await fake.pass(60_000);
        const seen = fake.states.find(([at, state]) => at > cut && state === "waiting");
        return { before, after: seen[0] - cut, probes: fake.probes, log };
        """,
        streaming,
    )
    assert found["before"] == 0, "a living link must not be dropped"
    assert found["probes"] >= 4, "a silent link is asked about"
    assert found["after"] <= 45_000
    if streaming:
        assert found["log"][-1] == "lost dead"


def test_backoff_grows_has_jitter_and_starts_over_after_a_good_connection(page):
    delays = page.open().module(
        FAKE
        + """
        const spread = [];
        for (const random of [0, 0.5, 0.999]) {
          fake.states.length = 0; fake.alive = false;
          const link = fake.link({ random: () => random });
          await link.connect();
          await fake.pass(60_000);
          spread.push(fake.states.filter(([, s]) => s === "waiting").map(([, , d]) => d.delay));
          fake.timers.length = 0;
        }
        return spread;
        """
    )
    for low, high in zip(delays[0], delays[2], strict=False):
        assert high > 1.9 * low, "two pages must not come back in the same moment"
    for series in delays:
        assert series[:4] == sorted(series[:4])
        assert series[0] <= 500
        assert max(series) <= 8_000


def test_a_socket_that_never_answers_is_replaced_and_the_question_asked_again(page):
    found = page.open().module(
        FAKE
        + """
        const link = fake.link(); const log = [];
        await link.connect(); fake.sockets[0].onopen();
        link.send(exchange(log));
        await fake.pass(50_000);
        fake.sockets.at(-1).onopen?.();
        return { sockets: fake.sockets.length, first: fake.sockets[0].closed, again: fake.sockets[1]?.sent, log };
        """
    )
    assert found == {"sockets": 2, "first": True, "again": [{"lane": "chat-0", "epoch": 2}], "log": []}


def test_a_stop_before_the_response_exists_is_cancelled_when_it_does(page):
    found = page.open().module(
        FAKE
        + """
        const link = fake.link(); const log = [];
        await link.connect(); fake.sockets[0].onopen();
        const first = exchange(log), second = exchange(log);
        link.send(first);
        const follows = link.cancel(first);
        link.send(second);
        say(fake.sockets[0], { type: "response.created", stream_id: "chat-0", response: { id: "r1" } });
        say(fake.sockets[0], { type: "response.incomplete", stream_id: "chat-0", response: { id: "r1" } });
        say(fake.sockets[0], { type: "response.created", stream_id: "chat-0", response: { id: "r2" } });
        return { follows, sent: fake.sockets[0].sent.slice(1), second: second.responseId };
        """
    )
    assert found["follows"] is False
    assert {"type": "response.cancel", "response_id": "r1"} in found["sent"]
    assert found["second"] == "r2", "the next answer in the lane is not mixed up with the stopped one"


def test_frames_of_nobody_disturb_nobody(page):
    log = page.open().module(
        FAKE
        + """
        const link = fake.link(); const log = [];
        await link.connect(); fake.sockets[0].onopen();
        link.send(exchange(log));
        for (const event of [{ type: "x.goaway" }, { type: "response.created", stream_id: "other", response: { id: "z" } },
          { type: "response.output_text.delta", stream_id: "chat-9", delta: "!" }, { type: "error", stream_id: "chat-9", error: {} }])
          say(fake.sockets[0], event);
        return log;
        """
    )
    assert log == []
