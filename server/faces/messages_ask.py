"""Requests of the Anthropic shape → `Ask`: the only place that decides what a field of /v1/messages means."""

from __future__ import annotations

from headrace.runtime.interface import Ask, Message, Tenant
from headrace.server.faces.asks import join_leading_system, scoped
from headrace.server.protocol import fields as f
from headrace.server.protocol.codec import compact
from headrace.server.protocol.errors import WireError
from headrace.server.protocol.messages import Block, CountTokensRequest, MessagesRequest, Turn

_NAMES = {
    "stop": "stop_sequences",
    "prompt": "messages",
    "template_options": "chat_template_kwargs",
}
_THOUGHT = frozenset({"thinking", "redacted_thinking"})
_MEDIA = {"image": "images", "document": "documents", "search_result": "search results"}


def messages_ask(request: MessagesRequest, tenant: Tenant) -> Ask:
    """The Ask of one answer. Raises WireError or Refusal."""
    return Ask(
        tenant=scoped(tenant, request.cache_salt),
        messages=prompt_messages(request),
        max_tokens=request.max_tokens,
        fit=True,
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k,
        min_p=request.min_p,
        repetition_penalty=request.repetition_penalty,
        seed=request.seed,
        stop=tuple(request.stop_sequences or ()),
        ignore_eos=bool(request.ignore_eos),
        min_tokens=request.min_tokens or 0,
        template_options=_options(request),
        param_names=_NAMES,
    )


def count_ask(request: CountTokensRequest, tenant: Tenant) -> Ask:
    """An Ask with the same prompt, to be counted only. Raises WireError or Refusal."""
    return Ask(
        tenant=tenant,
        messages=prompt_messages(request),
        template_options=_options(request),
        param_names=_NAMES,
    )


def prompt_messages(request: CountTokensRequest) -> tuple[Message, ...]:
    """System text and turns as messages; neighbours of one role become one turn. Raises WireError."""
    f.check_supported(request)
    config = request.output_config
    if config is not None and compact(config.format) not in ("null", '{"type":"text"}'):
        raise WireError("unsupported_parameter", "output_config.format is not supported yet", "output_config")
    messages: list[Message] = []
    if isinstance(request.system, str):
        system = request.system
    else:
        system = "\n\n".join(block.text for block in request.system or ())
    if system:
        messages.append(Message("system", system))
    for index, turn in enumerate(request.messages):
        text = _turn_text(turn, f"messages[{index}]")
        if turn.role != "system" and messages and messages[-1].role == turn.role:
            text = f"{messages.pop().content}\n\n{text}"
        messages.append(Message(turn.role, text))
    if messages[-1].role == "assistant":
        # The template would close this turn and open another: the answer would not continue it.
        raise WireError(
            "unsupported_parameter",
            "messages: the last one is the assistant's; continuing it (prefill) is not supported yet",
            "messages",
        )
    return join_leading_system(tuple(messages))


def _turn_text(turn: Turn, path: str) -> str:
    if isinstance(turn.content, str):
        return turn.content
    texts = [_block_text(block, f"{path}.content[{i}]") for i, block in enumerate(turn.content)]
    return "".join(text for text in texts if text is not None)


def _block_text(block: Block, path: str) -> str | None:
    if block.type in _THOUGHT:
        return None  # a replayed thought is not part of the next prompt
    if block.type == "text":
        if block.text is None:
            raise WireError("missing_required_parameter", f"missing field: {path}.text", f"{path}.text")
        return block.text
    if block.type in _MEDIA:
        raise WireError("unsupported_parameter", f"{path}: {_MEDIA[block.type]} are not supported yet", path)
    raise WireError(
        "unsupported_parameter", f"{path}: blocks of type '{block.type[:200]}' are not supported", path
    )


def _options(request: CountTokensRequest) -> dict[str, bool | str]:
    options: dict[str, bool | str] = {}
    if request.thinking is not None:
        options["enable_thinking"] = request.thinking.type != "disabled"
    if request.chat_template_kwargs is not None:
        options |= request.chat_template_kwargs.given()
    return options
