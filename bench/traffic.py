"""When requests go out and what becomes of them: one function per shape of traffic.

Each takes a `Draw` and yields its requests in the order of their numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Literal

from headrace.bench import arrivals
from headrace.bench.draw import Draw, WorkloadError, WorkloadSettings
from headrace.bench.record import Planned

Cut = Literal["cancel", "close", "reset"]
CUTS: tuple[Cut, ...] = ("cancel", "close", "reset")


def lasting(settings: WorkloadSettings) -> float:
    """Seconds that a time-based workload takes."""
    return settings.duration or 30.0


def count_of(draw: Draw, otherwise: int) -> int:
    """How many requests: as set, else all of the file, else what the shape would take."""
    return draw.settings.requests or (len(draw.lines) if draw.lines is not None else otherwise)


def closed(draw: Draw) -> Iterable[Planned]:
    """Each of `concurrency` streams sends its next request when the one before is answered; 10 waves by default."""
    streams, duration = draw.settings.concurrency, draw.settings.duration
    if not duration:
        for number in range(count_of(draw, 10 * streams)):
            yield draw.request(stream=number % streams)
        return
    if draw.settings.requests or draw.lines is not None or draw.shared is not None:
        raise WorkloadError(
            "a closed loop with a duration takes neither requests, a file nor a shared prefix"
        )
    for stream in range(streams):
        yield draw.request(stream=stream, until=duration)


def at_times(draw: Draw, times: Callable[[int], list[float]]) -> Iterable[Planned]:
    """Open loop: as many requests as set, as the file holds or as arrive within the duration."""
    settings = draw.settings
    if settings.requests and settings.duration:
        raise WorkloadError("an open loop takes requests or a duration, not both")
    expected = max(1, round(settings.rate * lasting(settings)))
    for at in times(expected if settings.duration else count_of(draw, expected)):
        yield draw.request(at=at, stream=draw.number)


def poisson(draw: Draw) -> Iterable[Planned]:
    """Open loop: independent arrivals at `rate`; for 30 s unless set."""
    return at_times(draw, lambda count: arrivals.poisson(count, draw.settings.rate, draw.rng("arrivals")))


def constant(draw: Draw) -> Iterable[Planned]:
    """Open loop: one arrival every 1/rate seconds; for 30 s unless set."""
    return at_times(draw, lambda count: arrivals.constant(count, draw.settings.rate))


def bursts(draw: Draw) -> Iterable[Planned]:
    """Open loop: `burst` arrivals at one instant, `every` so many seconds; 10 bursts by default."""
    settings = draw.settings
    count = count_of(draw, 10 * settings.burst)
    for at in arrivals.bursts(count, settings.burst, settings.every):
        yield draw.request(at=at, stream=draw.number)


def ramp(draw: Draw) -> Iterable[Planned]:
    """Open loop: the rate moves from `rate` to `final_rate` within `duration`."""
    settings = draw.settings
    times = arrivals.ramp(settings.rate, settings.final_rate, lasting(settings), draw.rng("arrivals"))
    for at in times:
        yield draw.request(at=at, stream=draw.number)


def decoders(draw: Draw, duration: float) -> Iterable[Planned]:
    """Streams that decode all the time. Their answers differ in length, so that restarts do not coincide."""
    streams, output = draw.settings.concurrency, draw.settings.output_tokens
    for stream in range(streams):
        tokens = max(1, output - output * stream // (2 * streams))
        yield draw.request(part="decode", stream=stream, until=duration, output_tokens=tokens)


def interfere(draw: Draw) -> Iterable[Planned]:
    """`concurrency` streams decode during all of `duration`; `every` so often a long prompt arrives."""
    settings = draw.settings
    duration = lasting(settings)
    yield from decoders(draw, duration)
    for round_ in range(1, math.ceil(duration / settings.every)):
        yield draw.request(
            part="long",
            stream=draw.number,
            at=round_ * settings.every,
            turns=draw.prompt_of(settings.long_tokens),
            output_tokens=settings.long_output_tokens,
        )


def slow_readers(draw: Draw) -> Iterable[Planned]:
    """A closed loop in which `slow` of the streams do not read for `read_pause` after each token."""
    settings = draw.settings
    slow = settings.slow or settings.concurrency // 2
    if not 0 < slow < settings.concurrency:
        raise WorkloadError("slow readers are measured beside fast ones: slow must be below concurrency")
    for number in range(settings.requests or 4 * settings.concurrency):
        stream = number % settings.concurrency
        if stream < slow:
            yield draw.request(part="slow", stream=stream, read_pause=settings.read_pause)
        else:
            yield draw.request(part="fast", stream=stream)


def abort_storm(draw: Draw) -> Iterable[Planned]:
    """Streams that decode all the time; `every` so often `burst` requests come and leave after at most `cut_after`
    tokens."""
    settings = draw.settings
    duration = lasting(settings)
    yield from decoders(draw, duration)
    for round_ in range(1, math.ceil(duration / settings.every)):
        for place in range(settings.burst):
            leaves = draw.rng(f"leaves/{draw.number}").randint(1, settings.cut_after)
            yield draw.request(
                part="abort",
                stream=draw.number,
                at=round_ * settings.every,
                cut_after=leaves,
                cut=CUTS[place % len(CUTS)],
            )


def reconnect_storm(draw: Draw) -> Iterable[Planned]:
    """Every stream's connection is reset after `cut_after` tokens; all come back at once and ask again."""
    settings = draw.settings
    if settings.output_tokens <= settings.cut_after:
        raise WorkloadError("a reconnect storm cuts answers in their middle: cut_after < output_tokens")
    for number in range(settings.requests or 4 * settings.concurrency):
        stream = number % settings.concurrency
        lost = draw.request(part="lost", stream=stream, cut_after=settings.cut_after, cut="reset")
        yield lost
        yield draw.request(part="again", stream=stream, turns=lost.turns, output_tokens=lost.output_tokens)


def typed(draw: Draw) -> Iterable[Planned]:
    """`concurrency` people type; the text so far is sent at every pause for one token, and the whole at the end.

    The parts "typing" and "sent": a server that keeps what it was shown answers "sent" sooner. Times follow the
    person alone (open loop): phrases of 4 to 12 tokens at `typing_rate`, pauses of 0.3 to 1.5 s, then some reading.
    """
    settings, trace = draw.settings, []
    if settings.turns > 1:
        raise WorkloadError("typed messages stand alone: turns would need the answers to those before")
    for person in range(settings.concurrency):
        at = draw.rng(f"person/{person}").uniform(0.0, 4.0)
        for message in range(max(1, settings.requests // settings.concurrency) if settings.requests else 3):
            rng = draw.rng(f"person/{person}/{message}")
            total = draw.turn_length(rng, first=True)
            whole = draw.prompts.draw(total, rng, draw.shared)
            done = settings.shared_prefix_tokens
            while True:
                phrase = min(rng.randint(4, 12), total - done)
                at += phrase / settings.typing_rate * rng.lognormvariate(0.0, 0.3)
                done += phrase
                if done >= total:
                    break
                trace.append((at, "typing", draw.prompts.first(whole, done), 1))
                at += rng.uniform(0.3, 1.5)
            output = draw.length(settings.output_tokens, rng)
            trace.append((at + 0.2, "sent", whole, output))
            at += 2.0 + min(20.0, output * 0.1) * rng.lognormvariate(0.0, 0.3)
    for at, part, turn, output in sorted(trace, key=lambda entry: entry[0]):
        yield draw.request(part=part, stream=draw.number, at=at, turns=(turn,), output_tokens=output)
