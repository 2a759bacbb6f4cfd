"""Who is connected: in all, by address, by key. Knows counts, no sockets."""

from __future__ import annotations

import ipaddress
from collections import Counter

from headrace.server.config import Limits
from headrace.server.exchange import HttpReply
from headrace.server.replies import error_reply

RETRY = {"retry-after-ms": "2000", "retry-after": "2"}


class Census:
    """Open connections: in all, by address, by key."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._addresses: Counter[str] = Counter()
        self._keys: Counter[str] = Counter()
        self.open = 0

    def arrive(self, address: str) -> Seat | HttpReply:
        """A seat for a new connection, or the refusal it must send because there is no room."""
        group = address_group(address)
        if self.open >= self._limits.max_sockets:
            return error_reply(503, "too many open connections", headers=RETRY)
        if group and self._addresses[group] >= self._limits.max_sockets_per_ip:
            return error_reply(429, "too many open connections from this address", headers=RETRY)
        return Seat(self, group)


class Seat:
    """The place of one connection in the census; moves with it when it becomes a WebSocket."""

    __slots__ = ("_census", "_group", "_key")

    def __init__(self, census: Census, group: str) -> None:
        self._census = census
        self._group = group
        self._key = ""
        census.open += 1
        if group:
            census._addresses[group] += 1

    def claim(self, key: str) -> bool:
        """Count this connection for `key` (a tenant id) instead of the one before; False if it has too many."""
        if key == self._key:
            return True
        census = self._census
        if census._keys[key] >= census._limits.max_sockets_per_key:
            return False
        self._drop_key()
        self._key = key
        census._keys[key] += 1
        return True

    def _drop_key(self) -> None:
        if self._key:
            self._census._keys[self._key] -= 1
            if not self._census._keys[self._key]:
                del self._census._keys[self._key]
        self._key = ""

    def leave(self) -> None:
        """The connection is gone: called once."""
        self._census.open -= 1
        if self._group:
            self._census._addresses[self._group] -= 1
            if not self._census._addresses[self._group]:
                del self._census._addresses[self._group]
        self._drop_key()


def address_group(address: str) -> str:
    """What counts as one address: an IPv4 address, an IPv6 /64 (one household), "" for loopback, which is the
    operator or a proxy of theirs, and for addresses that are none."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return ""
    mapped = getattr(parsed, "ipv4_mapped", None)
    if mapped is not None:
        parsed = mapped
    if parsed.is_loopback:
        return ""
    if parsed.version == 6:
        return str(ipaddress.ip_network((int(parsed), 64), strict=False))
    return str(parsed)
