"""Stored responses in one SQLite file, so that they outlive the process. Knows rows; knows no protocol.

All of SQLite happens on one thread of this object, in the order it was asked for; the event loop only hands work
over and hears of it through `post`. What is told as done has been committed.

A turn's row is freed when nobody needs it: no response, no later turn, and no turn in memory (a claim).

    memory has the turn          claim, from `put` or `fetch` until `free`
    a stored response ends in it its row names the turn
    a later turn follows it      its row names the turn as parent
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from msgspec import Raw

from headrace.runtime.interface import Message, Picture, ToolCall
from headrace.server.protocol.codec import pack, unpack

log = logging.getLogger("headrace.archive")
T = TypeVar("T")

APPLICATION = 0x68647263  # "hdrc", in the file's header: another program's database is not written to
VERSION = 1
SWEEP_EVERY = 60.0  # seconds between two looks for rows that are too old
PENDING_BYTES = 64 << 20  # handed over and not yet written: more, and the disk is slower than the clients

_SCHEMA = """
CREATE TABLE turns(id INTEGER PRIMARY KEY, parent INTEGER, size INTEGER NOT NULL, messages BLOB NOT NULL);
CREATE INDEX turns_parent ON turns(parent);
CREATE TABLE responses(
  tenant TEXT NOT NULL, id TEXT NOT NULL, turn INTEGER NOT NULL, born REAL NOT NULL, size INTEGER NOT NULL,
  response BLOB NOT NULL, items BLOB NOT NULL, tape BLOB NOT NULL, PRIMARY KEY(tenant, id));
