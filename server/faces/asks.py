"""Requests of the OpenAI shapes → `Ask`. The only place that decides what a field means to the engine."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Literal

from headrace.runtime.interface import Ask, Message, ModelCard, Picture, Tenant
from headrace.server.faces.latency import targets_of
from headrace.server.faces.pictures import picture
from headrace.server.faces.pinned import lifetime
from headrace.server.faces.shapes import chat_shape, response_shape
from headrace.server.faces.telemetry import TELEMETRY
from headrace.server.faces.tool_asks import chat_calls, chat_tools, response_tools
from headrace.server.faces.tool_items import Turns, check_outputs
from headrace.server.protocol import fields as f
from headrace.server.protocol.chat import ChatMessage, ChatRequest
from headrace.server.protocol.codec import compact
from headrace.server.protocol.errors import WireError
from headrace.server.protocol.realtime import Options
from headrace.server.protocol.responses import Item, Part, ResponseRequest
from headrace.server.protocol.tokenizing import TokenizeRequest

LOGPROBS = "message.output_text.logprobs"
_MEDIA = {"input_file": "files", "input_audio": "audio"}
_CHAT_MEDIA = {"input_audio": "audio", "file": "files", "video_url": "video"}


def check_model(name: str | None, card: ModelCard, aliases: Iterable[str]) -> None:
    """Raise WireError unless `name` is the served model: never answer with whatever is loaded."""
    if name is None:
        raise WireError("missing_required_parameter", "missing field: model", "model")
    if name != card.id and name not in aliases:
        raise WireError("model_not_found", f"The model '{name[:200]}' does not exist.", "model")


def scoped(tenant: Tenant, cache_salt: str | None) -> Tenant:
    """The tenant whose cached prompts this request may share."""
    # The tenant's own salt stays a part: a client can narrow its sharing, never widen it.
    return tenant if cache_salt is None else replace(tenant, salt=f"{tenant.salt}\n{cache_salt}")


# -- Responses -------------------------------------------------------------------------------------------------


def response_messages(given: str | list[Item] | None, tenant: Tenant) -> tuple[Message, ...]:
    """A request's own input as messages. Raises WireError for items that are not understood.

    tenant: whose compacted conversations may stand in it."""
    if given is None:
        return ()
    if isinstance(given, str):
        return (Message("user", given),) if given else ()
    turns = Turns(_part_text, tenant)
    for index, item in enumerate(given):
        path = f"input[{index}]"
        if not turns.add_item(item, path):
            turns.add(_item_message(item, path))
    return turns.turns()


def _item_message(item: Item, path: str) -> Message:
    if item.type not in (None, "message"):
        raise WireError(
            "unsupported_parameter", f"{path}: items of type '{item.type[:200]}' are not supported", path
        )
    if item.role is None:
        raise WireError("missing_required_parameter", f"missing field: {path}.role", f"{path}.role")
    if item.content is None:
        raise WireError("missing_required_parameter", f"missing field: {path}.content", f"{path}.content")
    role = "system" if item.role == "developer" else item.role
    if isinstance(item.content, str):
        return Message(role, item.content)
    text = ""
    pictures: list[Picture] = []
    for i, part in enumerate(item.content):
        at = f"{path}.content[{i}]"
        if part.type == "input_image":
            if compact(part.file_id) != "null":
                raise WireError(
                    "unsupported_parameter", f"{at}.file_id: no files are kept here", f"{at}.file_id"
                )
            pictures.append(picture(part.image_url, part.detail, len(text), at))
        else:
            text += _part_text(part, at)
    return Message(role, text, pictures=tuple(pictures))


def _part_text(part: Part, path: str) -> str:
    if part.type == "reasoning_text":
        raise WireError("invalid_value", f"{path}: reasoning stands in items of its own", f"{path}.type")
    if part.type == "input_image":
        raise WireError("unsupported_parameter", f"{path}: pictures stand in messages, not in results", path)
    if part.type in _MEDIA:
        raise WireError("unsupported_parameter", f"{path}: {_MEDIA[part.type]} are not supported yet", path)
    name = "refusal" if part.type == "refusal" else "text"
    text = part.refusal if part.type == "refusal" else part.text
    if text is None:
        raise WireError("missing_required_parameter", f"missing field: {path}.{name}", f"{path}.{name}")
    return text


def check_response(request: ResponseRequest) -> None:
    """Raise WireError for what is not offered here."""
    f.check_supported(request)
    _check_response_options(request)
    if request.prompt_cache_options is not None:
        lifetime(request.prompt_cache_options.ttl)
    if request.x_telemetry in ("response", "step") and TELEMETRY in (request.metadata or {}):
        raise WireError(
            "invalid_value", f"metadata.{TELEMETRY}: what x_telemetry asks for goes there", "metadata"
        )


def response_ask(
    request: ResponseRequest,
    history: tuple[Message, ...],
    added: tuple[Message, ...],
    tenant: Tenant,
    *,
    warm_up: bool = False,
) -> Ask:
    """The Ask of a checked Responses request after `history`. Raises WireError or Refusal. A warm-up generates as
    little as the engine can: one token."""
    if not history and not added and not warm_up:
        raise WireError("missing_required_parameter", "input must not be empty", "input")
    check_outputs(request.input, history + added)
    tools = response_tools(request)
    shape, _ = response_shape(request)
    leading = (Message("system", request.instructions),) if request.instructions else ()
    messages = join_leading_system(leading + history + added)
    effort = request.reasoning.effort if request.reasoning else None
    return Ask(
        tenant=scoped(tenant, request.cache_salt),
        messages=messages,
        max_tokens=1 if warm_up else request.max_output_tokens,
        drop_oldest=request.truncation == "auto",
        tools=tools.tools,
        tool_choice=tools.choice,
        logprobs=(request.top_logprobs or 0) if LOGPROBS in (request.include or ()) else None,
        targets=targets_of(request),
        shape=shape,
        param_names={
            "shape": "text.format" if request.regex is None else "regex",
            "max_tokens": "max_output_tokens",
            "logprobs": "top_logprobs",
            "stop_ids": "stop_token_ids",
            "messages": "input",
            "prompt": "input",
            "template_options": "chat_template_kwargs",
        },
        **sampling(request, effort),
    )


def _check_response_options(request: ResponseRequest) -> None:
    if request.top_logprobs and LOGPROBS not in (request.include or ()):
        raise WireError("invalid_value", f"top_logprobs needs '{LOGPROBS}' in include", "top_logprobs")


# -- Chat ------------------------------------------------------------------------------------------------------


def chat_ask(request: ChatRequest, tenant: Tenant) -> Ask:
    """The Ask of a chat completion. Raises WireError or Refusal."""
    f.check_supported(request)
    if request.top_logprobs and not request.logprobs:
        raise WireError("invalid_value", "top_logprobs needs logprobs: true", "top_logprobs")
    messages = chat_messages(request.messages)
    tools = chat_tools(request)
    limit = request.max_completion_tokens
    limit_name = "max_tokens" if limit is None else "max_completion_tokens"
    return Ask(
        tenant=scoped(tenant, request.cache_salt),
        messages=messages,
        ending=chat_ending(request, messages),
        max_tokens=request.max_tokens if limit is None else limit,
        tools=tools.tools,
        tool_choice=tools.choice,
        logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        targets=targets_of(request),
        shape=chat_shape(request),
        param_names={
            "shape": "response_format" if request.regex is None else "regex",
            "max_tokens": limit_name,
            "stop_ids": "stop_token_ids",
            "prompt": "messages",
            "template_options": "chat_template_kwargs",
        },
        **sampling(request, request.reasoning_effort),
    )


def chat_ending(
    request: ChatRequest | TokenizeRequest, messages: tuple[Message, ...]
) -> Literal["answer", "open", "closed"]:
    """Where the prompt of a chat ends (Ask.ending). Raises WireError."""
    name = "continue_final_message"
    if not request.continue_final_message:
        return "closed" if request.add_generation_prompt is False else "answer"
    if request.add_generation_prompt:
        raise WireError("invalid_value", f"{name} and add_generation_prompt cannot both be true", name)
    if not messages or messages[-1].role != "assistant":
        raise WireError("invalid_value", f"{name}: the last message is not the assistant's", name)
    return "open"


def chat_messages(messages: list[ChatMessage]) -> tuple[Message, ...]:
    """The turns of a chat. Raises WireError for parts that are not understood."""
    turns = tuple(_chat_message(message, f"messages[{index}]") for index, message in enumerate(messages))
    _check_results(turns)
    return join_leading_system(turns)


def _chat_message(message: ChatMessage, path: str) -> Message:
    if message.role == "function":
        what = f"{path}: functions are not supported, tools are"
        raise WireError("unsupported_parameter", what, f"{path}.role")
    if message.tool_calls and message.role != "assistant":
        raise WireError("invalid_value", f"{path}: calls are made by an assistant", f"{path}.tool_calls")
    for name in ("function_call", "audio"):
        if compact(getattr(message, name)) not in ("null", "[]"):
            raise WireError("unsupported_parameter", f"{path}.{name} is not supported yet", f"{path}.{name}")
    if message.role == "tool" and message.tool_call_id is None:
        path = f"{path}.tool_call_id"
        raise WireError("missing_required_parameter", f"missing field: {path}", path)
    role = "system" if message.role == "developer" else message.role
    text, pictures = _chat_content(message, path)
    turn = Message(role, text, pictures=pictures)
    if role == "tool":
        return replace(turn, call_id=message.tool_call_id, name=message.name)
    if role == "assistant":
        thought = message.reasoning_content or message.reasoning or ""
        return replace(turn, calls=chat_calls(message.tool_calls), reasoning=thought)
    return turn


def _check_results(messages: tuple[Message, ...]) -> None:
    known: set[str] = set()
    for index, message in enumerate(messages):
        known.update(call.id for call in message.calls)
        if message.call_id is not None and message.call_id not in known:
            path = f"messages[{index}].tool_call_id"
            raise WireError("invalid_value", f"{path}: no call before it has this id", path)


def _chat_content(message: ChatMessage, path: str) -> tuple[str, tuple[Picture, ...]]:
    content = message.content
    if content is None:
        if message.role != "assistant":
            raise WireError("missing_required_parameter", f"missing field: {path}.content", f"{path}.content")
        return message.refusal or "", ()
    if isinstance(content, str):
        return content, ()
    text = ""
    pictures: list[Picture] = []
    for i, part in enumerate(content):
        at = f"{path}.content[{i}]"
        if part.type in _CHAT_MEDIA:
            raise WireError(
                "unsupported_parameter", f"{at}: {_CHAT_MEDIA[part.type]} are not supported yet", at
            )
        if part.type == "image_url":
            pictures.append(picture(part.image_url, None, len(text), at))
            continue
        name = "refusal" if part.type == "refusal" else "text"
        said = part.refusal if part.type == "refusal" else part.text
        if said is None:
            raise WireError("missing_required_parameter", f"missing field: {at}.{name}", f"{at}.{name}")
        text += said
    return text, tuple(pictures)


# -- Both ------------------------------------------------------------------------------------------------------


def join_leading_system(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """All system messages before the first other one become one: many templates allow only one."""
    count = 0
    while count < len(messages) and messages[count].role == "system" and not messages[count].pictures:
        count += 1
    if count < 2:
        return messages
    joined = "\n\n".join(message.content for message in messages[:count])
    return (Message("system", joined), *messages[count:])


def sampling(request: ResponseRequest | ChatRequest | Options, effort: str | None) -> dict[str, Any]:
    """The fields of Ask that both endpoints spell alike."""
    options: dict[str, bool | str] = {}
    if effort is not None:
        options["enable_thinking"] = effort != "none"
    if request.chat_template_kwargs is not None:
        options |= request.chat_template_kwargs.given()
    return {
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_k": request.top_k,
        "min_p": request.min_p,
        "repetition_penalty": request.repetition_penalty,
        "presence_penalty": request.presence_penalty or 0.0,
        "frequency_penalty": request.frequency_penalty or 0.0,
        "logit_bias": f.bias_pairs(request.logit_bias),
        "seed": request.seed,
        "stop": f.stop_strings(request.stop),
        "stop_ids": tuple(request.stop_token_ids or ()),
        "ignore_eos": bool(request.ignore_eos),
        "min_tokens": request.min_tokens or 0,
        "template_options": options,
    }
