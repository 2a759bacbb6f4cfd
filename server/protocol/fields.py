"""What happens with a request field: honoured, echoed, accepted without effect, or refused. Knows no endpoint.

The treatment is part of the field's type, so one declaration checks requests and writes docs/fields.md.
"""

from __future__ import annotations

from itertools import repeat
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import msgspec.inspect as shapes
from msgspec import Meta, Raw

from headrace.server.protocol.codec import compact
from headrace.server.protocol.errors import WireError

T = TypeVar("T")
# The default of free-form fields. A factory, because a schema (openapi.py) can show no default that is Raw; this
# one gives the same object every time and never runs Python.
NULL: Any = msgspec.field(default_factory=repeat(Raw(b"null")).__next__)


def honoured(note: str = "") -> Meta:
    """The field takes effect."""
    return Meta(description=note, extra={"treatment": "honoured"})


def ignored(note: str = "") -> Meta:
    """The field is known, harmless, and has no effect here."""
    return Meta(description=note, extra={"treatment": "accepted, no effect"})


def refused(*neutral: Any, note: str = "not supported yet") -> Meta:
    """The field would change the answer: any value but null and the `neutral` ones is refused.

    Free-form (Raw) fields compare as JSON text without spaces.
    """
    return Meta(description=note, extra={"treatment": "refused", "neutral": neutral})


def check_supported(request: msgspec.Struct) -> None:
    """Raise WireError("unsupported_parameter") for the first field whose value asks for what is not there."""
    for name, neutral in _refused_fields(type(request)):
        value = getattr(request, name)
        if isinstance(value, Raw):
            value = compact(value)
            if value == "null":
                continue
        if value is not None and value not in neutral:
            raise WireError("unsupported_parameter", f"{name} is not supported by this server yet", name)


def _refused_fields(type_: type[msgspec.Struct]) -> tuple[tuple[str, tuple[Any, ...]], ...]:
    found = _REFUSED.get(type_)
    if found is None:
        rows = []
        for field in shapes.type_info(type_).fields:  # type: ignore[attr-defined]
            extra = extra_of(field.type)
            if extra.get("treatment") == "refused":
                rows.append((field.name, extra["neutral"]))
        found = _REFUSED[type_] = tuple(rows)
    return found


_REFUSED: dict[type[msgspec.Struct], tuple[tuple[str, tuple[Any, ...]], ...]] = {}


def extra_of(node: shapes.Type) -> dict[str, Any]:
    """The treatment that `honoured`, `ignored` or `refused` put on a field's type, or {}."""
    extra: dict[str, Any] = {}
    while isinstance(node, shapes.Metadata):
        extra = {**(node.extra or {}), **extra}
        node = node.type
    return extra


# -- types that several endpoints share ------------------------------------------------------------------------


class ImageUrl(msgspec.Struct, frozen=True):
    """A picture by its URL, and how much of it the client wants looked at."""

    url: str
    detail: Literal["auto", "low", "high", "original"] | None = None


Name = Annotated[str, Meta(min_length=1, max_length=256)]
OpaqueId = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9_-]{1,64}\Z")]
ShortText = Annotated[str, Meta(max_length=512)]
Flag = bool | None
Detail = Literal["auto", "low", "high", "original"]
Count = Annotated[int, Meta(ge=1, le=(1 << 31) - 1)]
Temperature = Annotated[float, Meta(ge=0, le=2)]
TopP = Annotated[float, Meta(gt=0, le=1)]
TopK = Annotated[int, Meta(ge=-1, le=(1 << 31) - 1)]
MinP = Annotated[float, Meta(ge=0, le=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
RepetitionPenalty = Annotated[float, Meta(ge=0.01, le=100)]
SchemaText = Annotated[str, Meta(min_length=2, max_length=1 << 16)]
Regex = Annotated[str, Meta(min_length=1, max_length=4096)]
MinTokens = Annotated[int, Meta(ge=0, le=(1 << 31) - 1)]
Seed = Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
TopLogprobs = Annotated[int, Meta(ge=0, le=20)]
StopText = Annotated[str, Meta(min_length=1, max_length=256)]
Stop = StopText | Annotated[list[StopText], Meta(max_length=16)]
TokenId = Annotated[int, Meta(ge=0, le=(1 << 31) - 1)]
StopIds = Annotated[list[TokenId], Meta(max_length=256)]
BiasKey = Annotated[str, Meta(pattern=r"\A[0-9]{1,10}\Z")]
Bias = Annotated[float, Meta(ge=-100, le=100)]
LogitBias = Annotated[dict[BiasKey, Bias], Meta(max_length=1024)]
Metadata = Annotated[
    dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=512)]], Meta(max_length=16)
]
ServiceTier = Literal["auto", "default", "flex", "scale", "priority", "fast", "ultrafast"]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class TemplateOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`chat_template_kwargs`: a closed list. Nothing that changes what is rendered or executed can pass."""

    enable_thinking: bool | None = None
    thinking: bool | None = None

    def given(self) -> dict[str, bool | str]:
        """The options that were set."""
        return {
            name: value
            for name in ("enable_thinking", "thinking")
            if (value := getattr(self, name)) is not None
        }


def stop_strings(stop: str | list[str] | None) -> tuple[str, ...]:
    """`stop` in its plural form."""
    if stop is None:
        return ()
    return (stop,) if isinstance(stop, str) else tuple(stop)


def bias_pairs(bias: dict[str, float] | None) -> tuple[tuple[int, float], ...]:
    """`logit_bias` with integer ids (their range is the model's to check)."""
    return tuple((int(token), value) for token, value in (bias or {}).items())
