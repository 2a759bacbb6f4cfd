"""Getting to know a server before it is measured: its model, the fields it takes, how it counts prompts."""

from __future__ import annotations

import http.client
import random
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec

from headrace.bench.http_wire import Target
from headrace.bench.load import Crew, LoadError, run
from headrace.bench.prompts import Calibration, calibrate
from headrace.bench.reading import explain_body
from headrace.bench.record import Planned, Trace, Transport
from headrace.bench.transports import DIALECTS, Manner
from headrace.bench.words import WORDS

PROBE_WORDS = (8, 40)
PROBE_TOKENS = 8
# What a server says to a field that it does not take, or to a value.
OFFENDED = ("HTTP 400", "HTTP 422")


class Learned(NamedTuple):
    """How to ask on one transport. notes: what was given up, for the reader of the results."""

    manner: Manner
    calibration: Calibration
    notes: list[str]


def get_json(target: Target, path: str, patience_s: float = 10.0) -> tuple[int, Any]:
    """Status and JSON body of a GET; None for a body that is no JSON. LoadError if nobody answers."""
    status, body = get(target, path, patience_s)
    try:
        return status, msgspec.json.decode(body)
    except msgspec.DecodeError:
        return status, None


def get(target: Target, path: str, patience_s: float = 10.0) -> tuple[int, bytes]:
    """Status and body of a GET. LoadError if nobody answers."""
    link = http.client.HTTPConnection(target.address, target.port, timeout=patience_s)
    headers = {"Host": target.host} | ({"Authorization": f"Bearer {target.key}"} if target.key else {})
    try:
        link.request("GET", target.prefix + path, headers=headers)
        answer = link.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise LoadError(f"no answer from {target.host}: {error}") from None
    finally:
        link.close()


def find_model(target: Target, wanted: str | None) -> dict[str, Any]:
    """The entry of /v1/models for `wanted`, or the first one. A server that keeps no such list needs `wanted`."""
    status, told = get_json(target, "/v1/models")
    if status != 200:
        if wanted:
            return {"id": wanted}
        raise LoadError(
            f"{target.host} does not list its models ({explain_models(status, told)}): say --model"
        )
    models = told.get("data") if isinstance(told, dict) else None
    named = [entry for entry in models or [] if isinstance(entry, dict) and isinstance(entry.get("id"), str)]
    if wanted:
        return next((entry for entry in named if entry["id"] == wanted), {"id": wanted})
    if not named:
        raise LoadError(f"{target.host} lists no model: say --model")
    return named[0]


def explain_models(status: int, told: Any) -> str:
    return explain_body(status, "", msgspec.json.encode(told))


def variants(manner: Manner, transport: Transport) -> Iterator[tuple[Manner, list[str]]]:
    """Ways to ask, the most telling first; each with what it gives up."""
    limits = ("max_tokens", "max_completion_tokens") if transport == "sse-chat" else (manner.limit,)
    usages = (True, False) if DIALECTS[transport].reading is DIALECTS["sse-chat"].reading else (manner.usage,)
    for usage in usages:
        for ignore_eos in (True, False) if manner.ignore_eos else (False,):
            for limit in limits:
                notes = []
                if ignore_eos != manner.ignore_eos:
                    notes.append(
                        "the server does not take ignore_eos: answers may end before their wanted length"
                    )
                if not usage:
                    notes.append("the server does not take stream_options: tokens are counted, not verified")
                changed = {"limit": limit, "usage": usage, "ignore_eos": ignore_eos}
                yield msgspec.structs.replace(manner, **changed), notes


def learn(target: Target, transport: Transport, manner: Manner, patience_s: float) -> Learned:
    """Ask two small questions, with fewer and fewer fields until the server takes them. LoadError with what the
    server said if it takes none."""
    first_error = ""
    for tried, notes in variants(manner, transport):
        traces = ask(target, transport, tried, patience_s)
        error = next((trace.error for trace in traces if trace.error), None)
        if error is None:
            return Learned(tried, count_words(traces, notes), notes)
        first_error = first_error or error
        if not error.startswith(OFFENDED) and "invalid" not in error and "unsupported" not in error:
            break
    raise LoadError(first_error)


def ask(target: Target, transport: Transport, manner: Manner, patience_s: float) -> list[Trace]:
    """Traces of the probes, in the order of PROBE_WORDS."""
    rng = random.Random()  # a prompt that nobody has in a cache
    planned = [
        Planned(
            number=number,
            stream=0,
            turns=(" ".join(rng.choices(WORDS, k=words)),),
            output_tokens=PROBE_TOKENS,
        )
        for number, words in enumerate(PROBE_WORDS)
    ]
    outcome = run(target, transport, manner, planned, Crew(workers=1, patience_s=patience_s))
    return sorted(outcome.run.traces, key=lambda trace: trace.number)


def count_words(traces: list[Trace], notes: list[str]) -> Calibration:
    """How the server counts words. Without its own counts, a common guess, with a note."""
    counted = [
        (words, trace.prompt_tokens)
        for words, trace in zip(PROBE_WORDS, traces, strict=True)
        if trace.prompt_tokens is not None
    ]
    try:
        return calibrate(counted)
    except ValueError:
        notes.append("the server does not count prompts: their lengths are estimates (1.3 tokens a word)")
        return Calibration(1.3, 10.0)
