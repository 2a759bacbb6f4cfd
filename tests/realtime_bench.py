"""One Realtime session over the face bench; everything it says goes through the strict reader."""

from __future__ import annotations

from typing import Any

from face_bench import ALICE, FaceBench, Socket
from strict_realtime import Reader

from headrace.runtime.interface import Tenant
from headrace.server.faces.realtime_ws import RealtimeSocket


class Talk(Socket):
    """The client's side of /v1/realtime. `reader` holds what was said, checked."""

    path = "/v1/realtime"

    def __init__(self, bench: FaceBench, tenant: Tenant = ALICE, **query: str) -> None:
        super().__init__(bench, tenant, {"model": "fake", **query})
        assert isinstance(self.session, RealtimeSocket)
        self.face: RealtimeSocket = self.session
        self.reader = Reader()
        bench.readers.append(self)

    def pump(self) -> None:
        super().pump()
        while len(self.reader.events) < len(self.raw):
            self.reader.take(self.raw[len(self.reader.events)])

    def user(self, text: str, **fields: Any) -> None:
        """Add a turn of the user."""
        item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}
        item |= {key: fields.pop(key) for key in ("id",) if key in fields}
        self.send({"type": "conversation.item.create", "item": item, **fields})

    def ask(self, *, event_id: str | None = None, **fields: Any) -> None:
        """Create a response, by default a short one."""
        fields = {"max_output_tokens": 5, "seed": 1, **fields}
        event = {"type": "response.create", "response": fields}
        self.send(event if event_id is None else {**event, "event_id": event_id})

    def update(self, **session: Any) -> None:
        self.send({"type": "session.update", "session": {"type": "realtime", **session}})

    async def until_done(self, count: int = 1) -> list[dict[str, Any]]:
        """Run until `count` responses have ended; returns them."""
        await self.until(lambda: len(self.reader.finals) >= count)
        return self.reader.finals

    def said_now(self) -> list[dict[str, Any]]:
        """What is said without any step of the engine, since the last call."""
        before = getattr(self, "_seen", 0)
        self.pump()
        self._seen = len(self.reader.events)
        return self.reader.events[before:]

    def items(self) -> list[str]:
        """The ids of the conversation's items as the server has them, which the events must have told alike."""
        self.pump()
        conversation = self.face._conversation
        conversation.check()
        assert [item["id"] for item in self.reader.items] == conversation._order
        return list(conversation._order)


async def over(bench: FaceBench, *talks: Talk) -> None:
    """The connections go; nothing is held for them any more."""
    for talk in talks:
        talk.drop()
    await bench.baseline()
    for talk in talks:
        assert talk.face._conversation.bytes == 0 and talk.face._conversation._budget.used == 0


def code_of(talk: Talk) -> tuple[str, str | None]:
    """Code and param of the one error that was just said."""
    (event,) = talk.said_now()
    assert event["type"] == "error", event
    return event["error"]["code"], event["error"]["param"]
