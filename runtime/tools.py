"""Tools that a model may call, as an ask carries them. Knows schemas; knows no protocol and no template."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that an assistant made. `arguments` is the text of one JSON object. `id` is what its result names.

    custom: the tool takes free text, which is the member `input` of that object.
    """

    id: str
    name: str
    arguments: str
    custom: bool = False


@dataclass(frozen=True, slots=True)
class TextForm:
    """What a text must look like, whatever the model would rather write: `definition` is a grammar in Lark, or a
    regex that the whole text matches. place: where it stands on the wire, for a Refusal."""

    syntax: Literal["lark", "regex"]
    definition: str
    place: str = "tools"


@dataclass(frozen=True, slots=True)
class Tool:
    """One function. `parameters` is the JSON schema of its arguments, plain values only; None: any object.

    strict: the arguments must follow the schema, whatever the model would rather write. form: the tool takes free
    text, which is the member `input` of its arguments and has this form.
    """

    name: str
    description: str | None = None
    parameters: Mapping[str, Any] | None = None
    strict: bool = False
    form: TextForm | None = None

    @property
    def characters(self) -> int:
        """About how much text it adds to a prompt; at most what the prompt's preparation is charged for."""
        return len(self.name) + len(self.description or "") + len(str(self.parameters))

    def described(self) -> dict[str, Any]:
        """The shape in which chat templates take tools."""
        function: dict[str, Any] = {"name": self.name}
        if self.description is not None:
            function["description"] = self.description
        function["parameters"] = self.parameters or {"type": "object", "properties": {}}
        return {"type": "function", "function": function}


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """Which of an ask's tools may be called, and whether one must be.

    auto: the model decides. required: the answer is at least one call. none: calls are not looked for.
    only: the names that may be called; None: all. parallel: several calls may follow one another.
    """

    mode: Literal["auto", "required", "none"] = "auto"
    only: frozenset[str] | None = None
    parallel: bool = True


AUTO = ToolChoice()
