"""Stored responses in a file: what is there after a restart, what is freed, what is refused."""

from __future__ import annotations

import dataclasses
import queue
import random
import sqlite3
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec import Raw

from headrace.runtime.interface import Message, Picture, Refusal, Tenant, ToolCall
from headrace.server.archive import Archive, ArchiveError
from headrace.server.conversation import Conversations, Stored, Turn

WAIT = 120.0  # seconds; only what never comes takes as long
ALICE, BOB = Tenant("alice", "a"), Tenant("bob", "b")


class Desk:
    """A table over an archive; the test is the event loop."""

    def __init__(self, path: Path, *, age: float = 1e9, size: int = 1 << 30, **limits: Any) -> None:
        self.now = 1_764_000_000.0
        self.inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.archive = Archive(str(path), self.inbox.put, lambda: self.now, age_limit=age, bytes_limit=size)
        self.table = Conversations(clock=lambda: self.now, archive=self.archive, **limits)

    def put(self, name: str, parent: Turn | None = None, tenant: Tenant = ALICE, text: str = "") -> Turn:
        """Store a response; the turn stays held, for the caller."""
        turn = self.table.add_turn(
            parent, (Message("user", text or name), Message("assistant", f"re {name}"))
        )
        self.table.put(tenant, name, f"response {name}".encode(), turn, (Raw(b'{"id":"i"}'),), b"tape")
        return turn

    def wait(self, outcome: list[Any]) -> Any:
        while not outcome:
            self.inbox.get(timeout=WAIT)()
        return outcome[0]

    def find(self, name: str, tenant: Tenant = ALICE) -> tuple[Stored, list[str]] | Refusal | None:
        found: list[Any] = []

        def then(stored: Stored | Refusal | None) -> None:
            if isinstance(stored, Stored):
                found.append((stored, [m.content for m in stored.turn.history()]))
            else:
                found.append(stored)

        self.table.find(tenant, name, then)
        return self.wait(found)

    def hold(self, name: str) -> Turn:
        """The turn of a stored response, held for the caller."""
        held: list[Turn] = []

        def then(stored: Stored | Refusal | None) -> None:
            assert isinstance(stored, Stored)
            held.append(self.table.hold(stored.turn))

        self.table.find(ALICE, name, then)
        return self.wait(held)

    def history(self, name: str) -> list[str] | None:
        found = self.find(name)
        assert not isinstance(found, Refusal)
        return None if found is None else found[1][::2]

    def remove(self, name: str) -> bool:
        gone: list[Any] = []
        self.table.remove(ALICE, name, gone.append)
        return self.wait(gone)

    def settle(self) -> None:
        """Everything that was asked for has been done and told."""
        told: list[bool] = []
        self.archive._submit(lambda: True, told.append)
        self.wait(told)

    def rows(self) -> tuple[int, int]:
        """How many responses and turns are in the file."""
        counted: list[Any] = []

        def count() -> tuple[int, int]:
            return tuple(
                self.archive._db.execute(f"SELECT count(*) FROM {name}").fetchone()[0]
                for name in ("responses", "turns")
            )

        self.archive._submit(count, counted.append)
        return self.wait(counted)

    def close(self) -> None:
        self.settle()
        self.archive.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


def test_a_chain_is_there_after_a_restart(path: Path) -> None:
    desk = Desk(path)
    a = desk.put("a")
    b = desk.put("b", a)
    desk.put("fork", a)
    desk.put("c", b)
    desk.close()
    again = Desk(path)
    found = again.find("c")
    assert isinstance(found, tuple)
    stored, history = found
    assert history == ["a", "re a", "b", "re b", "c", "re c"]
    assert (stored.response, stored.items, stored.tape) == (b"response c", (Raw(b'{"id":"i"}'),), b"tape")
    assert again.history("fork") == ["a", "fork"]
    assert again.find("c", BOB) is None and again.find("d") is None
    fork = again.table.get(ALICE, "fork")
    shared = again.table.get(ALICE, "c")
    assert fork is not None and shared is not None and shared.turn.parent is not None
    assert shared.turn.parent.parent is fork.turn.parent, "a turn that both need is in memory once"
    more = again.put("d", shared.turn)
    again.table.release(more)
    again.table.check()
    again.close()
    last = Desk(path)
    assert last.history("d") == ["a", "b", "c", "d"]
    last.close()


def test_what_memory_dropped_is_found_in_the_file(path: Path) -> None:
    desk = Desk(path, count_limit=2)
    for number in range(6):
        desk.table.release(desk.put(str(number)))
    assert [desk.table.get(ALICE, str(n)) is not None for n in range(6)] == [False] * 4 + [True] * 2
    assert [desk.history(str(n)) for n in range(6)] == [[str(n)] for n in range(6)]
    assert len(desk.table) == 2
    desk.table.check()
    desk.close()