CREATE INDEX responses_turn ON responses(turn);
CREATE INDEX responses_born ON responses(born);
"""


class ArchiveError(Exception):
    """The file cannot be used; the sentence says why."""


@dataclass(frozen=True, slots=True)
class TurnRow:
    """One turn as it is handed over: its row, the row before it (None: the first), what was said in it."""

    id: int
    parent: int | None
    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Record:
    """One stored response as it comes back. `turns` is the whole chain, oldest first, claimed for memory."""

    response: bytes
    items: tuple[Raw, ...]
    tape: bytes
    turns: tuple[TurnRow, ...]


class Archive:
    """`post(call)` runs `call()` on the loop's thread; `now()` gives Unix seconds. Raises ArchiveError if the file
    is not one of ours, is used by another process, or cannot be written."""

    def __init__(
        self,
        path: str,
        post: Callable[[Callable[[], None]], object],
        now: Callable[[], float],
        *,
        age_limit: float,
        bytes_limit: int,
    ) -> None:
        self.age_limit = age_limit
        self.bytes_limit = bytes_limit
        self.failures = 0  # of writes and reads, since the start
        self.pending_bytes = 0
        self._post = post
        self._now = now
        self._swept_at = 0.0
        self._claims: Counter[int] = Counter()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="headrace-archive")
        try:
            self._db, self.next_turn, self._bytes, self._count = self._thread.submit(_open, path).result()
            # What the loop's thread reads: the sums as of the last commit.
            self.bytes, self.count = self._bytes, self._count
        except (sqlite3.Error, OSError) as error:
            self._thread.shutdown()
            what = "it is used by another process" if "locked" in str(error) else str(error)
            raise ArchiveError(f"{path}: {what}") from None
        except ArchiveError:
            self._thread.shutdown()
            raise

    # -- asked on the loop's thread ----------------------------------------------------------------------------

    @property
    def behind(self) -> bool:
        """Too much waits to be written: no more should be promised."""
        return self.pending_bytes > PENDING_BYTES

    def put(
        self,
        tenant: str,
        response_id: str,
        response: bytes,
        items: Sequence[Raw],
        tape: bytes,
        turns: Sequence[TurnRow],
        turn: int,
    ) -> None:
        """Store a response that ends in row `turn`; `turns` are those of its chain that have no row yet, oldest
        first. Memory claims each of them."""
        size = len(response) + len(tape) + sum(memoryview(item).nbytes for item in items)
        self.pending_bytes += size
        born = self._now()

        def write() -> None:
            for row in turns:
                self._claims[row.id] += 1
            kept = pack([bytes(item) for item in items])
            with self._transaction() as db:
                for row in turns:
                    messages = pack(row.messages)
                    self._bytes += len(messages)
                    db.execute(
                        "INSERT INTO turns VALUES(?,?,?,?)", (row.id, row.parent, len(messages), messages)
                    )
                db.execute(
                    "INSERT INTO responses VALUES(?,?,?,?,?,?,?,?)",
                    (tenant, response_id, turn, born, size, response, kept, tape),
                )
                self._bytes += size
                self._count += 1
                self._sweep(db)

        def written(outcome: object) -> None:
            self.pending_bytes -= size

        self._submit(write, written)

    def fetch(self, tenant: str, response_id: str, then: Callable[[Record | Exception | None], None]) -> None:
        """`then(record)` later on the loop's thread, or None if there is no such response."""

        def read() -> Record | None:
            with self._transaction() as db:
                self._sweep(db)
                return self._read(db, tenant, response_id)

        self._submit(read, then)

    def delete(self, tenant: str, response_id: str, then: Callable[[bool | Exception], None]) -> None:
        """`then(True)` when the response is gone from the file, `then(False)` if it was not there."""

        def remove() -> bool:
            with self._transaction() as db:
                return self._remove(db, tenant, response_id)

        self._submit(remove, then)

    def free(self, rows: Sequence[int]) -> None:
        """Memory has these turns no longer (one claim each)."""

        def release() -> None:
            with self._transaction() as db:
                for row in rows:
                    self._claims[row] -= 1
                    if not self._claims[row]:
                        del self._claims[row]
                        self._purge(db, row)

        self._submit(release, lambda outcome: None)

    def close(self) -> None:
        """Everything asked for is written and the file is closed. Waits; not for the loop's thread."""
        self._thread.submit(self._db.close)
        self._thread.shutdown(wait=True)

    def _submit(self, work: Callable[[], T], then: Callable[[T | Exception], None]) -> None:
        def done(future: Future[T]) -> None:
            error = future.exception()
            outcome: T | Exception
            if isinstance(error, Exception):
                outcome = error
                log.error("the archive could not be used: %s", error)
            else:
                outcome = future.result()

            def tell() -> None:
                self.failures += error is not None
                then(outcome)

            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile: nobody waits for this
                self._post(tell)

        self._thread.submit(work).add_done_callback(done)

    # -- on the archive's thread -------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _transaction(self) -> Any:
        """All or nothing, the sums included."""
        before = self._bytes, self._count
        db = self._db
        db.execute("BEGIN IMMEDIATE")
        try:
            yield db
            db.execute("COMMIT")
            self.bytes, self.count = self._bytes, self._count
        except BaseException:
            self._bytes, self._count = before
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise

    def _read(self, db: sqlite3.Connection, tenant: str, response_id: str) -> Record | None:
        found = db.execute(
            "SELECT response, items, tape, turn FROM responses WHERE tenant=? AND id=?", (tenant, response_id)
        ).fetchone()
        if found is None:
            return None
        response, items, tape, turn = found
        turns: list[TurnRow] = []
        row: int | None = turn
        while row is not None:
            step = db.execute("SELECT parent, messages FROM turns WHERE id=?", (row,)).fetchone()
            if step is None:
                log.error(
                    "the archive lacks a turn of response %s: a write before it had failed", response_id
                )
                return None
            turns.append(TurnRow(row, step[0], _messages(step[1])))
            row = step[0]
        turns.reverse()
        for each in turns:
            self._claims[each.id] += 1
        return Record(response, tuple(map(Raw, unpack(items, list[bytes]))), tape, tuple(turns))

    def _remove(self, db: sqlite3.Connection, tenant: str, response_id: str) -> bool:
        found = db.execute(
            "DELETE FROM responses WHERE tenant=? AND id=? RETURNING turn, size", (tenant, response_id)
        ).fetchall()
        for turn, size in found:
            self._bytes -= size
            self._count -= 1
            self._purge(db, turn)
        return bool(found)

    def _purge(self, db: sqlite3.Connection, row: int | None) -> None:
        """Free the turn, and those before it, as far as nobody needs them."""
        while row is not None and not self._claims.get(row):
            needed = db.execute(
                "SELECT EXISTS(SELECT 1 FROM responses WHERE turn=?) OR EXISTS(SELECT 1 FROM turns WHERE parent=?)",
                (row, row),
            ).fetchone()[0]
            if needed:
                return
            freed = db.execute("DELETE FROM turns WHERE id=? RETURNING parent, size", (row,)).fetchall()
            row = None
            for parent, size in freed:
                self._bytes -= size
                row = parent

    def _sweep(self, db: sqlite3.Connection) -> None:
        """Drop what is too old, and the oldest while all is too much."""
        now = self._now()
        if now - self._swept_at >= SWEEP_EVERY:
            self._swept_at = now
            old = "SELECT tenant, id FROM responses WHERE born < ?"
            for tenant, name in db.execute(old, (now - self.age_limit,)).fetchall():
                self._remove(db, tenant, name)
        while self._bytes > self.bytes_limit:
            oldest = db.execute("SELECT tenant, id FROM responses ORDER BY born LIMIT 1").fetchone()
            if oldest is None:
                return
            self._remove(db, *oldest)


