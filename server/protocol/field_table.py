"""docs/fields.md from the request types: what each endpoint does with each field.

Write it with `python -P -m headrace.server.protocol.field_table > docs/fields.md`; a test compares the two.
"""

from __future__ import annotations

import sys

import msgspec
import msgspec.inspect as shapes

from headrace.server.protocol import drafts, extension
from headrace.server.protocol.chat import ChatRequest
from headrace.server.protocol.completions import CompletionRequest
from headrace.server.protocol.fields import extra_of
from headrace.server.protocol.generate import AbortRequest, GenerateRequest, SamplingFields
from headrace.server.protocol.messages import CountTokensRequest, MessagesRequest
from headrace.server.protocol.ollama import (
    OllamaChatRequest,
    OllamaGenerateRequest,
    OllamaOptions,
    OllamaPullRequest,
    OllamaShowRequest,
)
from headrace.server.protocol.profile import StartProfile
from headrace.server.protocol.realtime import ResponseFields, SessionFields
from headrace.server.protocol.responses import (
    CompactRequest,
    ResponseCancel,
    ResponseCreate,
    ResponseRequest,
    ResponseSteer,
)
from headrace.server.protocol.tokenizing import DetokenizeRequest, TokenizeRequest

ENDPOINTS: tuple[tuple[str, type[msgspec.Struct]], ...] = (
    ("POST /v1/chat/completions", ChatRequest),
    ("POST /v1/completions", CompletionRequest),
    ("POST /generate", GenerateRequest),
    ("`sampling_params` of POST /generate", SamplingFields),
    ("POST /abort_request", AbortRequest),
    ("POST /start_profile", StartProfile),
    ("POST /tokenize", TokenizeRequest),
    ("POST /detokenize", DetokenizeRequest),
    ("POST /v1/responses", ResponseRequest),
    ("POST /v1/responses/compact", CompactRequest),
    ("POST /v1/messages", MessagesRequest),
    ("POST /v1/messages/count_tokens", CountTokensRequest),
    ("POST /api/chat", OllamaChatRequest),
    ("POST /api/generate", OllamaGenerateRequest),
    ("`options` of /api/chat and /api/generate", OllamaOptions),
    ("POST /api/show", OllamaShowRequest),
    ("POST /api/pull", OllamaPullRequest),
    ("response.create on the /v1/responses socket", ResponseCreate),
    ("response.cancel on the /v1/responses socket", ResponseCancel),
    ("response.steer on the /v1/responses socket", ResponseSteer),
    ("x.credit on the /v1/responses socket", extension.GrantCredit),
    ("x.resume on the /v1/responses socket", extension.Resume),
    ("x.update on the /v1/responses socket", extension.Update),
    ("x.fork on the /v1/responses socket", extension.Fork),
    ("x.input.append on the /v1/responses socket", drafts.InputAppend),
    ("x.input.replace on the /v1/responses socket", drafts.InputReplace),
    ("x.input.discard on the /v1/responses socket", drafts.InputDiscard),
    ("x.input.commit on the /v1/responses socket", drafts.InputCommit),
    ("x.prune on the /v1/responses socket", extension.Prune),
    ("x.promote on the /v1/responses socket", extension.Promote),
    ("session.update on the /v1/realtime socket: `session`", SessionFields),
    ("response.create on the /v1/realtime socket: `response`", ResponseFields),
)

HEAD = """# Request fields

Generated from the request types (`server/protocol`); do not edit. `null` means absent, everywhere.

- **honoured**: the field takes effect.
- **accepted, no effect**: the field is known and harmless; it is checked and then ignored.
- **refused**: any other value than those listed would change the answer in a way this server cannot give, and
  gets 400 `unsupported_parameter` with the field's name in `param`.
- A field that is not listed here is accepted and named in the reply header `x-ignored-fields` (HTTP) and in the
  metric `headrace_ignored_fields`; with `--strict-fields` it is 400 `unknown_parameter`. Unknown fields whose
  name begins with `x_`, and unknown members of `chat_template_kwargs`, are always refused.
- Values outside the bounds get 400 `invalid_value`. Free-form values (any JSON) have at most 256 KiB and 32
  levels of nesting, and a whole request at most 65536 fields and list entries; where token ids may stand, at most
  524288 list entries. Of their members only those that are understood are looked at, and no others are named.
"""


