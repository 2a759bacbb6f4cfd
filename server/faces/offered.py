"""Tools as protocols with one kind of tool offer them → `Tool`. Knows names and schemas; knows no endpoint."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Raw

from headrace.runtime.interface import Tool
from headrace.server.protocol.codec import free_form
from headrace.server.protocol.errors import WireError
from headrace.server.protocol.tools import TOOLS_BYTES


def offered(name: str, description: str | None, schema: Raw, path: str) -> Tool:
    """One tool; `path` is where its schema stands. Raises WireError unless that is a schema of an object."""
    parameters = free_form(schema, path)
    if parameters is not None and (
        not isinstance(parameters, dict) or parameters.get("type", "object") != "object"
    ):
        raise WireError("invalid_value", f"{path} must be a JSON schema of type object", path)
    return Tool(name, description, parameters)


def check_offered(tools: Sequence[Tool]) -> None:
    """WireError if two tools have one name, or all together are more than a prompt may hold."""
    if sum(tool.characters for tool in tools) > TOOLS_BYTES:
        raise WireError(
            "invalid_value", f"tools has more than {TOOLS_BYTES} bytes of descriptions and schemas", "tools"
        )
    seen: set[str] = set()
    for tool in tools:
        if tool.name in seen:
            raise WireError("invalid_value", f"tools: there are two tools named '{tool.name}'", "tools")
        seen.add(tool.name)
