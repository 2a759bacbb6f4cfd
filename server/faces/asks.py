"""Requests of the OpenAI shapes → `Ask`. The only place that decides what a field means to the engine."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from headrace.runtime.interface import Ask, Message, ModelCard, Tenant
from headrace.server.protocol import fields as f
from headrace.server.protocol.chat import ChatMessage, ChatRequest
from headrace.server.protocol.codec import compact
from headrace.server.protocol.errors import WireError
from headrace.server.protocol.responses import HOSTED_TOOLS, Item, Part, ResponseRequest

_MEDIA = {"input_image": "images", "input_file": "files", "input_audio": "audio"}
_CHAT_MEDIA = {"image_url": "images", "input_audio": "audio", "file": "files", "video_url": "video"}


def check_model(name: str | None, card: ModelCard, aliases: Iterable[str]) -> None:
    """Raise WireError unless `name` is the served model: never answer with whatever is loaded."""
    if name is None:
        raise WireError("missing_required_parameter", "missing field: model", "model")
    if name != card.id and name not in aliases:
        raise WireError("model_not_found", f"The model '{name[:200]}' does not exist.", "model")


def scoped(tenant: Tenant, cache_salt: str | None) -> Tenant:
    """The tenant whose cached prompts this request may share."""
    # The tenant's own salt stays a part: a client can narrow its sharing, never widen it.
    return tenant if cache_salt is None else Tenant(tenant.id, f"{tenant.salt}\n{cache_salt}")


# -- Responses -------------------------------------------------------------------------------------------------


def response_messages(request: ResponseRequest) -> tuple[Message, ...]:
    """The request's own input as messages. Raises WireError for items that are not understood."""
    if request.input is None:
        return ()
    if isinstance(request.input, str):
        return (Message("user", request.input),) if request.input else ()
    messages = []
    for index, item in enumerate(request.input):
        if message := _item_message(item, f"input[{index}]"):
            messages.append(message)
    return tuple(messages)


def _item_message(item: Item, path: str) -> Message | None:
    if item.type == "reasoning":
        return None  # a replayed thought is not part of the next prompt
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
    texts = [_part_text(part, f"{path}.content[{i}]") for i, part in enumerate(item.content)]
    return Message(role, "".join(texts))


def _part_text(part: Part, path: str) -> str:
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
    leading = (Message("system", request.instructions),) if request.instructions else ()
    messages = join_leading_system(leading + history + added)
    effort = request.reasoning.effort if request.reasoning else None
    return Ask(
        tenant=scoped(tenant, request.cache_salt),
        messages=messages,
        max_tokens=1 if warm_up else request.max_output_tokens,
        drop_oldest=request.truncation == "auto",
        param_names={
            "max_tokens": "max_output_tokens",
            "stop_ids": "stop_token_ids",
            "messages": "input",
            "prompt": "input",
            "template_options": "chat_template_kwargs",
        },
        **_sampling(request, effort),
    )


def _check_response_options(request: ResponseRequest) -> None:
    for index, tool in enumerate(request.tools or ()):
        if tool.type in ("function", "custom"):
            raise WireError(
                "unsupported_parameter", f"tools of type {tool.type} are not supported yet", "tools"
            )
        if tool.type not in HOSTED_TOOLS:
            path = f"tools[{index}].type"
            raise WireError("invalid_value", f"{path}: unknown tool type '{tool.type[:200]}'", path)
    if request.text and request.text.format and request.text.format.type != "text":
        raise WireError("unsupported_parameter", "text.format supports text only, yet", "text.format")
    if "message.output_text.logprobs" in (request.include or ()):
        raise WireError("unsupported_parameter", "logprobs are not supported yet", "include")


# -- Chat ------------------------------------------------------------------------------------------------------


def chat_ask(request: ChatRequest, tenant: Tenant) -> Ask:
    """The Ask of a chat completion. Raises WireError or Refusal."""
    f.check_supported(request)
    if request.response_format and request.response_format.type != "text":
        raise WireError("unsupported_parameter", "response_format supports text only, yet", "response_format")
    messages = tuple(_chat_message(m, f"messages[{i}]") for i, m in enumerate(request.messages))
    limit = request.max_completion_tokens
    limit_name = "max_tokens" if limit is None else "max_completion_tokens"
    return Ask(
        tenant=scoped(tenant, request.cache_salt),
        messages=join_leading_system(messages),
        max_tokens=request.max_tokens if limit is None else limit,
        param_names={
            "max_tokens": limit_name,
            "stop_ids": "stop_token_ids",
            "prompt": "messages",
            "template_options": "chat_template_kwargs",
        },
        **_sampling(request, request.reasoning_effort),
    )


def _chat_message(message: ChatMessage, path: str) -> Message:
    if message.role in ("tool", "function"):
        raise WireError("unsupported_parameter", f"{path}: tools are not supported yet", f"{path}.role")
    for name in ("tool_calls", "function_call", "audio"):
        if compact(getattr(message, name)) not in ("null", "[]"):
            raise WireError("unsupported_parameter", f"{path}.{name} is not supported yet", f"{path}.{name}")
    role = "system" if message.role == "developer" else message.role
    content = message.content
    if content is None:
        if role != "assistant":
            raise WireError("missing_required_parameter", f"missing field: {path}.content", f"{path}.content")
        return Message(role, message.refusal or "")
    if isinstance(content, str):
        return Message(role, content)
    texts = []
    for i, part in enumerate(content):
        at = f"{path}.content[{i}]"
        if part.type in _CHAT_MEDIA:
            raise WireError(
                "unsupported_parameter", f"{at}: {_CHAT_MEDIA[part.type]} are not supported yet", at
            )
        name = "refusal" if part.type == "refusal" else "text"
        text = part.refusal if part.type == "refusal" else part.text
        if text is None:
            raise WireError("missing_required_parameter", f"missing field: {at}.{name}", f"{at}.{name}")
        texts.append(text)
    return Message(role, "".join(texts))


# -- Both ------------------------------------------------------------------------------------------------------


def join_leading_system(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """All system messages before the first other one become one: many templates allow only one."""
    count = 0
    while count < len(messages) and messages[count].role == "system":
        count += 1
    if count < 2:
        return messages
    joined = "\n\n".join(message.content for message in messages[:count])
    return (Message("system", joined), *messages[count:])


def _sampling(request: ResponseRequest | ChatRequest, effort: str | None) -> dict[str, Any]:
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
