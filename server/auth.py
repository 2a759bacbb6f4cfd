"""Who may call: API keys become tenants; Host and Origin are held against allow-lists. Knows no socket.

A key is compared by the SHA-256 of both sides in constant time, against every key, so neither the time nor the
number of comparisons tells anything. Host is what stops DNS rebinding (a name of the attacker that resolves to
us), Origin is what stops other people's pages, where a browser sends one.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path

from headrace.runtime.interface import PUBLIC_TENANT, Tenant
from headrace.server.config import ServerConfig, is_loopback
from headrace.server.exchange import HttpReply
from headrace.server.replies import error_reply

KEY_PROTOCOL = "openai-insecure-api-key."
KEY_ENVIRONMENT = "HEADRACE_API_KEY"
_HOST = re.compile(r"\A(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?\Z")
_KEY = re.compile(r"\A[\x21-\x7e]{1,512}\Z")


class BadSetting(Exception):
    """The operator asked for something that cannot be; the process ends with code 2 and this sentence."""


class Key(str):
    """An API key, and the weight of its owner's share of the server."""

    weight = 1.0


def load_keys(config: ServerConfig, environment: Mapping[str, str]) -> tuple[str, ...]:
    """Every API key of the flags, the key file (one a line, # comments; a second word is its `weight`) and the
    environment (by spaces).

    Raises BadSetting for an unreadable file, a file without keys, a key that no header could carry, or a weight
    that is none.
    """
    keys = list(config.api_key)
    if config.api_key_file:
        try:
            lines = Path(config.api_key_file).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise BadSetting(f"--api-key-file {config.api_key_file}: {error}") from None
        found = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not found:
            raise BadSetting(f"--api-key-file {config.api_key_file} holds no key")
        keys += map(_weighted, found)
    keys += environment.get(KEY_ENVIRONMENT, "").split()
    for key in keys:
        if not _KEY.match(key):
            raise BadSetting("an API key is 1 to 512 visible ASCII characters without spaces")
    return tuple(dict.fromkeys(keys))


def _weighted(line: str) -> str:
    """The key in a line of the key file."""
    name, space, weight = line.partition(" ")
    if not space:
        return name
    key = Key(name)
    try:
        key.weight = float(weight)
    except ValueError:
        key.weight = 0.0
    if not 0.01 <= key.weight <= 100.0:
        raise BadSetting("behind an API key stands the weight of its share, 0.01 to 100, or nothing")
    return key


def check_bind(config: ServerConfig, keys: tuple[str, ...]) -> None:
    """BadSetting if others could reach the server and nothing would ask who they are."""
    if not is_loopback(config.host) and not keys and not config.insecure:
        raise BadSetting(
            f"--host {config.host} can be reached by other machines: give --api-key, or --insecure to serve anyone"
        )


def tenant_id(key: str) -> str:
    """The name of a key's owner: the same in every process, whatever other keys there are, because what was stored
    under it outlives the process."""
    return f"key-{hashlib.sha256(b'headrace tenant ' + key.encode()).hexdigest()[:16]}"


class Gate:
    """Decides on Host, Origin and key of every request, HTTP and WebSocket alike."""

    def __init__(self, config: ServerConfig, keys: Iterable[str] = ()) -> None:
        # Salts differ from process to process: a cache key of ours cannot be computed from outside.
        secret = secrets.token_bytes(32)
        self._tenants: list[tuple[bytes, Tenant]] = []
        for key in keys:
            salt = hmac.new(secret, key.encode(), hashlib.sha256).hexdigest()
            sealing = hmac.digest(key.encode(), b"headrace seal", hashlib.sha256)
            tenant = Tenant(tenant_id(key), salt, sealing, key.weight if isinstance(key, Key) else 1.0)
            self._tenants.append((hashlib.sha256(key.encode()).digest(), tenant))
        self._query_token = config.query_token
        self._any_host = "*" in config.allow_host
        self._hosts = {"localhost", config.host.lower(), *(name.lower() for name in config.allow_host)}
        self._origins = {origin.lower().rstrip("/") for origin in config.allow_origin}

    @property
    def keyed(self) -> bool:
        """True if a key is asked for."""
        return bool(self._tenants)

    def refuse_origin(self, host: str | None, headers: Mapping[str, str]) -> HttpReply | None:
        """The refusal of a request whose Host is not ours (421) or whose page is foreign (403), or None.

        `host` is None only where the protocol knows no Host (HTTP/1.0): no browser speaks that.
        """
        if host is not None and not self._ours(host):
            return error_reply(421, "this name in Host is not served here; see --allow-host", param="host")
        origin = headers.get("origin")
        if origin is not None:
            if origin.lower() in self._origins:
                return None
            # Our own page: the browser names in Origin what it also sent as Host, scheme and port included.
            if host is not None and origin.lower() == f"http://{host.lower()}":
                return None
            return error_reply(403, "this web origin may not call here; see --allow-origin", param="origin")
        # A foreign page can make a browser GET without Origin (an image, a form); it then says so here.
        if headers.get("sec-fetch-site") in ("cross-site", "same-site") and (
            headers.get("sec-fetch-mode") != "navigate"
        ):
            return error_reply(403, "requests from other sites are refused", param="sec-fetch-site")
        return None

    def _ours(self, host: str) -> bool:
        match = _HOST.match(host)
        if match is None:
            return False
        if self._any_host or match[1].lower() in self._hosts:
            return True
        # An address cannot be rebound: only names can be pointed at us by someone else.
        try:
            ipaddress.ip_address(match[1].strip("[]"))
        except ValueError:
            return False
        return True

    def tenant(self, headers: Mapping[str, str], query: Mapping[str, str]) -> Tenant | None:
        """The owner of the key that a request carries; None if it must be refused with 401.

        Without any key configured everybody is the public tenant. The first source that is present counts.
        """
        if not self._tenants:
            return PUBLIC_TENANT
        presented = self._presented(headers, query)
        if presented is None:
            return None
        digest = hashlib.sha256(presented.encode("utf-8", "surrogateescape")).digest()
        found: Tenant | None = None
        for known, tenant in self._tenants:
            if hmac.compare_digest(known, digest):
                found = tenant
        return found

    def _presented(self, headers: Mapping[str, str], query: Mapping[str, str]) -> str | None:
        authorization = headers.get("authorization")
        if authorization is not None:
            scheme, _, key = authorization.partition(" ")
            return key.strip() if scheme.lower() == "bearer" else None
        for item in headers.get("sec-websocket-protocol", "").split(","):
            if item.strip().startswith(KEY_PROTOCOL):
                return item.strip().removeprefix(KEY_PROTOCOL)
        if "x-api-key" in headers:
            return headers["x-api-key"]
        if self._query_token:
            return query.get("access_token")
        return None


def unauthorized() -> HttpReply:
    """The answer to a request without a valid key."""
    return error_reply(
        401,
        "a valid API key is needed: Authorization: Bearer KEY",
        headers={"www-authenticate": "Bearer"},
    )
