"""Pictures that came as binary messages of one socket, until a request names them. Knows bytes; opens none."""

from __future__ import annotations

import base64
import hashlib
from collections import OrderedDict

import msgspec

from headrace.server.faces.pictures import file_type
from headrace.server.protocol.errors import WireError
from headrace.server.protocol.fields import ImageUrl
from headrace.server.protocol.responses import Item, Part, ResponseRequest
from headrace.server.session import WaitingBudget

HELD_COUNT = 16
HELD_BYTES = 64 << 20
REF = "ref:"


class HeldPictures:
    """The newest pictures of one connection, by name; over a limit the oldest is forgotten. Counted in `budget`."""

    def __init__(self, budget: WaitingBudget) -> None:
        self._budget = budget
        self._held: OrderedDict[str, bytes] = OrderedDict()
        self._bytes = 0

    def take(self, data: bytes) -> str:
        """Hold a picture; the name by which requests of this connection show it. Raises WireError."""
        name = f"sha256:{hashlib.sha256(data).hexdigest()}"
        if name in self._held:
            self._held.move_to_end(name)
            return name
        if not self._budget.take(len(data)):
            raise WireError(
                "server_is_overloaded", "Too much is waiting already; try again.", retry_after=1.0
            )
        self._held[name] = data
        self._bytes += len(data)
        while len(self._held) > HELD_COUNT or (self._bytes > HELD_BYTES and len(self._held) > 1):
            self._forget(self._held.popitem(last=False)[1])
        return name

    def check(self, name: str, path: str) -> None:
        """Raises WireError, with `path` as its param, for a name that is not held (any more)."""
        if name not in self._held:
            what = f"no picture of this name is held: of one connection the newest {HELD_COUNT} are"
            raise WireError("invalid_value", f"{path}: {what}", path)

    def resolved(self, request: ResponseRequest) -> tuple[ResponseRequest, int]:
        """The request with every `ref:` replaced by the picture it names, and the bytes that this adds to it.

        Raises WireError for a name that is not held (any more)."""
        if not isinstance(request.input, list):
            return request, 0
        added = 0
        items: list[Item] = []
        for index, item in enumerate(request.input):
            parts = item.content
            if isinstance(parts, list) and any(_name(part) is not None for part in parts):
                shown = [
                    self._shown(part, f"input[{index}].content[{i}].image_url")
                    for i, part in enumerate(parts)
                ]
                added += sum(len(part.image_url or "") for part in shown if isinstance(part.image_url, str))
                item = msgspec.structs.replace(item, content=shown)
            items.append(item)
        return (msgspec.structs.replace(request, input=items), added) if added else (request, 0)

    def release(self) -> None:
        """The connection is gone."""
        while self._held:
            self._forget(self._held.popitem()[1])

    def _forget(self, data: bytes) -> None:
        self._bytes -= len(data)
        self._budget.give_back(len(data))

    def _shown(self, part: Part, path: str) -> Part:
        name = _name(part)
        if name is None:
            return part
        self.check(name, path)
        data = self._held[name]
        url = f"data:{file_type(data)};base64,{base64.b64encode(data).decode()}"
        detail = part.image_url.detail if isinstance(part.image_url, ImageUrl) else None
        return msgspec.structs.replace(part, image_url=url, detail=part.detail or detail)


def _name(part: Part) -> str | None:
    """What follows `ref:` in a part's URL."""
    given = part.image_url.url if isinstance(part.image_url, ImageUrl) else part.image_url
    return given.removeprefix(REF) if isinstance(given, str) and given.startswith(REF) else None
