"""What a request builds on: the response that it continues, and the items that it names instead of repeating them.

Knows where ended responses are found (near: what a connection remembers; else the store); opens nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

from msgspec import Raw, structs

from headrace.runtime.interface import Refusal, Tenant
from headrace.runtime.refusal import shorten
from headrace.server.conversation import Conversations, Stored, Turn
from headrace.server.faces.frames import not_found
from headrace.server.faces.input_items import input_items
from headrace.server.faces.item_ids import response_of
from headrace.server.protocol import response_events as ev
from headrace.server.protocol.codec import decode, encode, entries, split, string
from headrace.server.protocol.errors import WireError
from headrace.server.protocol.fields import check_supported
from headrace.server.protocol.responses import CompactRequest, Item, ResponseRequest

R = TypeVar("R", ResponseRequest, CompactRequest)


@dataclass(frozen=True, slots=True)
class Ancestor:
    """A response that has ended. `items()`: what it was asked with and what it answered, JSON by id."""

    turn: Turn
    items: Callable[[], Mapping[str, Raw]]


@dataclass(frozen=True, slots=True)
class Traced(Generic[R]):
    """A request without references, after `parent`, whose turn is held until the callback returns."""

    request: R
    parent: Turn | None


def is_reference(item: Item) -> bool:
    """The item stands for another one. Clients may leave its type out."""
    if item.type is None:
        return item.id is not None and item.role is None and item.content is None
    return item.type == "item_reference"


def refers(request: ResponseRequest | CompactRequest) -> bool:
    """The input names items that have to be found."""
    return isinstance(request.input, list) and any(is_reference(item) for item in request.input)


def trace(
    store: Conversations,
    tenant: Tenant,
    request: R,
    near: Callable[[str], Ancestor | None],
    then: Callable[[Traced[R] | WireError | Refusal], None],
) -> None:
    """Find what `request` builds on, then `then(…)`: at once where all of it is in memory, else later."""
    try:
        check_supported(request)  # what nothing that is found could mend is said without looking for it
    except WireError as error:
        then(error)
        return
    previous = request.previous_response_id
    names = [] if previous is None else [previous]
    if isinstance(request.input, list):
        owners = [response_of(item.id or "") for item in request.input if is_reference(item)]
        names += [name for name in owners if name is not None]
    search = _Search(store, request, then)
    names = list(dict.fromkeys(names))
    search.missing = len(names)
    if not names:
        search.end()
    for name in names:
        here = near(name)
        if here is not None:
            search.found(name, here)
        else:
            store.find(tenant, name, partial(search.told, name))


class _Search(Generic[R]):
    """One search: counts what has not been answered yet, and holds what was found."""

    def __init__(
        self,
        store: Conversations,
        request: R,
        then: Callable[[Traced[R] | WireError | Refusal], None],
    ) -> None:
        self.missing = 0
        self._store = store
        self._request: R = request
        self._then: Callable[[Traced[R] | WireError | Refusal], None] = then
        self._ancestors: dict[str, Ancestor] = {}
        self._trouble: Refusal | None = None

    def told(self, name: str, stored: Stored | Refusal | None) -> None:
        """What the store has under this name."""
        if isinstance(stored, Stored):
            self.found(name, Ancestor(stored.turn, partial(stored_items, stored)))
            return
        if stored is not None:
            self._trouble = stored
        self._answered()

    def found(self, name: str, ancestor: Ancestor) -> None:
        """The response of this name."""
        self._store.hold(ancestor.turn)
        self._ancestors[name] = ancestor
        self._answered()

    def _answered(self) -> None:
        self.missing -= 1
        if not self.missing:
            self.end()

    def end(self) -> None:
        """Everything was looked for."""
        try:
            self._then(self._outcome())
        finally:
            for ancestor in self._ancestors.values():
                self._store.release(ancestor.turn)

    def _outcome(self) -> Traced[R] | WireError | Refusal:
        if self._trouble is not None:
            return self._trouble
        request, parent = self._request, None
        if request.previous_response_id is not None:
            ancestor = self._ancestors.get(request.previous_response_id)
            if ancestor is None:
                return not_found(request.previous_response_id)
            parent = ancestor.turn
        try:
            return Traced(self._resolved(request, parent), parent)
        except WireError as error:
            return error

    def _resolved(self, request: R, parent: Turn | None) -> R:
        """The request with the items that it names. What the conversation that it continues holds already stays
        where it is: an item is in a context once."""
        if not refers(request):
            return request
        assert isinstance(request.input, list)
        chain: set[int] = set()
        turn = parent
        while turn is not None:
            chain.add(id(turn))
            turn = turn.parent
        known = {name: ancestor.items() for name, ancestor in self._ancestors.items()}
        previous = known.get(request.previous_response_id or "", {})
        items: list[Item] = []
        for index, item in enumerate(request.input):
            if not is_reference(item):
                items.append(item)
                continue
            if item.id is None:
                path = f"input[{index}].id"
                raise WireError("missing_required_parameter", f"missing field: {path}", path)
            if item.id in previous:
                continue
            owner = response_of(item.id) or ""
            raw = known.get(owner, {}).get(item.id)
            if raw is None:
                raise item_not_found(item.id)
            if id(self._ancestors[owner].turn) not in chain:
                items.append(decode(bytes(raw), Item).value)
        return structs.replace(request, input=items)


def item_not_found(item_id: str) -> WireError:
    """Clients know this sentence."""
    return WireError(
        "item_not_found",
        f"Item with id '{shorten(item_id)}' not found. Items are not persisted when `store` is set to false. "
        "Try again with `store` set to true, or remove this item from your input.",
        "input",
    )


def items_of(request: ResponseRequest, final: ev.Response) -> dict[str, Raw]:
    """The items of a response that has ended, JSON by id."""
    return by_id([*input_items(request, final.id), *(Raw(encode(item)) for item in final.output)])


def stored_items(stored: Stored) -> dict[str, Raw]:
    """The items of a stored response, JSON by id."""
    return by_id([*stored.items, *entries(split(stored.response)["output"])])


def by_id(items: list[Raw]) -> dict[str, Raw]:
    """Items, each of which has an id, by it."""
    named = {string(split(bytes(item)).get("id")): item for item in items}
    return {name: item for name, item in named.items() if name is not None}
