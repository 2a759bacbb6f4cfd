"""Requests that carry a prompt instead of messages → `Ask`s. The only place that decides what their fields mean."""

from __future__ import annotations

from typing import Any

from headrace.runtime.interface import Ask, Tenant
from headrace.server.faces.asks import scoped
from headrace.server.faces.latency import targets_of
from headrace.server.faces.shapes import text_shape
from headrace.server.protocol import fields as f
from headrace.server.protocol.completions import MOST_CHOICES, CompletionPrompt, CompletionRequest
from headrace.server.protocol.errors import WireError

Prompt = str | tuple[int, ...]


def completion_prompts(prompt: CompletionPrompt | None) -> list[Prompt]:
    """The prompts in their plural form. Raises WireError for a list that is none of the four kinds."""
    if prompt is None:
        raise WireError("missing_required_parameter", "missing field: prompt", "prompt")
    if isinstance(prompt, str):
        return [prompt]
    kinds = {type(entry) for entry in prompt}
    if kinds == {int}:
        return [tuple(entry for entry in prompt if isinstance(entry, int))]
    if len(kinds) > 1:
        raise WireError(
            "invalid_value", "prompt: a list holds texts, token ids or lists of ids, not both", "prompt"
        )
    check_count(len(prompt), "prompt")
    found: list[Prompt] = []
    for index, entry in enumerate(prompt):
        if not entry:
            raise WireError(
                "invalid_value", f"prompt[{index}] is empty: there is no token to start from", "prompt"
            )
        assert not isinstance(entry, int)
        found.append(entry if isinstance(entry, str) else tuple(entry))
    return found


def check_count(choices: int, name: str) -> None:
    """Raise WireError if one request asks for more answers than may be asked for at once."""
    if choices > MOST_CHOICES:
        raise WireError("invalid_value", f"{name}: at most {MOST_CHOICES} answers in one request", name)


def completion_asks(request: CompletionRequest, tenant: Tenant) -> list[Ask]:
    """One Ask for each prompt of a completion. Raises WireError or Refusal."""
    if request.suffix:
        raise WireError(
            "unsupported_parameter", "suffix is not supported: this model does not fill in", "suffix"
        )
    f.check_supported(request)
    copies = request.n or 1
    if request.best_of is not None and request.best_of != copies:
        raise WireError(
            "unsupported_parameter",
            "best_of other than n is not supported: answers are not ranked",
            "best_of",
        )
    if request.max_tokens == 0 and copies > 1:
        raise WireError("invalid_value", "n: with max_tokens 0 there is one answer", "n")
    prompts = completion_prompts(request.prompt)
    check_count(len(prompts) * copies, "n")
    common: dict[str, Any] = {
        "tenant": scoped(tenant, request.cache_salt),
        # A generation has at least one token; where none is wanted nobody is told of it.
        "max_tokens": 16 if request.max_tokens is None else max(1, request.max_tokens),
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
        "shape": text_shape(request.regex, None, "regex"),
        "logprobs": request.logprobs,
        "prompt_logprobs": 0 if request.echo and request.logprobs is not None else None,
        "echo": bool(request.echo),
        "targets": targets_of(request),
        "param_names": {"stop_ids": "stop_token_ids", "messages": "prompt", "shape": "regex"},
    }
    return [Ask(prompt=prompt, **common) for prompt in prompts]
