"""The parts of one server in the order they are built; signals, and the way out.

The only file of the server that sees more of the runtime than its interface. torch comes in with `load_model`,
so the same App runs over a fake engine in tests.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import logging
import os
import resource
import signal
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from headrace.runtime.encode_pace import EncodePace
from headrace.runtime.gallery import Gallery
from headrace.runtime.image_settings import ImageSettings
from headrace.runtime.interface import ModelCard, Prompter, Runtime, TokenStream
from headrace.runtime.loop import Engine, StepFacts, StepLoop
from headrace.runtime.profile import Profiler
from headrace.runtime.scheduler import Scheduler
from headrace.server import flags
from headrace.server.archive import Archive, ArchiveError
from headrace.server.auth import BadSetting, check_bind, load_keys
from headrace.server.config import ServerConfig, describe, is_loopback
from headrace.server.conversation import Conversations
from headrace.server.faces.pinned import PinnedResponses
from headrace.server.faces.running import Running
from headrace.server.faces.settings import FaceSettings
from headrace.server.faces.table import build_routes, held_responses
from headrace.server.listener import Listener, make_outbox
from headrace.server.metrics import CONTENT_TYPE, Metrics
from headrace.server.session import LaneLimits
from headrace.server.slices import take_short_turns

if TYPE_CHECKING:
    from headrace.server.image_fetch import ImageFetch

log = logging.getLogger("headrace")

EXIT_BAD_SETTING = 2
EXIT_ENGINE_FAULT = 70  # EX_SOFTWARE: a supervisor restarts it, a person reads the log

FETCHED_BYTES = 32 << 20  # of one picture that is named by its address: as many as one that is sent
PREPARE_EVERY = 0.02  # seconds between two pieces of late start work
TIDY_AFTER = 0.5  # seconds of idleness before the books are checked and garbage is collected
TIDY_EVERY = 30.0  # seconds between two such checks

PAGE_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".webmanifest": "application/manifest+json",
}


class SizedEngine(Engine, Protocol):
    """An engine that knows its sizes: what its scheduler is built from."""

    page_count: int
    page_size: int
    max_running: int
    max_context: int
    chunk_tokens: int
    image_blocks: int
    image_block_rows: int
    image_stages: int
    image_ratio: float
    whole_pictures: bool

    @property
    def images(self) -> ImageSettings | None:
        """How its model wants pictures; None: it takes none."""

    @property
    def idle_work(self) -> Callable[[], bool] | None:
        """Does a piece of the start that can wait; True while there is more. None: nothing was left."""


class App:
    """One server: engine, loop, runtime, faces, listener. Built on a running event loop, used once."""

    def __init__(
        self,
        config: ServerConfig,
        engine: SizedEngine,
        prompter: Prompter,
        card: ModelCard,
        keys: tuple[str, ...] = (),
    ) -> None:
        self.config = config
        self.engine = engine
        self.keys = keys
        self.scheduler = Scheduler(
            engine.page_count,
            engine.page_size,
            engine.max_running,
            engine.chunk_tokens,
            prefix_cache=config.engine.prefix_cache,
            waiting_limit=config.engine.waiting_limit,
            pin_share=config.limits.pin_share,
            gallery=Gallery(
                engine.image_blocks, engine.image_block_rows, engine.image_stages, engine.whole_pictures
            ),
        )
        encodes = None
        if engine.images is not None:
            encodes = EncodePace(engine.image_ratio, engine.image_stages)
        self.loop = StepLoop(self.scheduler, engine, encodes=encodes, context=engine.max_context)
        self.runtime = Runtime(card, prompter, self.loop, engine.max_context)
        self.metrics = Metrics()
        self.metrics.add_source(self.runtime.stats)
        self.metrics.by_class = self.runtime.class_stats
        self.outbox = make_outbox(asyncio.get_running_loop(), config)
        self.ended = asyncio.Event()  # set when the server must stop: a signal, or a fault of the engine
        self.listener: Listener | None = None
        self.archive: Archive | None = None
        self.fetch: ImageFetch | None = None
        self.running: Running | None = None
        self.loop.on_flush = self.outbox.flush
        self.loop.on_step = self._count_step
        self.loop.on_gap = self.metrics.itl.observe
        self.loop.on_fault = self._fault
        self.loop.on_idle = self._idle
        self._tidied_at = 0.0
        self._tidying: asyncio.TimerHandle | None = None
        self._preparing: asyncio.TimerHandle | None = None
        self.runtime.on_end = self._count_stream
        self.runtime.read_at = lambda: self.metrics.read_at
        if engine.idle_work is not None:
            self._prepare()

    async def start(self) -> None:
        """Listen and answer. BadSetting if the address is not to be had."""
        # From here on this thread serves sockets; those that compute were made before, and keep their long turns.
        take_short_turns()
        limits = self.config.limits
        settings = FaceSettings(
            strict_fields=self.config.strict_fields,
            reasoning_field=self.config.reasoning_field,
            lanes=LaneLimits(
                in_flight=limits.requests_per_socket,
                waiting=limits.waiting_per_socket,
                named=limits.lanes_per_socket,
            ),
            connection_limit=limits.ws_age_limit,
            drain=self.config.drain,
            linger=limits.resume_seconds,
            held_bytes=limits.resume_bytes,
            held_streams=limits.resume_streams,
            held_tokens=limits.resume_tokens,
            pins_per_key=limits.pins_per_key,
            drafts=limits.drafts_per_socket,
            draft_idle=limits.draft_idle,
            version=version("headrace"),
            on_ignored_fields=self._count_ignored,
        )
        self.runtime.fetches.fetcher = await self._open_fetch()
        self.runtime.profiler = self._make_profiler()
        self.archive = self._open_archive(settings)
        pins = PinnedResponses(self.runtime.cache, settings)
        self.metrics.add_source(pins.stats)
        self.running = Running(self.runtime, Conversations(archive=self.archive), pins)
        self.metrics.add_source(self._count_stored)
        self.held = held_responses(settings)
        self.metrics.add_source(self.held.stats)
        self.metrics.add_source(self.running.branch_counts.stats)
        routes = build_routes(
            self.runtime,
            settings,
            self.running.store,
            lambda: (self.metrics.text(), CONTENT_TYPE),
            page_files(),
            alive=lambda: self.runtime.alive,
            running=self.running,
            held=self.held,
        )
        self.listener = await Listener.start(
            self.config, routes, keys=self.keys, outbox=self.outbox, metrics=self.metrics
        )
        self.runtime.ready = True

    @property
    def url(self) -> str:
        """Where a person on this machine opens it."""
        assert self.listener is not None
        host = self.config.host if is_loopback(self.config.host) else "127.0.0.1"
        return f"http://{f'[{host}]' if ':' in host else host}:{self.listener.port}"

    async def stop(self, seconds: float) -> None:
        """No new work; running answers have `seconds`; then everything ends and the threads are gone."""
        self.runtime.drain()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        if self.listener is not None:
            await self.listener.drain(seconds, self.runtime.cancel_all)
        # What runs in the background has no connection that the listener could wait for.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.runtime.emptied(), max(0.0, deadline - loop.time()))
        self.runtime.cancel_all()
        if self.running is not None:
            self.running.end()
        if self.archive is not None:
            await loop.run_in_executor(None, self.archive.close)
        for timer in (self._tidying, self._preparing):
            if timer is not None:
                timer.cancel()
        self.runtime.close()
        if self.fetch is not None:
            await self.fetch.close()
        if self.runtime.profiler is not None:
            self.runtime.profiler.close()
        if self.engine.poll is None:
            await asyncio.get_running_loop().run_in_executor(None, self.engine.close)
        else:
            self.engine.close()  # it belongs to this thread, and waits a step or two

    async def _open_fetch(self) -> ImageFetch | None:
        """Who fetches pictures by their address, if a host was named. BadSetting for one that is not understood."""
        if not self.config.image_url_allow:
            return None
        from headrace.server.image_fetch import ImageFetch
        from headrace.server.image_hosts import BadHost, HostList

        try:
            hosts = HostList.read(self.config.image_url_allow)
        except BadHost as error:
            raise BadSetting(f"--image-url-allow {error}") from None
        self.fetch = ImageFetch(
            hosts, seconds=self.config.limits.image_fetch_timeout, most_bytes=FETCHED_BYTES
        )
        await self.fetch.warm()
        return self.fetch

    def _open_archive(self, settings: FaceSettings) -> Archive | None:
        """The file of stored responses, if one was asked for. BadSetting if it cannot be used."""
        if not self.config.store:
            return None
        try:
            return Archive(
                self.config.store,
                asyncio.get_running_loop().call_soon_threadsafe,
                settings.now,
                age_limit=self.config.store_days * 86_400,
                bytes_limit=self.config.store_bytes,
            )
        except ArchiveError as error:
            raise BadSetting(f"--store {error}") from None

    def _make_profiler(self) -> Profiler | None:
        """Where the operator wants profiles. BadSetting if the folder cannot be used."""
        if not self.config.profile_dir:
            return None
        from headrace.runtime.torch_profiler import torch_profiler

        try:
            return torch_profiler(self.config.profile_dir, self.engine.aside)
        except OSError as error:
            raise BadSetting(f"--profile-dir {self.config.profile_dir}: {error}") from None

    def interrupt(self) -> None:
        """A signal: the first lets running answers finish, the second does not."""
        if self.ended.is_set() and self.listener is not None:
            self.listener.stop_now()
        self.ended.set()

    def _fault(self, error: BaseException) -> None:
        log.critical(
            "the engine or its books failed; every stream was told, the process ends", exc_info=error
        )
        self.ended.set()

    def _idle(self) -> None:
        """Nobody waits: the moment for what would be felt during a stream."""
        loop = asyncio.get_running_loop()
        if self._tidying is None and loop.time() - self._tidied_at >= TIDY_EVERY:
            self._tidying = loop.call_later(TIDY_AFTER, self._tidy)

    def _prepare(self) -> None:
        """One piece of what the start left for later; a piece is short, and nobody waits while the loop is idle."""
        assert self.engine.idle_work is not None
        if self.loop.fault is None and (self.loop.live or self.loop.flight or self.engine.idle_work()):
            self._preparing = asyncio.get_running_loop().call_later(PREPARE_EVERY, self._prepare)

    def _tidy(self) -> None:
        self._tidying = None
        if self.loop.live:
            return
        self._tidied_at = asyncio.get_running_loop().time()
        try:
            self.scheduler.check()
        except AssertionError as error:
            self.loop.fail(error)
            return
        gc.collect()

    def _count_step(self, facts: StepFacts) -> None:
        self.metrics.step.observe(facts.seconds)
        self.metrics.launch_gap.observe(facts.gap)
        self.metrics.look_lag.observe(facts.lag)
        if self.runtime.profiler is not None:
            self.runtime.profiler.stepped()

    def _count_stream(self, stream: TokenStream) -> None:
        times, metrics = stream.times, self.metrics
        if times.read is not None:
            metrics.parse.observe(times.opened - times.read)
        if times.joined is not None:
            metrics.prepare.observe(times.joined - times.opened)
        if times.admitted is not None:
            metrics.queue.observe(times.admitted - times.opened)
            if times.joined is not None:
                metrics.launch_wait.observe(times.admitted - times.joined)
        if times.first_token is not None:
            metrics.ttft.observe(times.first_token - times.opened)
        if times.ended is not None and times.first_token is not None:
            metrics.e2e.observe(times.ended - times.opened)

    def _count_stored(self) -> dict[str, float]:
        assert self.running is not None
        counts: dict[str, float] = {
            "responses_under_way": len(self.running),
            "responses_in_memory": len(self.running.store),
        }
        if self.archive is not None:
            counts |= {
                "archive_responses": self.archive.count,
                "archive_bytes": self.archive.bytes,
                "archive_failures": self.archive.failures,
            }
        return counts

    def _count_ignored(self, endpoint: str, fields: int) -> None:
        self.metrics.ignored_fields[endpoint] += fields


def page_files() -> dict[str, tuple[bytes, str]]:
    """The chat page: path → (bytes, content type). Read once, at start; no request opens a file."""
    found: dict[str, tuple[bytes, str]] = {}
    for entry in files("headrace.clients").joinpath("web").iterdir():
        suffix = "." + entry.name.rpartition(".")[2]
        if entry.is_file() and suffix in PAGE_TYPES:
            path = "/" if entry.name == "index.html" else f"/{entry.name}"
            found[path] = (entry.read_bytes(), PAGE_TYPES[suffix])
    if "/icon.svg" in found:
        found["/favicon.ico"] = found["/icon.svg"]  # browsers ask for it whatever the page says
    return found


def load_model(config: ServerConfig) -> tuple[SizedEngine, Prompter, ModelCard]:
    """Engine, prompter and card of the model that the settings name. BadSetting says why not."""
    from headrace.runtime.checkpoint import CheckpointError
    from headrace.runtime.config import SettingError
    from headrace.runtime.hub import ModelNotFound, locate

    try:
        folder = locate(config.model) if config.model else _demo_folder()
    except ModelNotFound as error:
        raise BadSetting(str(error)) from None
    stage("model files found", str(folder))
    from headrace.runtime.engine import open_engine
    from headrace.runtime.prompt import FolderPrompter

    stage("torch imported")
    try:
        engine = open_engine(folder, config.engine)
        prompter = FolderPrompter(
            folder,
            engine.embedding_rows,
            engine.logits_width,
            engine.max_context,
            engine.images,
            tool_parser=config.tool_parser,
            reasoning_parser=config.reasoning_parser,
        )
    except (CheckpointError, SettingError) as error:
        raise BadSetting(f"{config.model or 'the demo model'}: {error}") from None
    card = engine.card
    if not config.model:
        from headrace.runtime.demo_checkpoint import DEMO_ID, DEMO_NOTICE

        card = dataclasses.replace(card, id=DEMO_ID, embedded=True, notice=DEMO_NOTICE)
    elif not os.path.isdir(os.path.expanduser(config.model)):
        card = dataclasses.replace(card, id=config.model)
    stage(
        "model loaded",
        f"{card.id}: {card.architecture}, {card.parameters / 1e6:.1f} M parameters, {card.dtype}",
    )
    engine.warm()
    stage(
        "engine warm", f"{engine.page_count} pages of {engine.page_size} tokens, context {engine.max_context}"
    )
    return engine, prompter, card


def _demo_folder() -> Path:
    from headrace.runtime.demo_checkpoint import demo_folder

    return demo_folder()


_STARTED = time.monotonic()


def stage(name: str, what: str = "") -> None:
    """One line for each stage of the start: when, what, and the memory of the process after it."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    log.info("%6.2f s %6d MiB  %s%s", time.monotonic() - _STARTED, peak, name, f": {what}" if what else "")