def test_a_row_larger_than_memory_is_still_told(path: Path) -> None:
    desk = Desk(path, bytes_limit=100)
    desk.table.release(desk.put("a"))
    assert len(desk.table) == 0 and desk.history("a") == ["a"]
    assert desk.table.bytes == 0
    desk.close()


def test_a_turn_that_was_not_stored_itself_is_kept_for_what_follows(path: Path) -> None:
    desk = Desk(path)
    hidden = desk.table.add_turn(None, (Message("user", "hidden"), Message("assistant", "re")))
    shown = desk.put("shown", hidden)
    desk.table.release(hidden)
    desk.table.release(shown)
    desk.close()
    again = Desk(path)
    assert again.history("shown") == ["hidden", "shown"]
    assert again.remove("shown") and again.rows() == (0, 0)
    again.close()


def test_deleting_frees_what_nobody_needs_and_nothing_else(path: Path) -> None:
    desk = Desk(path)
    a = desk.put("a")
    b = desk.put("b", a)
    assert desk.remove("a") and not desk.remove("a")
    assert desk.rows() == (1, 2), "b needs the text of a"
    assert desk.history("b") == ["a", "b"] and desk.history("a") is None
    assert desk.remove("b")
    assert desk.rows() == (0, 2), "a lane may still continue from here"
    c = desk.put("c", b)
    for turn in (a, b, c):
        desk.table.release(turn)
    assert desk.history("c") == ["a", "b", "c"]
    assert desk.remove("c")
    desk.settle()
    assert desk.rows() == (0, 0) and desk.archive.bytes == 0 and desk.archive.count == 0
    assert not desk.archive._claims
    desk.close()


def test_what_was_deleted_does_not_lie_in_the_file(path: Path) -> None:
    desk = Desk(path)
    desk.table.release(desk.put("a", text="a very private sentence"))
    desk.settle()
    assert desk.remove("a")
    desk.close()
    for file in path.parent.iterdir():
        assert b"a very private sentence" not in file.read_bytes(), file


def test_a_delete_is_not_undone_by_a_look_that_came_before_it(path: Path) -> None:
    desk = Desk(path, count_limit=1)
    desk.table.release(desk.put("a"))
    desk.table.release(desk.put("b"))  # a is in the file alone
    found: list[Any] = []
    gone: list[Any] = []
    desk.table.find(ALICE, "a", found.append)
    desk.table.remove(ALICE, "a", gone.append)
    assert desk.wait(gone) is True and found == [None]
    assert desk.table.get(ALICE, "a") is None and desk.history("a") is None
    desk.close()


def test_two_looks_at_once_share_one_row(path: Path) -> None:
    desk = Desk(path, count_limit=1)
    desk.table.release(desk.put("a"))
    desk.table.release(desk.put("b"))
    found: list[Any] = []
    for _ in range(2):
        desk.table.find(ALICE, "a", found.append)
    while len(found) < 2:
        desk.inbox.get(timeout=WAIT)()
    assert found[0] is found[1]
    desk.table.check()
    assert desk.remove("a")
    desk.settle()
    assert desk.rows() == (1, 1)
    desk.close()


def test_old_rows_and_too_many_bytes_go(path: Path) -> None:
    desk = Desk(path, age=1000.0, count_limit=1)
    desk.table.release(desk.put("old"))
    desk.now += 900
    desk.table.release(desk.put("young"))
    desk.now += 200
    assert desk.history("old") is None and desk.history("young") == ["young"]
    desk.close()
    small = Desk(path, size=2 << 20, count_limit=1)
    for number in range(8):
        small.table.release(small.put(str(number), text="x" * (1 << 19)))
        small.now += 1
    assert small.archive.bytes <= 2 << 20
    assert [small.history(str(n)) is not None for n in range(8)] == [False] * 5 + [True] * 3
    small.close()


def test_the_file_is_its_owners_alone(path: Path) -> None:
    desk = Desk(path)
    desk.put("a")
    desk.settle()
    for file in path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    desk.close()


