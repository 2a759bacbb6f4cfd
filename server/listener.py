"""The one listening socket: open it, stop it in two stages, close it. Knows connections only as such."""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
from collections.abc import Callable, Iterable

from headrace.server.auth import BadSetting, Gate
from headrace.server.config import Limits, ServerConfig
from headrace.server.exchange import RouteTable
from headrace.server.front import HttpConnection
from headrace.server.metrics import Metrics
from headrace.server.outbox import Outbox
from headrace.server.port import Port
from headrace.server.routes import Routes

log = logging.getLogger("headrace.listener")

BACKLOG = 2048
SPARE_FILES = 256  # descriptors for everything that is no client connection
LAST_WORDS = 1.0  # seconds for close frames to be answered once the drain deadline has passed


class Listener:
    """A port that accepts connections from birth on. `start` makes it."""

    def __init__(self, port: Port, server: asyncio.Server) -> None:
        self._port = port
        self._server = server
        self._number: int = server.sockets[0].getsockname()[1]
        self._at_once = asyncio.Event()

    @classmethod
    async def start(
        cls,
        config: ServerConfig,
        routes: RouteTable,
        *,
        keys: Iterable[str] = (),
        outbox: Outbox | None = None,
        metrics: Metrics | None = None,
    ) -> Listener:
        """Listen on config.host:config.port and answer `routes` there. BadSetting if the address is not to be had.

        `keys` are the API keys (see auth.load_keys). Without an outbox it makes its own, which then flushes at
        the end of every loop turn that has something to tell.
        """
        loop = asyncio.get_running_loop()
        outbox = outbox or make_outbox(loop, config)
        metrics = metrics or Metrics()
        metrics.set_output(lambda: (outbox.bytes_out, outbox.writes))
        port = Port(loop, config, Routes(routes), Gate(config, keys), outbox, metrics)
        raise_file_limit(config.limits)
        sock = open_socket(config.host, config.port)
        server = await loop.create_server(lambda: HttpConnection(port), sock=sock, backlog=BACKLOG)
        return cls(port, server)

    @property
    def port(self) -> int:
        """The port number in use."""
        return self._number

    @property
    def connections(self) -> int:
        """Open connections."""
        return len(self._port.connections)

    async def drain(self, seconds: float, at_deadline: Callable[[], None] = lambda: None) -> None:
        """Stop accepting, let running answers finish for `seconds`, then end what is left (1012 on WebSockets).

        If connections are left by then, `at_deadline()` ends what runs for them: each answer still tells its
        end before its connection goes. Returns when no connection is left. `stop_now()` cuts the wait short.
        """
        port = self._port
        port.draining = True
        self._server.close()
        for connection in list(port.connections):
            connection.drain()
        await self._emptied(seconds)
        if port.connections:
            at_deadline()
            port.outbox.flush()
        await self.close()

    def stop_now(self) -> None:
        """A second signal: a running drain ends at once."""
        self._at_once.set()

    async def close(self) -> None:
        """End everything now. Peers that listen are told; nobody is waited for longer than a second."""
        port = self._port
        port.draining = True
        self._server.close()
        for connection in list(port.connections):
            connection.shut()
        await self._emptied(LAST_WORDS)
        for connection in list(port.connections):
            connection.abort()
        # connection_lost of the aborted ones comes with the next loop turns.
        if port.connections:
            port.emptied.clear()
            await port.emptied.wait()

    async def _emptied(self, seconds: float) -> None:
        port = self._port
        if not port.connections or self._at_once.is_set():
            return
        port.emptied.clear()
        waits = [asyncio.ensure_future(event.wait()) for event in (port.emptied, self._at_once)]
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()


def make_outbox(loop: asyncio.AbstractEventLoop, config: ServerConfig) -> Outbox:
    """The outbox for these settings; its `flush` is the hook of the step loop."""
    return Outbox(loop, config.limits.write_high_water, config.limits.slow_reader_limit)


def open_socket(host: str, number: int) -> socket.socket:
    """One bound TCP socket: the first address of `host`. One listener is all there ever is."""
    try:
        found = socket.getaddrinfo(host.strip("[]"), number, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        # A name like localhost may have both families: IPv4 is what other tools try.
        family, kind, proto, _, address = sorted(found, key=lambda entry: entry[0] != socket.AF_INET)[0]
        sock = socket.socket(family, kind, proto)
    except OSError as error:
        raise BadSetting(f"cannot listen on {host}: {error}") from None
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise BadSetting(f"cannot listen on {host} port {number}: {error.strerror or error}") from None
    return sock


def raise_file_limit(limits: Limits) -> None:
    """Let the process open as many files as `limits` promises connections, as far as the system allows."""
    wanted = limits.max_sockets + SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        reach = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (reach, hard))
        if reach < wanted:
            log.warning("only %d open files are allowed: fewer than max_sockets needs", reach)
