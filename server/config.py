"""Settings of the server and the table of its limits. Frozen; every knob is one struct field and, by it, one flag.

Knows names, bounds and defaults; must not know sockets. `flags.py` makes the command line from these fields.
"""

from __future__ import annotations

import ipaddress
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from headrace.runtime.config import EngineConfig

BYTES = {"unit": "bytes"}
SECONDS = {"unit": "s"}
SECRET = {"secret": True}


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one client, one message and the whole process may use. Beyond a limit there is always an answer."""

    max_sockets: Annotated[int, Meta(ge=1, description="open connections, whole process; beyond: 503")] = (
        10_000
    )
    max_sockets_per_key: Annotated[
        int, Meta(ge=1, description="open connections of one API key; beyond: 429")
    ] = 256
    max_sockets_per_ip: Annotated[
        int,
        Meta(ge=1, description="open connections of one address that is not loopback; beyond: 429"),
    ] = 256
    header_timeout: Annotated[
        float, Meta(gt=0, description="time for a whole request head, or for the upgrade", extra=SECONDS)
    ] = 10.0
    body_timeout: Annotated[float, Meta(gt=0, description="time for a whole request body", extra=SECONDS)] = (
        60.0
    )
    idle_timeout: Annotated[
        float, Meta(gt=0, description="an HTTP connection without a request is closed", extra=SECONDS)
    ] = 75.0
    linger_timeout: Annotated[
        float,
        Meta(gt=0, description="time to read on after a refusal, so that it can arrive", extra=SECONDS),
    ] = 2.0
    max_request_line: Annotated[int, Meta(ge=256, description="request line; beyond: 414", extra=BYTES)] = (
        8 << 10
    )
    max_header_line: Annotated[int, Meta(ge=256, description="one header line; beyond: 431", extra=BYTES)] = (
        8 << 10
    )
    max_headers: Annotated[int, Meta(ge=8, description="header lines; beyond: 431")] = 128
    max_head: Annotated[int, Meta(ge=1024, description="a whole request head; beyond: 431", extra=BYTES)] = (
        64 << 10
    )
    max_body: Annotated[
        int,
        Meta(ge=1024, description="a request body, where its route allows as much; beyond: 413", extra=BYTES),
    ] = 32 << 20
    max_chunks: Annotated[int, Meta(ge=16, description="chunks of one request body; beyond: 413")] = 1 << 18
    max_pipelined: Annotated[
        int,
        Meta(ge=1024, description="bytes behind an unfinished request; beyond: close after it", extra=BYTES),
    ] = 64 << 10
    ws_max_message: Annotated[
        int, Meta(ge=1024, description="one WebSocket message; beyond: close 1009", extra=BYTES)
    ] = 32 << 20
    ws_max_fragments: Annotated[
        int, Meta(ge=1, description="frames of one WebSocket message; beyond: close 1009")
    ] = 4096
    ws_max_malformed: Annotated[
        int, Meta(ge=1, description="unreadable WebSocket messages in 10 s; beyond: close 1008")
    ] = 32
    ws_ping_interval: Annotated[float, Meta(gt=0, description="WebSocket pings", extra=SECONDS)] = 20.0
    ws_ping_timeout: Annotated[
        float, Meta(gt=0, description="no pong for so long: close 1011", extra=SECONDS)
    ] = 20.0
    ws_close_timeout: Annotated[
        float, Meta(gt=0, description="wait for the peer's close frame", extra=SECONDS)
    ] = 10.0
    input_budget: Annotated[
        int,
        Meta(ge=1 << 20, description="incoming bytes being assembled, whole process", extra=BYTES),
    ] = 1 << 30
    input_patience: Annotated[
        float,
        Meta(gt=0, description="input over that budget waits so long; then 413 or close 1013", extra=SECONDS),
    ] = 5.0
    resume_seconds: Annotated[
        float, Meta(gt=0, description="a response outlives its connection for so long", extra=SECONDS)
    ] = 60.0
    resume_bytes: Annotated[
        int,
        Meta(ge=1 << 16, description="of responses kept for readers who may come back", extra=BYTES),
    ] = 256 << 20
    resume_streams: Annotated[
        int, Meta(ge=1, description="answers that run without a reader; beyond: the oldest is let go")
    ] = 1024
    resume_tokens: Annotated[
        int, Meta(ge=1, description="tokens that wait for a reader who is away; then the answer pauses")
    ] = 4096
    pins_per_key: Annotated[
        int, Meta(ge=0, description="responses that one API key may pin in the cache; beyond: x.error")
    ] = 10
    pin_share: Annotated[
        float, Meta(ge=0, le=1, description="of the KV pages, what all pins together may hold")
    ] = 0.5
    write_high_water: Annotated[
        int, Meta(ge=1024, description="unsent bytes at which a connection is not rendered for", extra=BYTES)
    ] = 64 << 10
    slow_reader_limit: Annotated[
        float,
        Meta(gt=0, description="a reader that takes nothing for so long is dropped (1013)", extra=SECONDS),
    ] = 600.0
    requests_per_socket: Annotated[
        int, Meta(ge=1, description="requests running at once on one WebSocket")
    ] = 16
    lanes_per_socket: Annotated[
        int, Meta(ge=0, description="named streams on one WebSocket; beyond: an error for that request")
    ] = 32
    ws_age_limit: Annotated[
        float,
        Meta(gt=0, description="a WebSocket this old takes no new request and ends when idle", extra=SECONDS),
    ] = 3600.0
    drafts_per_socket: Annotated[
        int,
        Meta(ge=0, description="prompts typed ahead at once on one WebSocket; beyond: an error for that one"),
    ] = 4
    draft_idle: Annotated[
        float, Meta(gt=0, description="a prompt that nobody types on for so long is dropped", extra=SECONDS)
    ] = 120.0
    image_fetch_timeout: Annotated[
        float, Meta(gt=0, description="time to fetch one picture by its address", extra=SECONDS)
    ] = 10.0
    waiting_per_socket: Annotated[
        int, Meta(ge=0, description="requests waiting behind those; beyond: an error for that request")
    ] = 64


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything `headrace serve` can be told. It has the engine's settings, it does not repeat them."""

    model: Annotated[
        str,
        Meta(
            description="a model folder or a hub id; nothing: the small model inside the package",
            extra={"positional": True},
        ),
    ] = ""
    host: Annotated[str, Meta(min_length=1, description="address to listen on")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535, description="port to listen on (0: any free one)")] = 8000
    api_key: Annotated[
        tuple[str, ...],
        Meta(
            description="a key that clients must send; may be repeated (also HEADRACE_API_KEY)", extra=SECRET
        ),
    ] = ()
    api_key_file: Annotated[
        str, Meta(description="a file with one API key a line, and behind it the weight of its share")
    ] = ""
    insecure: Annotated[bool, Meta(description="listen beyond loopback without any key")] = False
    allow_host: Annotated[
        tuple[str, ...],
        Meta(description="a further name in Host that is ours; may be repeated; * takes every name"),
    ] = ()
    allow_origin: Annotated[
        tuple[str, ...],
        Meta(description="a web origin besides our own page that may call, like https://chat.example.org"),
    ] = ()
    query_token: Annotated[
        bool, Meta(description="take the key from ?access_token= too (URLs get logged)")
    ] = False
    image_url_allow: Annotated[
        tuple[str, ...],
        Meta(
            description="a host that pictures may be fetched from, over https at its usual port (or http://host, "
            "host:port; * is every host), or an inner address or network that it may lie at; may be repeated; "
            "without any, addresses of pictures are refused"
        ),
    ] = ()
    tool_parser: Annotated[
        Literal["auto", "none", "hermes", "llama3", "mistral", "qwen_coder"],
        Meta(description="how the model writes tool calls; auto: as its chat template spells them"),
    ] = "auto"
    reasoning_parser: Annotated[
        Literal["auto", "none", "think", "mistral"],
        Meta(description="how the model marks its reasoning; none: it stays in the text"),
    ] = "auto"
    reasoning_field: Annotated[
        Literal["reasoning_content", "reasoning"],
        Meta(description="the name of the field in which chat completions tell reasoning"),
    ] = "reasoning_content"
    strict_fields: Annotated[
        bool, Meta(description="refuse unknown request fields instead of naming them in the reply")
    ] = False
    sse_ping: Annotated[
        float,
        Meta(ge=0, description="silence before an SSE comment keeps the line open (0: never)", extra=SECONDS),
    ] = 15.0
    store: Annotated[
        str,
        Meta(
            description="a file that keeps stored responses over restarts; nothing: memory alone keeps them"
        ),
    ] = ""
    store_days: Annotated[float, Meta(gt=0, description="age at which that file forgets a response")] = 30.0
    store_bytes: Annotated[
        int,
        Meta(ge=1 << 20, description="of conversations in that file; the oldest go first", extra=BYTES),
    ] = 4 << 30
    profile_dir: Annotated[
        str,
        Meta(description="a folder for the traces of /start_profile; nothing: profiles are refused"),
    ] = ""
    drain: Annotated[float, Meta(ge=0, description="time for running answers at SIGTERM", extra=SECONDS)] = (
        30.0
    )
    limits: Limits = Limits()
    engine: EngineConfig = EngineConfig()