def test_what_is_not_ours_is_refused_by_name_and_left_alone(path: Path) -> None:
    def refused() -> str:
        with pytest.raises(ArchiveError) as caught:
            Desk(path)
        return str(caught.value)

    path.write_bytes(b"not a database at all, but a text of some length" * 50)
    before = path.read_bytes()
    assert str(path) in refused() and path.read_bytes() == before
    path.unlink()
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE theirs(x)")
    other.commit()
    other.close()
    assert "another program" in refused()
    path.unlink()
    desk = Desk(path)
    assert "used by another process" in refused()
    desk.close()
    later = sqlite3.connect(path)
    later.execute("PRAGMA user_version=99")
    later.close()
    assert "another version" in refused()
    with pytest.raises(ArchiveError):
        Desk(path / "no" / "folder")


def test_a_failing_disk_loses_nothing_that_memory_has(path: Path) -> None:
    desk = Desk(path)
    desk.settle()

    class Broken:
        in_transaction = False

        def execute(self, *_: Any) -> Any:
            raise sqlite3.OperationalError("disk I/O error")

    whole, desk.archive._db = desk.archive._db, Broken()  # type: ignore[assignment]
    desk.table.release(desk.put("a"))
    assert desk.history("a") == ["a"]
    found = desk.find("gone")
    assert isinstance(found, Refusal) and found.code == "server_error"
    gone: list[Any] = []
    desk.table.remove(ALICE, "a", gone.append)
    assert isinstance(desk.wait(gone), Refusal)
    assert desk.archive.failures == 4 and desk.archive.pending_bytes == 0
    desk.archive._db = whole
    desk.close()


def test_more_is_not_promised_while_too_much_waits(path: Path) -> None:
    desk = Desk(path)
    assert not desk.table.behind
    desk.archive.pending_bytes += 65 << 20
    assert desk.table.behind
    desk.archive.pending_bytes -= 65 << 20
    desk.close()


@pytest.mark.parametrize("seed", range(6))
def test_random_lives_with_restarts(path: Path, seed: int) -> None:
    """Whatever is stored, read, deleted and dropped: what is found is what a plain dictionary says."""
    rng = random.Random(seed)
    expected: dict[str, list[str]] = {}
    limits = {"count_limit": 3}
    desk = Desk(path, **limits)
    held: dict[str, Turn] = {}  # what connections hold
    histories: dict[str, list[str]] = {}
    for number in range(120):
        name = f"r{number}"
        match rng.choice(["put", "put", "store:false", "continue", "find", "remove", "drop", "restart"]):
            case "put" | "store:false" as kind:
                parent = rng.choice([None, *held])
                turn_parent = held.get(parent) if parent else None
                history = [*histories.get(parent or "", []), name]
                if kind == "put":
                    held[name] = desk.put(name, turn_parent)
                    expected[name] = history
                else:
                    held[name] = desk.table.add_turn(
                        turn_parent, (Message("user", name), Message("assistant", ""))
                    )
                histories[name] = history
            case "continue" if expected:
                parent = rng.choice(list(expected))
                turn = desk.hold(parent)
                held[name] = desk.put(name, turn)
                desk.table.release(turn)
                expected[name] = histories[name] = [*expected[parent], name]
            case "find":
                wanted = rng.choice([*expected, "unknown"])
                assert desk.history(wanted) == expected.get(wanted), number
            case "remove" if expected:
                name = rng.choice(list(expected))
                assert desk.remove(name)
                del expected[name]
            case "drop" if held:
                desk.table.release(held.pop(rng.choice(list(held))))
            case "restart":
                desk.close()
                desk = Desk(path, **limits)
                held.clear()
        desk.table.check()
    for name, history in expected.items():
        assert desk.history(name) == history
    desk.settle()
    for turn in held.values():
        desk.table.release(turn)
    for name in list(expected):
        assert desk.remove(name)
    desk.settle()
    assert desk.rows() == (0, 0) and desk.archive.bytes == 0 and desk.table.bytes == 0
    desk.close()


def test_messages_come_back_with_everything_in_them(path: Path) -> None:
    whole = Message(
        "assistant",
        "text",
        (ToolCall("call_1", "weather", '{"at": "Rome"}', custom=True), ToolCall("call_2", "clock", "{}")),
        "call_0",
        "name",
        "thought",
        (Picture(1, "data:image/png;base64,AA==", True, "input[0]"), Picture(2, b"\x89PNG", False, None)),
    )
    for field in dataclasses.fields(Message):
        assert getattr(whole, field.name) != field.default, f"{field.name} is not tried here"
    desk = Desk(path)
    turn = desk.table.add_turn(None, (whole, Message("user", "plain")))
    desk.table.put(ALICE, "r", b"{}", turn, (), b"")
    desk.table.release(turn)
    desk.close()
    again = Desk(path)
    stored = again.find("r")
    assert isinstance(stored, tuple) and stored[0].turn.messages == (whole, Message("user", "plain"))
    again.close()
