"""`headrace chat` as a process: through a pipe, and on a pseudo-terminal with keys pressed by the test."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import pty
import re
import signal
import socket
import stat
import sys
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from live_server import LiveServer

SCRIPTED = Any
CTRL_C, CTRL_D, UP = b"\x03", b"\x04", b"\x1b[A"
COMMAND = (sys.executable, "-P", "-m", "headrace.clients.cli", "chat", "--patience", "120")
WAIT = 120.0  # for a process on a busy machine; nothing here waits that long when it works
# A signal in the instant before readline starts to wait is seen with the next signal only. A person presses again;
# here the window says that its size may have changed, which is a signal too and does nothing else.
NUDGE = 0.1


def environment(tmp_path: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("HEADRACE_API_KEY", "NO_COLOR")}
    return {**kept, "XDG_STATE_HOME": str(tmp_path), "TERM": "xterm", "PYTHONUTF8": "1"}


async def piped(
    tmp_path: Path, *arguments: str, stdin: bytes = b"", **changes: str
) -> tuple[int, bytes, bytes]:
    process = await asyncio.create_subprocess_exec(
        *COMMAND,
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**environment(tmp_path), **changes},
    )
    out, err = await asyncio.wait_for(process.communicate(stdin), WAIT)
    assert process.returncode is not None
    return process.returncode, out, err


async def test_a_piped_question_prints_the_answer_alone(scripted: SCRIPTED, tmp_path: Path) -> None:
    status, out, err = await piped(tmp_path, "--url", scripted.url, stdin=b"why is the sky blue\n")
    assert (status, out, err) == (0, b"why is the sky blue\n ", b"") or (status, err) == (0, b"")
    assert out.decode().split() == ["why", "is", "the", "sky", "blue"]
    assert out.endswith(b"\n")
    assert scripted.requests[0].fields["input"] == "why is the sky blue\n"


async def test_a_question_on_the_command_line(scripted: SCRIPTED, tmp_path: Path) -> None:
    status, out, _ = await piped(
        *(tmp_path, "--url", scripted.url, "--system", "be brief", "--temperature", "0.5"),
        *("--top-p", "0.9", "--max-tokens", "7", "--model", "m", "two", "words"),
    )
    assert (status, out) == (0, b"two words \n")
    fields = scripted.requests[0].fields
    assert fields["instructions"] == "be brief"
    assert (fields["temperature"], fields["top_p"], fields["max_output_tokens"]) == (0.5, 0.9, 7)
    assert fields["model"] == "m"


async def test_a_pipe_gets_no_control_characters_either(scripted: SCRIPTED, tmp_path: Path) -> None:
    async def hostile(request: Any) -> None:
        await request.begin()
        await request.say("\x1b")
        await request.say("]0;owned\x07")
        await request.finish()

    scripted.reply = hostile
    status, out, _ = await piped(tmp_path, "--url", scripted.url, "?")
    assert (status, out.decode()) == (0, "␛]0;owned␇\n")


async def test_errors_go_to_stderr_with_a_status(
    scripted: SCRIPTED, tmp_path: Path, unused_tcp_port: int
) -> None:
    async def picky(request: Any) -> None:
        await request.refuse("context_length_exceeded", "the prompt has 9 tokens too many\x1b[2J", "input")

    scripted.reply = picky
    status, out, err = await piped(tmp_path, "--url", scripted.url, "?")
    assert (status, out) == (1, b"")
    assert "9 tokens too many␛[2J (context_length_exceeded)" in err.decode()

    status, out, err = await piped(tmp_path, "--url", f"http://127.0.0.1:{unused_tcp_port}", "?")
    assert (status, out) == (1, b"")
    assert b"nothing listens" in err
    status, out, err = await piped(tmp_path, "--url", scripted.url, stdin=b"  \n")
    assert (status, out) == (2, b"")
    assert b"empty" in err


async def test_a_server_that_does_not_answer_is_waited_for_as_long_as_said(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        status, out, err = await piped(tmp_path, "--url", url, "--patience", "0.2", "?")
    assert (status, out) == (1, b"")
    assert b"did not answer within 0.2 s" in err


async def test_the_key_may_come_from_the_environment(scripted: SCRIPTED, tmp_path: Path) -> None:
    await piped(tmp_path, "--url", scripted.url, "?", HEADRACE_API_KEY="sesame")
    assert set(scripted.keys) == {"Bearer sesame"}


async def test_a_reader_that_closes_the_pipe_ends_the_chat_quietly(
    scripted: SCRIPTED, tmp_path: Path
) -> None:
    async def endless(request: Any) -> None:
        await request.begin()
        while not request.cancelled.is_set():
            await request.say("more and more " * 50)

    scripted.reply = endless
    process = await asyncio.create_subprocess_exec(
        *(*COMMAND, "--url", scripted.url, "?"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment(tmp_path),
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert await process.stdout.readexactly(4) == b"more"
    process.stdout._transport.close()  # type: ignore[attr-defined]
    assert await asyncio.wait_for(process.wait(), WAIT) == 1
    assert await process.stderr.read() == b""


class Person:
    """Someone at a terminal: presses keys, reads what is shown."""

    def __init__(self, process: asyncio.subprocess.Process, master: int) -> None:
        self.process = process
        self._master = master
        self._seen = ""
        self._more = asyncio.Event()
        asyncio.get_running_loop().add_reader(master, self._read)

    def _read(self) -> None:
        try:
            data = os.read(self._master, 65536)
        except OSError:  # the other side is gone
            data = b""
        if not data:
            asyncio.get_running_loop().remove_reader(self._master)
        self._seen += data.decode(errors="replace")
        self._more.set()

    def press(self, keys: bytes | str) -> None:
        os.write(self._master, keys.encode() if isinstance(keys, str) else keys)

    async def sees(self, text: str) -> str:
        """Waits for `text`; returns everything shown up to it and forgets that."""
        clock = asyncio.get_running_loop().time
        start = clock()
        while text not in self._seen:
            assert clock() - start < WAIT, f"{text!r} did not come after {self._seen[-500:]!r}"
            self._more.clear()
            try:
                await asyncio.wait_for(self._more.wait(), NUDGE)
            except TimeoutError:
                self._nudge()
        before, found, self._seen = self._seen.partition(text)
        return before + found

    async def prompted(self) -> None:
        await self.sees("> ")

    async def leaves(self) -> int:
        waiting = asyncio.ensure_future(self.process.wait())
        for _ in range(int(WAIT / NUDGE)):
            await asyncio.wait([waiting], timeout=NUDGE)
            if waiting.done():
                return waiting.result()
            self._nudge()
        raise AssertionError(f"still there after {self._seen[-500:]!r}")

    def _nudge(self) -> None:
        # Not by the process's own method: that looks whether it has ended, and then its exit status is gone.
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, signal.SIGWINCH)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._master)
        os.close(self._master)


@asynccontextmanager
async def sit_down(url: str, tmp_path: Path, *arguments: str) -> AsyncIterator[Person]:
    master, slave = pty.openpty()

    def own_terminal() -> None:
        # A session of its own with this terminal as the controlling one: Ctrl-C arrives as a signal.
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        # A shell that runs the tests in the background ignores Ctrl-C, and its children would inherit that.
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    process = await asyncio.create_subprocess_exec(
        *(*COMMAND, "--url", url, *arguments),
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=environment(tmp_path),
        preexec_fn=own_terminal,
    )
    os.close(slave)
    person = Person(process, master)
    try:
        yield person
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGKILL)
            await process.wait()
        person.close()


@pytest.fixture
async def person(scripted: SCRIPTED, tmp_path: Path) -> AsyncIterator[Person]:
    async with sit_down(scripted.url, tmp_path) as person:
        yield person


async def test_a_talk_with_the_real_server(tmp_path: Path) -> None:
    live = LiveServer()
    try:
        async with sit_down(live.url, tmp_path, "--max-tokens", "20") as person:
            await person.sees("fake at http://127.0.0.1")
            await person.prompted()
            person.press("hello\n")
            await person.sees("tokens/s")
            await person.prompted()
            person.press("/retry\n")
            await person.sees("tokens/s")
            person.press("/quit\n")
            assert await person.leaves() == 0
        await asyncio.to_thread(live.baseline)
    finally:
        live.stop()


async def test_ctrl_c_stops_the_real_server(tmp_path: Path) -> None:
    live = LiveServer(gated=True)
    try:
        async with sit_down(live.url, tmp_path) as person:
            await person.prompted()
            person.press("hello\n")
            await asyncio.to_thread(live.until, lambda app: app.scheduler.running)
            await asyncio.to_thread(live.land, 5)
            person.press(CTRL_C)
            await asyncio.to_thread(
                live.until, lambda app: not app.loop.live
            )  # no step lands: it cannot just end
            await person.sees("stopped")
            await asyncio.to_thread(live.baseline)
            await person.prompted()
            person.press(CTRL_D)
            assert await person.leaves() == 0
    finally:
        live.stop()


async def test_a_conversation(scripted: SCRIPTED, person: Person, tmp_path: Path) -> None:
    await person.sees("scripted at http://127.0.0.1")
    await person.prompted()
    person.press("hello there\n")
    shown = await person.sees("context 7")
    assert "hello there " in shown
    assert re.search(r"first token \d+ ms · [\d.]+ tokens/s · 2 tokens · context 7", shown)
    assert "\x1b[2m" in shown, "the numbers are dim"
    await person.prompted()
    person.press("and on\n")
    await person.sees("context 7")
    assert scripted.requests[1].fields["previous_response_id"] == "resp_0"
    person.press("/new\n")
    await person.sees("a new conversation")
    person.press("afresh\n")
    await person.sees("context 6")
    assert "previous_response_id" not in scripted.requests[2].fields
    await person.prompted()
    person.press(CTRL_D)
    assert await person.leaves() == 0
    history = tmp_path / "headrace" / "history"
    assert history.read_text().splitlines() == ["hello there", "and on", "/new", "afresh"]
    assert stat.S_IMODE(history.stat().st_mode) == 0o600


async def test_commands(scripted: SCRIPTED, person: Person, tmp_path: Path) -> None:
    await person.prompted()
    person.press("/help\n")
    for word in ("/new", "/system", "/retry", "/save", "/quit"):
        await person.sees(word)
    person.press("/retry\n")
    await person.sees("nothing was asked yet")
    person.press("/system be brief\n")
    await person.sees("system prompt: be brief")
    person.press("one two\n")
    await person.sees("context 7")
    assert scripted.requests[0].fields["instructions"] == "be brief"
    person.press("/retry\n")
    await person.sees("context 7")
    again = scripted.requests[1].fields
    assert again["input"] == "one two"
    assert "previous_response_id" not in again, "asked again as if for the first time"
    person.press(f"/save {tmp_path}/talk.md\n")
    await person.sees("saved to")
    assert (tmp_path / "talk.md").read_text() == "> be brief\n\n## You\n\none two\n\n## Answer\n\none two \n"
    person.press(f"/save {tmp_path}/talk.md\n")
    await person.sees("not saved: File exists")
    person.press("/system -\n")
    await person.sees("system prompt: (none)")
    person.press("/nonsense\n")
    await person.sees("there is no command /nonsense")
    person.press("/quit\n")
    assert await person.leaves() == 0


async def test_a_refused_retry_leaves_the_old_answer(
    scripted: SCRIPTED, person: Person, tmp_path: Path
) -> None:
    await person.prompted()
    person.press("one\n")
    await person.sees("context")

    async def full(request: Any) -> None:
        await request.refuse("server_is_overloaded", "try later", status=503)

    scripted.reply = full
    person.press("/retry\n")
    await person.sees("error: try later (server_is_overloaded)")
    person.press(f"/save {tmp_path}/talk.md\n")
    await person.sees("saved to")
    assert "one" in (tmp_path / "talk.md").read_text()


async def test_several_lines_are_one_message(scripted: SCRIPTED, person: Person) -> None:
    await person.prompted()
    person.press("first\\\n")
    await person.sees(". ")
    person.press("second\n")
    await person.sees("context")
    assert scripted.requests[0].fields["input"] == "first\nsecond"
    person.press('"""\n')
    await person.sees(". ")
    person.press('a\n\n  b\n"""\n')
    await person.sees("context")
    assert scripted.requests[1].fields["input"] == "a\n\n  b"


