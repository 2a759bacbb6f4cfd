"""A response that only reads its prompt, so that the next one finds it in the cache. Knows no transport."""

from __future__ import annotations

from headrace.runtime.interface import FinishReason, Message, Refusal, TokenStream
from headrace.server.faces.responses import ResponseRun, usage_of
from headrace.server.protocol import response_events as ev
from headrace.server.protocol.responses import ResponseCreate, ResponseRequest


def is_warm_up(request: ResponseRequest) -> bool:
    """Whether the request asks for no answer."""
    options = request.prompt_cache_options
    if options is not None and options.prewarm:
        return True
    return isinstance(request, ResponseCreate) and request.generate is False


def ended_stream(now: float) -> TokenStream:
    """The stream of a warm-up without a prompt: there is nothing to read, and that has succeeded."""
    stream = TokenStream(lambda stream: None, opened=now)
    stream.end(FinishReason.STOP)
    return stream


class WarmUpRun(ResponseRun):
    """created, in_progress, completed with no output. The engine samples one token at the end of every prompt; it
    is told to nobody and counts for nothing."""

    def next_delta(self) -> str | None:
        return None

    def events(self) -> list[ev.Event]:
        events: list[ev.Event] = []
        stream = self.stream
        if self.done or self.refusal is not None:
            return events
        if not self.began:
            if stream.times.joined is None and stream.finish is None:
                return events
            if stream.times.joined is None and stream.finish is FinishReason.ERROR and not self.announced:
                self.refusal = self._why()
                return events
            self._begin(events)
        stream.take()
        if stream.finish is None:
            return events
        if stream.finish is FinishReason.ERROR:
            error = self._why()
            self._close("failed", events, error=error)
        elif stream.finish is FinishReason.CANCELLED:
            self._close("cancelled", events)
        else:
            self._close("completed", events)
        return events

    @property
    def answer(self) -> tuple[Message, ...]:
        return ()

    @property
    def usage(self) -> ev.Usage:
        usage = usage_of(self.stream)
        return ev.Usage(
            usage.input_tokens,
            usage.input_tokens_details,
            0,
            ev.OutputDetails(),
            usage.input_tokens,
        )

    def _why(self) -> Refusal:
        assert self.stream.error is not None, "a stream that ends in ERROR says why"
        return self.stream.error
