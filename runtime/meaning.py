"""What an ask means to the core, once its prompt is known: its parameters, its length, what it wants to know."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from headrace.runtime.ask import Ask
from headrace.runtime.claim import Claim
from headrace.runtime.logprobs import MOST_TOP, LogprobWish
from headrace.runtime.refusal import Refusal
from headrace.runtime.request import Change, Req, SamplingParams

if TYPE_CHECKING:
    from headrace.runtime.interface import Prompter

SEED_MASK = (1 << 64) - 1


def max_len_of(ask: Ask, prompt_len: int, limit: int) -> int:
    """Tokens of the prompt and its longest answer, where `limit` fit. Raises Refusal if that is too many."""
    if prompt_len >= limit:
        raise Refusal(
            "context_length_exceeded",
            f"the prompt has {prompt_len} tokens; with room for an answer, {limit - 1} fit",
            ask.wire_name("messages" if ask.messages is not None else "prompt"),
        )
    if ask.max_tokens is None:
        return limit
    if ask.fit:
        return min(limit, prompt_len + ask.max_tokens)
    if prompt_len + ask.max_tokens > limit:
        raise Refusal(
            "context_length_exceeded",
            f"{prompt_len} prompt tokens and {ask.max_tokens} to generate are more than the {limit} that fit",
            ask.wire_name("max_tokens"),
        )
    return prompt_len + ask.max_tokens


def claim_of(ask: Ask) -> Claim:
    """Whose the ask is, and what it wants of its time."""
    return Claim(ask.tenant.id, ask.tenant.weight, ask.targets)


def following(ask: Ask) -> Ask:
    """The ask of another answer to a prompt that was read already: its first token comes when that one has its
    first, whatever was promised."""
    return replace(ask, prompt_logprobs=None, targets=replace(ask.targets, ttft=None))


def params_of(ask: Ask, prompter: Prompter) -> SamplingParams:
    """What the client said, else what the model folder says, else neutral."""

    def said(name: str, neutral: float) -> Any:
        value = getattr(ask, name)
        return prompter.defaults.get(name, neutral) if value is None else value

    for name, ids in (("stop_ids", ask.stop_ids), ("logit_bias", [i for i, _ in ask.logit_bias])):
        for token in ids:
            if not 0 <= token < prompter.logits_width:
                wire = ask.wire_name(name)
                raise Refusal("invalid_value", f"{wire}: token ids lie in [0, {prompter.logits_width})", wire)
    seed = secrets.randbits(64) if ask.seed is None else ask.seed & SEED_MASK
    return SamplingParams(
        temperature=float(said("temperature", 1.0)),
        top_k=max(0, int(said("top_k", 0))),
        top_p=float(said("top_p", 1.0)),
        min_p=float(said("min_p", 0.0)),
        repetition_penalty=float(said("repetition_penalty", 1.0)),
        presence_penalty=ask.presence_penalty,
        frequency_penalty=ask.frequency_penalty,
        logit_bias=ask.logit_bias,
        seed=seed,
        stop_ids=frozenset(ask.stop_ids) | (frozenset() if ask.ignore_eos else prompter.eos_ids),
        min_tokens=ask.min_tokens,
    )


def wish_of(ask: Ask, prompt_len: int, width: int) -> LogprobWish | None:
    """What the ask wants to know of its tokens. width: how many tokens can be ranked."""
    if ask.doubt:
        return LogprobWish(min(MOST_TOP, width), told=ask.logprobs)
    if ask.logprobs is None:
        return None
    first = None if ask.prompt_logprobs is None else max(1, ask.prompt_logprobs)
    top = min(ask.logprobs, width)
    return LogprobWish(top, None if first is None or first >= prompt_len else first, told=top)


def changed(req: Req, prompt_len: int, ask: Ask, said: Mapping[str, Any], limit: int) -> Change:
    """What a live `req`, whose answer begins behind `prompt_len`, becomes by the fields `said` of `ask`."""
    before = req.changing or Change(req.params, req.max_len)
    fields = {name: getattr(ask, name) for name in said if name != "max_tokens"}
    if "top_k" in fields:
        fields["top_k"] = max(0, fields["top_k"])
    max_len = before.max_len
    if ask.max_tokens is not None:
        # As far as the context goes: an answer that runs is not refused for a wish that is too large. A fork's own
        # prompt reaches into its answer.
        max_len = max(min(prompt_len + ask.max_tokens, limit), req.prompt_len + 1)
    return Change(replace(before.params, **fields), max_len)
