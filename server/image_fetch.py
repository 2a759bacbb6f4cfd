"""Fetches pictures from hosts that the operator named. Each connection goes to an address that was checked, and no
further than a picture's size, a time and a few redirects.

Off unless a host was named; then nothing here is even imported.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable
from importlib.metadata import version
from typing import Any
from urllib.parse import urljoin

import httpcore

from headrace.runtime.interface import FetchRefused
from headrace.server.image_hosts import Address, HostList, Target

REDIRECTS = 3
AT_ONCE = 16  # fetches of the whole process: each may hold a whole file
TYPES = re.compile(
    rb"(image/(png|jpe?g|pjpeg|webp|gif)|(application|binary)/octet-stream)\s*(;|\Z)", re.IGNORECASE
)

Resolve = Callable[[str, int], Awaitable[list[Address]]]


async def resolve(host: str, port: int) -> list[Address]:
    """The addresses of a host, by the system's resolver. Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [ipaddress.ip_address(str(place[4][0]).partition("%")[0]) for place in found]


class CheckedBackend(httpcore.AsyncNetworkBackend):
    """Connects to addresses that were checked here and now: a name is resolved once for each connection, so what is
    checked is what is connected to."""

    def __init__(self, hosts: HostList, resolve: Resolve) -> None:
        self.hosts = hosts
        self.resolve = resolve
        self.below = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - the library's signature
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        try:
            found = await self.resolve(host, port)
        except OSError:
            raise FetchRefused("names a host that is not to be found") from None
        # All of them: a name with one address inside and one outside is not to be trusted.
        if not found or not all(map(self.hosts.may_connect, found)):
            raise FetchRefused("leads to a network that is not open to everybody")
        for address in found[:-1]:
            try:
                return await self.below.connect_tcp(str(address), port, timeout)
            except httpcore.NetworkError:
                continue
        return await self.below.connect_tcp(str(found[-1]), port, timeout)

    async def sleep(self, seconds: float) -> None:
        await self.below.sleep(seconds)


class ImageFetch:
    """A PictureFetcher over HTTP/1.1. No cookie, no proxy, no encoding of the content; nothing is kept."""

    def __init__(
        self, hosts: HostList, *, seconds: float, most_bytes: int, resolve: Resolve = resolve
    ) -> None:
        """seconds: for one picture, redirects and all. Made where a running loop is."""
        self.hosts = hosts
        self.seconds = seconds
        self.most_bytes = most_bytes
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._backend = CheckedBackend(hosts, resolve)
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=ssl.create_default_context(),
            max_keepalive_connections=0,
            network_backend=self._backend,
        )
        self._headers: dict[bytes | str, bytes | str] = {
            "accept": "image/png, image/jpeg, image/webp, image/gif",
            "accept-encoding": "identity",
            "user-agent": f"headrace/{version('headrace')}",
            "connection": "close",
        }

    def check(self, url: str) -> None:
        """See PictureFetcher."""
        self.hosts.target(url)

    async def fetch(self, url: str) -> bytes:
        """See PictureFetcher."""
        try:
            async with asyncio.timeout(self.seconds), self._turns:
                for _ in range(1 + REDIRECTS):
                    found = await self._get(self.hosts.target(url))
                    if isinstance(found, bytes):
                        return found
                    url = _moved(url, found)
        except TimeoutError:
            raise FetchRefused(f"gave no picture within {self.seconds:g} seconds") from None
        except (httpcore.ConnectError, ssl.SSLError, OSError):
            raise FetchRefused("names a host that does not answer") from None
        except (httpcore.ProtocolError, httpcore.NetworkError, httpcore.TimeoutException):
            raise FetchRefused("gave no whole answer") from None
        raise FetchRefused(f"leads on and on: more than {REDIRECTS} redirects")

    async def warm(self) -> None:
        """What the library imports at its first use is there: no request imports anything."""
        await self._backend.sleep(0.0)

    async def close(self) -> None:
        """No connection is left."""
        await self._pool.aclose()

    async def _get(self, target: Target) -> bytes | str:
        """The file, or where to look for it instead."""
        async with self._pool.stream("GET", target.url, headers=self._headers) as answer:
            said = {name.lower(): value for name, value in answer.headers}
            if answer.status in (301, 302, 303, 307, 308) and b"location" in said:
                return said[b"location"].decode("ascii", "replace")
            if answer.status != 200:
                raise FetchRefused(f"was answered with status {answer.status}")
            if TYPES.match(said.get(b"content-type", b"application/octet-stream").strip()) is None:
                raise FetchRefused("gave something that is no picture")
            if said.get(b"content-encoding", b"identity").lower() != b"identity":
                raise FetchRefused("gave a compressed answer, which was not asked for")
            length = said.get(b"content-length", b"0")
            if length.isdigit() and int(length) > self.most_bytes:
                raise self._too_large()
            parts: list[bytes] = []
            size = 0
            async for part in answer.aiter_stream():
                size += len(part)
                if size > self.most_bytes:
                    raise self._too_large()
                parts.append(part)
        return b"".join(parts)

    def _too_large(self) -> FetchRefused:
        return FetchRefused(f"gave more than {self.most_bytes >> 20} MiB")


def _moved(url: str, place: str) -> str:
    """Where a redirect leads, seen from `url`."""
    try:
        return urljoin(url, place)
    except ValueError:
        raise FetchRefused("leads to an address that is not understood") from None
