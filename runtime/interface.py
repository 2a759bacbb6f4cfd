"""The one object the server talks to. Knows asks, streams and the loop; must not know torch or any wire format."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import secrets
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

from headrace.runtime.fork import ForkPlace, cut_answer
from headrace.runtime.loop import Generation, StepLoop
from headrace.runtime.refusal import Refusal
from headrace.runtime.request import Change, FinishReason, ForkPoint, Phase, Req, SamplingParams
from headrace.runtime.stream import Entry, StreamTimes, TokenStream, Usage
from headrace.runtime.truncation import prepare_within

__all__ = [
    "Ask",
    "Entry",
    "FinishReason",
    "ForkPlace",
    "Message",
    "ModelCard",
    "Prompt",
    "Prompter",
    "Refusal",
    "Runtime",
    "SamplingParams",
    "StreamTimes",
    "Tenant",
    "TextCutter",
    "TokenStream",
    "Usage",
]


@dataclass(frozen=True, slots=True)
class Tenant:
    """Who may share cached work: the owner of one API key (or everybody, where no key is set)."""

    id: str
    salt: str


PUBLIC_TENANT = Tenant("public", "public")


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation. role: system, user, assistant (developer is mapped to system by the face)."""

    role: str
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What a client asks for, in any protocol. Exactly one of `messages` and `prompt` is given.

    None means "not said": the model's own defaults (generation_config) or the neutral value are taken.
    `param_names` maps a field of Ask to the name it has on the wire, for the `param` of a Refusal.
    Ranges are checked at birth: Refusal("invalid_value") names the field.
    """

    tenant: Tenant = PUBLIC_TENANT
    messages: tuple[Message, ...] | None = None
    prompt: str | tuple[int, ...] | None = None
    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    template_options: Mapping[str, bool | str] = field(default_factory=dict)
    drop_oldest: bool = (
        False  # a conversation that is too long loses its oldest turns instead of being refused
    )
    param_names: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.messages is None) == (self.prompt is None):
            raise Refusal("missing_required_parameter", "give messages or a prompt, and only one of them")
        self._within("max_tokens", self.max_tokens, 1, 1 << 31)
        self._within("min_tokens", self.min_tokens, 0, 1 << 31)
        self._within("temperature", self.temperature, 0.0, 2.0)
        self._within("top_k", self.top_k, -1, 1 << 31)
        self._within("top_p", self.top_p, 0.0, 1.0)
        if self.top_p == 0.0:
            raise self._refuse("top_p", "must be greater than 0")
        self._within("min_p", self.min_p, 0.0, 1.0)
        self._within("repetition_penalty", self.repetition_penalty, 0.01, 100.0)
        self._within("presence_penalty", self.presence_penalty, -2.0, 2.0)
        self._within("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        self._within("seed", self.seed, -(1 << 63), (1 << 64) - 1)
        if len(self.stop) > 16:
            raise self._refuse("stop", "has at most 16 strings")
        if any(not 1 <= len(text) <= 256 for text in self.stop):
            raise self._refuse("stop", "strings have 1 to 256 characters")
        if len(self.stop_ids) > 256:
            raise self._refuse("stop_ids", "has at most 256 ids")
        if len(self.logit_bias) > 1024:
            raise self._refuse("logit_bias", "has at most 1024 entries")
        if any(not -100.0 <= bias <= 100.0 for _, bias in self.logit_bias):
            raise self._refuse("logit_bias", "values lie between -100 and 100")

    def wire_name(self, name: str) -> str:
        """The name of Ask field `name` in the client's own protocol."""
        return self.param_names.get(name, name)

    def _refuse(self, name: str, what: str) -> Refusal:
        wire = self.wire_name(name)
        return Refusal("invalid_value", f"{wire} {what}", wire)

    def _within(self, name: str, value: float | None, low: float, high: float) -> None:
        # Written so that a NaN is refused too.
        if value is not None and not low <= value <= high:
            raise self._refuse(name, f"must be between {low} and {high}")


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prepared prompt: token ids and the first index whose prompt text the client did not write itself."""

    ids: tuple[int, ...]


class TextCutter(Protocol):
    """Tokens in, certain text out: never half a character, never the beginning of a stop string."""

    matched: str | None  # the stop string that was found; nothing is released after it

    def push(self, token: int) -> str:
        """Text that became certain with this token (possibly empty)."""

    def finish(self) -> str:
        """What was still held back and is now certain, because no token follows. Empty after a match."""


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What the server says about the model it serves. `embedded` marks the checkpoint inside the package."""

    id: str
    architecture: str
    parameters: int
    dtype: str
    context_len: int
    vocab_size: int
    created: int  # Unix seconds
    embedded: bool = False
    notice: str = ""  # one plain sentence that the chat page shows about this model


