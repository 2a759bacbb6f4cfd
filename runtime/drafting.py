"""Drafts as the server sees them: a text that is typed, read ahead in the background, and sent at the end.

Everything here runs on the event loop's thread; text is tokenized in a thread that prepares prompts, one
reading of a draft at a time. Knows asks and streams; knows no wire format.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from headrace.runtime.image import ImageSpan
from headrace.runtime.refusal import Refusal
from headrace.runtime.request import ForkPoint, Req, SamplingParams
from headrace.runtime.typed import TypedIds, TypedPrompt

if TYPE_CHECKING:
    from headrace.runtime.ask import Ask
    from headrace.runtime.interface import Prompt, Runtime
    from headrace.runtime.stream import TokenStream

MOST = 1024  # drafts of all clients together
_UNSEEN = 2048  # characters of a conversation that are read again with every change, at most, about


@dataclass(frozen=True, slots=True)
class DraftOutcome:
    """What reading ahead was worth. computed: tokens run through the model for the draft; used: those of them
    that the request went on from; cached: tokens before them that were in the cache already."""

    computed: int
    used: int
    cached: int

    @property
    def wasted(self) -> int:
        """Tokens computed for nothing: of words that were changed, or never sent."""
        return self.computed - self.used


@dataclass(slots=True, eq=False)
class Draft:
    """A prompt that is being typed. Made by `Drafting.open`, and over when it was sent or dropped.

    `told` is called, never from inside a call of Drafting, when `stable`, `ready` or `outcome` have changed."""

    ask: Ask
    told: Callable[[Draft], None]
    typed: TypedPrompt
    sent: bool = False  # nothing is written any more
    over: bool = False
    outcome: DraftOutcome | None = None  # once it has been sent
    stable: int = 0  # tokens that are certain, as far as they were read
    req: Req | None = None
    spent: int = 0  # tokens computed for it before it was empty in between
    cached: int = 0  # tokens of it that the cache had when it was sent
    pixels: int = 0
    reading: bool = False
    read: str | None = None  # the text that was read last, or is being read

    @property
    def text(self) -> str:
        """What was typed so far."""
        assert self.ask.messages
        return self.ask.messages[-1].content


class Drafting:
    """`open, write, send, drop`; the Runtime asks for the rest."""

    def __init__(self, runtime: Runtime) -> None:
        self.live = 0
        self.opened = self.sent = self.used = self.wasted = 0  # since the start
        self._runtime = runtime
        self._core = runtime.loop.scheduler.drafts
        self._core.on_landed = self._landed
        self._drafts: dict[int, Draft] = {}  # those in the core, by the id of their Req
        self._all: set[Draft] = set()
        self._sending: dict[TokenStream, Draft] = {}

    # -- for the server ----------------------------------------------------------------------------------------

    def open(self, ask: Ask, told: Callable[[Draft], None]) -> Draft:
        """A draft of `ask`, whose last message is what is typed. Raises Refusal when no draft is taken now."""
        runtime = self._runtime
        if not runtime.ready or runtime.draining:
            raise Refusal("server_is_overloaded", "the server is starting or stopping", retry_after=1.0)
        if len(self._all) >= MOST:
            raise Refusal("server_is_overloaded", "too many prompts are being typed", retry_after=1.0)
        draft = Draft(ask, told, runtime.prompter.typed(ask))
        self._all.add(draft)
        self.opened += 1
        self._read(draft)
        return draft

    def write(self, draft: Draft, ask: Ask) -> None:
        """The draft is of `ask` from now on: it differs in its last message alone."""
        if draft.over or draft.sent:
            return
        assert ask.messages and draft.ask.messages
        if ask.messages[-1].pictures != draft.ask.messages[-1].pictures:
            draft.typed, draft.read = self._runtime.prompter.typed(ask), None
        draft.ask = ask
        self._read(draft)

    def send(self, draft: Draft, ask: Ask, listener: Callable[[TokenStream], None]) -> TokenStream:
        """As `Runtime.open(ask, listener)`: the answer goes on from what was read of the draft, as far as the two
        prompts begin alike. The draft is over. Raises Refusal as `open` does; then the draft is dropped."""
        try:
            stream = self._runtime.open(ask, listener)
        except Refusal:
            self.drop(draft)
            raise
        if not draft.over:
            self._sending[stream] = draft
            draft.sent = True
        return stream

    def drop(self, draft: Draft) -> None:
        """Nothing of the draft is kept. Harmless when it is over."""
        if not draft.over:
            self._end(draft, used=0, cached=0)

    def ready(self, draft: Draft) -> int:
        """Tokens of it that need no computing any more."""
        return 0 if draft.req is None else self._core.ready(draft.req)

    # -- for the Runtime ---------------------------------------------------------------------------------------

    def fork_point(self, stream: TokenStream, ask: Ask, prompt: Prompt) -> ForkPoint | None:
        """What a prompt that was typed goes on from. Asked when its request joins; `settle` follows."""
        draft = self._sending.get(stream)
        if draft is None or draft.req is None or draft.req.salt != ask.tenant.salt:
            return None
        at = self._core.common(draft.req, prompt.ids, prompt.spans)
        lease = draft.req.lease  # here, because it grows when the pages are handed over
        draft.cached = 0 if lease is None else lease.depth * self._runtime.loop.scheduler.page_size
        return ForkPoint(draft.req, at) if at else None

    def settle(self, stream: TokenStream) -> None:
        """The request of a draft has joined, or never will: the draft is over."""
        draft = self._sending.pop(stream, None)
        if draft is None or draft.over:
            return
        used = cached = 0
        if (child := stream.req) is not None and draft.req is not None and child.forked_len:
            shared = child.computed_len if child.copy_from is None else child.copy_len
            cached = min(shared, draft.cached)
            used = min(shared - cached, self._core.spent(draft.req))
        self.sent += 1
        self._end(draft, used, cached)
        draft.told(draft)

    def end(self) -> None:
        """No draft is taken further: the server stops."""
        for draft in list(self._all):
            self.drop(draft)

    def stats(self) -> dict[str, float]:
        """Facts for metrics."""
        return {
            "drafts": len(self._all),
            "drafts_opened": self.opened,
            "drafts_sent": self.sent,
            "drafts_given_up": self._core.given_up,
            "draft_tokens_computed": self._core.computed,
            "draft_tokens_used": self.used,
            "draft_tokens_wasted": self.wasted,
        }

    # -- reading -----------------------------------------------------------------------------------------------

    def _read(self, draft: Draft) -> None:
        """Have what was typed last tokenized, unless a reading is on its way: then that follows."""
        if draft.over or draft.reading or draft.read == draft.text:
            return
        draft.reading, draft.read = True, draft.text
        text, typed = draft.text, draft.typed

        def done(found: TypedIds | Refusal) -> None:
            draft.reading = False
            if draft.over:
                return
            if draft.typed is typed:
                self._take(draft, TypedIds([], (), 0) if isinstance(found, Refusal) else found)
                draft.told(draft)
            self._read(draft)

        try:
            self._runtime.work_on_text(len(text) + _UNSEEN, lambda: typed.read(text), done)
        except Refusal:
            draft.reading, draft.read = False, None  # too much is read already: the next key tries again

    def _take(self, draft: Draft, found: TypedIds) -> None:
        """The core computes what is certain, as far as the context goes."""
        most = self._runtime.max_context - 1
        count = min(len(found.ids), most, *(span.start for span in found.spans if span.end > most))
        spans = tuple(span for span in found.spans if span.end <= count)
        if not self._admit_pixels(draft, spans):
            count = min(count, spans[0].start)
            spans = ()
        ids = found.ids[:count]
        draft.stable = count
        if not ids:
            self._let_go(draft)
        elif draft.req is None:
            runtime = self._runtime
            runtime._next_id += 1
            salt = draft.ask.tenant.salt
            req = Req(runtime._next_id, salt, ids, count, count + 1, SamplingParams(), spans=spans)
            draft.req = req
            self._drafts[req.id] = draft
            self._core.open(req)
        else:
            self._core.write(draft.req, ids, spans)
        self._runtime.loop.stir()

    def _admit_pixels(self, draft: Draft, spans: tuple[ImageSpan, ...]) -> bool:
        """Count the pictures that the draft holds; False if there is no room for them."""
        pixels = sum(len(span.image.pixels) for span in spans)
        rows = self._runtime.loop.scheduler.gallery.rows
        if any(s.image.rows > rows for s in spans) or not self._runtime.take_pixels(pixels - draft.pixels):
            return False
        draft.pixels = pixels
        return True

    def _landed(self, req: Req) -> None:
        draft = self._drafts.get(req.id)
        if draft is not None and not draft.over:
            draft.told(draft)

    def _let_go(self, draft: Draft) -> None:
        """The core forgets the draft; what it computed for it was for nothing unless somebody says otherwise."""
        if draft.req is not None:
            spent = self._core.spent(draft.req)
            draft.spent += spent
            self.wasted += spent
            del self._drafts[draft.req.id]
            self._core.drop(draft.req)
            draft.req = None

    def _end(self, draft: Draft, used: int, cached: int) -> None:
        self._let_go(draft)
        self.used += used
        self.wasted -= used
        self._runtime.take_pixels(-draft.pixels)
        draft.pixels = 0
        draft.over = True
        self._all.discard(draft)
        draft.outcome = DraftOutcome(draft.spent, used, cached)
