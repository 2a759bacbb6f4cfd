"""What a step needs beside its rows: who must follow a grammar, which rows shall tell logprobs, and who hears them.
Ids and lengths only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from headrace.runtime.plan import PlanRow, Probe, SlotMask, StepPlan, StepResult
from headrace.runtime.request import Req
from headrace.runtime.retired import Retired


def masks_of(
    decoding: Sequence[Req], prefill: Sequence[PlanRow], running: Mapping[int, Req]
) -> tuple[SlotMask, ...]:
    """The grammars of the rows that sample. decoding, running: as for `probes_of`."""
    sampling = [*decoding, *(running[row.req_id] for row in prefill if row.sample)]
    return tuple(
        SlotMask(req.slot, req.grammar)
        for req in sampling
        if req.grammar is not None and req.slot is not None
    )


def probes_of(
    decoding: Sequence[Req], prefill: Sequence[PlanRow], running: Mapping[int, Req]
) -> tuple[Probe, ...]:
    """What the rows of a step shall tell of their logits. What is asked of a prompt counts as launched.

    decoding: the requests of the decode rows. running: by id, the requests of the others."""
    probes = [
        Probe(index, req.logprobs.top, 0, ())
        for index, req in enumerate(decoding)
        if req.logprobs is not None
    ]
    for index, row in enumerate(prefill, len(decoding)):
        req = running[row.req_id]
        wish = req.logprobs
        if wish is not None:
            first, count = wish.take(row.start, row.count, req.prompt_len)
            if count or row.sample:
                ids = tuple(req.tokens[first : first + count])
                probes.append(Probe(index, wish.top, first - row.start - 1 if count else 0, ids))
    return tuple(probes)


def tell_logprobs(
    plan: StepPlan, result: StepResult, events: Sequence[Retired], running: Mapping[int, Req]
) -> None:
    """Hand what the probes of `plan` found to the prompts and to the events of its retirement.

    running: the requests that are still there; who ended in this very step is among the events."""
    found = result.logprobs
    assert found is not None, "a step with probes brings logprobs"
    event_of = {event.req.id: event for event in events}
    place = 0
    for probe in plan.probes:
        chunk = probe.row - len(plan.decode)
        row = plan.decode[probe.row] if chunk < 0 else plan.prefill[chunk]
        event = event_of.get(row.req_id)
        if probe.ids:
            req = running.get(row.req_id) if event is None else event.req
            if req is not None and req.logprobs is not None:
                req.logprobs.prompt.append(found, place, len(probe.ids))
            place += len(probe.ids)
        if row.sample:
            if event is not None and event.token is not None:
                event.logprob = found.at(place, event.token, probe.top)
            place += 1
    assert place == len(found), "one place per wanted logprob"
