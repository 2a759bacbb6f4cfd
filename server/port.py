"""What all connections of the one port share. Knows its parts; decides nothing."""

from __future__ import annotations

import asyncio
from typing import Protocol

from headrace.server.auth import Gate
from headrace.server.budget import InputBudget
from headrace.server.census import Census
from headrace.server.config import ServerConfig
from headrace.server.metrics import Metrics
from headrace.server.outbox import Outbox
from headrace.server.replies import Dates
from headrace.server.routes import Routes


class Connection(Protocol):
    """An open connection, as the listener sees it."""

    def drain(self) -> None:
        """No new work; end when what runs is done."""

    def shut(self) -> None:
        """End now, and tell the peer if that is possible."""

    def abort(self) -> None:
        """End without another word."""


class Port:
    """One listening port: settings, route table, guards, meters and the set of open connections."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        config: ServerConfig,
        routes: Routes,
        gate: Gate,
        outbox: Outbox,
        metrics: Metrics,
    ) -> None:
        self.loop = loop
        self.config = config
        self.limits = config.limits
        self.routes = routes
        self.gate = gate
        self.outbox = outbox
        self.metrics = metrics
        self.census = Census(config.limits)
        self.input = InputBudget(config.limits, loop)
        self.dates = Dates()
        self.connections: dict[Connection, None] = {}
        self.draining = False
        self.emptied: asyncio.Event = asyncio.Event()

    def join(self, connection: Connection) -> None:
        """`connection` is open."""
        self.connections[connection] = None

    def part(self, connection: Connection) -> None:
        """`connection` is gone, or handed its socket on. A second call changes nothing."""
        self.connections.pop(connection, None)
        if not self.connections:
            self.emptied.set()
