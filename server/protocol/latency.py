"""What a client may want of the time of its answer, on every endpoint: `x_latency`, `service_tier`, `priority`."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Milliseconds = Annotated[float, Meta(gt=0, le=86_400_000)]


class Latency(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`x_latency`: targets in milliseconds, counted from the arrival of the request. What is named is promised, or
    the request is refused at once."""

    ttft_ms: Milliseconds | None = None
    itl_ms: Milliseconds | None = None
    deadline_ms: Milliseconds | None = None
    class_: Literal["interactive", "batch"] | None = msgspec.field(name="class", default=None)


Priority = Annotated[int, Meta(ge=-(1 << 31), le=(1 << 31) - 1)]
TIER = "priority, fast, ultrafast: interactive; flex: batch"
LATENCY = "ttft_ms, itl_ms, deadline_ms: promised or refused (429); class: interactive or batch"
PRIORITY = "extra; below 0: interactive, above: batch; service_tier and x_latency.class come first"