async def test_the_line_before_can_be_brought_back_and_edited(scripted: SCRIPTED, person: Person) -> None:
    await person.prompted()
    person.press("teh sky\n")
    await person.sees("context")
    await person.prompted()
    person.press(UP + b"\x01\x1b[3~\x1b[3~\x1b[3~the\n")  # up, start of line, delete three, type
    await person.sees("context")
    assert scripted.requests[1].fields["input"] == "the sky"


async def test_ctrl_c_stops_the_answer_and_the_talk_goes_on(scripted: SCRIPTED, person: Person) -> None:
    async def endless(request: Any) -> None:
        await request.begin()
        await request.say("word ")
        await request.cancelled.wait()
        await request.finish("cancelled")

    scripted.reply = endless
    await person.prompted()
    person.press("talk for ever\n")
    await person.sees("word ")
    person.press(CTRL_C)
    await person.sees("stopped")
    await person.prompted()
    assert scripted.cancels == ["resp_0"]
    person.press("go on\n")
    await person.sees("word ")
    assert scripted.requests[1].fields["previous_response_id"] == "resp_0", (
        "a stopped answer can be continued"
    )
    person.press(CTRL_C)
    await person.prompted()
    person.press(CTRL_C)
    await person.sees("Ctrl-C again leaves")
    await person.prompted()
    person.press(CTRL_C)
    assert await person.leaves() == 130