def _messages(packed: bytes) -> tuple[Message, ...]:
    """What `pack` made of messages. Pictures are text or bytes: the format tells them apart, types do not."""
    messages = []
    for fields in unpack(packed, list[dict[str, Any]]):
        calls = tuple(ToolCall(**call) for call in fields.pop("calls"))
        pictures = tuple(Picture(**picture) for picture in fields.pop("pictures"))
        messages.append(Message(**fields, calls=calls, pictures=pictures))
    return tuple(messages)


def _open(path: str) -> tuple[sqlite3.Connection, int, int, int]:
    """The database, the next free turn, the bytes and the count of what is stored."""
    # Conversations are nobody else's: the file is made before SQLite would make it, readable by its owner alone.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    db = sqlite3.connect(path, timeout=0.0, isolation_level=None, check_same_thread=True)
    try:
        db.execute("PRAGMA locking_mode=EXCLUSIVE")
        db.execute("BEGIN IMMEDIATE")
        application = db.execute("PRAGMA application_id").fetchone()[0]
        version = db.execute("PRAGMA user_version").fetchone()[0]
        empty = not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if application != APPLICATION and not (empty and not application):
            raise ArchiveError(f"{path}: a database of another program")
        if application == APPLICATION and version != VERSION:
            raise ArchiveError(f"{path}: written by another version of headrace (format {version})")
        if empty:
            for statement in _SCHEMA.split(";"):
                db.execute(statement)
            db.execute(f"PRAGMA application_id={APPLICATION}")
            db.execute(f"PRAGMA user_version={VERSION}")
        db.execute("COMMIT")
        # A commit survives the end of the process; the last ones before a power failure may be lost.
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=NORMAL")
        # What was deleted is overwritten: a deleted conversation does not lie around in the file.
        db.execute("PRAGMA secure_delete=ON")
        # Turns that only a process now gone had claimed.
        orphan = (
            "DELETE FROM turns WHERE id NOT IN (SELECT turn FROM responses) "
            "AND id NOT IN (SELECT parent FROM turns WHERE parent IS NOT NULL)"
        )
        while db.execute(orphan).rowcount:
            pass
        last = db.execute("SELECT max(id) FROM turns").fetchone()[0] or 0
        turns = db.execute("SELECT total(size) FROM turns").fetchone()[0]
        count, size = db.execute("SELECT count(*), total(size) FROM responses").fetchone()
        return db, last + 1, int(turns + size), count
    except BaseException:
        db.close()
        raise
