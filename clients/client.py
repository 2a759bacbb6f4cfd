"""An asynchronous client: many answers at once over one websocket. Knows addresses, keys and reconnecting.

async with connect("http://127.0.0.1:8000") as client:
    stream = await client.respond("Why is the sky blue?")
    async for text in stream.text():
        print(text, end="", flush=True)
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import ipaddress
import logging
import random
import ssl
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from types import NoneType
from typing import Any

from websockets.asyncio.client import connect as open_socket
from websockets.exceptions import InvalidHandshake, InvalidStatus

from headrace.clients.branches import Branches
from headrace.clients.draft import Draft
from headrace.clients.errors import ConnectionLost, ServerRefused, ServerUnreachable
from headrace.clients.events import NotAnEvent, Pinned, read_model_ids, read_refusal
from headrace.clients.link import Link
from headrace.clients.stream import ResponseStream

__all__ = ["Client", "connect"]

log = logging.getLogger("headrace.client")

Input = str | Sequence[Mapping[str, Any]]

MESSAGE_LIMIT = 16 << 20  # one server event; the last event of a response repeats its whole text


@asynccontextmanager
async def connect(
    url: str = "http://127.0.0.1:8000",
    api_key: str | None = None,
    *,
    model: str | None = None,
    lanes: int = 16,
    open_timeout: float = 10.0,
    reconnect_within: float = 30.0,
    resume: bool = True,
) -> AsyncIterator[Client]:
    """A client connected to the server at `url` (http, https, ws or wss; a path up to `/v1` may follow).

    `model` is what requests without a model ask for; None asks the server for its list and takes the first.
    `lanes`: answers in flight at once; further requests wait for their turn. Raises ServerUnreachable if nothing
    answers within `open_timeout` seconds, ServerRefused for a wrong key, ValueError for a malformed `url`.

    When a socket is lost, another one is opened, trying with growing, jittered pauses for `reconnect_within`
    seconds. A headrace server tells the answers on there from where they broke off, and their readers notice
    nothing but the pause; with `resume=False`, or another server, they end with ConnectionLost.
    """
    client = Client(url, api_key, model, lanes, open_timeout, reconnect_within, resume=resume)
    try:
        await client.open()
        yield client
    finally:
        await client.close()


class Client:
    """Made by `connect`."""

    def __init__(
        self,
        url: str,
        api_key: str | None,
        model: str | None,
        lanes: int,
        open_timeout: float,
        reconnect_within: float,
        resume: bool = True,
    ) -> None:
        if not 1 <= lanes <= 32:
            raise ValueError("a connection has 1 to 32 lanes")
        self.http_url, self.socket_url = _addresses(url)
        self._query = "?ext=1" if resume else ""  # a server without extensions does not look at it
        self._rescues: set[asyncio.Task[None]] = set()
        self.model = model
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._lanes = lanes
        self._seats = asyncio.Semaphore(lanes)
        self._open_timeout = open_timeout
        self._reconnect_within = reconnect_within
        self._link: Link | None = None
        self._linking = asyncio.Lock()
        self._seating = asyncio.Lock()
        self._closed = False

    async def open(self) -> None:
        """Connect now, once, and learn the model's name if none was given."""
        if self.model is None:
            names = await self.models()
            if not names:
                raise ServerRefused("model_not_found", "the server offers no model")
            self.model = names[0]
        self._link = await self._dial()

    async def close(self) -> None:
        """Close the connection; answers still running end with ConnectionLost (and are cancelled there)."""
        self._closed = True
        for rescue in self._rescues:
            rescue.cancel()
        if self._rescues:
            # First: one of them may just have opened the connection to close.
            await asyncio.wait(self._rescues)
        if self._link is not None:
            await self._link.close()

    async def models(self) -> list[str]:
        """The names of the models that the server offers."""
        body = await asyncio.to_thread(self._get, "/v1/models")
        try:
            return read_model_ids(body)
        except NotAnEvent as error:
            raise ServerUnreachable(f"{self.http_url} does not speak the OpenAI protocol: {error}") from None

    async def respond(
        self,
        input: Input,
        *,
        instructions: str | None = None,
        previous: ResponseStream | str | None = None,
        model: str | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        max_output_tokens: int | None = None,
        stop: str | Sequence[str] | None = None,
        seed: int | None = None,
        store: bool | None = None,
        credit: int | None = None,
        receipt: bool | None = None,
        telemetry: str | None = None,
        tier: str | None = None,
        latency: Mapping[str, Any] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> ResponseStream:
        """Ask for an answer; returns when the server has taken the request (nothing need be generated yet).

        `input` is a text, or messages like `{"role": "user", "content": "..."}`. `previous` continues an earlier
        answer (its stream or its id); `instructions` are not inherited from it. With `credit`, the server tells so
        many tokens and then waits for `ResponseStream.grant`. `receipt`: tell at the end what was computed
        (`ResponseStream.receipt`). With `telemetry` "step" the stream's `timeline` hears of its place in the line,
        of its prompt and of each step; with "response" of the sums at its end. `tier` "priority" or "flex" makes it
        urgent or patient; `latency` (ttft_ms, itl_ms, deadline_ms) is promised or refused at once, with
        `ServerRefused.retry_after`. `extra` holds further fields of a `response.create` event. None means the
        server's default.

        Raises ServerRefused with code, param and message if the server does not take it, ConnectionLost if the
        connection ends meanwhile, ServerUnreachable if no connection can be had.
        """
        request = {
            "type": "response.create",
            "model": model or self.model,
            "input": input if isinstance(input, str) else list(input),
            "instructions": instructions,
            "previous_response_id": _id_of(previous),
            "temperature": temperature,
            "top_p": top_p,
            "max_output_tokens": max_output_tokens,
            "stop": stop,
            "seed": seed,
            "store": store,
            "x_credit": credit,
            "x_receipt": receipt,
            "x_telemetry": telemetry,
            "service_tier": tier,
            "x_latency": None if latency is None else dict(latency),
            **(extra or {}),
        }
        return await self._ask(request, _lane_of(previous))

    async def branches(
        self,
        input: Input,
        n: int,
        *,
        at: int | str | Mapping[str, float] = "start",
        previous: ResponseStream | str | None = None,
        credit: int | None = None,
        **fields: Any,
    ) -> Branches:
        """Ask for `n` answers side by side; returns when the server has taken the request. They part at the start,
        or when the first one has `at` tokens, or (`{"entropy_gt": t}`) at its first token of more doubt than `t`
        nats; what they have in common is computed once. Branch k draws with the seed `seed + k`.

        `previous` and `credit` (of each branch) are as in `respond`, `fields` those of a `response.create` event.
        Raises what `respond` raises."""
        request = {
            "type": "response.create",
            "model": self.model,
            "input": input if isinstance(input, str) else list(input),
            "previous_response_id": _id_of(previous),
            "x_credit": credit,
            "x_branches": {"n": n, "at": at},
            **fields,
        }
        if not 1 <= n <= self._lanes:
            raise ValueError(f"this connection has room for 1 to {self._lanes} branches")
        async with self._seating:  # of several who need many seats, only one waits for them at a time
            for taken in range(n):
                try:
                    await self._seats.acquire()
                except BaseException:
                    self._stand_up(taken)
                    raise
        try:
            link = await self._linked()
        except BaseException:
            self._stand_up(n)
            raise
        lane, streams = link.branch(self._seats.release, n)
        said = {name: value for name, value in request.items() if value is not None}
        try:
            await asyncio.shield(link.post({**said, "stream_id": lane}))
            await streams[0].created()
        except BaseException:
            for stream in streams:
                stream.abandon()
            raise
        return Branches(streams, link)

    def _stand_up(self, seats: int) -> None:
        for _ in range(seats):
            self._seats.release()

    async def draft(
        self,
        *,
        instructions: str | None = None,
        previous: ResponseStream | str | None = None,
        model: str | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> Draft:
        """A prompt that is typed: the server reads it while it changes, and the answer to its `commit` begins
        at once.

        It takes the place of an answer in flight while it is open; without a free one, or where the server does
        not know of drafts, it is sent as a plain request. `extra`: further fields of `x.input.append`."""
        await self._linked()
        before = previous.response_id if isinstance(previous, ResponseStream) else previous
        opening = {
            "model": model or self.model,
            "instructions": instructions,
            "previous_response_id": before,
            **(extra or {}),
        }
        lane = previous.lane if isinstance(previous, ResponseStream) else None

        def seat() -> ResponseStream | None:
            link = self._link
            if (
                not self._query
                or self._seats.locked()
                or self._closed
                or link is None
                or link.lost is not None
            ):
                return None
            with contextlib.suppress(StopIteration):
                self._seats.acquire().send(None)  # one seat is free: this ends at its first step
            return link.open(self._seats.release, lane)

        async def ask(text: str, parameters: dict[str, Any]) -> ResponseStream:
            return await self.respond(
                text, instructions=instructions, previous=previous, model=model, **parameters
            )

        return Draft({name: value for name, value in opening.items() if value is not None}, seat, ask)

    async def fork(
        self,
        parent: ResponseStream,
        *,
        at_token: int | None = None,
        at_char: int | None = None,
        text: str | None = None,
        drop_parent: bool = False,
        **parameters: Any,
    ) -> ResponseStream:
        """An answer that begins as `parent` does, up to so many output tokens or characters, then with `text`,
        and goes on by itself under the parent's request, changed by `parameters` (`seed`, `temperature`, ...).
        What is kept is told first, and not computed again. `drop_parent` cancels the parent: a rewind.

        The parent may still run, or have ended not long ago. Raises ServerRefused if it cannot be forked
        there."""
        request = {
            "type": "x.fork",
            "response_id": parent.response_id,
            "at_token": at_token,
            "at_char": at_char,
            "force_text": text,
            "drop_parent": drop_parent or None,
            **parameters,
        }
        return await self._ask(request, None)

    async def pin(self, response: ResponseStream | str, seconds: float) -> Pinned:
        """What the server has cached of this answer stays cached for so long, whatever else is asked of it: how
        many tokens and bytes that is, and until when. 0 seconds let go of it. The answer runs here, or it was the
        last one of its lane or is held. Raises ServerRefused if it is neither, or with "pin_quota_exceeded"."""
        response_id = response.response_id if isinstance(response, ResponseStream) else response
        if response_id is None:
            raise ServerRefused("response_not_found", "the answer has not begun")
        return await (await self._linked()).pin(response_id, seconds)

    @property
    def evicted(self) -> frozenset[str]:
        """Answers whose pins the server gave up before their time, as far as this connection was told."""
        return frozenset() if self._link is None else frozenset(self._link.evicted)

    async def _ask(self, request: dict[str, Any], lane: str | None) -> ResponseStream:
        """Say `request` in a free lane (in `lane`, if that one is), and wait until the server took it."""
        request = {name: value for name, value in request.items() if value is not None}
        await self._seats.acquire()
        try:
            link = await self._linked()
        except BaseException:
            self._seats.release()
            raise
        # From here on the seat belongs to the stream, which gives it back when it ends, however it ends.
        stream = link.open(self._seats.release, lane)
        stream.request = request
        try:
            await asyncio.shield(link.post({**request, "stream_id": stream.lane}))
            await stream.created()
        except BaseException:
            stream.abandon()
            raise
        return stream

    # -- connecting ------------------------------------------------------------------------------------------

    async def _linked(self) -> Link:
        """The living connection, a new one if the last was lost."""
        if self._closed:
            raise RuntimeError("this client is closed")
        # One caller dials, the others wait for the same connection.
        async with self._linking:
            if self._link is None or self._link.lost is not None:
                link = await self._redial()
                if self._closed:  # meanwhile, and nobody else knows of this connection
                    await link.close()
                    raise RuntimeError("this client is closed")
                self._link = link
            return self._link

    def _orphaned(self, streams: list[ResponseStream], why: ConnectionLost) -> None:
        if self._closed:
            _lose(streams, why)
            return
        rescue = asyncio.create_task(self._rescue(streams), name="headrace-client-rescue")
        self._rescues.add(rescue)
        # Not the task's own last act: one that is cancelled before its first step never comes to it.
        rescue.add_done_callback(lambda done: self._rescued(done, streams, why))

    async def _rescue(self, streams: list[ResponseStream]) -> None:
        """Carry the streams of a lost connection on over a new one."""
        link = await self._linked()
        for stream in streams:
            if not stream.ended:
                link.adopt(stream)

    def _rescued(
        self, rescue: asyncio.Task[None], streams: list[ResponseStream], why: ConnectionLost
    ) -> None:
        """Those of the streams that nobody carries end with `why`: it is the reason that a reader can do something
        with."""
        self._rescues.discard(rescue)
        error = None if rescue.cancelled() else rescue.exception()
        if not isinstance(error, (NoneType, ServerUnreachable, ServerRefused, RuntimeError)):
            log.error("carrying answers over to a new connection failed", exc_info=error)
        _lose(streams, why)

    async def _redial(self) -> Link:
        """Try until `reconnect_within` is over. Pauses double from 0.25 s to 8 s, each cut to 50-100 % at random:
        a thousand clients of a restarted server must not all come back in the same moment."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + self._reconnect_within
        pause = 0.25
        while True:
            try:
                return await self._dial()
            except (ServerUnreachable, ServerRefused) as error:
                if isinstance(error, ServerRefused) and error.status not in (429, 503):
                    raise
                advised = error.retry_after if isinstance(error, ServerRefused) else None
                wait = max(pause * random.uniform(0.5, 1.0), advised or 0.0)
                if clock() + wait > deadline:
                    raise
            await asyncio.sleep(wait)
            pause = min(pause * 2, 8.0)

    async def _dial(self) -> Link:
        """One attempt."""
        local = _is_loopback(urllib.parse.urlsplit(self.socket_url).hostname or "")
        try:
            socket = await open_socket(
                self.socket_url + self._query,
                additional_headers=self._headers,
                compression=None,  # deltas are small: compressing them costs time and 32 KiB per connection
                open_timeout=self._open_timeout,
                close_timeout=2.0,
                max_size=MESSAGE_LIMIT,
                proxy=None if local else True,
            )
        except InvalidStatus as refused:
            raise read_refusal(refused.response.status_code, bytes(refused.response.body or b"")) from None
        except (OSError, TimeoutError, InvalidHandshake, EOFError) as error:
            raise self._unreachable(error) from None
        return Link(socket, self._lanes, self._orphaned)

    def _get(self, path: str) -> bytes:
        """One blocking GET, for a thread."""
        request = urllib.request.Request(self.http_url + path, headers=self._headers)
        local = _is_loopback(urllib.parse.urlsplit(self.http_url).hostname or "")
        proxies = [urllib.request.ProxyHandler({})] if local else []
        try:
            with urllib.request.build_opener(*proxies).open(request, timeout=self._open_timeout) as reply:
                return bytes(reply.read(MESSAGE_LIMIT))
        except urllib.error.HTTPError as refused:
            raise read_refusal(refused.code, refused.read(MESSAGE_LIMIT)) from None
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error) from None

    def _unreachable(self, error: Exception) -> ServerUnreachable:
        cause = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(cause, ConnectionRefusedError):
            return ServerUnreachable(f"nothing listens at {self.http_url}; `headrace serve` starts a server")
        if isinstance(cause, TimeoutError):
            return ServerUnreachable(f"{self.http_url} did not answer within {self._open_timeout:g} s")
        if isinstance(cause, ssl.SSLError):
            return ServerUnreachable(f"no secure connection to {self.http_url}: {cause}")
        return ServerUnreachable(f"no connection to {self.http_url}: {cause or type(cause).__name__}")


def _id_of(previous: ResponseStream | str | None) -> str | None:
    return previous.response_id if isinstance(previous, ResponseStream) else previous


def _lane_of(previous: ResponseStream | str | None) -> str | None:
    """Where its conversation goes on: a branch goes on in the lane that it is a branch of."""
    return previous.lane.partition("#")[0] if isinstance(previous, ResponseStream) else None


def _lose(streams: list[ResponseStream], why: ConnectionLost) -> None:
    for stream in streams:
        if not stream.riding:
            stream.end("lost", ConnectionLost(str(why), why.close_code))


def _addresses(url: str) -> tuple[str, str]:
    """(base for HTTP, address of the websocket). Raises ValueError with a sentence for a person."""
    parts = urllib.parse.urlsplit(url if "://" in url else f"http://{url}")
    schemes = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}
    if parts.scheme not in schemes or not parts.hostname:
        raise ValueError(f"{url!r} is no server address; one looks like http://127.0.0.1:8000")
    if parts.query or parts.fragment or parts.username:
        raise ValueError(f"{url!r} has more than a scheme, a host, a port and a path")
    _ = parts.port  # raises ValueError for a port that is none
    path = parts.path.rstrip("/").removesuffix("/v1/responses").removesuffix("/v1")
    socket_scheme = schemes[parts.scheme]
    http_scheme = "https" if socket_scheme == "wss" else "http"
    return f"{http_scheme}://{parts.netloc}{path}", f"{socket_scheme}://{parts.netloc}{path}/v1/responses"


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
