"""Requests of POST /generate → `Ask`s. The only place that decides what their fields mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from headrace.runtime.interface import Ask, Targets, Tenant
from headrace.server.faces.asks import scoped
from headrace.server.faces.latency import Wish, targets_of
from headrace.server.faces.prompt_asks import Prompt, check_count
from headrace.server.faces.shapes import text_shape
from headrace.server.ids import new_id
from headrace.server.protocol import fields as f
from headrace.server.protocol.errors import WireError
from headrace.server.protocol.generate import MOST_PROMPTS, GenerateRequest, SamplingFields

T = TypeVar("T")
_SPELLED = {
    "max_tokens": "sampling_params.max_new_tokens",
    "min_tokens": "sampling_params.min_new_tokens",
    "stop_ids": "sampling_params.stop_token_ids",
    "logit_bias": "sampling_params.logit_bias",
    "logprobs": "top_logprobs_num",
    "prompt_logprobs": "logprob_start_len",
}


@dataclass(frozen=True, slots=True)
class Wanted:
    """What one request wants. `copies` answers to each ask; `names[i]` is what the client called prompt i, and
    `rids[i]` what its answers are called. many: the reply is a list. silent[i]: what is generated for prompt
    i is none of its answer."""

    asks: list[Ask]
    copies: int
    names: list[str]
    rids: list[str]
    many: bool
    silent: list[bool]
    texts: bool  # logprobs name their tokens


def generate_wishes(request: GenerateRequest, tenant: Tenant) -> Wanted:
    """Raises WireError or Refusal."""
    f.check_supported(request)
    prompts, listed, name = _prompts(request)
    count = len(prompts)
    sampling = _each(request.sampling_params, SamplingFields(), count, "sampling_params")
    for fields in sampling:
        _check_sampling(fields)
    numbers = {fields.n or 1 for fields in sampling}
    if len(numbers) > 1:
        raise WireError("invalid_value", "sampling_params: n is the same for all prompts", "sampling_params")
    copies = numbers.pop()
    check_count(count * copies, "sampling_params.n")
    if copies > 1 and any(fields.max_new_tokens == 0 for fields in sampling):
        what = "sampling_params.n: with max_new_tokens 0 there is one answer"
        raise WireError("invalid_value", what, "sampling_params.n")
    wanted = _each(request.return_logprob, False, count, "return_logprob")
    starts = _each(request.logprob_start_len, -1, count, "logprob_start_len")
    tops = _each(request.top_logprobs_num, 0, count, "top_logprobs_num")
    own = scoped(scoped(tenant, request.cache_salt), request.extra_key)
    # Here higher priorities go first, as with the server whose endpoint this is.
    targets = targets_of(Wish(request.x_latency, None, -(request.priority or 0)))
    asks = [
        _ask(prompt, fields, own, name, top if told else None, start, targets)
        for prompt, fields, told, start, top in zip(prompts, sampling, wanted, starts, tops, strict=True)
    ]
    names, rids = _rids(request.rid, count, listed)
    return Wanted(
        asks,
        copies,
        names,
        rids,
        listed or copies > 1,
        [fields.max_new_tokens == 0 for fields in sampling],
        bool(request.return_text_in_logprobs),
    )


def _prompts(request: GenerateRequest) -> tuple[list[Prompt], bool, str]:
    """The prompts, whether they came as a list, and the field that held them."""
    if (request.text is None) == (request.input_ids is None):
        raise WireError("missing_required_parameter", "give text or input_ids, and only one of them", "text")
    if request.text is not None:
        listed = not isinstance(request.text, str)
        return ([request.text] if isinstance(request.text, str) else list(request.text)), listed, "text"
    assert request.input_ids is not None
    flat = tuple(entry for entry in request.input_ids if isinstance(entry, int))
    if len(flat) == len(request.input_ids):
        return [flat], False, "input_ids"
    if flat:
        raise WireError("invalid_value", "input_ids: ids or lists of ids, not both", "input_ids")
    if len(request.input_ids) > MOST_PROMPTS:
        raise WireError("invalid_value", f"input_ids: at most {MOST_PROMPTS} prompts", "input_ids")
    return [tuple(entry) for entry in request.input_ids if not isinstance(entry, int)], True, "input_ids"


def _each(given: T | list[T] | None, default: T, count: int, name: str) -> Sequence[T]:
    """One value for each prompt."""
    if given is None:
        return [default] * count
    if not isinstance(given, list):
        return [given] * count
    if len(given) != count:
        raise WireError("invalid_value", f"{name}: {len(given)} values for {count} prompts", name)
    return given


def _rids(rid: str | list[str] | None, count: int, listed: bool) -> tuple[list[str], list[str]]:
    if rid is None:
        fresh = [new_id("gen") for _ in range(count)]
        return fresh, fresh
    if isinstance(rid, str):
        return [rid] * count, [f"{rid}_{index}" for index in range(count)] if listed else [rid]
    if len(rid) != count:
        raise WireError("invalid_value", f"rid: {len(rid)} names for {count} prompts", "rid")
    return rid, rid


def _check_sampling(fields: SamplingFields) -> None:
    try:
        f.check_supported(fields)
    except WireError as error:
        path = f"sampling_params.{error.param}"
        raise WireError(error.code, f"sampling_params.{error.message}", path) from None


def _ask(
    prompt: Prompt,
    fields: SamplingFields,
    tenant: Tenant,
    name: str,
    logprobs: int | None,
    start: int,
    targets: Targets,
) -> Ask:
    return Ask(
        tenant=tenant,
        prompt=prompt,
        # A generation has at least one token; where none is wanted nobody is told of it.
        max_tokens=128 if fields.max_new_tokens is None else max(1, fields.max_new_tokens),
        min_tokens=fields.min_new_tokens or 0,
        temperature=fields.temperature,
        top_p=fields.top_p,
        top_k=fields.top_k,
        min_p=fields.min_p,
        repetition_penalty=fields.repetition_penalty,
        presence_penalty=fields.presence_penalty or 0.0,
        frequency_penalty=fields.frequency_penalty or 0.0,
        logit_bias=f.bias_pairs(fields.logit_bias),
        seed=fields.sampling_seed,
        stop=f.stop_strings(fields.stop),
        stop_ids=tuple(fields.stop_token_ids or ()),
        ignore_eos=bool(fields.ignore_eos),
        shape=text_shape(fields.regex, fields.json_schema, "sampling_params.json_schema"),
        logprobs=logprobs,
        # The token at the start has a place and no logprob, whatever stands before it: so is this shape.
        prompt_logprobs=None if logprobs is None or start < 0 else start + 1,
        echo=logprobs is not None and start >= 0,
        targets=targets,
        param_names={
            **_SPELLED,
            "shape": "sampling_params.json_schema" if fields.regex is None else "sampling_params.regex",
            "prompt": name,
            "messages": name,
        },
    )
