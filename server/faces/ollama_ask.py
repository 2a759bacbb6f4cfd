"""Requests of Ollama's shape → `Ask`: the only place that decides what a field of /api means to the engine."""

from __future__ import annotations

from typing import Any

from headrace.runtime.interface import Ask, Message, ModelCard, Tenant
from headrace.server.faces.asks import check_model, join_leading_system
from headrace.server.protocol import fields as f
from headrace.server.protocol import ollama as o
from headrace.server.protocol.codec import compact
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
    messages = tuple(_message(message, f"messages[{i}]") for i, message in enumerate(request.messages))
    if messages[-1].role == "assistant":
        # The template would close this turn and open another: the answer would not continue it.
        raise WireError(
            "unsupported_parameter",
            "messages: the last one is the assistant's; continuing it is not supported yet",
            "messages",
        )
    return _ask(request, tenant, "messages", messages=join_leading_system(messages))


def generate_ask(request: o.OllamaGenerateRequest, tenant: Tenant) -> Ask | None:
    """The Ask of a completion, or None where nothing is asked and the model only has to be there."""
    _check(request)
    if not request.prompt:
        return None
    if request.raw:
        if request.system:
            raise WireError("invalid_value", "system has no place in a raw prompt", "system")
        return _ask(request, tenant, "prompt", prompt=request.prompt)
    system = (Message("system", request.system),) if request.system else ()
    return _ask(request, tenant, "prompt", messages=(*system, Message("user", request.prompt)))


def _check(request: o.OllamaRequest) -> None:
    f.check_supported(request)
    if request.options is not None:
        try:
            f.check_supported(request.options)
        except WireError as error:
            name = f"options.{error.param}"
            raise WireError(error.code, f"{name} is not supported by this server", name) from None


def _message(message: o.OllamaMessage, path: str) -> Message:
    if message.role == "tool":
        raise WireError("unsupported_parameter", f"{path}: tools are not supported yet", f"{path}.role")
    for name, what in (("images", "images"), ("tool_calls", "tools")):
        if compact(getattr(message, name)) not in ("null", "[]"):
            raise WireError(
                "unsupported_parameter", f"{path}.{name}: {what} are not supported yet", f"{path}.{name}"
            )
    return Message(message.role, message.content or "")


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
        template_options={}
        if request.think is None
        else {"enable_thinking": request.think not in (False, "none")},
        param_names={**_NAMES, "messages": text, "prompt": text},
        **given,
    )