def describe(config: ServerConfig) -> str:
    """The settings as `name = value` lines, the order of the structs, secrets replaced by their count."""
    lines: list[str] = []
    for struct in (config, config.engine, config.limits):
        hints = field_notes(type(struct))
        for name, (_, extra) in hints.items():
            value = getattr(struct, name)
            if isinstance(value, msgspec.Struct):
                continue
            if extra.get("secret"):
                shown = f"({len(value)} set)" if value else "(none)"
            else:
                shown = show(value, str(extra.get("unit", "")))
            lines.append(f"{name} = {shown}")
    return "\n".join(lines)


def show(value: Any, unit: str = "") -> str:
    """One setting as a person writes it on the command line."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if unit == "bytes" and isinstance(value, int):
        for suffix, size in (("G", 1 << 30), ("M", 1 << 20), ("K", 1 << 10)):
            if value and value % size == 0:
                return f"{value // size}{suffix}"
    if isinstance(value, tuple):
        return ", ".join(str(item) for item in value) or "(none)"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value) if value != "" else "(none)"


def field_notes(struct: type[msgspec.Struct]) -> dict[str, tuple[str, dict[str, Any]]]:
    """Field name → (description, extra) of a settings struct, in the order of its fields."""
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for field in msgspec.inspect.type_info(struct).fields:  # type: ignore[attr-defined]
        kind = field.type
        described: dict[str, Any] = {}
        extra: dict[str, Any] = {}
        if isinstance(kind, msgspec.inspect.Metadata):
            described = kind.extra_json_schema or {}
            extra = kind.extra or {}
        found[field.name] = (described.get("description", ""), extra)
    return found


def is_loopback(host: str) -> bool:
    """True if listening on `host` reaches this machine alone."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