async def test_a_second_ctrl_c_leaves_an_answer_that_does_not_stop(
    scripted: SCRIPTED, person: Person
) -> None:
    async def deaf(request: Any) -> None:
        await request.begin()
        await request.say("word ")
        await request.cancelled.wait()
        await request.say("more ")

    scripted.reply = deaf
    await person.prompted()
    person.press("?\n")
    await person.sees("word ")
    person.press(CTRL_C)
    await person.sees("more ")
    person.press(CTRL_C)
    await person.sees("Ctrl-C again leaves")
    await person.prompted()
    person.press(CTRL_C)
    assert await person.leaves() == 130


async def test_the_model_does_not_drive_the_terminal(scripted: SCRIPTED, person: Person) -> None:
    async def hostile(request: Any) -> None:
        await request.begin()
        for piece in ("\x1b", "]0;owned", "\x07", "\x9b2J", "\x1b[6n", "done"):
            await request.say(piece)
        await request.finish()

    scripted.reply = hostile
    await person.prompted()
    person.press("?\n")
    shown = await person.sees("done")
    assert "␛]0;owned␇�2J␛[6ndone" in shown
    assert "\x1b]" not in shown
    assert "\x07" not in shown


async def test_the_talk_survives_a_lost_server_and_a_forgotten_answer(
    scripted: SCRIPTED, person: Person
) -> None:
    async def forgetful(request: Any) -> None:
        if "previous_response_id" in request.fields:
            await request.refuse("previous_response_not_found", "not found", "previous_response_id")
            return
        await request.begin()
        await request.say("fine ")
        if request.fields["input"] == "break":
            request.socket.transport.abort()
            return
        await request.finish()

    scripted.reply = forgetful
    await person.prompted()
    person.press("one\n")
    await person.sees("context")
    await person.prompted()
    person.press("two\n")
    await person.sees("context")
    assert scripted.requests[2].fields["input"] == [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "fine "},
        {"role": "user", "content": "two"},
    ]
    person.press("/new\n")
    await person.prompted()
    person.press("break\n")
    await person.sees("error: the connection to the server broke")
    await person.prompted()
    person.press("again\n")
    await person.sees("context")
    assert scripted.requests[-1].fields["input"][0] == {"role": "user", "content": "break"}
