"""What a reader is told of the time of its answers: `x.queue`, `x.prefill.progress`, `x.step`, and the summary.

Knows boards and meters; knows no connection. An `x.step` is put together by hand: there is one for every step, and
all that hear of a step share its first half.
"""

from __future__ import annotations

from headrace.runtime.interface import (
    FinishReason,
    Reading,
    StepBoard,
    StepReport,
    StepRow,
    StreamMeter,
    TokenStream,
    Waiting,
)
from headrace.server.protocol import extension as x
from headrace.server.protocol.codec import encode

TELEMETRY = "x_telemetry"  # the summary's key in the metadata of a response
LANDED = frozenset({FinishReason.STOP, FinishReason.LENGTH})  # ends that come with a step


def row_name(response_id: str) -> str:
    """How the rows of a response begin in an `x.step`."""
    return f'{{"response_id":"{response_id}"'


def steps_told(board: StepBoard) -> list[str]:
    """Everything that stands on the board, as events, once."""
    skipped = board.skipped
    told: list[str] = []
    for what, news in board.news:
        if isinstance(what, StepReport):
            assert isinstance(news, list)
            told.append(_step(what, news, board.told_at, skipped))
            skipped = 0
        else:
            assert not isinstance(news, list)
            told.append(encode(_notice(what, news)).decode())
    if told:
        board.clear()
    if skipped:  # none was left to say so
        board.skipped = skipped
    return told


def summary_of(stream: TokenStream, meter: StreamMeter) -> x.Summary:
    """Where the time of a stream that has ended went, now that its end is told."""
    ended = stream.times.opened if stream.times.ended is None else stream.times.ended
    sums = meter.summary(ended, stream.finish in LANDED)
    return x.Summary(
        queue_ms=sums.queue / 1000,
        prefill_ms=sums.prefill / 1000,
        steps_ms=sums.steps / 1000,
        waited_ms=sums.waited / 1000,
        send_lag_ms=sums.send_lag / 1000,
        total_ms=sums.total / 1000,
        steps=meter.steps,
        graph_hits=meter.replays,
        recomputed_tokens=meter.recomputed,
    )


def _step(report: StepReport, rows: list[StepRow], now: int, skipped: int) -> str:
    head = report.text
    if not head:
        graph = "hit" if report.replayed else "eager"
        head = report.text = (
            f'{{"type":"x.step","step_id":{report.number},"step_ms":{report.took / 1000},"batch":{report.rows},'
            f'"bucket":{report.bucket},"graph":"{graph}","prefill_tokens_in_step":{report.prompt_tokens},'
        )
    tail = f'"send_lag_ms":{(now - report.landed) / 1000},"draft_accepted":0}}'
    if len(rows) == 1 and not skipped:
        (meter, token, wait), *_ = rows
        if token is not None:  # one reader, one answer, one token: nearly every event
            return f'{head}"streams":[{meter.name},"token_index":{token},"queue_ms":{wait / 1000},{tail}]}}'
    said = ",".join(
        [
            f'{meter.name},"queue_ms":{wait / 1000},{tail}'
            if token is None
            else f'{meter.name},"token_index":{token},"queue_ms":{wait / 1000},{tail}'
            for meter, token, wait in rows
        ]
    )
    missed = f'"skipped":{skipped},' if skipped else ""
    return f'{head}{missed}"streams":[{said}]}}'


def _notice(meter: StreamMeter, notice: Waiting | Reading) -> x.Queue | x.PrefillProgress:
    run = meter.owner
    eta = None if notice.eta is None else round(notice.eta / 1000)
    if isinstance(notice, Waiting):
        return x.Queue(run.id, notice.position, eta, run.lane)
    return x.PrefillProgress(run.id, notice.done, notice.total, notice.cached, eta, run.lane)
