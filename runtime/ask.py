"""What a client asks for, in any protocol: frozen, and checked at birth. Knows no model and no wire format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from headrace.runtime.claim import UNTARGETED, Targets
from headrace.runtime.logprobs import MOST_TOP
from headrace.runtime.refusal import Refusal
from headrace.runtime.shape import AnswerShape
from headrace.runtime.tools import AUTO, Tool, ToolCall, ToolChoice


@dataclass(frozen=True, slots=True)
class Tenant:
    """Who may share cached work: the owner of one API key (or everybody, where no key is set).

    salt: of cached work, another one in every process. secret: what is sealed for this tenant is sealed with it,
    the same in every process; empty where there are no keys."""

    id: str
    salt: str
    secret: bytes = field(default=b"", repr=False)
    weight: float = 1.0  # of its share of the server, beside others


PUBLIC_TENANT = Tenant("public", "public")


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture of a message, in front of character `at` of its text.

    source: a data URL or the bytes of an image file, as the client sent it; nothing in it is trusted yet. small:
    the client is content with little of it (`detail: low`). name: where it stands on the wire, for a Refusal."""

    at: int
    source: str | bytes = field(repr=False)
    small: bool = False
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation. role: system, user, assistant (developer is mapped to system by the face), tool.

    An assistant's turn may hold `reasoning` and `calls` beside its text. A tool's turn is the result of one call:
    `call_id` names the call, `name` the tool where the client said it. `pictures`: in the order of their places in
    `content`.
    """

    role: str
    content: str
    calls: tuple[ToolCall, ...] = ()
    call_id: str | None = None
    name: str | None = None
    reasoning: str = ""
    pictures: tuple[Picture, ...] = ()

    @property
    def texts(self) -> tuple[str, ...]:
        """Everything in it that a client wrote: what is measured, checked, and kept apart from special tokens."""
        said = [self.content, self.reasoning, self.call_id or "", self.name or ""]
        for call in self.calls:
            said += (call.id, call.name, call.arguments)
        return tuple(said)

    @property
    def picture_bytes(self) -> int:
        """About what its pictures take as they were sent."""
        return sum(len(picture.source) for picture in self.pictures)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What a client asks for, in any protocol. Exactly one of `messages` and `prompt` is given.

    None means "not said": the model's own defaults (generation_config) or the neutral value are taken.
    `param_names` maps a field of Ask to the name it has on the wire, for the `param` of a Refusal.
    `logprobs`: each output token comes with its logprob and those of so many most likely tokens (None: not at
    all). `prompt_logprobs`: those of the prompt are wanted too, from this index on. `doubt`: how sure the model is
    of each token is kept for the server itself (`TokenStream.doubt`). `echo`: the prompt's ids are given back.
    `ending`: where the prompt of `messages` ends: at the beginning of an answer; inside of the last message
    ("open"), which the answer goes on with; or behind it ("closed").
    Ranges are checked at birth: Refusal("invalid_value") names the field.
    """

    tenant: Tenant = PUBLIC_TENANT
    messages: tuple[Message, ...] | None = None
    prompt: str | tuple[int, ...] | None = None
    max_tokens: int | None = None
    fit: bool = False  # max_tokens beyond what the context has room for is cut to it, not refused
    min_tokens: int = 0
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    doubt: bool = False
    echo: bool = False
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = AUTO
    shape: AnswerShape | None = None
    template_options: Mapping[str, bool | str] = field(default_factory=dict)
    ending: Literal["answer", "open", "closed"] = "answer"
    drop_oldest: bool = (
        False  # a conversation that is too long loses its oldest turns, instead of being refused
    )
    targets: Targets = UNTARGETED
    param_names: Mapping[str, str] = field(default_factory=dict)

    @property
    def pictures(self) -> list[Picture]:
        """All of its messages', in order."""
        return [picture for message in self.messages or () for picture in message.pictures]

    def __post_init__(self) -> None:
        if (self.messages is None) == (self.prompt is None):
            raise Refusal("missing_required_parameter", "give messages or a prompt, and only one of them")
        self._within("max_tokens", self.max_tokens, 1, 1 << 31)
        self._within("min_tokens", self.min_tokens, 0, 1 << 31)
        self._within("temperature", self.temperature, 0.0, 2.0)
        self._within("top_k", self.top_k, -1, 1 << 31)
        self._within("top_p", self.top_p, 0.0, 1.0)
        if self.top_p == 0.0:
            raise self._refuse("top_p", "must be greater than 0")
        self._within("min_p", self.min_p, 0.0, 1.0)
        self._within("repetition_penalty", self.repetition_penalty, 0.01, 100.0)
        self._within("presence_penalty", self.presence_penalty, -2.0, 2.0)
        self._within("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        self._within("seed", self.seed, -(1 << 63), (1 << 64) - 1)
        self._within("logprobs", self.logprobs, 0, MOST_TOP)
        self._within("prompt_logprobs", self.prompt_logprobs, 0, 1 << 31)
        if len(self.stop) > 16:
            raise self._refuse("stop", "has at most 16 strings")
        if any(not 1 <= len(text) <= 256 for text in self.stop):
            raise self._refuse("stop", "strings have 1 to 256 characters")
        if len(self.stop_ids) > 256:
            raise self._refuse("stop_ids", "has at most 256 ids")
        if len(self.logit_bias) > 1024:
            raise self._refuse("logit_bias", "has at most 1024 entries")
        if any(not -100.0 <= bias <= 100.0 for _, bias in self.logit_bias):
            raise self._refuse("logit_bias", "values lie between -100 and 100")
        if self.ending == "open":
            self._check_open()

    @property
    def guided(self) -> bool:
        """The answer may have to follow a grammar: it is known once it is known how the model writes calls."""
        return (
            self.shape is not None
            or self.tool_choice.mode == "required"
            or any(tool.form is not None for tool in self.callable_tools)
        )

    @property
    def guide(self) -> str:
        """The name, in the client's own protocol, of what makes the answer follow a grammar."""
        if self.shape is not None:
            return self.wire_name("shape")
        return self.wire_name("tool_choice" if self.tool_choice.mode == "required" else "tools")

    @property
    def characters(self) -> int:
        """How much text it has to prepare, pictures as they were sent included."""
        if self.messages is not None:
            said = sum(len(text) for message in self.messages for text in message.texts)
            said += sum(message.picture_bytes for message in self.messages)
            return said + sum(tool.characters for tool in self.tools)
        assert self.prompt is not None
        return len(self.prompt)

    @property
    def callable_tools(self) -> tuple[Tool, ...]:
        """The tools whose calls count, by the tool choice."""
        only = self.tool_choice.only
        if self.tool_choice.mode == "none":
            return ()
        return tuple(tool for tool in self.tools if only is None or tool.name in only)

    def wire_name(self, name: str) -> str:
        """The name of Ask field `name` in the client's own protocol."""
        return self.param_names.get(name, name)

    def _check_open(self) -> None:
        assert self.messages, "only a message can be continued"
        if self.messages[-1].calls:
            raise self._refuse("messages", "ends with a turn that calls tools, which cannot be continued")
        if self.tool_choice.mode == "required":
            raise self._refuse("tool_choice", "cannot ask for a call where the answer goes on with a text")

    def _refuse(self, name: str, what: str) -> Refusal:
        wire = self.wire_name(name)
        return Refusal("invalid_value", f"{wire} {what}", wire)

    def _within(self, name: str, value: float | None, low: float, high: float) -> None:
        # Written so that a NaN is refused too.
        if value is not None and not low <= value <= high:
            raise self._refuse(name, f"must be between {low} and {high}")
