"""A request target to a route: what is not in the table is refused. Knows paths; knows no face and no socket.

The path is decoded once and matched whole. It is never cleaned up: a path with dot segments, doubled slashes or
an encoded slash is simply not in the table, so no two readers can disagree about what it means.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote_to_bytes

from headrace.server.exchange import HttpRoute, RouteTable, SocketRoute
from headrace.server.reader import BadRequest, Head

_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_PART = re.compile(r"\A\{([a-z_]+)(:path)?\}\Z")
_SEGMENT = r"[A-Za-z0-9._:@+ -]{1,200}"
_MAX_QUERY = 32


@dataclass(frozen=True, slots=True)
class Target:
    """A request target taken apart. `host` is None only in HTTP/1.0 without Host."""

    host: str | None
    path: str
    query: dict[str, str]
    encoded_slash: bool


@dataclass(frozen=True, slots=True)
class Match:
    """What a path leads to. `template` is the key of the route table: the only form of a path in metrics."""

    template: str
    http: HttpRoute | None
    socket: SocketRoute | None
    parameters: dict[str, str]


def parse_target(head: Head) -> Target:
    """The parts of `head`'s target. Raises BadRequest for a target that no route could have."""
    raw = head.target
    host = head.headers.get("host")
    if host is None and head.version == "1.1":
        raise BadRequest(400, "Host is missing")
    if raw.startswith(("http://", "https://")):
        # The absolute form repeats Host; where they differ, someone is counting on two readers.
        authority, slash, rest = raw.partition("://")[2].partition("/")
        if host is not None and authority.lower() != host.lower():
            raise BadRequest(400, "the target names another host than Host")
        host, raw = authority, slash + rest
    if raw == "*" and head.method == "OPTIONS":
        return Target(host, "*", {}, False)
    if not raw.startswith("/"):
        raise BadRequest(400, "the request target is not a path")
    raw_path, _, raw_query = raw.partition("?")
    if "#" in raw:
        raise BadRequest(400, "a request target has no fragment")
    if _BAD_ESCAPE.search(raw_path):
        raise BadRequest(400, "the path holds a broken % escape")
    try:
        path = unquote_to_bytes(raw_path).decode("utf-8")
    except UnicodeDecodeError:
        raise BadRequest(400, "the path is not UTF-8") from None
    try:
        pairs = parse_qsl(raw_query, keep_blank_values=True, max_num_fields=_MAX_QUERY, errors="strict")
    except (ValueError, UnicodeDecodeError):
        raise BadRequest(400, f"the query is not readable (at most {_MAX_QUERY} UTF-8 pairs)") from None
    return Target(host, path, dict(pairs), "%2f" in raw_path.lower())


class Routes:
    """The compiled route table."""

    def __init__(self, table: RouteTable) -> None:
        self._exact: dict[str, tuple[HttpRoute | None, SocketRoute | None]] = {}
        self._patterns: list[tuple[re.Pattern[str], str, HttpRoute | None, SocketRoute | None]] = []
        self.templates = tuple(dict.fromkeys([*table.http, *table.sockets]))
        for template in self.templates:
            http, socket = table.http.get(template), table.sockets.get(template)
            assert template.startswith("/"), template
            if "{" in template:
                self._patterns.append((_compile(template), template, http, socket))
            else:
                self._exact[template] = (http, socket)

    def find(self, target: Target) -> Match | None:
        """What `target` leads to; None is a 404."""
        if target.path in self._exact and not target.encoded_slash:
            return Match(target.path, *self._exact[target.path], {})
        for pattern, template, http, socket in self._patterns:
            found = pattern.match(target.path)
            if found is None:
                continue
            parameters = found.groupdict()
            # An encoded slash may stand in a parameter (model ids hold slashes), nowhere else.
            if target.encoded_slash and not any("/" in value for value in parameters.values()):
                continue
            if any(part in ("", ".", "..") for value in parameters.values() for part in value.split("/")):
                continue
            return Match(template, http, socket, parameters)
        return None


def _compile(template: str) -> re.Pattern[str]:
    parts = template.split("/")[1:]
    pattern = ""
    for index, part in enumerate(parts):
        match = _PART.match(part)
        if match is None:
            assert "{" not in part, template
            pattern += "/" + re.escape(part)
        elif match[2]:
            assert index == len(parts) - 1, f"{template}: a path parameter comes last"
            pattern += f"/(?P<{match[1]}>{_SEGMENT}(?:/{_SEGMENT}){{0,7}})"
        else:
            pattern += f"/(?P<{match[1]}>{_SEGMENT})"
    return re.compile(rf"\A{pattern}\Z")


def allowed(match: Match) -> list[str]:
    """The methods a path answers, sorted."""
    methods = {"OPTIONS"}
    if match.http is not None:
        methods |= match.http.methods
        if "GET" in methods:
            methods.add("HEAD")
    if match.socket is not None:
        methods.add("GET")
    return sorted(methods)
