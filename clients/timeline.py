"""Where the time of one answer went, as its server told it. Knows events; knows no connection.

Nothing is told twice: what happened while a connection was lost is in no list here, but in the `summary`.
"""

from __future__ import annotations

import msgspec

from headrace.clients.events import PrefillProgress, Queue, Response, Step, StepStream, Summary

_summary = msgspec.json.Decoder(Summary)
KEY = "x_telemetry"


class TimelineStep(msgspec.Struct, frozen=True):
    """One step of the engine that this answer was in. `token_index` None: it only read its prompt. Milliseconds:
    what the answer waited before the step, the step itself, and from its landing to the event that told of it."""

    step_id: int
    token_index: int | None
    queue_ms: float
    step_ms: float
    send_lag_ms: float
    batch: int
    bucket: int
    graph: str  # hit, eager
    prefill_tokens_in_step: int
    draft_accepted: int


class Timeline:
    """`queue`, `prefill` and `steps` grow while the answer does, oldest first; `summary` comes with its end.

    All empty unless the answer was asked for with `telemetry`."""

    def __init__(self) -> None:
        self.queue: list[Queue] = []
        self.prefill: list[PrefillProgress] = []
        self.steps: list[TimelineStep] = []
        self.summary: Summary | None = None

    def hear(self, event: Queue | PrefillProgress) -> None:
        """The server told something of this answer alone."""
        if isinstance(event, Queue):
            self.queue.append(event)
        else:
            self.prefill.append(event)

    def step(self, step: Step, own: StepStream) -> None:
        """A step landed; `own` is this answer's part of it."""
        index = own.token_index
        self.steps.append(
            TimelineStep(
                step.step_id,
                index if isinstance(index, int) else None,
                own.queue_ms,
                step.step_ms,
                own.send_lag_ms,
                step.batch,
                step.bucket,
                step.graph,
                step.prefill_tokens_in_step,
                own.draft_accepted,
            )
        )

    def end(self, final: Response) -> None:
        """The terminal event's response. A server that does not know telemetry echoes nothing."""
        said = final.metadata.get(KEY)
        if said is not None:
            try:
                self.summary = _summary.decode(said)
            except msgspec.MsgspecError:
                pass  # the metadata of somebody else's server: not ours to judge

    @property
    def waited_ms(self) -> float:
        """What the steps so far were waited for: before the first one, and between them."""
        return sum(step.queue_ms for step in self.steps)

    @property
    def step_ms(self) -> float:
        """What the steps so far took."""
        return sum(step.step_ms for step in self.steps)
