"""What is typed in the lanes of one connection (`x.input.…`): texts, their pictures, and what was read ahead of
them.

A draft belongs to its lane until it is committed; then it belongs to that request, which goes the way of every
other. Whatever a client can make grow here is bounded: drafts, their length, the time nobody types, and their
bytes, which count as waiting requests do.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from msgspec import UNSET, Raw

from headrace.runtime.interface import Draft, Message, Picture, Refusal
from headrace.server.conversation import Stored, Turn
from headrace.server.faces.asks import check_model, check_response, response_ask, response_messages
from headrace.server.faces.frames import LANE_NAME, bad_lane, lane_of, not_found
from headrace.server.faces.held_pictures import HeldPictures
from headrace.server.faces.running import Running
from headrace.server.faces.settings import FaceSettings, Timer
from headrace.server.protocol import drafts as d
from headrace.server.protocol import response_events as ev
from headrace.server.protocol.codec import decode
from headrace.server.protocol.errors import WireError
from headrace.server.protocol.extension import Error, VerbError
from headrace.server.protocol.responses import Item, Part, ResponseCreate, ResponseRequest
from headrace.server.session import WaitingBudget, branch_lane

if TYPE_CHECKING:
    from headrace.server.faces.responses_ws import ResponsesSocket

CHARACTERS = 1 << 20  # of one draft
PICTURES = 8  # as many as one request may show
ACK_EVERY = 0.1  # seconds
# What the first append alone may say, and a commit takes over.
_OPENING = ("model", "instructions", "tools", "tool_choice", "previous_response_id", "cache_salt")


@dataclass(slots=True, eq=False)
class LaneDraft:
    """One draft as its client sees it. `pictures`: (place in the text, URL), in order."""

    lane: str | None
    opening: d.InputAppend
    text: str = ""
    pictures: list[tuple[int, str]] = field(default_factory=list)
    shown: list[str] = field(default_factory=list)  # URLs of the pictures that are read, in order
    rev: int = 0
    draft: Draft | None = None  # once the conversation before it is known
    wanted: str | None = None  # the response that it waits for, if that still runs
    event_id: str | None = None  # of the newest verb that no ack has answered
    charged: int = 0
    acked_at: float = -1.0
    acking: Timer | None = None
    idle: Timer | None = None
    over: bool = False

    def request(self, commit: d.InputCommit | None = None) -> ResponseCreate:
        """What is asked for with it; fields that `commit` leaves out are those of the opening."""
        given = {} if commit is None else {
            name: getattr(commit, name) for name in ResponseCreate.__struct_fields__ if name != "input"
        }  # fmt: skip
        blank = ResponseCreate()
        for name in _OPENING:
            if name not in given or given[name] == getattr(blank, name):
                given[name] = getattr(self.opening, name)
        role = self.opening.role or "user"
        if not self.pictures:
            return ResponseCreate(
                **given, input=[Item(role=role, content=self.text)] if role != "user" else self.text
            )
        parts: list[Part] = []
        done = 0
        for place, url in self.pictures:
            if place > done:
                parts.append(Part("input_text", text=self.text[done:place]))
            parts.append(Part("input_image", image_url=url, detail="auto"))
            done = place
        if done < len(self.text):
            parts.append(Part("input_text", text=self.text[done:]))
        return ResponseCreate(**given, input=[Item(role=role, content=parts)])


class LaneDrafts:
    """The drafts of one connection."""

    def __init__(
        self,
        socket: ResponsesSocket,
        settings: FaceSettings,
        running: Running,
        budget: WaitingBudget,
        pictures: HeldPictures,
        model: str | None,
    ) -> None:
        """model: what a draft is of that names none."""
        self._socket = socket
        self._settings = settings
        self._running = running
        self._budget = budget
        self._pictures = pictures
        self._model = model
        self._typed: dict[str | None, LaneDraft] = {}
        self._sent: list[
            tuple[ResponseRequest, LaneDraft]
        ] = []  # committed, and their requests have not joined

    # -- for the socket ----------------------------------------------------------------------------------------

    def claim(self, request: ResponseRequest) -> Draft | None:
        """What was read ahead for this very request."""
        draft = next((draft for known, draft in self._sent if known is request), None)
        if draft is not None and (draft.draft is None or draft.draft.over):
            self._end(draft)  # what it continues was not known in time: there is nothing to hear of it
            return None
        return None if draft is None else draft.draft

    def forget(self, request: ResponseRequest) -> None:
        """The request is refused, or became another one: nothing of its draft is kept."""
        for known, draft in list(self._sent):
            if known is request:
                self._end(draft)

    def drop(self, lane: str | None) -> None:
        """The lane's draft, if it has one, is no more."""
        if (draft := self._typed.get(lane)) is not None:
            self._end(draft)

    def end(self) -> None:
        """The connection is gone, or the server stops."""
        for draft in (*self._typed.values(), *(draft for _, draft in self._sent)):
            self._end(draft)

    # -- verbs -------------------------------------------------------------------------------------------------

    def append(self, message: str | bytes, fields: dict[str, Raw]) -> None:
        verb = decode(message, d.InputAppend, fields=fields).value
        if (verb.text is None) == (verb.image_ref is None):
            raise WireError("invalid_value", "give text or image_ref, and only one of them", "text")
        draft = self._typed.get(verb.stream_id)
        fresh = draft is None
        if draft is None:
            draft = self._opened(verb)
        else:
            for name in (*_OPENING, "role"):
                if name in fields and bytes(fields[name]).strip() != b"null":
                    raise WireError("invalid_value", f"{name} is said with the first append alone", name)
        text, pictures = draft.text, list(draft.pictures)
        if verb.text is not None:
            text += verb.text
        else:
            assert verb.image_ref is not None
            self._pictures.check(verb.image_ref, "image_ref")
            if len(pictures) >= PICTURES:
                raise WireError("draft_too_long", f"a draft has at most {PICTURES} pictures", "image_ref")
            pictures.append((len(text), f"ref:{verb.image_ref}"))
        self._change(draft, text, pictures, verb.event_id, fresh=fresh)

    def replace(self, message: str | bytes, fields: dict[str, Raw]) -> None:
        verb = decode(message, d.InputReplace, fields=fields).value
        draft = self._known(verb.stream_id)
        start, size = verb.from_char, len(draft.text)
        end = size if verb.to_char is None else verb.to_char
        if start > size:
            raise WireError("invalid_value", f"from_char: the text has {size} characters", "from_char")
        if not start <= end <= size:
            raise WireError("invalid_value", f"to_char: lies between from_char and {size}", "to_char")
        moved = len(verb.text) - (end - start)
        pictures = [(at, url) for at, url in draft.pictures if at <= start]
        pictures += [(at + moved, url) for at, url in draft.pictures if at >= end and at > start]
        self._change(draft, draft.text[:start] + verb.text + draft.text[end:], pictures, verb.event_id)

    def discard(self, message: str | bytes, fields: dict[str, Raw]) -> None:
        verb = decode(message, d.InputDiscard, fields=fields).value
        self._end(self._known(verb.stream_id))

    def commit(self, message: str | bytes, fields: dict[str, Raw]) -> None:
        settings = self._settings
        lane = lane_of(fields)
        decoded = decode(message, d.InputCommit, strict=settings.strict_fields, fields=fields)
        name = None if lane is UNSET else str(lane)
        draft = self._known(name)
        if decoded.value.input is not None:
            raise WireError(
                "invalid_value", "input: a commit sends what was typed, and nothing else", "input"
            )
        if decoded.value.rev not in (None, draft.rev):
            what = f"rev: the draft has taken {draft.rev} changes; what it says is not what was typed"
            raise WireError("draft_changed", what, "rev")
        if not draft.text and not draft.pictures:
            raise WireError("invalid_value", "nothing is typed in this lane", "stream_id")
        if decoded.ignored:
            settings.on_ignored_fields("responses_ws", len(decoded.ignored))
        request, added = self._pictures.resolved(draft.request(decoded.value))
        assert self._typed.pop(name) is draft
        self._sent.append((request, draft))
        try:
            self._socket.ask_for(request, len(message) + len(draft.text) + added, name)
        except (WireError, Refusal):
            self._sent.remove((request, draft))
            self._typed[name] = draft  # as if nothing had been said
            raise
        self._quiet(draft)
        draft.event_id = decoded.value.event_id

    # -- a draft's life ----------------------------------------------------------------------------------------

    def _known(self, lane: str | None) -> LaneDraft:
        draft = self._typed.get(lane)
        if draft is None:
            raise WireError("draft_not_found", "nothing is typed in this lane", "stream_id")
        return draft

    def _opened(self, verb: d.InputAppend) -> LaneDraft:
        """A draft that is in no lane yet. Raises WireError."""
        settings = self._settings
        if verb.stream_id is not None and not LANE_NAME.match(verb.stream_id):
            raise bad_lane()
        self._socket.check_open()
        if len(self._typed) + len(self._sent) >= settings.drafts:
            what = f"A connection has at most {settings.drafts} drafts."
            raise WireError("draft_limit_reached", what, "stream_id")
        check_model(verb.model or self._model, self._socket.runtime.card, settings.model_aliases)
        self._socket.name_lane(verb.stream_id)
        return LaneDraft(verb.stream_id, verb)

    def _change(
        self,
        draft: LaneDraft,
        text: str,
        pictures: list[tuple[int, str]],
        event_id: str | None,
        *,
        fresh: bool = False,
    ) -> None:
        """The draft says this from now on; `fresh`: it is opened with it. Raises WireError or Refusal; then it is
        as it was."""
        if len(text) > CHARACTERS:
            raise WireError("draft_too_long", f"a draft has at most {CHARACTERS} characters", "text")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise WireError(
                "invalid_value", "text holds a lone surrogate, which is no character", "text"
            ) from None
        more = len(text) - draft.charged
        if more > 0 and not self._budget.take(more):
            raise WireError(
                "server_is_overloaded", "Too much is waiting already; try again.", retry_after=1.0
            )
        if more < 0:
            self._budget.give_back(-more)
        before = draft.text, draft.pictures, draft.charged
        draft.text, draft.pictures, draft.charged = text, pictures, draft.charged + more
        draft.event_id = event_id
        if fresh:
            self._typed[draft.lane] = draft
        try:
            self._read(draft, fresh=fresh)
        except (WireError, Refusal):
            draft.text, draft.pictures, draft.charged = before
            self._budget.charge(-more)
            if fresh:
                self._end(draft)
            raise
        if draft.over:
            return  # what it continues is not there, and its client has been told
        draft.rev += 1
        if draft.idle is not None:
            draft.idle.cancel()
        draft.idle = self._settings.call_later(self._settings.draft_idle, partial(self._expire, draft))
        self._news(draft)

    def _read(self, draft: LaneDraft, *, fresh: bool) -> None:
        """Hand the text to whoever reads it ahead; first find what it continues."""
        if draft.draft is not None:
            message = self._message(draft)
            messages = (*(draft.draft.ask.messages or ())[:-1], message)
            self._socket.runtime.drafting.write(draft.draft, replace(draft.draft.ask, messages=messages))
            return
        previous = draft.opening.previous_response_id
        if previous is None:
            self._begin(draft, None)
        elif (near := self._socket.latest.near(previous)) is not None:
            self._begin(draft, near.turn)
        elif fresh or draft.wanted is not None:
            # An answer that still runs is continued from when it has ended; the next key looks again.
            running = self._socket.find(previous) is not None
            draft.wanted = previous if running else None
            if not running:
                self._running.store.find(self._socket.tenant, previous, partial(self._found, draft))

    def _found(self, draft: LaneDraft, stored: Stored | Refusal | None) -> None:
        if draft.over or draft.draft is not None:
            return
        try:
            if not isinstance(stored, Stored):
                raise not_found(draft.opening.previous_response_id or "") if stored is None else stored
            self._begin(draft, stored.turn)
        except (WireError, Refusal) as error:
            inner = WireError.of(error).fields()
            event_id = UNSET if draft.event_id is None else draft.event_id
            told = VerbError(inner.type, inner.code, inner.message, inner.param)
            self._socket.say(Error(told, event_id, _wire(draft.lane)))
            self._end(draft)

    def _begin(self, draft: LaneDraft, turn: Turn | None) -> None:
        """What is typed continues `turn`: reading can begin. Raises WireError or Refusal."""
        request = draft.request()
        check_response(request)
        message = self._message(draft)
        history = () if turn is None else turn.history()
        ask = response_ask(request, history, (message,), self._socket.tenant)
        if not ask.messages or ask.messages[-1] != message:
            # It was joined to the system's text before it: then there is no message that is typed alone.
            ask = replace(ask, messages=(*history, message))
        draft.draft = self._socket.runtime.drafting.open(ask, lambda known: self._told(draft))

    def _message(self, draft: LaneDraft) -> Message:
        if not draft.pictures:
            role = "system" if draft.opening.role in ("system", "developer") else "user"
            return Message(role, draft.text)
        last = None if draft.draft is None else (draft.draft.ask.messages or ())[-1]
        if last is not None and draft.shown == [url for _, url in draft.pictures]:
            # A key is a few bytes, and must not cost what its pictures weigh.
            placed = zip(last.pictures, draft.pictures, strict=True)
            moved = tuple([replace(picture, at=place) for picture, (place, _) in placed])
            return replace(
                last, content=draft.text, pictures=last.pictures if moved == last.pictures else moved
            )
        request, _ = self._pictures.resolved(draft.request())
        (message,) = response_messages(request.input, self._socket.tenant)
        draft.shown = [url for _, url in draft.pictures]
        shown: tuple[Picture, ...] = message.pictures
        # The same pictures are the same objects, so that they are read once.
        known = () if draft.draft is None else (draft.draft.ask.messages or ())[-1].pictures
        return replace(message, pictures=known if known == shown else shown)

    def _told(self, draft: LaneDraft) -> None:
        """News of what is read ahead."""
        known = draft.draft
        assert known is not None
        if known.outcome is None or draft.over:
            self._news(draft)
            return
        # Of several answers the first: its branches have the lane's name and a number.
        job = self._socket.running(draft.lane) or self._socket.running(branch_lane(draft.lane, 0))
        # A request that is refused has no response that could be named: its error is all there is to hear.
        if job is not None and known.sent and job.response.run.stream.error is None:
            out = known.outcome
            self._socket.say(
                d.InputCommitted(
                    job.response.run.id,
                    out.cached + out.used,
                    out.used,
                    out.wasted,
                    UNSET if draft.event_id is None else draft.event_id,
                    _wire(draft.lane),
                )
            )
        self._end(draft)

    def _news(self, draft: LaneDraft) -> None:
        """Say how far it has come, now or when an ack may be said again."""
        if draft.acking is not None or draft.over or self._typed.get(draft.lane) is not draft:
            return
        wait = draft.acked_at + ACK_EVERY - self._settings.clock()
        if draft.acked_at >= 0 and wait > 0:
            draft.acking = self._settings.call_later(wait, partial(self._ack, draft))
        else:
            self._ack(draft)

    def _ack(self, draft: LaneDraft) -> None:
        draft.acking = None
        draft.acked_at = self._settings.clock()
        known = draft.draft
        stable = ready = 0
        settled = False
        if known is not None:
            stable, ready = known.stable, self._socket.runtime.drafting.ready(known)
            settled = not known.reading and known.read == known.text and ready == stable
        event_id = UNSET if draft.event_id is None else draft.event_id
        draft.event_id = None
        self._socket.say(
            d.InputAck(draft.rev, len(draft.text), stable, ready, settled, event_id, _wire(draft.lane))
        )

    def _expire(self, draft: LaneDraft) -> None:
        draft.idle = None
        if not draft.over and self._typed.get(draft.lane) is draft:
            self._end(draft)
            self._socket.say(d.InputEnded("idle", _wire(draft.lane)))

    def _quiet(self, draft: LaneDraft) -> None:
        for timer in (draft.acking, draft.idle):
            if timer is not None:
                timer.cancel()
        draft.acking = draft.idle = None

    def _end(self, draft: LaneDraft) -> None:
        if draft.over:
            return
        draft.over = True
        self._quiet(draft)
        self._budget.give_back(draft.charged)
        if self._typed.get(draft.lane) is draft:
            del self._typed[draft.lane]
        self._sent = [(request, known) for request, known in self._sent if known is not draft]
        if draft.draft is not None:
            self._socket.runtime.drafting.drop(draft.draft)


def _wire(lane: str | None) -> ev.Lane:
    return UNSET if lane is None else lane
