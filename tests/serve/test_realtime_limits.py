"""Realtime: a conversation that grows beyond its limits, and one that grows beyond the model's context."""

from __future__ import annotations

from typing import Any

import pytest
from face_bench import FaceBench
from face_said import prompt_of
from realtime_bench import Talk

from headrace.server.faces import realtime_conversation, realtime_items
from headrace.server.faces.realtime_items import characters, newest
from headrace.server.protocol import realtime_events as ev


async def over(bench: FaceBench, *talks: Talk) -> None:
    for talk in talks:
        talk.drop()
        assert talk.face._conversation.bytes == 0
    await bench.baseline()
    for talk in talks:
        assert talk.face._conversation._budget.used == 0


# -- items and bytes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3, 4])
async def test_the_oldest_items_go_when_one_too_many_comes(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At limit - 1, limit and limit + 1."""
    bench = FaceBench()
    talk = Talk(bench)
    monkeypatch.setattr(talk.face._conversation, "item_limit", 3)
    for number in range(count):
        talk.user("x", id=f"i{number}")
    events = talk.said_now()[1:]
    gone = [event["item_id"] for event in events if event["type"] == "conversation.item.deleted"]
    assert gone == ["i0"] * (count == 4)
    assert talk.items() == [f"i{number}" for number in range(count)][-3:]
    await over(bench, talk)


async def test_bytes_are_bounded_like_items(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = FaceBench()
    talk = Talk(bench)
    conversation = talk.face._conversation
    for number in range(3):
        talk.user("x" * 1000, id=f"i{number}")
    monkeypatch.setattr(conversation, "bytes_limit", conversation.bytes)
    talk.user("x" * 1000, id="i3")
    assert talk.said_now()[-3]["item_id"] == "i0"
    talk.user("x" * 1500, id="i4")
    assert talk.items() == ["i3", "i4"], "two had to go for a larger one"
    talk.said_now()
    talk.user("x" * 9000, id="i5", event_id="large")
    assert talk.said_now()[-1]["error"]["code"] == "conversation_full"
    assert talk.items() == ["i3", "i4"], "nothing goes for what would not fit anyway"
    await over(bench, talk)


async def test_without_truncation_a_full_conversation_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = FaceBench()
    talk = Talk(bench)
    monkeypatch.setattr(talk.face._conversation, "item_limit", 2)
    talk.update(truncation="disabled")
    for number in range(3):
        talk.user("x", id=f"i{number}", event_id=f"e{number}")
    event = talk.said_now()[-1]
    assert (event["error"]["code"], event["error"]["event_id"]) == ("conversation_full", "e2")
    talk.ask()
    assert talk.said_now()[-1]["error"]["code"] == "conversation_full", "there is no room for an answer"
    talk.ask(conversation="none")
    await talk.until_done()
    talk.send({"type": "conversation.item.delete", "item_id": "i0"})
    talk.ask()
    await talk.until_done(2)
    assert len(talk.items()) == 2
    await over(bench, talk)


async def test_an_item_has_its_limit_and_one_byte_less_passes() -> None:
    bench = FaceBench()
    talk = Talk(bench)
    talk.user("", id="i")
    bare = len(realtime_items.encode(talk.face._conversation.find("i")))
    talk.said_now()
    for spare, fits in ((1, True), (0, True), (-1, False)):
        talk.user("x" * (realtime_items.ITEM_BYTES - bare - spare), id=f"{spare + 3}")
        events = talk.said_now()
        assert (events[0]["type"] != "error") is fits
        if not fits:
            assert (events[0]["error"]["code"], events[0]["error"]["param"]) == ("invalid_value", "item")
    await over(bench, talk)


async def test_all_conversations_together_are_bounded() -> None:
    bench = FaceBench(settings={"waiting_bytes": 8000})
    talks = [Talk(bench) for _ in range(3)]
    for talk in talks:
        talk.user("x" * 2500)
    assert [talk.said_now()[-1]["type"] for talk in talks] == ["conversation.item.done"] * 2 + ["error"]
    (error,) = talks[2].reader.errors
    assert error["code"] == "server_is_overloaded"
    talks[0].drop()
    talks[2].user("x" * 2500)
    assert talks[2].said_now()[-1]["type"] == "conversation.item.done", "what one gave back another may take"
    await over(bench, *talks[1:])


# -- the context ---------------------------------------------------------------------------------------------------


def narrow(max_context: int, **options: Any) -> FaceBench:
    """A bench whose model has a small context."""
    bench = FaceBench(**options)
    bench.runtime.max_context = max_context
    return bench


def turns(count: int, size: int) -> list[str]:
    return [f"{number:03d}" + "x" * (size - 3) for number in range(count)]


async def test_the_oldest_turns_leave_the_prompt_when_it_is_too_long() -> None:
    """The fake model's tokens are bytes, so what fits can be counted."""
    bench = narrow(1000)
    talk = Talk(bench)
    for text in turns(20, 100):
        talk.user(text)
    talk.ask(max_output_tokens=50)
    (final,) = await talk.until_done()
    assert final["status"] == "incomplete" and final["usage"]["output_tokens"] == 50
    first = prompt_of(bench)
    assert first.endswith("assistant: ") and "019x" in first and "000x" not in first
    assert len(first) + 50 <= 1000 and len(first) > 700, "as much as fits, not less"
    assert len(talk.items()) == 21, "they are forgotten, not deleted"
    talk.ask(max_output_tokens=50)
    await talk.until_done(2)
    second = prompt_of(bench)
    assert len(second) + 50 <= 1000 and second.endswith("assistant: ")
    assert first.split("user: ")[1][:3] <= second.split("user: ")[1][:3], "what is forgotten stays so"
    talk.send({"type": "conversation.item.retrieve", "item_id": talk.items()[0]})
    talk.pump()
    assert talk.reader.events[-1]["item"]["content"][0]["text"].startswith("000x")
    await over(bench, talk)


async def test_a_ratio_cuts_deeper_so_that_the_next_turns_keep_their_prefix() -> None:
    bench = narrow(1000)
    talk = Talk(bench)
    talk.update(truncation={"type": "retention_ratio", "retention_ratio": 0.5})
    for text in turns(12, 100):
        talk.user(text)
    talk.ask(max_output_tokens=20)
    await talk.until_done()
    first = prompt_of(bench)
    assert 300 < len(first) < 520
    for number in range(3):
        talk.user(f"more {number}")
        talk.ask(max_output_tokens=20)
        await talk.until_done(number + 2)
        assert prompt_of(bench).startswith(first.removesuffix("assistant: ")), "the same beginning"
    await over(bench, talk)


async def test_a_token_limit_bounds_the_conversation_part() -> None:
    bench = narrow(2000)
    talk = Talk(bench)
    talk.update(
        instructions="Short.",
        truncation={
            "type": "retention_ratio",
            "retention_ratio": 1.0,
            "token_limits": {"post_instructions": 300},
        },
    )
    talk.user("warm up")
    talk.ask(max_output_tokens=1)
    await talk.until_done()
    for text in turns(8, 100):
        talk.user(text)
    talk.ask(max_output_tokens=20)
    await talk.until_done(2)
    prompt = prompt_of(bench)
    assert prompt.startswith("system: Short.\n") and "007x" in prompt
    assert len(prompt.removeprefix("system: Short.\n")) <= 300
    await over(bench, talk)


async def test_a_long_session_leaves_room_for_its_answers() -> None:
    """Without a limit of its own an answer must not be cut off by a context that is nearly full."""
    bench = narrow(800, eos=frozenset({10}), choose=until_newline)
    talk = Talk(bench)
    for number in range(30):
        talk.user(f"turn {number:02d} " + "y" * 40)
        talk.ask(max_output_tokens="inf")
        finals = await talk.until_done(number + 1)
        assert finals[-1]["status"] == "completed", number
    assert talk.reader.errors == [] and len(talk.items()) == 60
    await over(bench, talk)


def until_newline(tokens: list[int], seed: int, width: int) -> int:
    """Answers of 40 letters."""
    start = bytes(tokens).rindex(b"assistant: ") + 11
    return 10 if len(tokens) - start >= 40 else 97


async def test_disabled_truncation_fails_the_response() -> None:
    bench = narrow(500)
    talk = Talk(bench)
    talk.update(truncation="disabled")
    for text in turns(8, 100):
        talk.user(text)
    talk.ask()
    (final,) = await talk.until_done()
    assert final["status"] == "failed"
    assert final["status_details"]["error"]["code"] == "context_length_exceeded"
    assert final["usage"]["total_tokens"] == 0
    await over(bench, talk)


@pytest.mark.parametrize(
    "fields",
    [
        {"max_output_tokens": 5000},
        {"input": [{"type": "message", "role": "user", "content": [{"type": "text", "text": "x" * 900}]}]},
        {"instructions": "i" * 900},
    ],
)
async def test_what_cannot_fit_fails_and_costs_the_conversation_nothing(fields: dict[str, Any]) -> None:
    bench = narrow(600)
    talk = Talk(bench)
    for text in turns(3, 100):
        talk.user(text)
    talk.ask(**fields)
    (final,) = await talk.until_done()
    assert final["status"] == "failed"
    assert final["status_details"]["error"]["code"] == "context_length_exceeded"
    talk.ask()
    await talk.until_done(2)
    assert [prompt_of(bench).count(text) for text in turns(3, 100)] == [1, 1, 1]
    await over(bench, talk)


async def test_a_last_turn_that_is_too_long_fails_and_leaves_the_others() -> None:
    bench = narrow(600)
    talk = Talk(bench)
    for text in turns(3, 100):
        talk.user(text)
    talk.user("z" * 700, id="long")
    talk.ask()
    (final,) = await talk.until_done()
    assert final["status_details"]["error"]["code"] == "context_length_exceeded"
    talk.send({"type": "conversation.item.delete", "item_id": "long"})
    talk.ask()
    assert (await talk.until_done(2))[1]["status"] == "incomplete"
    assert [prompt_of(bench).count(text) for text in turns(3, 100)] == [1, 1, 1]
    await over(bench, talk)


async def test_a_cancel_while_the_prompt_is_being_shortened_is_heard() -> None:
    bench = narrow(1000, gated=True)
    talk = Talk(bench)
    for text in turns(20, 100):
        talk.user(text)
    talk.ask(max_output_tokens=50)
    await talk.until(lambda: len(bench.asks) == 2)
    talk.send({"type": "response.cancel"})
    (final,) = await talk.until_done()
    assert final["status"] == "cancelled"
    await over(bench, talk)


async def test_answers_out_of_band_are_shortened_too_and_forget_nothing() -> None:
    bench = narrow(1000)
    talk = Talk(bench)
    for text in turns(9, 100):
        talk.user(text)
    talk.ask(conversation="none", instructions="s" * 500)
    await talk.until_done()
    assert "000x" not in prompt_of(bench)
    talk.send({"type": "conversation.item.delete", "item_id": talk.items()[-1]})
    talk.ask()
    await talk.until_done(2)
    assert "000x" in prompt_of(bench)
    await over(bench, talk)


def test_the_newest_items_that_fit() -> None:
    def said(text: str) -> ev.Item:
        return ev.MessageItem(text, content=(ev.InputText(text),))

    items = [said("a" * 5), said("b" * 5), said("c" * 5)]
    for limit, count in ((15, 3), (14.9, 2), (10, 2), (9, 1), (5, 1), (4, 1), (0, 1)):
        assert newest(items, limit) == items[-count:], limit
    call = ev.CallItem("call", call_id="c", name="f", arguments="{}")
    result = ev.CallOutputItem("out", call_id="c", output="1234")
    assert characters(call) == 3 and characters(result) == 4
    assert newest([said("aaaaa"), call, result, said("b")], 8) == [call, result, said("b")]
    assert newest([said("aaaaa"), call, result, said("b")], 7) == [said("b")], "no result without its call"
    assert newest([call, result], 4) == [result], "unless that is all there is"
    assert newest([], 5) == []


def test_limits_are_what_the_design_says() -> None:
    assert realtime_conversation.ITEM_COUNT == 1024, "messages per request"
    assert realtime_items.ITEM_BYTES < 1 << 20, "clients take no larger message"
