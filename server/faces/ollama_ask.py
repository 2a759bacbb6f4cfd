"""Requests of Ollama's shape → `Ask`: the only place that decides what a field of /api means to the engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from headrace.runtime.interface import AnswerShape, Ask, Message, ModelCard, Picture, Tenant, Tool, ToolCall
from headrace.server.faces.asks import check_model, join_leading_system
from headrace.server.faces.offered import check_offered, offered
from headrace.server.ids import new_id
from headrace.server.protocol import fields as f
from headrace.server.protocol import ollama as o
from headrace.server.protocol.codec import free_form
from headrace.server.protocol.errors import WireError

_NAMES = {
    "max_tokens": "options.num_predict",
    "temperature": "options.temperature",
    "top_p": "options.top_p",
    "top_k": "options.top_k",
    "min_p": "options.min_p",
    "repetition_penalty": "options.repeat_penalty",
    "presence_penalty": "options.presence_penalty",
    "frequency_penalty": "options.frequency_penalty",
    "seed": "options.seed",
    "stop": "options.stop",
    "template_options": "think",
    "logprobs": "top_logprobs",
    "shape": "format",
}


def check_ollama_model(name: str | None, card: ModelCard, aliases: frozenset[str]) -> None:
    """Raise WireError unless `name` is the served model, with or without Ollama's tag."""
    bare = None if name is None else name.removesuffix(":latest")
    try:
        check_model(bare, card, aliases)
    except WireError as error:
        if error.code != "model_not_found" or name is None:
            raise
        raise WireError("model_not_found", f"model '{name[:200]}' not found", "model") from None


def chat_ask(request: o.OllamaChatRequest, tenant: Tenant) -> Ask | None:
    """The Ask of a chat, or None where nothing is asked and the model only has to be there."""
    _check(request)
    if not request.messages:
        return None
    messages = _messages(request.messages)
    if messages[-1] == Message("assistant", ""):
        messages = messages[:-1]  # nothing to go on with: the answer begins by itself
    return _ask(
        request,
        tenant,
        "messages",
        messages=join_leading_system(messages),
        ending="open" if messages and messages[-1].role == "assistant" else "answer",
        tools=_tools(request),
    )


def generate_ask(request: o.OllamaGenerateRequest, tenant: Tenant) -> Ask | None:
    """The Ask of a completion, or None where nothing is asked and the model only has to be there."""
    _check(request)
    if not request.prompt:
        return None
    if request.raw:
        for name in ("system", "images"):
            if getattr(request, name):
                raise WireError("invalid_value", f"{name} has no place in a raw prompt", name)
        return _ask(request, tenant, "prompt", prompt=request.prompt)
    system = (Message("system", request.system),) if request.system else ()
    user = Message("user", request.prompt, pictures=_pictures(request.images, "images"))
    return _ask(request, tenant, "prompt", messages=(*system, user))


def _check(request: o.OllamaRequest) -> None:
    f.check_supported(request)
    if request.top_logprobs and not request.logprobs:
        raise WireError("invalid_value", "top_logprobs needs logprobs: true", "top_logprobs")
    if request.options is not None:
        try:
            f.check_supported(request.options)
        except WireError as error:
            name = f"options.{error.param}"
            raise WireError(error.code, f"{name} is not supported by this server", name) from None


def _messages(given: Sequence[o.OllamaMessage]) -> tuple[Message, ...]:
    """Messages of ours. A result that names no call belongs to the oldest one without a result: by the tool's name,
    where the message says it, else by its place."""
    messages: list[Message] = []
    waiting: list[ToolCall] = []
    for index, message in enumerate(given):
        path = f"messages[{index}]"
        pictures = _pictures(message.images, f"{path}.images")
        if pictures and message.role != "user":
            raise WireError(
                "unsupported_parameter", f"{path}.images: only the user shows pictures", f"{path}.images"
            )
        content = message.content or ""
        if message.role == "tool":
            call_id = message.tool_call_id or _oldest(waiting, message.tool_name, path)
            waiting = [call for call in waiting if call.id != call_id]
            messages.append(Message("tool", content, call_id=call_id, name=message.tool_name))
            continue
        calls = tuple(
            _call(call, f"{path}.tool_calls[{i}]") for i, call in enumerate(message.tool_calls or ())
        )
        waiting += calls
        messages.append(
            Message(message.role, content, calls=calls, reasoning=message.thinking or "", pictures=pictures)
        )
    return tuple(messages)


def _pictures(images: Sequence[str] | None, path: str) -> tuple[Picture, ...]:
    """Pictures in front of a text. Ollama names no type; which one it is, the picture itself says."""
    return tuple(
        Picture(0, f"data:image/png;base64,{each}", name=f"{path}[{i}]")
        for i, each in enumerate(images or ())
    )


def _call(call: o.OllamaCall, path: str) -> ToolCall:
    at = f"{path}.function.arguments"
    arguments = free_form(call.function.arguments, at)
    if arguments is not None and not isinstance(arguments, dict):
        raise WireError("invalid_value", f"{at} must be an object", at)
    text = "{}" if arguments is None else bytes(call.function.arguments).decode()
    return ToolCall(call.id or new_id("call"), call.function.name, text)


def _oldest(waiting: Sequence[ToolCall], name: str | None, path: str) -> str:
    for call in waiting:
        if name is None or call.name == name:
            return call.id
    what = "a result of a tool" if name is None else f"a result of '{name[:200]}'"
    raise WireError("invalid_value", f"{path}: {what} that no message before it calls", path)


def _tools(request: o.OllamaChatRequest) -> tuple[Tool, ...]:
    tools = [
        offered(
            tool.function.name,
            tool.function.description,
            tool.function.parameters,
            f"tools[{index}].function.parameters",
        )
        for index, tool in enumerate(request.tools or ())
    ]
    check_offered(tools)
    return tuple(tools)


def _shape(request: o.OllamaRequest) -> AnswerShape | None:
    form = free_form(request.format, "format")
    if form in (None, ""):
        return None
    if form == "json":
        return AnswerShape()
    if not isinstance(form, dict):
        raise WireError("invalid_value", 'format is "json" or a JSON schema', "format")
    return AnswerShape(form)


def _ask(request: o.OllamaRequest, tenant: Tenant, text: str, **given: Any) -> Ask:
    options = request.options or o.OllamaOptions()
    limit = options.num_predict
    if limit == 0:
        raise WireError(
            "invalid_value", "options.num_predict: nothing to generate with 0", "options.num_predict"
        )
    return Ask(
        tenant=tenant,
        max_tokens=None if limit is None or limit < 0 else limit,
        fit=True,
        temperature=options.temperature,
        top_p=options.top_p,
        top_k=options.top_k,
        min_p=options.min_p,
        repetition_penalty=options.repeat_penalty,
        presence_penalty=options.presence_penalty or 0.0,
        frequency_penalty=options.frequency_penalty or 0.0,
        seed=options.seed,
        stop=f.stop_strings(options.stop),
        ignore_eos=bool(options.ignore_eos),
        shape=_shape(request),
        logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        template_options={}
        if request.think is None
        else {"enable_thinking": request.think not in (False, "none")},
        param_names={**_NAMES, "messages": text, "prompt": text},
        **given,
    )