def settle_interpreter() -> None:
    """Garbage and the interpreter lock, as a server of streams wants them. Called once, when all is loaded."""
    # What lives now lives for ever: the collector need not look at it again, and gen-2 passes stay short.
    gc.collect()
    gc.freeze()
    # Full collections come when the server is idle (App._tidy), not in the middle of somebody's stream. Requests
    # leave no reference cycles behind, so what waits for them is little.
    gc.set_threshold(10_000, 20, 1_000)
    # The engine's thread holds the lock between its operations on tensors; with the default of 5 ms the loop could
    # wait that long for it with a token in hand.
    sys.setswitchinterval(0.0002)


async def serve(config: ServerConfig, keys: tuple[str, ...]) -> int:
    """Build, listen, and stay until a signal or a fault. Returns the exit status."""
    loop = asyncio.get_running_loop()
    engine, prompter, card = await loop.run_in_executor(None, load_model, config)
    app = App(config, engine, prompter, card, keys)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, app.interrupt)
    settle_interpreter()
    await app.start()
    stage("listening")
    print(f"ready: {app.url}", flush=True)
    await app.ended.wait()
    if app.loop.fault is not None:
        await app.stop(0.0)
        return EXIT_ENGINE_FAULT
    log.info("stopping: running answers have %g s; a second signal ends them at once", config.drain)
    await app.stop(config.drain)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """`headrace serve`. Exit status 0 after a drain, 2 for a wrong setting, 70 after a fault of the engine."""
    config = flags.parse(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("httpx", "httpcore", "huggingface_hub", "filelock"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    import uvloop

    try:
        keys = load_keys(config, os.environ)
        check_bind(config, keys)
        settings = textwrap.fill(", ".join(describe(config).splitlines()), 110, break_on_hyphens=False)
        log.info("headrace %s\n%s", version("headrace"), textwrap.indent(settings, "  "))
        return uvloop.run(serve(config, keys))
    except BadSetting as error:
        print(f"headrace serve: {error}", file=sys.stderr)
        return EXIT_BAD_SETTING
    except KeyboardInterrupt:
        return 130  # during the start, before the signals were ours