class Prompter(Protocol):
    """Text to ids and back for one model. All methods may run in any thread."""

    eos_ids: frozenset[int]
    embedding_rows: int  # valid prompt ids are [0, embedding_rows)
    logits_width: int  # valid ids for stop_ids and logit_bias are [0, logits_width)
    defaults: Mapping[str, Any]  # sampling defaults of the model folder: temperature, top_k, top_p, ...

    def prepare(self, ask: Ask) -> Prompt:
        """Template and tokenize. Raises Refusal for anything wrong with the ask's text."""

    def cutter(self, ask: Ask) -> TextCutter:
        """A fresh cutter for one generation, with the ask's stop strings."""

    def tokenize(self, text: str) -> list[int]:
        """Plain text to ids; strings that spell special tokens stay ordinary text."""

    def detokenize(self, ids: list[int]) -> str:
        """Ids to text, special tokens left out."""


_log = logging.getLogger("headrace.runtime")

# Asks with less text than this are prepared on the loop thread: it is faster than a hop to another thread.
_INLINE_CHARACTERS = 2048
# Text waiting for preparation, in characters: beyond it the server takes no more asks for the moment.
_PREPARING_LIMIT = 256 << 20
_SEED_MASK = (1 << 64) - 1


class Runtime:
    """Opens and cancels streams. Every method is called on the event loop's thread and returns at once.

    `open` never fails for what an ask says: errors of preparation and admission end the stream. It raises
    Refusal only when the server takes no work at all (not ready, draining, too many waiting).
    """

    def __init__(self, card: ModelCard, prompter: Prompter, loop: StepLoop, max_context: int) -> None:
        self.card = card
        self.prompter = prompter
        self.loop = loop
        self.max_context = min(max_context, loop.scheduler.max_tokens)
        self.ready = False
        self.draining = False
        self.ends = dict.fromkeys(FinishReason, 0)  # streams that ended, refused ones among ERROR
        self._next_id = 0
        self._preparing: dict[TokenStream, int] = {}  # → characters of its ask
        self._preparing_characters = 0
        self._generations: dict[TokenStream, Generation] = {}
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="headrace-prompt")
        self._empty = asyncio.Event()
        self.on_end: Callable[[TokenStream], None] = lambda stream: None  # each stream, at its end
        loop.on_end = self._ended

    def open(self, ask: Ask, listener: Callable[[TokenStream], None]) -> TokenStream:
        """A stream that will carry the answer. `listener(stream)` is called, never from inside `open`, whenever
        there is something to read, and once before that when the prompt was accepted (`times.joined`)."""
        if not self.ready or self.draining:
            raise Refusal("server_is_overloaded", "the server is starting or stopping", retry_after=1.0)
        scheduler = self.loop.scheduler
        if len(self._preparing) + len(scheduler.waiting) >= scheduler.waiting_limit:
            raise Refusal("server_is_overloaded", "too many requests are waiting already", retry_after=1.0)
        size = _characters(ask)
        if self._preparing and self._preparing_characters + size > _PREPARING_LIMIT:
            raise Refusal("server_is_overloaded", "too much text is waiting already", retry_after=1.0)
        stream = TokenStream(listener, opened=self.loop.clock())
        self._preparing[stream] = size
        self._preparing_characters += size
        loop = asyncio.get_running_loop()
        if size < _INLINE_CHARACTERS:
            loop.call_soon(self._prepare_now, stream, ask)
        else:
            future = self._threads.submit(prepare_within, self.prompter, ask, self.max_context)
            future.add_done_callback(
                lambda done: loop.call_soon_threadsafe(self._prepared, stream, ask, done)
            )
        return stream

    def cancel(self, stream: TokenStream) -> None:
        """The stream ends as CANCELLED now; its request is in no further plan. Harmless after the end."""
        generation = self._generations.get(stream)
        if generation is not None:
            self.loop.cancel(generation)
        else:
            ended = stream.finish is not None
            stream.end(FinishReason.CANCELLED)  # still being prepared: `_prepared` finds it ended
            if not ended:
                self._count_end(stream)

    def grant(self, stream: TokenStream, tokens: int) -> None:
        """The reader of `stream`, which got a credit at its birth (`limit`), may be told so many tokens more."""
        stream.grant(tokens)

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
        self._check_ids(ask)
        generation = self._generations.get(stream)
        if generation is None or generation.req.finish is not None:
            raise Refusal("invalid_value", "this answer does not run", "response_id")
        req = generation.req
        before = req.changing or Change(req.params, req.max_len)
        fields = {name: getattr(ask, name) for name in said if name != "max_tokens"}
        if "top_k" in fields:
            fields["top_k"] = max(0, fields["top_k"])
        max_len = before.max_len
        if ask.max_tokens is not None:
            # As far as the context goes: an answer that runs is not refused for a wish that is too large.
            max_len = min(stream.prompt_tokens + ask.max_tokens, self.max_context)
            max_len = max(max_len, req.prompt_len + 1)  # a fork's own prompt reaches into its answer
        self.loop.change(generation, Change(dataclasses.replace(before.params, **fields), max_len), told)

    def fork(
        self, parent: TokenStream, at: ForkPlace, ask: Ask, listener: Callable[[TokenStream], None]
    ) -> tuple[TokenStream, int]:
        """A stream whose answer begins as that of `parent` does, up to `at`, and goes on by itself under the
        sampling fields of `ask` (its `max_tokens` counts the whole answer); and how many tokens of `parent` it
        keeps. They are told as if they had been generated for it.

        The parent may run or have ended; while it runs, its pages are shared and nothing is computed again. Raises
        Refusal("fork_point_invalid") for a place that the parent has not reached or where its answer stops."""
        if not self.ready or self.draining:
            raise Refusal("server_is_overloaded", "the server is starting or stopping", retry_after=1.0)
        source = parent.req
        if source is None:
            raise Refusal("fork_point_invalid", "this answer has not begun")
        prompt_len = parent.prompt_tokens
        said = source.tokens[prompt_len : prompt_len + parent.said]
        kept, cutter, text = cut_answer(said, at, ask, self.prompter)
        ids = source.tokens[: prompt_len + len(said[: kept.shared])] + kept.forced
        count = len(ids)
        max_len = self._max_len(ask, prompt_len)
        if max_len <= count:
            raise Refusal("fork_point_invalid", "what is kept fills the whole length of the answer already")
        self._next_id += 1
        shares = ForkPoint(source, prompt_len + kept.shared) if source.phase is not Phase.DONE else None
        req = Req(self._next_id, source.salt, ids, count, max_len, self._params(ask), shares)
        stream = TokenStream(listener, opened=self.loop.clock())
        stream.params = req.params
        stream.prompt_tokens = prompt_len
        for token, piece in zip(ids[prompt_len:], text, strict=True):
            stream.push(Entry(token, piece))
        self._begin(Generation(req, stream, cutter))
        return stream, kept.shared

    def drain(self) -> None:
        """No new asks; what runs goes on."""
        self.draining = True

    async def emptied(self) -> None:
        """Returns when no stream is being prepared or generated."""
        while self._preparing or self.loop.live:
            if self._preparing:
                self._empty.clear()
                await self._empty.wait()
            else:
                await self.loop.emptied()

    def cancel_all(self) -> None:
        for stream in (*self._preparing, *self._generations):
            self.cancel(stream)

    def close(self) -> None:
        """Stop the threads that prepare prompts. Streams must have ended."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    @property
    def alive(self) -> bool:
        """The step loop moves, or has nothing to do."""
        return self.loop.fault is None and self.loop.stalled_for < 60.0

    def stats(self) -> dict[str, float]:
        """Facts for metrics: counters since the start and gauges of now."""
        scheduler = self.loop.scheduler
        counters = scheduler.counters
        return {
            "steps": counters.steps,
            "prefill_tokens_computed": counters.prefill_tokens_computed,
            "decode_tokens_computed": counters.decode_tokens_computed,
            "cached_tokens": counters.cached_tokens,
            "admissions": counters.admissions,
            "retractions": counters.retractions,
            "evicted_pages": counters.evicted_pages,
            "copied_pages": counters.copied_pages,
            "requests_finished": self.ends[FinishReason.STOP] + self.ends[FinishReason.LENGTH],
            "requests_cancelled": self.ends[FinishReason.CANCELLED],
            "requests_failed": self.ends[FinishReason.ERROR],
            "reader_pauses": self.loop.holds,
            "unsent_tokens": sum(stream.pending for stream in self._generations),
            "preparing": len(self._preparing),
            "waiting": len(scheduler.waiting),
            "running": len(scheduler.running),
            "paused": len(scheduler.paused),
            "kv_pages_total": scheduler.pool.count,
            "kv_pages_in_use": scheduler.pages_in_use,
            "kv_pages_cached": scheduler.tree.idle_pages,
        }

    # -- preparation -------------------------------------------------------------------------------------------

    def _prepare_now(self, stream: TokenStream, ask: Ask) -> None:
        future: Future[Prompt] = Future()
        if stream.finish is None:
            try:
                future.set_result(prepare_within(self.prompter, ask, self.max_context))
            except Exception as error:
                future.set_exception(error)
        self._prepared(stream, ask, future)

    def _prepared(self, stream: TokenStream, ask: Ask, future: Future[Prompt]) -> None:
        self._preparing_characters -= self._preparing.pop(stream)
        if not self._preparing:
            self._empty.set()
        if stream.finish is not None:
            return  # cancelled meanwhile
        try:
            self._join(stream, ask, future.result())
        except Refusal as refusal:
            stream.end(FinishReason.ERROR, error=refusal)
            self._count_end(stream)
        except Exception as error:
            # Whatever a request's text did to the template or the tokenizer stays that request's error.
            _log_fault(error)
            stream.end(FinishReason.ERROR, error=Refusal("server_error", "the prompt could not be prepared"))
            self._count_end(stream)

    def _join(self, stream: TokenStream, ask: Ask, prompt: Prompt) -> None:
        count = len(prompt.ids)
        params = self._params(ask)
        max_len = self._max_len(ask, count)
        self._next_id += 1
        req = Req(self._next_id, ask.tenant.salt, list(prompt.ids), count, max_len, params)
        stream.params = params
        stream.prompt_tokens = count
        self._begin(Generation(req, stream, self.prompter.cutter(ask)))

    def _begin(self, generation: Generation) -> None:
        stream = generation.stream
        stream.req = generation.req
        self._generations[stream] = generation
        try:
            self.loop.join(generation)
        except Refusal:
            del self._generations[stream]
            raise
        stream.listener(stream)  # `times.joined` is set: a face may tell that the response has begun

    def _ended(self, stream: TokenStream) -> None:
        self._generations.pop(stream, None)
        self._count_end(stream)

    def _count_end(self, stream: TokenStream) -> None:
        assert stream.finish is not None
        self.ends[stream.finish] += 1
        self.on_end(stream)

    def _max_len(self, ask: Ask, prompt_len: int) -> int:
        limit = self.max_context
        if prompt_len >= limit:
            raise Refusal(
                "context_length_exceeded",
                f"the prompt has {prompt_len} tokens; with room for an answer, {limit - 1} fit",
                ask.wire_name("messages" if ask.messages is not None else "prompt"),
            )
        if ask.max_tokens is None:
            return limit
        if prompt_len + ask.max_tokens > limit:
            raise Refusal(
                "context_length_exceeded",
                f"{prompt_len} prompt tokens and {ask.max_tokens} to generate are more than the {limit} that fit",
                ask.wire_name("max_tokens"),
            )
        return prompt_len + ask.max_tokens

    def _check_ids(self, ask: Ask) -> None:
        width = self.prompter.logits_width
        for name, ids in (("stop_ids", ask.stop_ids), ("logit_bias", [i for i, _ in ask.logit_bias])):
            for token in ids:
                if not 0 <= token < width:
                    wire = ask.wire_name(name)
                    raise Refusal("invalid_value", f"{wire}: token ids lie in [0, {width})", wire)

    def _params(self, ask: Ask) -> SamplingParams:
        """What the client said, else what the model folder says, else neutral."""
        prompter = self.prompter

        def said(name: str, neutral: float) -> Any:
            value = getattr(ask, name)
            return prompter.defaults.get(name, neutral) if value is None else value

        self._check_ids(ask)
        seed = secrets.randbits(64) if ask.seed is None else ask.seed & _SEED_MASK
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


def _characters(ask: Ask) -> int:
    if ask.messages is not None:
        return sum(len(message.content) for message in ask.messages)
    assert ask.prompt is not None
    return len(ask.prompt)


def _log_fault(error: BaseException) -> None:
    _log.error("preparing a prompt failed", exc_info=error)
