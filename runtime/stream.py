"""A generation's output as the server sees it: a bounded ring of entries. No torch, no asyncio, no wire format."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from headrace.runtime.logprobs import Logprobs, LogprobWish, TokenLogprob, no_logprobs
from headrace.runtime.parsers.pieces import Piece, TextPiece, joined
from headrace.runtime.refusal import Refusal
from headrace.runtime.request import FinishReason, Req, SamplingParams

if TYPE_CHECKING:
    from headrace.runtime.interface import Prompt
    from headrace.runtime.telemetry import StreamMeter


@dataclass(slots=True)  # not frozen: one is made for every token, and freezing costs four times as much
class Entry:
    """One retired token. `text` is what became certain with it: possibly "" (half a character, a possible stop
    string) or more than this token's own characters (what was held back before). `pieces` is the same typed, where
    the stream has a splitter; None says that the text is nothing but answer. `logprob`: where it was asked for."""

    token: int
    text: str
    pieces: list[Piece] | None = None
    logprob: TokenLogprob | None = None


@dataclass(slots=True)
class StreamTimes:
    """Monotonic seconds; None until it happened."""

    opened: float
    read: float | None = None  # the bytes that asked for it, where it was opened while these were worked on
    joined: float | None = None  # prompt prepared, handed to the scheduler
    admitted: float | None = None  # first row launched
    first_token: float | None = None
    last_token: float | None = None
    ended: float | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one generation. `cached_tokens` are prompt tokens that needed no computing."""

    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    reasoning_tokens: int = 0


def _nobody(stream: TokenStream) -> None:
    """Who listens to a stream that has ended."""


