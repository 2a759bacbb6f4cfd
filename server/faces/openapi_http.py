"""GET /openapi.json: what the port answers, for programs. Knows the route table as a whole."""

from __future__ import annotations

import asyncio

from headrace.server.exchange import Answer, HttpReply, HttpRequest, HttpRoute, RouteTable, Wire
from headrace.server.faces.answers import error_reply
from headrace.server.faces.later import Later
from headrace.server.openapi import openapi
from headrace.server.protocol.codec import encode
from headrace.server.protocol.errors import WireError


class OpenApiFace:
    """The document of `table`, made when it is asked for: it takes too long to do it between two tokens."""

    def __init__(self, version: str) -> None:
        self._version = version
        self._reply: HttpReply | None = None
        self.table: RouteTable | None = None

    def routes(self) -> dict[str, HttpRoute]:
        """The path of this face."""
        return {"/openapi.json": HttpRoute(frozenset({"GET"}), self.document)}

    def document(self, request: HttpRequest, wire: Wire) -> HttpReply | Answer:
        """GET /openapi.json."""
        if self._reply is not None:
            return self._reply
        answer = Later(wire)
        made = asyncio.get_running_loop().run_in_executor(None, self._made)
        made.add_done_callback(lambda done: answer.settle(self._kept(done)))
        return answer

    def _made(self) -> HttpReply:
        assert self.table is not None, "the table is set before the port opens"
        return HttpReply(200, encode(openapi(self.table, self._version)))

    def _kept(self, done: asyncio.Future[HttpReply]) -> HttpReply:
        if done.cancelled() or done.exception() is not None:
            return error_reply(WireError("server_error", "the document could not be made"))
        self._reply = done.result()
        return self._reply
