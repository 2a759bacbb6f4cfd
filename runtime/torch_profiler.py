"""Profiles of the steps by torch.profiler, as traces that Perfetto and chrome://tracing open. Knows no step itself.

torch notes what its operations do on the thread that began, so a profile begins and ends where the steps run. The
file is written by a thread of its own, while the steps go on.
"""

from __future__ import annotations

import itertools
import logging
import os
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, supported_activities

from headrace.runtime.profile import Aside, ProfileWish
from headrace.runtime.refusal import Refusal

log = logging.getLogger("headrace.profile")


class _Profile:
    """One profile, from its wish to its file. `running`: it has begun."""

    def __init__(self, wish: ProfileWish, path: Path) -> None:
        wanted = {ProfilerActivity.CPU} if wish.cpu else set()
        wanted |= {ProfilerActivity.CUDA, ProfilerActivity.XPU} if wish.gpu else set()
        there = wanted & set(supported_activities())
        if not there:
            raise Refusal("invalid_value", "activities: none of them is there on this machine", "activities")
        self.wish = wish
        self.path = path
        self.written: Future[str] = Future()
        self.running = False
        self.left = wish.steps
        self.trace = profile(activities=there, with_stack=wish.stacks, record_shapes=wish.shapes)


class TorchProfiler:
    """A Profiler (profile.py) that writes to `folder`, which exists. aside: see there."""

    def __init__(self, folder: Path, aside: Aside) -> None:
        self._folder = folder
        self._aside = aside
        self._steps = 0
        self._current: _Profile | None = None
        self._last = ""
        self._numbers = itertools.count(1)
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="headrace-profile")

    def start(self, wish: ProfileWish) -> Future[None]:
        if self._current is not None:
            raise Refusal("invalid_value", "a profile is being made already; /stop_profile ends it")
        if wish.first_step is not None and wish.first_step <= self._steps:
            what = f"start_step: step {wish.first_step} is over; {self._steps} have landed"
            raise Refusal("invalid_value", what, "start_step")
        stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
        name = f"{wish.name}-{stamp}-{os.getpid()}-{next(self._numbers)}.trace.json.gz"
        self._current = _Profile(wish, self._folder / name)
        if wish.first_step is None or wish.first_step == self._steps + 1:
            return self._begin(self._current)
        waits: Future[None] = Future()
        waits.set_result(None)
        return waits

    def stop(self) -> Future[str]:
        current = self._current
        if current is None:
            last = f"; the last one is {self._last}" if self._last else ""
            raise Refusal("invalid_value", f"no profile is being made{last}")
        if not current.running:
            self._current = None
            raise Refusal(
                "invalid_value", "the profile has ended before its first step: there is nothing to write"
            )
        self._end(current)
        return current.written

    def stepped(self) -> None:
        self._steps += 1
        current = self._current
        if current is None:
            return
        if current.running:
            current.left -= 1
            if not current.left:
                self._end(current)
        elif current.wish.first_step == self._steps + 1:
            self._begin(current)

    def close(self) -> None:
        current = self._current
        if current is not None and current.running:
            self._end(current)
        self._writer.shutdown(wait=True)

    def _begin(self, current: _Profile) -> Future[None]:
        current.running = True
        log.info("a profile of the steps begins: %s", current.path)
        return self._aside(current.trace.start)

    def _end(self, current: _Profile) -> None:
        self._current = None
        self._last = current.path.name

        def write() -> None:
            try:
                ended.result()
                # Nobody finds half a file under the name of a whole one.
                part = current.path.with_name("." + current.path.name)
                current.trace.export_chrome_trace(str(part))
                part.rename(current.path)
            except Exception as error:
                log.exception("a profile could not be written: %s", current.path)
                what = f"the profile could not be written: {type(error).__name__}: {error}"
                current.written.set_exception(Refusal("server_error", what))
            else:
                log.info("profile written: %s", current.path)
                current.written.set_result(current.path.name)

        ended = self._aside(current.trace.stop)
        self._writer.submit(write)


def torch_profiler(folder: str, aside: Aside) -> TorchProfiler:
    """One for a folder that is made if it is not there. Raises OSError if it cannot be written to."""
    found = Path(folder)
    found.mkdir(parents=True, exist_ok=True)
    if not os.access(found, os.W_OK | os.X_OK):
        raise PermissionError(f"{found} cannot be written to")
    assert torch.autograd.kineto_available(), "torch is built with its profiler"
    return TorchProfiler(found, aside)