class TokenStream:
    """A ring of entries between the step loop (writer) and one connection (reader), both on the loop thread.

    Indices count tokens from 0: `sent <= head`, and `sent <= limit` where the reader counts its credit (`limit`
    None: it does not). The ring holds the entries [sent, head), which wait for the reader. When so many wait that
    `window` is reached the loop pauses the request (`full`), and wakes it when the reader has drained half of it.
    `tail` is text that became certain only with the end (after the last entry), `tail_pieces` the same typed; both
    are final once `finish` is.

    `listener(stream)` is called whenever there is something new to read, and must only mark, never write.
    """

    __slots__ = (
        "cached_tokens",
        "error",
        "finish",
        "forkable",
        "head",
        "limit",
        "listener",
        "logprobs",
        "matched_stop",
        "meter",
        "params",
        "prompt",
        "prompt_ids",
        "prompt_logprobs",
        "prompt_tokens",
        "reasoning_tokens",
        "req",
        "ring",
        "sent",
        "spell",
        "tail",
        "tail_pieces",
        "times",
        "told_logprobs",
        "wake",
        "window",
    )

    def __init__(self, listener: Callable[[TokenStream], None], opened: float, window: int = 512) -> None:
        self.listener = listener
        self.wake: Callable[[TokenStream], None] | None = (
            None  # set by the loop while it waits for the reader
        )
        self.window = window
        self.limit: int | None = None  # how many entries may be told in all; None: as many as there are
        self.ring: deque[Entry] = deque()
        self.head = 0
        self.sent = 0
        self.tail = ""
        self.tail_pieces: list[Piece] = []
        self.finish: FinishReason | None = None
        self.error: Refusal | None = None
        self.matched_stop: str | int | None = None  # which stop string or stop id ended it
        self.params: SamplingParams | None = None  # effective parameters, known once the prompt is prepared
        # Whose tokens these are, once the prompt is prepared: it outlives the request, for its forks.
        self.req: Req | None = None
        # What it was prepared from, with a grammar of its own at its beginning: for its forks.
        self.prompt: Prompt | None = None
        self.forkable = False  # what it leaves behind is kept for forks, as long as nobody needs the room
        self.prompt_tokens = 0
        self.prompt_ids: tuple[int, ...] = ()  # where the ask wants the prompt back
        self.logprobs: list[TokenLogprob] | None = None  # where the ask wants them: of entries taken
        self.spell: Callable[[int], tuple[str, bytes | None]] | None = (
            None  # a token's name and bytes, beside them
        )
        self.told_logprobs: Logprobs | None = None  # and of all entries so far: for its forks
        self.prompt_logprobs: Logprobs | None = None  # where it wants them; whole with the first token
        self.cached_tokens = 0
        self.reasoning_tokens = 0  # output tokens that were thought, not said
        self.times = StreamTimes(opened)
        self.meter: StreamMeter | None = None  # where its reader wants to know what became of its time

    # -- writer side -------------------------------------------------------------------------------------------

    def push(self, entry: Entry) -> None:
        """Append one retired token and tell the listener."""
        assert self.finish is None, "nothing follows the end of a stream"
        self.ring.append(entry)
        self.head += 1
        if self.told_logprobs is not None:
            self.told_logprobs.add(entry.logprob)
        self.listener(self)

    def end(
        self,
        finish: FinishReason,
        tail: str = "",
        error: Refusal | None = None,
        pieces: list[Piece] | None = None,
    ) -> None:
        """Close the stream once; `error` says why when `finish` is ERROR. A second call changes nothing.

        pieces: the tail typed, where the stream has a splitter."""
        if self.finish is not None:
            return
        assert (finish is FinishReason.ERROR) == (error is not None)
        self.finish = finish
        self.tail = tail
        self.tail_pieces = pieces if pieces is not None else [TextPiece(tail)] if tail else []
        if finish in (FinishReason.CANCELLED, FinishReason.ERROR):
            # A reader that spends no more credit still hears of this end, behind what waited.
            self.limit = None
        # A raised error remembers the frames it came through, and one of them holds this stream.
        self.error = None if error is None else error.with_traceback(None)
        # The last word. Both callbacks usually hold something that holds this stream: letting go of them here
        # keeps a finished request from waiting for the cycle collector, which rarely runs while others stream.
        listener, self.listener = self.listener, _nobody
        self.wake = None
        listener(self)

    @property
    def full(self) -> bool:
        """The reader is a whole window behind: the request should leave the batch."""
        return self.head - self.sent >= self.window

    def want_logprobs(self, wish: LogprobWish, spell: Callable[[int], tuple[str, bytes | None]]) -> None:
        """Its entries come with logprobs, as the request wishes."""
        self.told_logprobs = no_logprobs(wish.top)
        if wish.told is not None:
            self.logprobs, self.spell = [], spell

    def doubt(self, index: int) -> float | None:
        """How unsure the model was of entry `index`, in nats; None where nothing is known."""
        told = self.told_logprobs
        return None if told is None or told.values[index] > 0 else told.doubt(index)

    def outlive(self) -> None:
        """Forks of it may come after its end: what it leaves behind is kept for them."""
        self.forkable = True
        if self.req is not None:
            self.req.forkable = True

    def told_logprob(self, index: int) -> TokenLogprob | None:
        """That of entry `index`; None if it has none."""
        told = self.told_logprobs
        if told is None or self.req is None:
            return None
        return told.told(index, self.req.tokens[self.prompt_tokens + index])

    @property
    def said(self) -> int:
        """Tokens that are part of the answer: the one that stopped it is not."""
        return self.head - (self.finish is FinishReason.STOP and isinstance(self.matched_stop, int))

    @property
    def held(self) -> bool:
        """The request was paused for the sake of this reader, and waits to be woken."""
        return self.wake is not None

    # -- reader side -------------------------------------------------------------------------------------------

    def grant(self, tokens: int) -> None:
        """The reader may be told so many entries more. Only for streams that were born with a credit."""
        assert self.limit is not None and tokens > 0
        self.limit += tokens

    @property
    def starved(self) -> bool:
        """Entries wait, and the reader's credit is used up."""
        return self.limit is not None and self.sent == self.limit < self.head

    def attach(self, listener: Callable[[TokenStream], None], window: int) -> None:
        """`listener` hears of this stream from now on, and nobody else; the loop pauses the request when `window`
        entries wait. One that was paused and now has room is woken."""
        self.listener = listener if self.finish is None else _nobody
        self.window = window
        if self.wake is not None and self.pending <= window // 2:
            self.wake(self)

    @property
    def pending(self) -> int:
        """Entries waiting for the reader."""
        return self.head - self.sent

    @property
    def ended(self) -> bool:
        """Finished and fully read: only the tail and the finish remain to be told."""
        return self.finish is not None and self.sent == self.head

    @property
    def _alone(self) -> bool:
        """One entry is there, it waits, and nothing but its text is asked for: the usual case, and a short way."""
        return len(self.ring) == 1 and self.wake is None and self.logprobs is None and self.limit is None

    def take_text(self) -> str:
        """The text of all waiting entries that the credit covers; they count as sent."""
        if self._alone:
            self.sent += 1
            return self.ring.popleft().text
        return "".join([entry.text for entry in self.take()])

    def take_plain(self) -> str | None:
        """The text of all waiting entries, if none is typed; they count as sent. Else None, and they wait."""
        if self._alone:
            if self.ring[0].pieces is not None:
                return None
            self.sent += 1
            return self.ring.popleft().text
        if any(entry.pieces is not None for entry in self.ring):
            return None
        return "".join([entry.text for entry in self.take()])

    def take_pieces(self) -> list[Piece]:
        """What all waiting entries say, in as few pieces as possible; they count as sent. `tail_pieces` follow,
        once the stream has ended."""
        said: list[Piece] = []
        for entry in self.take():
            if entry.pieces is not None:
                said += entry.pieces
            elif entry.text:
                said.append(TextPiece(entry.text))
        return joined(said)

    def take(self, limit: int | None = None) -> list[Entry]:
        """The next waiting entries, oldest first, at most `limit` and no more than the credit covers; they count
        as sent."""
        count = self.pending if limit is None else min(limit, self.pending)
        if self.limit is not None:
            count = min(count, self.limit - self.sent)
        taken = [self.ring.popleft() for _ in range(count)]
        self.sent += count
        if self.logprobs is not None:
            self.logprobs += [entry.logprob for entry in taken if entry.logprob is not None]
        if count and self.wake is not None and self.pending <= self.window // 2:
            self.wake(self)
        return taken

    def take_logprobs(self) -> list[TokenLogprob]:
        """Those of the entries that were taken since the last call."""
        found = self.logprobs or []
        if found:
            self.logprobs = []
        return found

    @property
    def usage(self) -> Usage:
        return Usage(self.prompt_tokens, self.cached_tokens, self.head, self.reasoning_tokens)

    def check(self) -> None:
        assert 0 <= self.sent <= self.head, self
        assert self.limit is None or self.sent <= self.limit, self
        assert len(self.ring) == self.head - self.sent, self
