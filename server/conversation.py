"""Response id → the turns that led to it. Bounded by count, bytes and age; knows no protocol and no socket.

With an archive, the table is what of it is in memory: a row that was dropped here is found there.

A conversation is a chain of turns. Each turn is charged once however many responses continue it, and is freed
when neither the table, nor a connection, nor a later turn holds it:

    table row ──holds──► turn ──holds──► parent turn ──holds──► …
    connection lane ──holds──► turn

The limits judge what rows keep: their own bytes and the turns below them. What only connections hold cannot be
freed by dropping rows, so it does not count there: otherwise one client's lanes would empty everyone's table.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from msgspec import Raw

from headrace.runtime.interface import Message, Refusal, Tenant
from headrace.server.archive import Archive, Record, TurnRow

TURN_BYTES = 512  # a turn's own objects, beside its text
ROW_BYTES = 512  # a row's own objects and keys, beside its response


def _size(item: Raw) -> int:
    return len(bytes(item)) + 64


class Turn:
    """The messages that one response added (its input, then its answer), after those of its parent."""

    __slots__ = ("bytes", "holders", "keepers", "messages", "parent", "row", "tenant")

    def __init__(self, parent: Turn | None, messages: tuple[Message, ...]) -> None:
        self.parent = parent
        self.messages = messages
        self.bytes = TURN_BYTES + sum(
            sum(map(len, m.texts)) * 4 + 64 * (1 + len(m.calls)) + m.picture_bytes + 128 * len(m.pictures)
            for m in messages
        )
        self.holders = 1
        self.keepers = 0  # how many of the holders are rows, or turns that a row keeps
        self.tenant = ""  # whose rows keep it, while any does
        self.row: int | None = None  # its place in the archive, once it has one

    def history(self) -> tuple[Message, ...]:
        """Every message of the chain, oldest first."""
        turns: list[Turn] = []
        turn: Turn | None = self
        while turn is not None:
            turns.append(turn)
            turn = turn.parent
        return tuple(message for turn in reversed(turns) for message in turn.messages)


@dataclass(frozen=True, slots=True)
class Stored:
    """A finished response: what the API shows of it, as JSON, since that is small and its size is plain to see; its
    turn, the items it was asked with (JSON each), and what was said of it, packed."""

    response: bytes
    turn: Turn
    items: tuple[Raw, ...]
    tape: bytes
    expires: float

    @property
    def bytes(self) -> int:
        """What the row holds beside its turn."""
        return ROW_BYTES + len(self.response) + len(self.tape) + sum(map(_size, self.items))


class Conversations:
    """The table of stored responses of all tenants, and the one place that counts turns.

    A turn from `add_turn` or `hold` must be given back with `release`. Over a limit, the oldest row of the
    tenant that keeps most is dropped: nobody's rows go because of somebody else's.
    """

    def __init__(
        self,
        *,
        count_limit: int = 10_000,
        bytes_limit: int = 256 << 20,
        age_limit: float = 24 * 3600.0,
        clock: Callable[[], float] = time.monotonic,
        archive: Archive | None = None,
    ) -> None:
        self.count_limit = count_limit
        self.bytes_limit = bytes_limit
        self.age_limit = age_limit
        self.bytes = 0  # of all rows and turns, whoever holds them
        self.kept = 0  # of the rows and the turns that they keep: what `bytes_limit` bounds
        self._clock = clock
        self._rows: OrderedDict[tuple[str, str], Stored] = OrderedDict()
        self._names: dict[str, OrderedDict[str, None]] = {}  # tenant id → its response ids, oldest first
        self._kept: Counter[str] = Counter()  # `kept` by tenant id
        self._archive = archive
        self._next_turn = 0 if archive is None else archive.next_turn
        self._archived: dict[int, Turn] = {}  # turns in memory that have a row in the archive
        self._deleting: Counter[tuple[str, str]] = Counter()  # from the archive, at this moment

    def __len__(self) -> int:
        return len(self._rows)

    def add_turn(self, parent: Turn | None, messages: tuple[Message, ...]) -> Turn:
        """A new turn after `parent`, held once for the caller."""
        if parent is not None:
            self.hold(parent)
        turn = Turn(parent, messages)
        self.bytes += turn.bytes
        return turn

    def hold(self, turn: Turn) -> Turn:
        """One more holder."""
        assert turn.holders > 0, "a freed turn cannot be held again"
        turn.holders += 1
        return turn

    def release(self, turn: Turn) -> None:
        """One holder less; the last one frees the turn and lets go of its parent."""
        current: Turn | None = turn
        freed: list[int] = []
        while current is not None:
            assert current.holders > 0, "released more often than held"
            current.holders -= 1
            if current.holders:
                break
            assert not current.keepers, "who keeps a turn also holds it"
            self.bytes -= current.bytes
            if current.row is not None:
                del self._archived[current.row]
                freed.append(current.row)
            # The link is cut here, so a long chain is never freed recursively.
            parent, current.parent = current.parent, None
            current = parent
        if freed:
            assert self._archive is not None
            self._archive.free(freed)

    def put(
        self,
        tenant: Tenant,
        response_id: str,
        response: bytes,
        turn: Turn,
        items: Sequence[Raw] = (),
        tape: bytes = b"",
    ) -> None:
        """Store a finished response (its JSON) under its id."""
        key = (tenant.id, response_id)
        assert key not in self._rows, "response ids are made here and never repeat"
        row = Stored(response, self.hold(turn), tuple(items), tape, self._clock() + self.age_limit)
        if self._archive is not None:
            rows = self._enrol(turn)
            assert turn.row is not None
            self._archive.put(tenant.id, response_id, response, items, tape, rows, turn.row)
        self._insert(key, row)

    @property
    def behind(self) -> bool:
        """What was stored waits to be written, and it is too much: no more should be promised."""
        return self._archive is not None and self._archive.behind

    def find(self, tenant: Tenant, response_id: str, then: Callable[[Stored | Refusal | None], None]) -> None:
        """`then(stored)`: at once if it is in memory or there is no archive, else later. The turn is held until
        `then` returns. A Refusal if the archive cannot be read."""
        stored = self.get(tenant, response_id)
        if stored is not None or self._archive is None:
            then(stored)
            return

        def fetched(record: Record | Exception | None) -> None:
            if isinstance(record, Exception):
                then(Refusal("server_error", "stored responses cannot be read now"))
            elif record is None:
                then(None)
            else:
                self._adopt((tenant.id, response_id), record, then)

        self._archive.fetch(tenant.id, response_id, fetched)

    def remove(self, tenant: Tenant, response_id: str, then: Callable[[bool | Refusal], None]) -> None:
        """Delete a response here and in the archive, then `then(whether it was there)`."""
        here = self.delete(tenant, response_id)
        if self._archive is None:
            then(here)
            return
        key = (tenant.id, response_id)
        self._deleting[key] += 1

        def deleted(found: bool | Exception) -> None:
            self._deleting[key] -= 1
            if not self._deleting[key]:
                del self._deleting[key]
            if isinstance(found, Exception):
                then(Refusal("server_error", "stored responses cannot be deleted now"))
            else:
                then(found or here)

        self._archive.delete(tenant.id, response_id, deleted)

    def _enrol(self, turn: Turn) -> list[TurnRow]:
        """A row for each turn of the chain that has none yet, oldest first."""
        new: list[Turn] = []
        current: Turn | None = turn
        while current is not None and current.row is None:
            new.append(current)
            current = current.parent
        rows = []
        for each in reversed(new):
            each.row = self._next_turn
            self._next_turn += 1
            self._archived[each.row] = each
            parent = None if each.parent is None else each.parent.row
            rows.append(TurnRow(each.row, parent, each.messages))
        return rows

    def _adopt(
        self, key: tuple[str, str], record: Record, then: Callable[[Stored | Refusal | None], None]
    ) -> None:
        """Take what the archive has into memory, sharing the turns that are there already."""
        turn: Turn | None = None
        doubled: list[int] = []
        for row in record.turns:
            known = self._archived.get(row.id)
            if known is not None:
                following = self.hold(known)
                doubled.append(row.id)  # memory claims a turn once
            else:
                following = self.add_turn(turn, row.messages)
                following.row = row.id
                self._archived[row.id] = following
            if turn is not None:
                self.release(turn)
            turn = following
        assert turn is not None and self._archive is not None
        if doubled:
            self._archive.free(doubled)
        stored = self._rows.get(key)
        if stored is None and not self._deleting[key]:
            stored = Stored(
                record.response, self.hold(turn), record.items, record.tape, self._clock() + self.age_limit
            )
            self._insert(key, stored)
        then(stored)
        self.release(turn)

    def _insert(self, key: tuple[str, str], row: Stored) -> None:
        tenant_id, response_id = key
        self._rows[key] = row
        self._names.setdefault(tenant_id, OrderedDict())[response_id] = None
        self.bytes += row.bytes
        self._charge(tenant_id, row.bytes)
        self._keep(row.turn, tenant_id)
        self._shrink()

    def get(self, tenant: Tenant, response_id: str) -> Stored | None:
        """The stored response, or None if it is unknown, expired, or another tenant's."""
        self._expire()
        return self._rows.get((tenant.id, response_id))

    def delete(self, tenant: Tenant, response_id: str) -> bool:
        """Forget a response; later turns keep the text they were built on. False if it was not there."""
        if self.get(tenant, response_id) is None:
            return False
        self._drop((tenant.id, response_id))
        return True

    def check(self) -> None:
        """Raise AssertionError if what is counted differs from what the table can reach."""
        seen: dict[int, Turn] = {}
        kept: Counter[str] = Counter()
        for (tenant, name), row in self._rows.items():
            assert name in self._names[tenant]
            kept[tenant] += row.bytes
            turn: Turn | None = row.turn
            while turn is not None and id(turn) not in seen:
                assert turn.holders >= turn.keepers > 0
                seen[id(turn)] = turn
                kept[turn.tenant] += turn.bytes
                turn = turn.parent
        assert sum(map(len, self._names.values())) == len(self._rows)
        assert kept == self._kept and kept.total() == self.kept <= self.bytes
        assert not self._rows or (self.kept <= self.bytes_limit and len(self._rows) <= self.count_limit)

    def _charge(self, tenant: str, size: int) -> None:
        self.kept += size
        self._kept[tenant] += size
        if not self._kept[tenant]:
            del self._kept[tenant]

    def _keep(self, turn: Turn, tenant: str) -> None:
        """One row, or kept turn, more above `turn`; the first one makes the whole chain below kept."""
        current: Turn | None = turn
        while current is not None:
            current.keepers += 1
            if current.keepers > 1:
                return
            current.tenant = tenant
            self._charge(tenant, current.bytes)
            current = current.parent

    def _unkeep(self, turn: Turn) -> None:
        current: Turn | None = turn
        while current is not None:
            assert current.keepers > 0, "no row keeps it"
            current.keepers -= 1
            if current.keepers:
                return
            self._charge(current.tenant, -current.bytes)
            current = current.parent

    def _expire(self) -> None:
        # Rows are in order of creation and share one age, so the first living row ends the search.
        now = self._clock()
        while self._rows:
            key, row = next(iter(self._rows.items()))
            if row.expires > now:
                return
            self._drop(key)

    def _shrink(self) -> None:
        while len(self._rows) > self.count_limit:
            self._drop_oldest(max(self._names, key=lambda tenant: len(self._names[tenant])))
        while self._rows and self.kept > self.bytes_limit:
            self._drop_oldest(max(self._names, key=self._kept.__getitem__))

    def _drop_oldest(self, tenant: str) -> None:
        self._drop((tenant, next(iter(self._names[tenant]))))

    def _drop(self, key: tuple[str, str]) -> None:
        row = self._rows.pop(key)
        tenant, name = key
        del self._names[tenant][name]
        if not self._names[tenant]:
            del self._names[tenant]
        self.bytes -= row.bytes
        self._charge(tenant, -row.bytes)
        self._unkeep(row.turn)
        self.release(row.turn)
