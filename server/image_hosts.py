"""From where pictures may be fetched: hosts that the operator named, and addresses that are open to everybody.
Decides on names and numbers; opens nothing."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import urlsplit

from headrace.runtime.interface import FetchRefused

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

URL_LIMIT = 2048  # characters
PORTS = {"https": 443, "http": 80}
ANY = "*"
_NAME = re.compile(r"(?=.{1,253}\Z)[a-z0-9_]([a-z0-9_-]{0,62})(\.[a-z0-9_-]{1,63})*\Z")
# Everything but what RFC 3986 allows in an address: no space, quote, backslash, bracket outside of the host.
_URL = re.compile(r"https?://[A-Za-z0-9._~:\[\]-]+([/?][A-Za-z0-9._~:/?@!$&'()*+,;=%-]*)?\Z", re.IGNORECASE)
# Addresses of version 6 that stand for one of version 4, which is what has to be judged.
_TRANSLATED = ipaddress.IPv6Network("64:ff9b::/96")


class BadHost(ValueError):
    """An entry of the list is not understood; the text is for the operator."""


class Target(NamedTuple):
    """One address, taken apart. host: a name in ASCII and lower case, or an IP address without brackets."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def url(self) -> str:
        """As it is asked for: nothing but these four parts."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{self.path}"


@dataclass(frozen=True, slots=True)
class HostList:
    """origins: (scheme, host, port) that may be asked; host `*`: every one. networks: addresses that may be
    connected to though they are not open to everybody."""

    origins: frozenset[tuple[str, str, int]]
    networks: tuple[Network, ...]

    @classmethod
    def read(cls, entries: Sequence[str]) -> HostList:
        """Each entry is a host, or an address, or a network in CIDR; a host with https:// or http:// in front
        (https if it says neither) and :port behind (the scheme's own if it does not). Raises BadHost."""
        origins: set[tuple[str, str, int]] = set()
        networks: list[Network] = []
        for entry in entries:
            try:
                networks.append(ipaddress.ip_network(entry))
            except ValueError:
                if "/" in entry.partition("://")[2] or ("/" in entry and "://" not in entry):
                    raise BadHost(f"{entry[:100]!r} is no host and no network") from None
            else:
                if "/" in entry:
                    continue
            origins.add(_origin(entry))
        for _, host, _ in origins:
            # Who lists an address means that address, whatever lies behind it.
            if (address := _address(host)) is not None:
                networks.append(ipaddress.ip_network(address))
        return cls(frozenset(origins), tuple(networks))

    def target(self, url: str) -> Target:
        """What a client's address asks for. Raises FetchRefused unless its host is on the list."""
        if len(url) > URL_LIMIT:
            raise FetchRefused(f"has more than {URL_LIMIT} characters")
        if _URL.match(url.partition("#")[0]) is None:
            raise FetchRefused("is not understood: it must be plain, like https://host/path, without a user")
        try:
            parts = urlsplit(url)
            found = _host(parts.hostname or ""), parts.port
        except ValueError:
            raise FetchRefused("is not understood") from None
        scheme = parts.scheme.lower()
        port = PORTS[scheme] if found[1] is None else found[1]
        if not {(scheme, found[0], port), (scheme, ANY, port)} & self.origins:
            raise FetchRefused("names a host that is not on this server's list (--image-url-allow)")
        return Target(
            scheme, found[0], port, (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        )

    def may_connect(self, address: Address) -> bool:
        """True for an address that is open to everybody, or listed."""
        if any(address in network for network in self.networks):
            return True
        meant = _meant(address)
        if meant is not address and any(meant in network for network in self.networks):
            return True
        return meant.is_global and not (meant.is_multicast or meant.is_reserved or meant.is_unspecified)


def _meant(address: Address) -> Address:
    """The address of version 4 that one of version 6 stands for; else the address itself."""
    if isinstance(address, ipaddress.IPv6Address):
        if address in _TRANSLATED:
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if address.teredo is not None:
            return address.teredo[1]
        return address.ipv4_mapped or address.sixtofour or address
    return address


def _origin(entry: str) -> tuple[str, str, int]:
    scheme, slashes, rest = entry.rpartition("://")
    scheme = scheme.lower() if slashes else "https"
    if scheme not in PORTS:
        raise BadHost(f"{entry[:100]!r}: only https and http are known")
    if rest.count(":") > 1 and not rest.startswith("["):
        rest = f"[{rest}]"
    try:
        parts = urlsplit(f"{scheme}://{rest}")
        host, port = _host(parts.hostname or "") if rest != ANY else ANY, parts.port
    except ValueError:
        raise BadHost(f"{entry[:100]!r} is no host") from None
    if parts.username is not None or parts.path or parts.query or parts.fragment:
        raise BadHost(f"{entry[:100]!r} is more than a host")
    return scheme, host, PORTS[scheme] if port is None else port


def _host(name: str) -> str:
    """In ASCII and lower case, without the last dot. Raises ValueError."""
    if (address := _address(name)) is not None:
        return str(address)
    plain = name.encode("idna").decode("ascii").lower().removesuffix(".")
    if _NAME.match(plain) is None:
        raise ValueError(name)
    return plain


def _address(name: str) -> Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None
