"""OpenAI Responses over WebSocket: one Session per connection. Knows events and lanes; knows no socket.

A request is refused with an `error` frame as long as no response exists; after `response.created` everything,
failure included, is told by response events. What is in flight when the connection goes is cancelled at once,
unless its client asked to come back to it (`held.py`).
"""

from __future__ import annotations

from functools import partial

from msgspec import UNSET, Raw, Struct

from headrace.runtime.interface import ForkPlace, Refusal, Runtime, StepBoard, Tenant, TokenStream, micros
from headrace.server.conversation import Turn
from headrace.server.exchange import HttpRequest, Wire
from headrace.server.faces import branches, cancel_verb, frames, steer_verb
from headrace.server.faces.asks import check_model
from headrace.server.faces.drafts import LaneDrafts
from headrace.server.faces.extension import obey
from headrace.server.faces.held import Held, HeldResponses
from headrace.server.faces.held_pictures import HeldPictures
from headrace.server.faces.jobs import Fetching, Job, Parked, equip
from headrace.server.faces.latest import LatestResponses
from headrace.server.faces.lineage import Traced, items_of, refers, trace
from headrace.server.faces.opening import fork_response, open_response
from headrace.server.faces.pictures import file_type
from headrace.server.faces.reports import Reports
from headrace.server.faces.responses import BEGINNING
from headrace.server.faces.running import Running, RunningResponse
from headrace.server.faces.settings import FaceSettings
from headrace.server.faces.steering import (
    Steer,
    fate,
    required_input,
    successor,
    with_steers,
)
from headrace.server.faces.telemetry import steps_told
from headrace.server.protocol import extension as x
from headrace.server.protocol import response_events as ev
from headrace.server.protocol.codec import decode, encode, split, string
from headrace.server.protocol.errors import WireError
from headrace.server.protocol.responses import ResponseCreate, ResponseRequest
from headrace.server.session import Lanes, Latest, WaitingBudget, base_lane, branch_lane

UNREAD_FRAMES = 1024  # answers that may wait for a peer that does not read
EXTENDED = "engine.v1"  # the subprotocol that asks for headrace's own events, as ?ext=1 does
# How a connection goes when its answers are not done with: no close frame, no pong, no reading, taken over, and a
# client that says so itself (it gave up the connection, not the answers).
ACCIDENTS = frozenset({1006, 1011, 1013, 4001, 4100})


def extended(request: HttpRequest) -> bool:
    """The connection asks for what is headrace's own: its events, and pictures as binary messages."""
    return request.query.get("ext") == "1" or request.subprotocol == EXTENDED


