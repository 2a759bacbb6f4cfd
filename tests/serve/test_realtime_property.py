"""Any interleaving of creates, cancels, edits, slow reading and lost connections keeps every promise.

The strict reader judges each frame as it comes; the model here knows what each event must have led to. Steps land
only when the script says so, so a failing script is a story that can be told again.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from face_bench import FaceBench
from hypothesis import given, settings
from hypothesis import strategies as st
from realtime_bench import Talk
from scripted_model import END, call

VERBS = {
    "user": st.integers(0, 4),
    "ask": st.integers(1, 12),
    "aside": st.integers(1, 12),
    "cancel": st.integers(0, 3),
    "cancel_bare": st.just(0),
    "delete": st.integers(0, 5),
    "result": st.integers(0, 3),
    "retrieve": st.integers(0, 5),
    "land": st.integers(1, 6),
    "flush": st.just(0),
    "read": st.integers(0, 1),
    "reconnect": st.just(0),
}
# A verb that is named twice is drawn twice as often.
LIKELY = (*VERBS, "user", "user", "ask", "aside", "land", "land", "land", "read")
OPERATIONS = st.sampled_from(LIKELY).flatmap(lambda verb: st.tuples(st.just(verb), VERBS[verb]))


WEATHER = {"type": "function", "name": "weather"}
CALL = call("weather", '{"at": "Rome"}')
ANSWERS = ("Yes.", CALL, f"Let me see.\n{CALL}\n{CALL}", f"{CALL} Done.", "<think>hm</think>No.")


def callers(tokens: list[int], seed: int, width: int) -> int:
    """A model whose answers are words, calls, or both: which, the seed decides."""
    answer = ANSWERS[seed % len(ANSWERS)].encode()
    done = len(tokens) - bytes(tokens).rindex(b"assistant: ") - len(b"assistant: ")
    return answer[done] if done < len(answer) else END


class Play:
    """Plays operations on one bench and counts what each must be answered with. tools: the model calls them,
    and its answers end by themselves."""

    def __init__(self, *, tools: bool) -> None:
        self.tools = tools
        self.bench = FaceBench(gated=True)
        if tools:
            form = {"tools": "hermes", "reasoning": "think"}
            self.bench = FaceBench(gated=True, choose=callers, eos=frozenset({END}), form=form)
        self.talks: list[Talk] = []
        self.numbers = 0
        self.connect()

    def connect(self) -> None:
        self.talk = Talk(self.bench)
        self.talks.append(self.talk)
        self.sent: dict[str, str] = {}  # event id → verb
        self.asked: list[str] = []  # ids of responses, as they were created

    def send(self, verb: str, event: dict[str, Any]) -> str:
        self.numbers += 1
        name = f"e{self.numbers}"
        self.sent[name] = verb
        self.talk.send({**event, "event_id": name})
        return name

    def known(self, index: int) -> str:
        ids = [item["id"] for item in self.talk.reader.items]
        return ids[index] if index < len(ids) else f"nobody{index}"

    async def play(self, verb: str, value: int) -> None:
        talk = self.talk
        match verb:
            case "user":
                content = [{"type": "input_text", "text": f"u{self.numbers}"}]
                item = {"type": "message", "role": "user", "content": content}
                where = {"previous_item_id": self.known(value - 1)} if value else {}
                self.send("user", {"type": "conversation.item.create", "item": item, **where})
            case "ask" | "aside":
                self.ask(verb, value)
            case "cancel":
                ids = list(talk.reader.answers)
                target = ids[-value] if 0 < value <= len(ids) else "resp_nobody"
                self.send("cancel", {"type": "response.cancel", "response_id": target})
            case "cancel_bare":
                self.send("clear", {"type": "input_audio_buffer.clear"})
                talk.pump()
                active = self.active
                name = self.send("cancel", {"type": "response.cancel"})
                self.expect(name, refused=not active)
            case "delete" | "retrieve":
                self.send(verb, {"type": f"conversation.item.{verb}", "item_id": self.known(value)})
            case "result":
                calls = [item["call_id"] for item in talk.reader.items if item["type"] == "function_call"]
                call_id = calls[value] if value < len(calls) else "nobody"
                output = {"type": "function_call_output", "call_id": call_id, "output": "rain"}
                talk.pump()
                known = call_id in [item.get("call_id") for item in talk.reader.items]
                name = self.send("user", {"type": "conversation.item.create", "item": output})
                self.expect(name, refused=not known)
            case "land":
                for _ in range(value):
                    self.bench.engine.land(1)
                    await asyncio.sleep(0)
            case "flush":
                self.bench.flush()
            case "read":
                talk.wire.reading = bool(value)
            case "reconnect":
                talk.wire.reading = True
                self.finish_reading()
                talk.drop()
                self.bench.readers.remove(talk)
                self.connect()

    @property
    def active(self) -> bool:
        """An answer is under way in the conversation, by what the events have told."""
        return any(answer.in_band and answer.final is None for answer in self.talk.reader.answers.values())

    def expect(self, name: str, *, refused: bool) -> None:
        """The event of that name was refused, or was not: to be seen at once, if the client reads."""
        if self.talk.wire.reading:
            self.talk.pump()
            assert (name in {error["event_id"] for error in self.talk.reader.errors}) is refused

    def ask(self, verb: str, limit: int) -> None:
        talk = self.talk
        current = talk.wire.reading
        talk.pump()
        busy = self.active and verb == "ask"
        before = len(self.bench.asks)
        fields: dict[str, Any] = {"max_output_tokens": limit, "seed": self.numbers, "instructions": "i"}
        if self.tools:
            fields |= {"max_output_tokens": limit * 20, "tools": [WEATHER]}
        if verb == "aside":
            fields["conversation"] = "none"
        name = self.send(verb, {"type": "response.create", "response": fields})
        self.expect(name, refused=busy)
        if len(self.bench.asks) > before and current and not self.tools:
            # What the model is asked is what the events have told of the conversation, unfinished items left out.
            shown = [
                (item["role"], "".join(part["text"] for part in item["content"]))
                for item in talk.reader.items
                if item["status"] != "in_progress"
            ]
            asked = [(message.role, message.content) for message in self.bench.asks[-1].messages or ()]
            assert asked == [("system", "i"), *shown]

    def finish_reading(self) -> None:
        self.talk.pump()
        reader = self.talk.reader
        told = Counter(event["type"] for event in reader.events)
        refused = Counter(self.sent[error["event_id"]] for error in reader.errors)
        asked = Counter(self.sent.values())
        assert set(refused) <= {"user", "ask", "aside", "cancel", "delete", "retrieve"}
        assert told["response.created"] == asked["ask"] + asked["aside"] - refused["ask"] - refused["aside"]
        assert told["conversation.item.deleted"] == asked["delete"] - refused["delete"]
        assert told["conversation.item.retrieved"] == asked["retrieve"] - refused["retrieve"]
        assert told["input_audio_buffer.cleared"] == asked["clear"]
        begun = sum(
            len(answer.items) + (answer.open is not None)
            for answer in reader.answers.values()
            if answer.in_band
        )
        assert told["conversation.item.added"] == asked["user"] - refused["user"] + begun

    async def end(self) -> None:
        talk = self.talk
        talk.wire.reading = True
        await talk.until(lambda: all(answer.final is not None for answer in talk.reader.answers.values()))
        self.finish_reading()
        talk.reader.rest()
        talk.items()
        statuses = {final["status"] for final in talk.reader.finals}
        assert statuses <= {"incomplete", "cancelled"} or self.tools, "letters never stop by themselves"
        assert "failed" not in statuses
        for answer in talk.reader.answers.values():
            assert answer.final is not None
            limit = answer.final["max_output_tokens"]
            made = answer.final["usage"]["output_tokens"]
            assert made == limit if answer.final["status"] == "incomplete" else made <= limit
            assert len(answer.text) == made or self.tools, "one letter a token"
        talk.drop()
        await self.bench.baseline()
        assert all(talk.face._conversation._budget.used == 0 for talk in self.talks)


@pytest.mark.parametrize("tools", [False, True])
@settings(max_examples=100, deadline=None)
@given(operations=st.lists(OPERATIONS, min_size=8, max_size=50))
def test_any_interleaving_keeps_order_items_and_counts(
    operations: list[tuple[str, int]], tools: bool
) -> None:
    async def run() -> None:
        play = Play(tools=tools)
        for verb, value in operations:
            await play.play(verb, value)
        await play.end()

    asyncio.run(run())
