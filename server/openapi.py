"""The OpenAPI document of a route table, from the same types that decode requests. Knows no face and no socket."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
import msgspec.inspect as shapes

from headrace.server.exchange import About, HttpRoute, RouteTable
from headrace.server.protocol.fields import extra_of

_PARAMETER = re.compile(r"\{([a-z_]+)(?::path)?\}")
_NOT_A_NAME = re.compile(r"[^A-Za-z0-9]+")
_REF = "#/components/schemas/{name}"
_FREE: dict[str, Any] = {}
# The empty one: a server without keys asks for none.
_KEYS: list[dict[str, list[str]]] = [{}, {"bearer": []}, {"x-api-key": []}]

DESCRIPTION = (
    "Every HTTP path of a headrace server. Field by field, `x-treatment` says what happens with a request field: "
    "honoured, accepted without effect, or refused with a named error unless it has one of `x-neutral`. "
    "The page docs/fields.md holds the same as tables."
)


def openapi(table: RouteTable, version: str) -> dict[str, Any]:
    """The document of all routes that say what they are about, and by name alone of those that do not."""
    routes = {
        path: route
        for path, route in table.http.items()
        if route.about or not route.public  # the files of the chat page are no interface
    }
    types = tuple(dict.fromkeys(_types(routes)))
    schemas, components = msgspec.json.schema_components(types, ref_template=_REF)
    for type_ in types:
        _treat(shapes.type_info(type_), components)
    named = dict(zip(types, map(_ecma, schemas), strict=True))
    paths = {}
    for path, route in routes.items():
        operations = {
            method.lower(): _operation(path, method, route, route.about.get(method), named)
            for method in sorted(route.methods)
        }
        paths[_PARAMETER.sub(r"{\1}", path)] = operations
    for path in table.sockets:
        paths.setdefault(path, {}).setdefault("get", _socket(path))
    return {
        "openapi": "3.1.0",
        "info": {"title": "headrace", "version": version, "description": DESCRIPTION},
        "paths": paths,
        "components": {
            "schemas": {name: _ecma(schema) for name, schema in components.items()},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    }


def _types(routes: Mapping[str, HttpRoute]) -> Iterator[Any]:
    for route in routes.values():
        for about in route.about.values():
            yield from (
                type_ for type_ in (about.body, about.reply, about.event, about.error) if type_ is not None
            )


def _operation(
    path: str, method: str, route: HttpRoute, about: About | None, named: Mapping[Any, Any]
) -> dict[str, Any]:
    operation: dict[str, Any] = {"operationId": _name(method, path)}
    if about is not None:
        operation["summary"] = about.summary
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in _PARAMETER.findall(path)
    ]
    if about is not None:
        parameters += [
            {"name": name, "in": "query", "description": what, "schema": {"type": "string"}}
            for name, what in about.query.items()
        ]
    if parameters:
        operation["parameters"] = parameters
    if method == "POST" and (about is None or about.body is not None):
        schema = _FREE if about is None else named[about.body]
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    operation["responses"] = _responses(about, named)
    operation["security"] = [] if route.public else _KEYS
    return operation


def _responses(about: About | None, named: Mapping[Any, Any]) -> dict[str, Any]:
    about = About(summary="") if about is None else about
    content: dict[str, Any] = {about.reply_type: {"schema": named.get(about.reply, _FREE)}}
    if about.event is not None:
        # OpenAPI 3.1 describes no streams: this is one event of one.
        content[about.event_type] = {"schema": named[about.event]}
    refusal = {"application/json": {"schema": named.get(about.error, _FREE)}}
    return {
        "200": {"description": "The answer.", "content": content},
        "4XX": {"description": "The request is refused, and why.", "content": refusal},
        "5XX": {"description": "The server cannot answer now, or failed.", "content": refusal},
    }


def _socket(path: str) -> dict[str, Any]:
    return {
        "operationId": _name("GET", path),
        "summary": "A WebSocket; its messages are not described here.",
        "responses": {
            "101": {"description": "The connection is a WebSocket from here on."},
            "426": {"description": "The request did not ask for an upgrade."},
        },
        "security": _KEYS,
    }


def _name(method: str, path: str) -> str:
    return _NOT_A_NAME.sub("_", f"{method.lower()}{path}").strip("_")


def _ecma(schema: Any) -> Any:
    """The schema with its patterns as JSON Schema spells them: `\\A` and `\\Z` are Python's alone."""
    if isinstance(schema, dict):
        return {
            key: re.sub(r"\\A", "^", re.sub(r"\\Z", "$", value))
            if key == "pattern" and isinstance(value, str)
            else _ecma(value)
            for key, value in schema.items()
        }
    return [_ecma(item) for item in schema] if isinstance(schema, list) else schema


def _treat(node: shapes.Type, components: dict[str, Any], seen: set[type] | None = None) -> None:
    """Write the treatment of every field of every struct below `node` beside its schema."""
    seen = set() if seen is None else seen
    match node:
        case shapes.Metadata():
            _treat(node.type, components, seen)
        case shapes.UnionType():
            for member in node.types:
                _treat(member, components, seen)
        case shapes.ListType() | shapes.VarTupleType():
            _treat(node.item_type, components, seen)
        case shapes.StructType() if node.cls not in seen:
            seen.add(node.cls)
            name = node.cls.__name__
            if name not in components:  # several types have this name: theirs are the full ones
                name = f"{node.cls.__module__}.{node.cls.__qualname__}"
            properties = components[name].get("properties", {})
            for field in node.fields:
                extra = extra_of(field.type)
                if "treatment" in extra and field.encode_name in properties:
                    noted = {"x-treatment": extra["treatment"]}
                    if extra.get("neutral"):
                        noted["x-neutral"] = list(extra["neutral"])
                    properties[field.encode_name] |= noted
                _treat(field.type, components, seen)