class ResponsesSocket:
    """A Session (exchange.py) that speaks Responses events."""

    def __init__(
        self,
        request: HttpRequest,
        wire: Wire,
        runtime: Runtime,
        settings: FaceSettings,
        running: Running,
        budget: WaitingBudget,
        held: HeldResponses,
    ) -> None:
        self.held, self.pins = held, running.pins
        self._extended = extended(request)
        self._reports = Reports()
        self.board = StepBoard()
        self._fresh: list[Job] = []  # jobs whose steps are told, and whose beginning was not told yet
        self._behind: list[TokenStream] = []  # streams that have more to tell again than one go may carry
        self._wire = wire
        self._runtime = runtime
        self._settings = settings
        self.responses = self._running = running
        self._store = running.store
        self._default_model = request.query.get("model")
        self._lanes: Lanes[ResponseRequest, Job | Fetching] = Lanes(settings.lanes, budget)
        self.latest = LatestResponses(running.let_go)
        self._jobs: dict[TokenStream, Job] = {}
        self._parked: dict[str | None, Parked] = {}
        self._marked: dict[TokenStream, None] = {}
        self._frames: list[str | bytes] = []
        self._pictures = HeldPictures(budget)
        self.drafts = LaneDrafts(self, settings, running, budget, self._pictures, self._default_model)
        self._expired = False
        self._draining = False
        self._closing = False  # nothing more is read: a close code is on its way, or the peer is gone
        self._timer = settings.call_later(settings.connection_limit, self._expire)

    # -- Session -----------------------------------------------------------------------------------------------

    def received(self, message: str | bytes) -> None:
        """Answer one client event. Whatever is wrong with it becomes one error frame."""
        if self._closing:
            return
        if isinstance(message, bytes) and file_type(message) is not None:
            self._hold(message)
            return
        try:
            fields = split(message)
        except WireError as error:
            self._unreadable(error)
            return
        lane: ev.Lane = UNSET
        try:
            match string(fields.get("type")):
                case "response.create":
                    lane = frames.lane_of(fields)
                    self._create(message, fields, lane)
                case "response.cancel":
                    cancel_verb.cancel(self, message, fields)
                case "response.steer":
                    steer_verb.steer(self, message, fields)
                case verb if verb is not None and verb.startswith("x."):
                    self._verb(verb, message, fields)
                case None if frames.absent(fields.get("type")):
                    self._unreadable(WireError("missing_required_parameter", "missing field: type", "type"))
                case None:
                    self._unreadable(WireError("invalid_value", "type: expected a string", "type"))
                case other:
                    what = f"unknown event type: '{other[:200]}'"
                    self._unreadable(WireError("unknown_event", what, "type"))
        except (WireError, Refusal) as error:
            self.refuse(error, lane)

    def render(self) -> list[str | bytes]:
        """All frames that are ready. Ends responses, and starts what waited for them."""
        if self.board.used:
            self._tell_steps()
        while self._marked:
            marked, self._marked = self._marked, {}
            for stream in marked:
                if job := self._jobs.get(stream):
                    self._tell(job)
            self._start_waiting()
        self._close_if_over()
        behind, self._behind = self._behind, []
        for stream in behind:
            self.mark(stream)
        ready, self._frames = self._frames, []
        return ready

    def closed(self, code: int) -> None:
        """Cancel or detach everything in flight and let go of what the connection remembered."""
        self._closing = True
        self._timer.cancel()
        self._lanes.take_waiting()
        self._pictures.release()
        self.drafts.end()
        for job in self._jobs.values():
            branches.forget(self, job, told=False)
            if (held := job.held) is not None:
                # What was never told has no key that a client could know.
                if code in ACCIDENTS and held.next:
                    self.held.detach(held)
                    continue
                self.held.let_go(held)
            job.response.abandon()
        self._jobs.clear()
        self._fresh.clear()
        self._reports.paused.clear()
        self._parked.clear()
        self._marked.clear()
        self.latest.clear()
        self.pins.leave(self)

    def drain(self) -> None:
        """Refuse what waits and what comes; close with 1012 when the running responses have ended."""
        self._draining = True
        self.drafts.end()
        if self._extended:
            self.say(x.Goaway(round(self._settings.drain * 1000)))
        for lane, _ in self._lanes.take_waiting():
            self.refuse(frames.stopping(), UNSET if lane is None else lane)
        self._wire.dirty()  # the close follows the next rendering, also if nothing else happens

    # -- client events -----------------------------------------------------------------------------------------

    def _hold(self, picture: bytes) -> None:
        try:
            self.say(ev.PictureHeld(self._pictures.take(picture), len(picture)))
        except WireError as error:
            self.refuse(error, UNSET)

    def _create(self, message: str | bytes, fields: dict[str, Raw], lane: ev.Lane) -> None:
        settings = self._settings
        decoded = decode(message, ResponseCreate, strict=settings.strict_fields, fields=fields)
        if decoded.ignored:
            settings.on_ignored_fields("responses_ws", len(decoded.ignored))
        request, pictures = self._pictures.resolved(decoded.value)
        self.ask_for(request, len(message) + pictures, None if lane is UNSET else str(lane))

    def check_open(self) -> None:
        """Raise WireError if this connection takes nothing more."""
        if self._draining:
            raise frames.stopping()
        if self._expired:
            raise frames.too_old(self._settings.connection_limit)

    def ask_for(self, request: ResponseRequest, size: int, lane: str | None) -> None:
        """The request, of so many bytes, is answered in `lane` when its turn comes. Raises WireError."""
        self.check_open()
        self.name_lane(lane)
        branches.wanted(request, self._settings.lanes.in_flight)
        if not self._lanes.wait(lane, request, size, branches.answers(request)):
            raise frames.too_many(self._lanes, size)
        self._start_waiting()

    def name_lane(self, lane: str | None) -> None:
        """The lane is known from now on. Raises WireError if it is one too many."""
        if not self._lanes.name(lane):
            raise frames.lanes_named(self._settings.lanes.named)

    def stop(self, job: Job) -> None:
        """Its answer ends as cancelled, and the end is told whatever credit its reader has left."""
        stream = job.response.run.stream
        if stream.finish is None:
            self._runtime.cancel(stream)
        elif stream.limit is not None:
            # It had ended by itself, and its reader's credit did not reach that far: the end is what is wanted.
            stream.limit = None
            self.mark(stream)

    def tell_rest(self, job: Job) -> None:
        """What was said of this response, and only waits to be told."""
        self._frames += job.response.take()

    # -- the life of a response --------------------------------------------------------------------------------

    def _start_waiting(self) -> None:
        while not self._closing and (waiting := self._lanes.next()) is not None:
            lane, request = waiting
            parked = self._parked.get(lane)
            commits: list[Steer] = []
            if parked is not None and parked.target == request.previous_response_id:
                del self._parked[lane]
                commits = parked.steers
                self.drafts.forget(request)
                request = with_steers(request, commits)
            self._start(lane, request, commits)

    def _start(
        self, lane: str | None, request: ResponseRequest, commits: list[Steer], *, own: bool = True
    ) -> None:
        """Begin the response to a request whose lane is free. `own`: the client asked for it itself."""
        previous = request.previous_response_id
        if not refers(request):
            near = None if previous is None else self.latest.near(previous)
            if previous is None or near is not None:
                self._open(lane, request, None if near is None else near.turn, commits, own=own)
                return
        fetching = Fetching()
        self._lanes.start(lane, fetching)  # who comes after it in its lane waits

        def traced(outcome: Traced[ResponseRequest] | WireError | Refusal) -> None:
            if self._closing:
                return
            self._lanes.leave(lane)
            if isinstance(outcome, Traced):
                self._open(
                    lane, outcome.request, outcome.parent, commits, own=own, cancelled=fetching.cancelled
                )
            else:
                self._fail(lane, request, outcome, commits, own=own)
            if fetching.later:
                self._start_waiting()
                self._wire.dirty()  # also if nothing else happens: the connection may be over now

        trace(self._store, self._wire.tenant, request, self.latest.near, traced)
        fetching.later = True

    def _open(
        self,
        lane: str | None,
        request: ResponseRequest,
        parent: Turn | None,
        commits: list[Steer],
        *,
        own: bool,
        cancelled: bool = False,
    ) -> None:
        branching = branches.wanted(request, self._settings.lanes.in_flight)
        own_lane = lane if branching is None else branch_lane(lane, 0)
        try:
            check_model(
                request.model or self._default_model, self._runtime.card, self._settings.model_aliases
            )
            response = open_response(
                self._runtime,
                self._settings,
                self._running,
                branches.single(request),
                parent,
                self._wire.tenant,
                self.mark,
                lane=UNSET if own_lane is None else own_lane,
                board=self.board,
                doubt=branches.doubts(branching),
                draft=self.drafts.claim(request),
            )
        except (WireError, Refusal) as error:
            self._fail(lane, request, error, commits, own=own)
            return
        continues = branching is None and self.latest.continues(lane, request.previous_response_id)
        job = Job(own_lane, response, continues, own, commits)
        self.latest.forget_branches(lane)
        if branching is not None:
            branches.expect(self, job, branching, lane)
        self._begin(job)
        if cancelled:
            self._runtime.cancel(response.run.stream)

    def _begin(self, job: Job) -> None:
        """The job runs in its lane from now on."""
        run = job.response.run
        self._lanes.start(job.lane, job)
        self._jobs[run.stream] = job
        if run.stream.meter is not None:
            self._fresh.append(job)
        equip(job, run.request, self.held, self, extended=self._extended)
        self.mark(run.stream)  # the stream may have spoken, or ended, before it was known here

    def _fail(
        self,
        lane: str | None,
        request: ResponseRequest,
        error: WireError | Refusal,
        commits: list[Steer],
        *,
        own: bool,
    ) -> None:
        """The request is refused; what it continued in its own lane is forgotten."""
        self.drafts.forget(request)
        if self.latest.continues(lane, request.previous_response_id):
            self.latest.forget(lane)
        if own:
            self.refuse(error, UNSET if lane is None else lane)
        self._fail_steers(commits, lane, "successor_creation_failed", error.message)

    def mark(self, stream: TokenStream) -> None:
        """The stream has something to tell."""
        if not self._closing:
            if not self._marked:
                self._wire.dirty()  # it stays so until everything marked was told
            self._marked[stream] = None
            if stream.full and (job := self._jobs.get(stream)) is not None and job.drops:
                # Its client would rather lose it than wait for it; not from inside the step that is being told.
                self._settings.call_later(0.0, partial(self._runtime.cancel, stream))
                self._close(4002, "reading too slowly")

    def _tell(self, job: Job) -> None:
        response = job.response
        run = response.run
        if job.branching is not None:
            branches.begin(self, job)
        if job.reports:
            again = job.held is not None and job.held.must_replay
            self._frames += self._reports.tell(job)
            if job.held is not None and job.held.behind:
                self._behind.append(run.stream)
                return
            if again:
                self.mark(run.stream)
        else:
            self._frames += response.take()
        if run.refusal is not None:
            asked = base_lane(job.lane) if job.branching is not None else job.lane
            branches.forget(self, job, told=False)  # the one refusal is for all of them
            if job.own:
                self.refuse(run.refusal, UNSET if asked is None else asked)
            self._fail_steers(job.commits, job.lane, "successor_creation_failed", run.refusal.message)
        elif run.began and job.commits:
            job.commits = []  # the successor exists: their input is part of it
        if response.over:
            self._finish(job)
        elif job.steering.stop(run):
            self._runtime.cancel(run.stream)

    def _tell_steps(self) -> None:
        """Steps are told before what they brought, and behind the beginning of every response that they name."""
        self.board.told_at = micros(self._settings.clock())
        behind: list[str | bytes] = []
        for job in self._fresh:
            run = job.response.run
            if run.stream in self._marked and not run.began:
                del self._marked[run.stream]
                at = len(self._frames)
                self._tell(job)
                at += BEGINNING * run.began
                behind += self._frames[at:]
                del self._frames[at:]
        if self._fresh:
            self._fresh = [job for job in self._fresh if not (job.response.run.began or job.response.over)]
        self._frames += steps_told(self.board)
        self._frames += behind

    def _finish(self, job: Job) -> None:
        response, held = job.response, job.held
        run = response.run
        branches.forget(self, job, told=True)
        del self._jobs[run.stream]
        self._lanes.leave(job.lane)
        self._reports.paused.pop(run.stream, None)
        if held is not None:
            self.held.ended(held)
            if held.finished:
                return  # it was told again
            held.finished = True
        turn, response.turn = response.turn, None
        if turn is not None:
            lane = base_lane(job.lane) if job.promoted else job.lane
            assert run.final is not None, "who leaves a turn has told its end"
            # Not the run itself: that would keep its stream, and the request behind it.
            items, favour = partial(items_of, run.request, run.final), self._runtime.cache.favour(run.stream)
            self.latest.put(lane, Latest(run.id, turn, items, favour))
        elif job.continues_lane:
            self.latest.forget(job.lane)
        self._follow(job)

    def _follow(self, job: Job) -> None:
        """What becomes of the steers of a response that has ended."""
        lane, run, steers = job.lane, job.response.run, job.steering.steers
        parked = self._parked.pop(lane, None)
        if parked is not None and parked.target != run.id:
            what = "The conversation went on without the outputs that were waited for."
            self._fail_steers(parked.steers, lane, "response_not_active", what)
        if not steers:
            return
        if (why := fate(run)) is not None:
            self._fail_steers(steers, lane, "response_not_active", why)
            return
        assert run.final is not None
        if required := required_input(run.final):
            self._parked[lane] = Parked(run.id, steers)
            for steer in steers:
                self.say(ev.SteerPending(0, required, steer.name, stream_id=run.lane))
        elif self._draining:
            self._fail_steers(steers, lane, "successor_creation_failed", "The server is stopping; try again.")
        else:
            self._start(lane, successor(run.request, run.id, steers), steers, own=False)

    def _fail_steers(self, steers: list[Steer], lane: str | None, code: str, why: str) -> None:
        for steer in steers:
            self.say(steer.failed(0, code, why, UNSET if lane is None else lane))

    # -- verbs of ours (extension.py) --------------------------------------------------------------------------

    def _verb(self, verb: str, message: str | bytes, fields: dict[str, Raw]) -> None:
        if not obey(self, verb, message, fields):
            self._wire.malformed()

    @property
    def tenant(self) -> Tenant:
        return self._wire.tenant

    @property
    def runtime(self) -> Runtime:
        return self._runtime

    def running(self, lane: str | None) -> Job | None:
        """The job that runs in this lane."""
        found = self._lanes.running(lane)
        return found if isinstance(found, Job) else None

    def looks_up(self, lane: str | None) -> bool:
        """The request of this lane waits for what it continues to be found."""
        return isinstance(self._lanes.running(lane), Fetching)

    @property
    def lanes(self) -> Lanes[ResponseRequest, Job | Fetching]:
        return self._lanes

    def fork(
        self,
        parent: RunningResponse,
        turn: Turn | None,
        place: ForkPlace,
        request: ResponseRequest,
        lane: str,
    ) -> None:
        """An answer that begins as `parent` does runs in `lane` from now on, or several in its branches. Raises
        WireError or Refusal if it cannot; then nothing has changed."""
        if not frames.LANE_NAME.match(lane):
            raise frames.bad_lane()
        if self._draining or self._expired:
            raise frames.stopping()
        branching = branches.wanted(request, self._settings.lanes.in_flight)
        self._free_lane(lane)
        if self._lanes.in_flight + branches.answers(request) > self._settings.lanes.in_flight:
            raise frames.too_many(self._lanes, 0)
        if branching is None:
            self.begin_fork(parent, turn, place, request, lane)
        else:
            one = branches.single(request)
            doubt = branches.doubts(branching)
            job = self.begin_fork(parent, turn, place, one, branch_lane(lane, 0), doubt=doubt)
            branches.expect(self, job, branching, lane)
        self.latest.forget_branches(lane)

    def begin_fork(
        self,
        parent: RunningResponse,
        turn: Turn | None,
        place: ForkPlace,
        request: ResponseRequest,
        lane: str,
        *,
        doubt: bool = False,
    ) -> Job:
        """`fork`, in a lane that is free and has its place."""
        socket = self._runtime, self._settings, self._running
        response = fork_response(*socket, parent, turn, place, request, self.mark, lane, self.board, doubt)
        job = Job(lane, response, False, True, [])
        self._begin(job)
        return job

    def _free_lane(self, lane: str | None, own: Job | None = None) -> None:
        """Raise WireError unless the lane can be taken (`own`: who may hold it already)."""
        self.name_lane(lane)
        taken = self._lanes.busy(lane) and (own is None or self._lanes.running(lane) is not own)
        if taken or branches.expected(self, lane):
            raise WireError("lane_busy", "another answer runs in this lane", "stream_id")

    def find(self, response_id: str) -> Job | None:
        """The job of this response, if it is told here."""
        return next((job for job in self._jobs.values() if job.response.run.id == response_id), None)

    def take_over(self, held: Held, lane: str | None, start: int) -> None:
        """This connection reads a held response from event `start`, in `lane`. Raises WireError if the lane is not
        to be had."""
        job = held.job
        run = job.response.run
        self._free_lane(lane, job)
        if held.desk is self:
            self.give_up(held)
        self.held.attach(held, self, self.mark, start)
        job.lane = lane
        run.move(UNSET if lane is None else lane)
        self._lanes.start(lane, job)
        self._jobs[run.stream] = job
        status = "in_progress" if run.final is None else run.final.status
        self.say(x.Resumed(run.id, "reconnect", run.stream.sent, start, status, run.lane))
        self.mark(run.stream)

    def give_up(self, held: Held) -> None:
        """Another connection reads it now: this one is told so by its close code."""
        job = self._jobs.pop(held.job.response.run.stream, None)
        if job is None:
            return  # told to its end here
        stream = job.response.run.stream
        self._marked.pop(stream, None)
        self._reports.paused.pop(stream, None)
        self._lanes.leave(job.lane)
        branches.forget(self, job, told=True)
        if held.desk is not self:
            self._close(4001, "the answer was resumed on another connection")

    def say(self, event: Struct) -> None:
        """An event that belongs to no stream goes out behind everything that was told before."""
        if not self._closing:
            self._frames.append(encode(event).decode())
            if len(self._frames) > UNREAD_FRAMES:
                self._close(1008, "answers are not being read")
            self._wire.dirty()

    # -- frames and the end ------------------------------------------------------------------------------------

    def _unreadable(self, error: WireError) -> None:
        """Answer a message that is no event, then count it: if it is one too many, the answer still goes out."""
        self.refuse(error, UNSET)
        self._wire.malformed()

    def refuse(self, error: WireError | Refusal, lane: ev.Lane) -> None:
        self.say(frames.error_frame(WireError.of(error), lane))

    def _expire(self) -> None:
        self._expired = True
        self._wire.dirty()

    def _close_if_over(self) -> None:
        if self._closing or not self._lanes.idle:
            return
        if self._draining:
            self._close(1012, "the server restarts")
        elif self._expired:
            self._close(1001, "the connection reached its age limit")

    def _close(self, code: int, reason: str) -> None:
        if not self._closing:
            self._closing = True
            self._wire.close(code, reason)
