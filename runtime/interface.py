"""The one object the server talks to. Knows asks, streams and the loop; must not know torch or any wire format."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import Any

from headrace.runtime.ask import PUBLIC_TENANT, Ask, Message, Picture, Tenant
from headrace.runtime.cache import Cache
from headrace.runtime.claim import Rank, Targets
from headrace.runtime.drafting import Draft, Drafting, DraftOutcome
from headrace.runtime.fetching import Fetches, FetchRefused, unrefused
from headrace.runtime.figures import class_stats_of, sizes_of, stats_of
from headrace.runtime.fork import ForkPlace, fork_request
from headrace.runtime.logprobs import Logprobs, TokenLogprob
from headrace.runtime.loop import Generation, StepLoop, retell
from headrace.runtime.meaning import SEED_MASK, changed, claim_of, following, max_len_of, params_of, wish_of
from headrace.runtime.parsers.pieces import (
    CallArguments,
    CallBegin,
    CallEnd,
    Piece,
    ReasoningPiece,
    TextPiece,
    joined,
)
from headrace.runtime.parsers.text_input import TextInput
from headrace.runtime.pins import Favour, Pin
from headrace.runtime.profile import Profiler, ProfileWish
from headrace.runtime.prompter import ModelCard, Prompt, Prompter, TextCutter, TextSplitter
from headrace.runtime.receipt import Receipt, receipt_of
from headrace.runtime.refusal import Refusal
from headrace.runtime.request import FinishReason, ForkPoint, Phase, Req, SamplingParams
from headrace.runtime.shape import AnswerShape
from headrace.runtime.siblings import Siblings
from headrace.runtime.stream import Entry, StreamTimes, TokenStream, Usage
from headrace.runtime.telemetry import (
    Reading,
    StepBoard,
    StepReport,
    StepRow,
    StreamMeter,
    StreamSummary,
    Waiting,
    micros,
)
from headrace.runtime.text_work import TextWork, Worked
from headrace.runtime.tools import TextForm, Tool, ToolCall, ToolChoice
from headrace.runtime.truncation import prepare_within

__all__ = [
    "PUBLIC_TENANT",
    "AnswerShape",
    "Ask",
    "Cache",
    "CallArguments",
    "CallBegin",
    "CallEnd",
    "Draft",
    "DraftOutcome",
    "Entry",
    "Favour",
    "FetchRefused",
    "FinishReason",
    "ForkPlace",
    "Logprobs",
    "Message",
    "ModelCard",
    "Picture",
    "Piece",
    "Pin",
    "ProfileWish",
    "Profiler",
    "Prompt",
    "Prompter",
    "Rank",
    "Reading",
    "ReasoningPiece",
    "Receipt",
    "Refusal",
    "Runtime",
    "SamplingParams",
    "StepBoard",
    "StepReport",
    "StepRow",
    "StreamMeter",
    "StreamSummary",
    "StreamTimes",
    "Targets",
    "Tenant",
    "TextCutter",
    "TextForm",
    "TextInput",
    "TextPiece",
    "TextSplitter",
    "TokenLogprob",
    "TokenStream",
    "Tool",
    "ToolCall",
    "ToolChoice",
    "Usage",
    "Waiting",
    "joined",
    "micros",
    "receipt_of",
]


_log = logging.getLogger("headrace.runtime")

# Asks with less text than this are prepared on the loop thread: it is faster than a hop to another thread.
_INLINE_CHARACTERS = 2048
# Pixels of the pictures of all live requests, in bytes.
_PIXELS_LIMIT = 512 << 20


class Runtime:
    """Opens and cancels streams. Every method is called on the event loop's thread and returns at once.

    `open` never fails for what an ask says: errors of preparation and admission end the stream. It raises
    Refusal only when the server takes no work at all (not ready, draining, too many waiting).
    """

    def __init__(self, card: ModelCard, prompter: Prompter, loop: StepLoop, max_context: int) -> None:
        self.card = card
        self.prompter = prompter
        self.loop = loop
        self.cache = Cache(loop)
        self.max_context = min(max_context, loop.scheduler.max_tokens)
        self.ready = False
        self.draining = False
        self.ends = dict.fromkeys(FinishReason, 0)  # streams that ended, refused ones among ERROR
        self._next_id = 0
        self._preparing: dict[TokenStream, int] = {}  # → characters of its ask
        self._pixels = 0  # bytes of them that live requests hold
        self.fetches = Fetches()
        self._fetching: dict[TokenStream, asyncio.Task[None]] = {}
        self._generations: dict[TokenStream, Generation] = {}
        self._siblings: dict[TokenStream, Siblings] = {}  # by the stream that they wait for
        self._text = TextWork()
        self._empty = asyncio.Event()
        self.on_end: Callable[[TokenStream], None] = lambda stream: None  # each stream, at its end
        self.read_at: Callable[[], float] = lambda: 0.0  # when the bytes that are worked on now were read
        self.profiler: Profiler | None = None  # where the operator wants profiles
        loop.on_end = self._ended
        self.drafting = Drafting(self)

    def open(self, ask: Ask, listener: Callable[[TokenStream], None]) -> TokenStream:
        """A stream that will carry the answer. `listener(stream)` is called, never from inside `open`, whenever
        there is something to read, and once before that when the prompt was accepted (`times.joined`)."""
        self._check_ready()
        named = self.fetches.check(ask.pictures)
        self._check_room(1)
        size = ask.characters
        self._text.take(size)
        stream = TokenStream(listener, opened=self.loop.clock())
        stream.times.read = self.read_at() or None
        self._preparing[stream] = size
        # A picture of a few bytes may take long to decode.
        if named and self.card.sees:
            self._fetching[stream] = self.fetches.start(ask, partial(self._fetched, stream, ask))
        elif size < _INLINE_CHARACTERS and not ask.guided and not ask.pictures:
            asyncio.get_running_loop().call_soon(self._prepare_now, stream, ask)
        else:
            self._prepare_elsewhere(stream, ask)
        return stream

    def check_picture(self, picture: Picture) -> None:
        """Raises Refusal for one that is named by an address from which nothing will be fetched."""
        self.fetches.check((picture,))

    def open_many(
        self, ask: Ask, count: int, listener: Callable[[TokenStream], None]
    ) -> tuple[TokenStream, ...]:
        """`count` streams that answer one prompt, as `open` does; the prompt is computed once.

        Stream k draws with the seed `ask.seed + k`. The others join when the first has its first token, and share
        its KV; of the prompt's logprobs all streams get the same ones."""
        if count == 1:
            return (self.open(ask, listener),)
        self._check_room(count)

        def hear(stream: TokenStream) -> None:
            if stream.head or stream.finish is not None:
                if stream.finish is None:
                    stream.listener = listener
                asyncio.get_running_loop().call_soon(self._join_siblings, stream)
            listener(stream)

        first = self.open(ask, hear)
        waiting = tuple(
            (
                TokenStream(listener, opened=self.loop.clock()),
                replace(ask, seed=None if ask.seed is None else (ask.seed + index) & SEED_MASK),
            )
            for index in range(1, count)
        )
        self._siblings[first] = Siblings(waiting)
        return (first, *(stream for stream, _ in waiting))

    def _check_ready(self) -> None:
        if not self.ready or self.draining:
            raise Refusal("server_is_overloaded", "the server is starting or stopping", retry_after=1.0)

    def _check_room(self, count: int) -> None:
        scheduler = self.loop.scheduler
        waiting = len(self._preparing) + len(scheduler.waiting)
        waiting += sum([len(siblings.waiting) for siblings in self._siblings.values()])
        if waiting + count > scheduler.waiting_limit:
            raise Refusal("server_is_overloaded", "too many requests are waiting already", retry_after=1.0)

    def count(self, ask: Ask, told: Callable[[int | Refusal], None]) -> None:
        """Call `told`, once and never from inside this call, with the number of tokens that the prompt of `ask`
        has, or with what is wrong with it. Raises Refusal when no text is taken now."""

        def count_all(whole: Ask) -> None:
            self.work_on_text(whole.characters, lambda: len(self.prompter.prepare(whole).ids), told)

        def fetched(whole: Ask | Refusal) -> None:
            try:
                count_all(unrefused(whole))
            except Refusal as refusal:
                told(refusal)

        if self.fetches.check(ask.pictures) and self.card.sees:
            self.fetches.start(ask, fetched)
        else:
            count_all(ask)

    def cancel(self, stream: TokenStream) -> None:
        """The stream ends as CANCELLED now; its request is in no further plan. Harmless after the end."""
        generation = self._generations.get(stream)
        if generation is not None:
            self.loop.cancel(generation)
        else:
            ended = stream.finish is not None
            stream.end(FinishReason.CANCELLED)  # still being prepared: `_prepared` finds it ended
            if stream in self._fetching:
                self._fetching.pop(stream).cancel()
                self._left(stream)
                self.drafting.settle(stream)
            if not ended:
                self._count_end(stream)

    def grant(self, stream: TokenStream, tokens: int) -> None:
        """The reader of `stream`, which got a credit at its birth (`limit`), may be told so many tokens more."""
        stream.grant(tokens)

    def meter(self, stream: TokenStream, board: StepBoard | None) -> StreamMeter:
        """The stream's meter from now on, before its first step; `board` hears of each of its steps."""
        stream.meter = meter = StreamMeter(stream, self.loop.clock, board)
        if (generation := self._generations.get(stream)) is not None:
            self.loop.meter(generation)
        return meter

    def hold(self, stream: TokenStream) -> None:
        """The request leaves the batch until its reader comes back (`TokenStream.attach`) or is done reading."""
        generation = self._generations.get(stream)
        if generation is not None:
            self.loop.hold(generation)

    def change(
        self,
        stream: TokenStream,
        said: Mapping[str, Any],
        told: Callable[[int | None], None],
        names: Mapping[str, str],
    ) -> None:
        """The answer goes on with the sampling fields of `said` (those of Ask, `max_tokens` among them), from the
        first token on that no launched step samples. `told(index)` names it; `told(None)`: the answer ended first.

        `names`: fields of Ask → their names on the wire. Raises Refusal if a value is out of range, or if the
        answer does not run."""
        ask = Ask(prompt=(0,), param_names=names, **said)
        params_of(ask, self.prompter)  # its ranges: what was not said is not taken from it
        generation = self._generations.get(stream)
        if generation is None or generation.req.finish is not None:
            raise Refusal("invalid_value", "this answer does not run", "response_id")
        req = generation.req
        self.loop.change(generation, changed(req, stream.prompt_tokens, ask, said, self.max_context), told)

    def fork(
        self, parent: TokenStream, at: ForkPlace, ask: Ask, listener: Callable[[TokenStream], None]
    ) -> tuple[TokenStream, int]:
        """A stream whose answer begins as that of `parent` does, up to `at`, and goes on by itself under the
        sampling fields of `ask` (its `max_tokens` counts the whole answer); and how many tokens of `parent` it
        keeps. They are told as if they had been generated for it.

        The parent may run or have ended; what is left of its pages is shared, and not computed again: all of them,
        if it runs, or was to be kept (`TokenStream.outlive`) and nobody needed their room. Raises
        Refusal("fork_point_invalid") for a place that the parent has not reached or where its answer stops."""
        self._check_ready()
        found = fork_request(parent, at, ask, self.prompter, self.max_context, self._next_id + 1)
        self._next_id, req, prompt, prompt_len = found.req.id, found.req, found.prompt, parent.prompt_tokens
        stream = TokenStream(listener, opened=self.loop.clock())
        stream.prompt = prompt
        generation = Generation(req, stream, found.cutter, self.prompter.splitter(ask, prompt))
        if req.logprobs is not None:
            stream.want_logprobs(req.logprobs, self.prompter.spell)
        for index, (token, piece) in enumerate(zip(req.tokens[prompt_len:], found.pieces, strict=True)):
            retell(generation, token, piece, parent.told_logprob(index) if index < found.shared else None)
        self._begin(generation, prompt_len)
        return stream, found.shared

    def work_on_text(
        self, size: int, work: Callable[[], Worked], told: Callable[[Worked | Refusal], None]
    ) -> None:
        """Call `told`, once and never from inside this call, with what `work` returns, or with the Refusal that it
        raises; it runs in a thread that prepares prompts. size: of its text, in characters or bytes. Raises Refusal
        when no text is taken now."""
        self._check_ready()
        self._text.run_taken(size, work, told, asyncio.get_running_loop().call_soon_threadsafe)

    def flush_cache(self) -> int | None:
        """Forget every cached prompt; how many pages that were. None, and nothing is done, while anything runs."""
        if self._preparing or self._siblings or self.loop.live or self.loop.flight:
            return None
        return self.loop.scheduler.flush_cache()

    def take_pixels(self, count: int) -> bool:
        """Count so many bytes of pixels more, or fewer; False, and nothing is counted, if that is too much."""
        if count > 0 and self._pixels and self._pixels + count > _PIXELS_LIMIT:
            return False
        self._pixels += count
        return True

    def drain(self) -> None:
        """No new asks; what runs goes on."""
        self.draining = True
        self.drafting.end()

    async def emptied(self) -> None:
        """Returns when no stream is being prepared or generated."""
        while self._preparing or self._siblings or self.loop.live:
            if self._preparing:
                self._empty.clear()
                await self._empty.wait()
            elif self.loop.live:
                await self.loop.emptied()
            else:
                await asyncio.sleep(0)  # siblings join in this very turn

    def cancel_all(self) -> None:
        for siblings in self._siblings.values():
            for stream, _ in siblings.waiting:
                self.cancel(stream)
        for stream in (*self._preparing, *self._generations):
            self.cancel(stream)

    def close(self) -> None:
        """Stop the threads that prepare prompts. Streams must have ended."""
        self.fetches.close()
        self._text.close()

    @property
    def alive(self) -> bool:
        """The step loop moves, or has nothing to do."""
        return self.loop.fault is None and self.loop.stalled_for < 60.0

    def sizes(self) -> dict[str, int]:
        """What the engine has room for, in the names of SGLang."""
        return sizes_of(self.loop.scheduler)

    def stats(self) -> dict[str, float]:
        """Facts for metrics: counters since the start and gauges of now."""
        return {
            **stats_of(self.loop),
            "requests_finished": self.ends[FinishReason.STOP] + self.ends[FinishReason.LENGTH],
            "requests_cancelled": self.ends[FinishReason.CANCELLED],
            "requests_failed": self.ends[FinishReason.ERROR],
            "unsent_tokens": sum(stream.pending for stream in self._generations),
            "preparing": len(self._preparing),
            **self.drafting.stats(),
        }

    def class_stats(self) -> dict[str, dict[str, float]]:
        """The same by class: name → class → number."""
        return class_stats_of(self.loop)

    # -- preparation -------------------------------------------------------------------------------------------

    def _fetched(self, stream: TokenStream, ask: Ask, found: Ask | Refusal) -> None:
        """The pictures of an ask were fetched, or will not be."""
        del self._fetching[stream]
        future: Future[Prompt] = Future()
        try:
            size = (whole := unrefused(found)).characters
            self._text.take(size, instead=self._preparing[stream])
            self._preparing[stream] = size
            self._prepare_elsewhere(stream, whole)
        except Refusal as refusal:
            future.set_exception(refusal)
            self._prepared(stream, ask, future)

    def _prepare_elsewhere(self, stream: TokenStream, ask: Ask) -> None:
        prepare = partial(prepare_within, self.prompter, ask, self.max_context)
        soon = asyncio.get_running_loop().call_soon_threadsafe
        self._text.run(prepare, partial(self._prepared, stream, ask), soon)

    def _prepare_now(self, stream: TokenStream, ask: Ask) -> None:
        future: Future[Prompt] = Future()
        if stream.finish is None:
            try:
                future.set_result(prepare_within(self.prompter, ask, self.max_context))
            except Exception as error:
                future.set_exception(error)
        self._prepared(stream, ask, future)

    def _prepared(self, stream: TokenStream, ask: Ask, future: Future[Prompt]) -> None:
        self._left(stream)
        try:
            if stream.finish is None:  # else it was cancelled meanwhile
                self._join(stream, ask, future.result())
        except Refusal as refusal:
            stream.end(FinishReason.ERROR, error=refusal)
            self._count_end(stream)
        except Exception as error:
            # Whatever a request's text did to the template or the tokenizer stays that request's error.
            _log_fault(error)
            stream.end(FinishReason.ERROR, error=Refusal("server_error", "the prompt could not be prepared"))
            self._count_end(stream)
        finally:
            self.drafting.settle(stream)

    def _left(self, stream: TokenStream) -> None:
        """Nothing of the stream is being prepared any more."""
        self._text.let_go(self._preparing.pop(stream))
        if not self._preparing:
            self._empty.set()

    def _join(self, stream: TokenStream, ask: Ask, prompt: Prompt) -> None:
        stream.prompt_tokens = len(prompt.ids)  # also if they are too many: who shortens it wants to know
        generation = self._generation(stream, ask, prompt, self.drafting.fork_point(stream, ask, prompt))
        wish = generation.req.logprobs
        if ask.prompt_logprobs is not None and wish is not None:
            stream.prompt_logprobs = wish.prompt
        if ask.echo:
            stream.prompt_ids = prompt.ids
        if stream in self._siblings:
            self._siblings[stream].take(prompt)
        self._begin(generation)

    def _begin(self, generation: Generation, prompt_len: int | None = None) -> None:
        """The generation runs from now on. prompt_len: where its answer begins, if not behind its whole prompt."""
        stream = generation.stream
        stream.req = generation.req
        stream.params = generation.req.params
        stream.prompt_tokens = generation.req.prompt_len if prompt_len is None else prompt_len
        if generation.req.logprobs is not None and stream.told_logprobs is None:
            stream.want_logprobs(generation.req.logprobs, self.prompter.spell)
        generation.req.forkable = stream.forkable
        self._generations[stream] = generation
        try:
            self.loop.join(generation)
        except Refusal:
            del self._generations[stream]
            raise
        self._pixels += sum(len(span.image.pixels) for span in generation.req.spans)
        # `times.joined` is set: a face may tell that the response has begun. It does so behind the turn that `join`
        # asked for, so that the device is at work on the prompt while those words are made.
        asyncio.get_running_loop().call_soon(self._tell_joined, stream)

    def _tell_joined(self, stream: TokenStream) -> None:
        if stream.finish is None:
            stream.listener(stream)

    def _join_siblings(self, first: TokenStream) -> None:
        """The first stream has spoken, or has ended: those that wait for it follow it."""
        siblings = self._siblings.pop(first)
        generation = self._generations.get(first)
        failed = first.finish in (FinishReason.ERROR, FinishReason.CANCELLED)
        for place, (stream, ask) in enumerate(siblings.waiting):
            if stream.finish is not None:
                continue  # cancelled meanwhile
            if failed:
                assert first.finish is not None
                stream.end(first.finish, error=first.error)
                self._count_end(stream)
                continue
            prompt, fork = siblings.prompts[place], None
            if generation is not None and generation.req.phase is not Phase.DONE:
                fork = ForkPoint(generation.req, len(prompt.ids))
            stream.prompt_logprobs, stream.prompt_ids = first.prompt_logprobs, first.prompt_ids
            try:
                self._begin(self._generation(stream, following(ask), prompt, fork))
            except Refusal as refusal:
                stream.end(FinishReason.ERROR, error=refusal)
                self._count_end(stream)

    def _generation(
        self, stream: TokenStream, ask: Ask, prompt: Prompt, fork: ForkPoint | None = None
    ) -> Generation:
        """Raises Refusal for what the ask wants of a prompt of this length."""
        if prompt.grammar is not None and not self.loop.engine.masks:
            what = f"{ask.guide}: this server's device cannot guide answers yet"
            raise Refusal("unsupported_parameter", what, ask.guide)
        ids, count = prompt.ids, len(prompt.ids)
        params = params_of(ask, self.prompter)
        max_len = max_len_of(ask, count, self.max_context)
        wish = wish_of(ask, count, self.prompter.logits_width)
        pixels = sum(len(span.image.pixels) for span in prompt.spans)
        if self._pixels and self._pixels + pixels > _PIXELS_LIMIT:
            raise Refusal("server_is_overloaded", "too many pictures are waiting already", retry_after=1.0)
        self._next_id += 1
        req = Req(
            self._next_id,
            ask.tenant.salt,
            list(ids),
            count,
            max_len,
            params,
            fork,
            wish,
            prompt.grammar,
            prompt.spans,
            claim_of(ask),
        )
        stream.prompt = prompt if prompt.grammar is None else replace(prompt, grammar=prompt.grammar.copy())
        return Generation(req, stream, self.prompter.cutter(ask), self.prompter.splitter(ask, prompt))

    def _ended(self, stream: TokenStream) -> None:
        generation = self._generations.pop(stream, None)
        if generation is not None:
            self._pixels -= sum(len(span.image.pixels) for span in generation.req.spans)
        self._count_end(stream)

    def _count_end(self, stream: TokenStream) -> None:
        assert stream.finish is not None
        self.ends[stream.finish] += 1
        self.on_end(stream)


def _log_fault(error: BaseException) -> None:
    _log.error("preparing a prompt failed", exc_info=error)