def field_table() -> str:
    """The whole page."""
    parts = [HEAD]
    for title, type_ in ENDPOINTS:
        parts.append(f"## {title}\n")
        known: tuple[str, ...] = ()
        if type_ is ResponseCreate:
            parts.append("Every field of POST /v1/responses, and:\n")
            known = tuple(
                name
                for name in ResponseRequest.__struct_fields__
                if name not in ResponseCreate.__annotations__  # what a socket treats otherwise is told there
            )
        parts.append("| field | type and bounds | treatment |\n|---|---|---|")
        # What must be there, then what takes effect, what is refused and what is without effect; a type's own order
        # within each.
        for field in sorted(shapes.type_info(type_).fields, key=_rank):  # type: ignore[attr-defined]
            if field.name in known:
                continue
            parts.append(
                f"| `{field.encode_name}` | {_cell(_type(field.type))} | {_cell(_treatment(field.type))} |"
            )
        parts.append("")
    return "\n".join(parts)


def _rank(field: shapes.Field) -> int:
    words = _treatment(field.type)
    if words.startswith("honoured"):
        return 1 - words.startswith("honoured; required")
    return 2 if words.startswith("refused") else 3


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _treatment(node: shapes.Type) -> str:
    extra = extra_of(node)
    treatment = str(extra["treatment"])
    if treatment == "refused":
        neutral = ", ".join(f"`{_literal(value)}`" for value in extra["neutral"])
        treatment = f"refused, except {neutral}" if neutral else "refused"
    schema = node.extra_json_schema if isinstance(node, shapes.Metadata) else None
    note = (schema or {}).get("description", "")
    if note == "not supported yet" or not note:
        return treatment
    return f"{treatment}; {note}"


def _literal(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def _type(node: shapes.Type) -> str:
    match node:
        case shapes.Metadata():
            return _type(node.type)
        case shapes.RawType():
            return "any JSON"
        case shapes.BoolType():
            return "true or false"
        case shapes.NoneType():
            return ""
        case shapes.IntType() | shapes.FloatType():
            word = "integer" if isinstance(node, shapes.IntType) else "number"
            low = _number(node.ge) if node.ge is not None else f"above {_number(node.gt)}"
            return f"{word}, {low} to {_number(node.le)}"
        case shapes.StrType():
            if node.pattern is not None:
                return f"string matching `{node.pattern}`"
            return f"string, at most {node.max_length}" if node.max_length else "string"
        case shapes.LiteralType():
            return ", ".join(f"`{value}`" for value in node.values)
        case shapes.ListType():
            return f"list of at most {node.max_length}: {_type(node.item_type)}"
        case shapes.DictType():
            return f"at most {node.max_length} pairs of {_type(node.key_type)} and {_type(node.value_type)}"
        case shapes.StructType():
            return "object: " + ", ".join(f"`{field.encode_name}`" for field in node.fields)
        case shapes.UnionType():
            return " or ".join(text for member in node.types if (text := _type(member)))
    raise AssertionError(f"no words for {node}")


def _number(bound: float | None) -> str:
    assert bound is not None, "every number has bounds"
    for power in (31, 63):
        for value, name in ((1 << power, f"2^{power}"), ((1 << power) - 1, f"2^{power} - 1")):
            if abs(bound) == value:
                return f"-{name}" if bound < 0 else name
    return f"{bound:g}"


if __name__ == "__main__":
    sys.stdout.write(field_table())
