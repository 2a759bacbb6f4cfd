"""One request on the wire and what came back: raw while the run lasts, a trace when it is over."""

from __future__ import annotations

from headrace.bench.reading import EventReader, Reading, explain_body
from headrace.bench.record import Planned, Trace
from headrace.bench.transports import Dialect


class Exchange:
    """One turn of one planned request.

    data: the request as it goes out. due_ns: when it should go out, None: when it does. pieces: bytes of the answer
    without framing, each with its stamp. status: HTTP status, 0 before the head; sockets have 200. watched: its
    events are read as they come, since what they say decides what the client does next.
    """

    __slots__ = (
        "data",
        "dialect",
        "due_ns",
        "ended_ns",
        "events",
        "fault",
        "lane",
        "left",
        "pieces",
        "planned",
        "reading",
        "reason",
        "retried",
        "sent_ns",
        "status",
        "talk",
        "turn",
        "unread",
        "watched",
    )

    def __init__(
        self,
        planned: Planned,
        turn: int,
        dialect: Dialect,
        data: bytes,
        due_ns: int | None,
        talk: object = None,
    ) -> None:
        self.planned = planned
        self.turn = turn
        self.dialect = dialect
        self.data = data
        self.due_ns = due_ns
        self.talk = talk
        self.lane = ""
        self.sent_ns = 0
        self.ended_ns = 0
        self.status = 0
        self.reason = ""
        self.pieces: list[tuple[int, bytes]] = []
        self.unread = 0
        self.fault: str | None = None
        self.left = False
        self.retried = False
        self.watched = planned.cut_after is not None or planned.read_pause > 0
        self.reading: Reading = dialect.reading()
        self.events = None if dialect.socket else EventReader()

    @property
    def ok(self) -> bool:
        """It ended as it should, so far as the wire shows."""
        return self.fault is None and self.status == 200 and not self.left

    def read(self) -> Reading:
        """Read the pieces that nobody has read yet."""
        pieces, self.unread = self.pieces[self.unread :], len(self.pieces)
        reading = self.reading
        for at_ns, piece in pieces:
            if self.events is None:
                reading.read(at_ns, piece)
            else:
                for when, payload in self.events.feed(at_ns, piece):
                    reading.read(when, payload)
        return reading

    def trace(self) -> Trace:
        """Everything that metrics need. The exchange has ended."""
        error = self.fault
        if self.status == 200:
            reading = self.read()
            if reading.error is not None:
                error = reading.error
            elif error is None and not self.left and not reading.over:
                error = "the answer stopped without its last event"
        else:
            reading = self.dialect.reading()
            if error is None:
                error = explain_body(self.status, self.reason, b"".join(piece for _, piece in self.pieces))
        # Of an answer that was cut, usage may tell of tokens that never arrived: its events count as they came.
        reading_whole = error is None and not self.left
        if not reading_whole:
            reading.output_tokens = None
        scheduled = self.sent_ns if self.due_ns is None else self.due_ns
        return Trace(
            number=self.planned.number,
            part=self.planned.part,
            turn=self.turn,
            scheduled_ns=scheduled,
            sent_ns=self.sent_ns,
            chunks=reading.chunks(),
            ended_ns=self.ended_ns,
            prompt_tokens=reading.prompt_tokens,
            output_tokens=reading.output_tokens,
            cached_tokens=reading.cached_tokens,
            wanted_tokens=self.planned.output_tokens,
            finish=reading.finish,
            error=error,
            left=self.left and error is None,
        )
