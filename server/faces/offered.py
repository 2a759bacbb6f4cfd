"""Tools as protocols offer them → `Tool`. Knows names and schemas; knows no endpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Raw

from headrace.runtime.interface import Tool
from headrace.server.protocol.codec import free_form
from headrace.server.protocol.errors import WireError
from headrace.server.protocol.tools import TOOLS_BYTES


def offered(name: str, description: str | None, schema: Raw, path: str, *, strict: bool = False) -> Tool:
    """One tool; `path` is where its schema stands. Raises WireError unless that is a schema of an object."""
    return Tool(name, description, object_schema(free_form(schema, path), path), strict)


def object_schema(parameters: Any, path: str) -> Mapping[str, Any] | None:
    """`parameters`, which stand at `path`. Raises WireError unless they are a schema of an object, or nothing."""
    if parameters is not None and (
        not isinstance(parameters, dict) or parameters.get("type", "object") != "object"
    ):
        raise WireError("invalid_value", f"{path} must be a JSON schema of type object", path)
    return parameters  # type: ignore[no-any-return]  # a dict or None, as just looked at


def check_offered(tools: Sequence[Tool], size: int | None = None) -> None:
    """WireError if two tools have one name, or all together are more than a prompt may hold. size: of their
    descriptions and schemas as they came, where that is known already."""
    if (sum([tool.characters for tool in tools]) if size is None else size) > TOOLS_BYTES:
        raise WireError(
            "invalid_value", f"tools has more than {TOOLS_BYTES} bytes of descriptions and schemas", "tools"
        )
    seen: set[str] = set()
    for index, tool in enumerate(tools):
        if tool.name in seen:
            path = f"tools[{index}].name"
            raise WireError("invalid_value", f"{path}: there is another tool named '{tool.name}'", path)
        seen.add(tool.name)
