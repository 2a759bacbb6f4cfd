"""What a client may send to /start_profile. Knows fields and bounds only.

The clients that call it send SGLang's fields, or a whole completions request of theirs, or nothing."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Raw

from headrace.server.protocol.fields import NULL, honoured, ignored

MOST_STEPS = 10_000
Steps = Annotated[int, Meta(ge=1, le=MOST_STEPS)]
StepNumber = Annotated[int, Meta(ge=0, le=1 << 53)]
Activity = Literal["CPU", "GPU", "CUDA_PROFILER", "MEM", "RPD"]


class StartProfile(msgspec.Struct, frozen=True, kw_only=True):
    """Body of POST /start_profile."""

    activities: Annotated[
        Annotated[list[Activity], Meta(min_length=1, max_length=8)] | None,
        honoured('"CPU" and "GPU", whichever is there; others are refused; default: both'),
    ] = None
    num_steps: Annotated[
        Steps | Annotated[str, Meta(pattern=r"\A[0-9]{1,9}\Z")] | None,
        honoured("it ends by itself after so many; else with /stop_profile, or after 10000"),
    ] = None
    start_step: Annotated[
        StepNumber | Annotated[str, Meta(pattern=r"\A[0-9]{1,15}\Z")] | None,
        honoured("the number of its first step, counted from the server's start; default: the next one"),
    ] = None
    with_stack: Annotated[bool | None, honoured("Python stacks too")] = None
    record_shapes: Annotated[bool | None, honoured("shapes of operations too")] = None
    profile_prefix: Annotated[
        Annotated[str, Meta(pattern=r"\A[A-Za-z0-9_-]{1,64}\Z")] | None,
        honoured("what the file's name begins with"),
    ] = None
    output_dir: Annotated[Raw, ignored("the server's --profile-dir is the folder")] = NULL
    profile_by_stage: Annotated[Raw, ignored("one step holds prompts and answers")] = NULL
    profile_stages: Annotated[Raw, ignored("one step holds prompts and answers")] = NULL
    profile_id: Annotated[Raw, ignored("the reply to /stop_profile names the file")] = NULL
    merge_profiles: Annotated[Raw, ignored("there is one process")] = NULL
