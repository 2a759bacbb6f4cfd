"""The real server (front, faces, runtime, scheduler) over the page-reading fake engine, in a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import uvloop
from fake_engine import FakeEngine
from fake_prompter import CARD, BytePrompter, letters

from headrace.runtime.interface import ModelCard
from headrace.server.app import App
from headrace.server.config import Limits, ServerConfig

# Deadlines of the server out of the way of a machine that is busy elsewhere, for tests that are about other things.
PATIENT = {
    "header_timeout": 600.0,
    "body_timeout": 600.0,
    "idle_timeout": 600.0,
    "linger_timeout": 60.0,
    "ws_ping_interval": 600.0,
    "ws_ping_timeout": 600.0,
}
WAIT = 120.0  # seconds for what takes no time at all; only a hang takes as long


class LiveServer:
    """`url` answers from birth until `stop`. With `gated`, steps land only when `land` is called, or after
    `open_gate`. `choose` is the fake model, `eos` the ids that end its answers; further settings are
    ServerConfig's. `form` names how the fake model writes calls and reasoning (see BytePrompter). parts: another
    engine, prompter and card instead; then only `url`, `ask`, `stop` count."""

    def __init__(
        self,
        *,
        gated: bool = False,
        keys: tuple[str, ...] = (),
        choose: Callable[[list[int], int, int], int] = letters,
        eos: frozenset[int] = frozenset(),
        page_count: int = 2048,
        form: Mapping[str, str] | None = None,
        card: ModelCard = CARD,
        parts: tuple[Any, Any, Any] | None = None,
        **config: Any,
    ) -> None:
        self.engine = FakeEngine(gated=gated, page_count=page_count, choose=choose)
        self.parts = parts or (self.engine, BytePrompter(eos, **(form or {})), card)
        limits = msgspec.structs.replace(Limits(), **PATIENT)
        self.config = ServerConfig(**{"port": 0, "limits": limits, **config})
        self.keys = keys
        self._up = threading.Event()
        self._trouble: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="live-server", daemon=True)
        self._thread.start()
        assert self._up.wait(WAIT), "the server did not start"
        if self._trouble is not None:
            raise self._trouble

    def _run(self) -> None:
        async def live() -> None:
            try:
                self.loop = asyncio.get_running_loop()
                self.app = App(self.config, *self.parts, self.keys)
                await self.app.start()
                self.url = self.app.url
            except BaseException as error:
                self._trouble = error
                return
            finally:
                self._up.set()
            await self.app.ended.wait()
            await self.app.stop(0.0)

        uvloop.run(live())

    def land(self, count: int = 1) -> None:
        """Let `count` steps land, each after the turn that the one before caused. Where none waits, nothing."""

        async def steps() -> None:
            for _ in range(count):
                self.engine.land(1)
                await asyncio.sleep(0)
                await asyncio.sleep(0)

        asyncio.run_coroutine_threadsafe(steps(), self.loop).result(WAIT)

    def open_gate(self) -> None:
        """From now on steps land by themselves: for answers that nothing races any more."""
        self.ask(lambda app: self._gate(False))

    def close_gate(self) -> None:
        """From now on steps wait for `land` again."""
        self.ask(lambda app: self._gate(True))

    def _gate(self, gated: bool) -> None:
        self.engine.gated = gated
        if not gated:
            self.engine.land()

    def ask(self, question: Callable[[App], Any]) -> Any:
        """What `question` says about the app, asked on its own thread."""

        async def answer() -> Any:
            return question(self.app)

        return asyncio.run_coroutine_threadsafe(answer(), self.loop).result(WAIT)

    def until(self, holds: Callable[[App], Any]) -> None:
        """Wait until `holds(app)`, looked at on the app's own thread, turn by turn. No step lands by this."""

        async def turns() -> None:
            while not holds(self.app):
                await asyncio.sleep(0.001)

        asyncio.run_coroutine_threadsafe(asyncio.wait_for(turns(), WAIT), self.loop).result(WAIT + 10)

    def baseline(self) -> None:
        """Wait for the end of every generation; then nothing may be held."""

        async def idle() -> None:
            app = self.app
            while not (app.scheduler.idle and not app.loop.live and not app.runtime._preparing):
                if not app.loop.live:
                    self.engine.land()  # the last step of what was cancelled
                await asyncio.sleep(0)
            app.scheduler.check()
            assert app.scheduler.pages_in_use == 0
            assert app.scheduler.slots.free_count == self.engine.max_running
            assert app.metrics.crashes == 0

        asyncio.run_coroutine_threadsafe(idle(), self.loop).result(WAIT)

    def stop(self) -> None:
        """End the server and its thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: a test has ended it before
            self.loop.call_soon_threadsafe(self.app.interrupt)
        self._thread.join(WAIT)
        assert not self._thread.is_alive(), "the server did not stop"
