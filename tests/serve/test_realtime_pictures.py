"""Pictures on the Realtime socket: kept, shown to the model, never told back; what is refused, and how."""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import Any

import pytest
from face_bench import FaceBench
from face_said import prompt_of
from fake_prompter import CARD
from realtime_bench import Talk

from headrace.runtime.refusal import Refusal

URL = "data:image/png;base64," + base64.b64encode(b"a picture").decode()
ONE = f"[whole picture of {len(URL)}]"
SEES = replace(CARD, sees=True)
IMAGE = {"type": "input_image", "image_url": URL}


def show(talk: Talk, *parts: Any, id: str | None = None) -> None:
    item = {"type": "message", "role": "user", "content": list(parts), **({"id": id} if id else {})}
    talk.send({"type": "conversation.item.create", "item": item})


async def over(bench: FaceBench, talk: Talk) -> None:
    talk.items()
    talk.drop()
    await bench.baseline()
    assert talk.face._conversation._budget.used == 0


async def test_pictures_keep_their_places_and_are_not_told_back() -> None:
    bench = FaceBench(card=SEES)
    talk = Talk(bench)
    text = {"type": "input_text", "text": "left "}
    show(talk, IMAGE, text, {**IMAGE, "detail": "low"}, {"type": "input_text", "text": "right"}, id="p")
    talk.send({"type": "conversation.item.retrieve", "item_id": "p"})
    events = talk.said_now()[1:]
    assert [event["item"]["content"][0] for event in events] == [
        {"type": "input_image", "detail": "auto"}
    ] * 3
    assert not any(URL in raw for raw in talk.raw)
    for count in (1, 2):
        talk.ask()
        await talk.until_done(count)
        assert prompt_of(bench).startswith(f"user: {ONE}left {ONE.replace('whole', 'small')}right\n")
    talk.ask(conversation="none", input=[{"type": "item_reference", "id": "p"}])
    await talk.until_done(3)
    assert prompt_of(bench).startswith(f"user: {ONE}left ")
    talk.ask(input=[{"type": "message", "role": "user", "content": [IMAGE]}])
    await talk.until_done(4)
    assert prompt_of(bench) == f"user: {ONE}\nassistant: "
    await over(bench, talk)


@pytest.mark.parametrize(
    ("part", "code", "param"),
    [
        ({"type": "input_image"}, "missing_required_parameter", "item.content[0].image_url"),
        ({**IMAGE, "image_url": "https://a.example/x.png"}, "invalid_value", "item.content[0].image_url"),
        ({**IMAGE, "image_url": "file:///etc/passwd"}, "invalid_value", "item.content[0].image_url"),
        ({**IMAGE, "image_url": 5}, "invalid_value", "item.content[0].image_url"),
        ({**IMAGE, "detail": "most"}, "invalid_value", "item.content[0].detail"),
    ],
)
async def test_what_is_no_picture_is_refused_by_name(part: dict[str, Any], code: str, param: str) -> None:
    bench = FaceBench(card=SEES)
    talk = Talk(bench)
    talk.said_now()
    show(talk, part)
    (event,) = talk.said_now()
    assert event["error"]["code"] == code and event["error"]["param"] == param
    await over(bench, talk)


async def test_who_may_show_how_many_pictures() -> None:
    bench = FaceBench(card=SEES)
    talk = Talk(bench)
    talk.said_now()
    show(talk, *[IMAGE] * 9)
    assert talk.said_now()[0]["error"]["param"] == "item.content"
    show(talk, *[IMAGE] * 8)
    assert talk.said_now()[0]["type"] == "conversation.item.added"
    item = {"type": "message", "role": "system", "content": [IMAGE]}
    talk.send({"type": "conversation.item.create", "item": item})
    assert talk.said_now()[0]["error"]["param"] == "item.content[0].type"
    blind = Talk(FaceBench())
    blind.said_now()
    show(blind, IMAGE)
    assert "takes no pictures" in blind.said_now()[0]["error"]["message"]
    await over(bench, talk)


async def test_the_newest_eight_pictures_are_shown() -> None:
    bench = FaceBench(card=SEES)
    talk = Talk(bench)
    for number in range(11):
        show(talk, {"type": "input_text", "text": f"n{number:02d}"}, IMAGE)
    talk.ask()
    (final,) = await talk.until_done()
    assert final["status"] == "incomplete"
    assert "n02" not in prompt_of(bench) and prompt_of(bench).startswith(f"user: n03{ONE}")
    assert len(talk.items()) == 12, "forgotten, not deleted"
    await over(bench, talk)


async def test_a_picture_that_cannot_be_read_fails_the_response_until_it_is_deleted() -> None:
    bench = FaceBench(card=SEES)
    talk = Talk(bench)
    show(talk, IMAGE, id="bad")
    prepare = bench.runtime.prompter.prepare

    def refuse(ask: Any) -> Any:
        shown = [picture for message in ask.messages for picture in message.pictures]
        if shown:
            raise Refusal("invalid_value", f"{shown[0].name}: not a picture", shown[0].name)
        return prepare(ask)

    bench.runtime.prompter.prepare = refuse  # type: ignore[method-assign]
    talk.ask()
    (final,) = await talk.until_done()
    assert final["status"] == "failed"
    assert "item bad: content[0]" in final["status_details"]["error"]["message"]
    talk.send({"type": "conversation.item.delete", "item_id": "bad"})
    talk.user("hello")
    talk.ask()
    assert (await talk.until_done(2))[1]["status"] == "incomplete"
    await over(bench, talk)


async def test_pictures_count_against_the_conversation(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = FaceBench(card=SEES)
    talk = Talk(bench)
    large = {"type": "input_image", "image_url": "data:image/png;base64," + "A" * (2 << 20)}
    monkeypatch.setattr(talk.face._conversation, "bytes_limit", 5 << 20)
    for id in ("a", "b", "c"):
        show(talk, large, id=id)
    events = talk.said_now()[1:]
    assert [event["item_id"] for event in events if event["type"] == "conversation.item.deleted"] == ["a"]
    assert talk.items() == ["b", "c"]
    assert max(map(len, talk.raw)) < 2000, "an item above what clients take is told without its bytes"
    await over(bench, talk)
