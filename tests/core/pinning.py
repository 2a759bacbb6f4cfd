"""Pins and favours in the simulation: what is held without computing, and that nobody waits for ever behind it."""

from __future__ import annotations

import random
from typing import Any

GATES = (
    "pin: of a live request",
    "pin: of an ended request",
    "pin: refused at the limit",
    "pin: broken so that a request could run",
    "pin: held while others were evicted",
    "favour: others were evicted first",
    "favour: evicted when nothing else was left",
)


class Pinning:
    """Whoever pins and favours in one world. Draws from a generator of its own."""

    def __init__(self, world: Any) -> None:
        self.world = world
        self.rng = rng = random.Random(world.seed * 104_729 + 3)
        self.rate = rng.choice((0.0, 0.0, 0.05, 0.3))
        self.share = rng.choice((0.3, 0.6, 1.0))
        self.pins: dict[Any, Any] = {}  # pin -> the path that it holds
        self.favours: list[Any] = []
        self.flushing = False  # an operator wants it all gone

    def watch(self, scheduler: Any) -> None:
        tree, seen = scheduler.tree, self.world.seen
        evict = tree.evict_one

        def evicted() -> bool:
            nodes = list(tree.nodes())
            plain = any(not (node.leases or node.children or node.kept) for node in nodes)
            kept = sum(node.kept > 0 for node in nodes)
            done: bool = evict()
            lost = kept - sum(node.kept > 0 for node in tree.nodes())
            if plain:
                assert done and not lost, "what is favoured was evicted before other cache"
                seen["favour: others were evicted first"] += kept > 0
            seen["favour: evicted when nothing else was left"] += lost > 0
            seen["pin: held while others were evicted"] += done and bool(self.pins)
            return done

        flush = scheduler.flush_cache

        def flushed() -> int:
            self.flushing = True
            pages: int = flush()
            self.flushing = False
            return pages

        if self.rate:
            scheduler.tree = _Watched(tree, evicted)
            scheduler.flush_cache = flushed

    def meddle(self) -> None:
        if self.rng.random() >= self.rate:
            return
        rng, world = self.rng, self.world
        pins = world.scheduler.pins
        kind = rng.random()
        if kind < 0.3 and self.pins:
            pin = rng.choice(list(self.pins))
            pins.drop(pin)
            del self.pins[pin]
            pins.drop(pin)  # twice is harmless
        elif kind < 0.4 and self.favours:
            pins.forgo(self.favours.pop(rng.randrange(len(self.favours))))
        else:
            stories = [story for story in world.stories.values() if story.refused is None]
            if not stories:
                return
            req = rng.choice(stories).req
            keys = req.keys(0, len(req.tokens))
            if kind < 0.6:
                self.favours.append(pins.favour(req.salt, keys))
            else:
                self._pin(req, keys)
        world._note("pin", kind, len(self.pins), len(self.favours))
        world._disturbed()

    def _pin(self, req: Any, keys: Any) -> None:
        pins, seen = self.world.scheduler.pins, self.world.seen
        held: list[Any] = []

        def broken() -> None:
            if not self.flushing:
                assert not self.world.scheduler.running, "a pin was broken while others run"
                seen["pin: broken so that a request could run"] += 1
            del self.pins[held[0]]

        favour = pins.favour(req.salt, keys)
        pin = pins.take(req.claim.owner, favour, broken)
        pins.forgo(favour)
        if pin is None:
            seen["pin: refused at the limit"] += 1
            return
        held.append(pin)
        self.pins[pin] = None
        seen["pin: of a live request" if req.finish is None else "pin: of an ended request"] += bool(
            pin.pages
        )

    def settled(self) -> None:
        """What is pinned is there."""
        pool = self.world.scheduler.pool
        for pin in self.pins:
            assert all(pool.refs(page) for page in pin.pages) or self.world.watch.failed, (
                "a pinned page is free"
            )

    def end(self) -> None:
        for pin in self.pins:
            self.world.scheduler.pins.drop(pin)
        for favour in self.favours:
            self.world.scheduler.pins.forgo(favour)
        self.pins.clear()


class _Watched:
    """A tree that tells of each eviction."""

    def __init__(self, tree: Any, evict_one: Any) -> None:
        self.__dict__["_tree"], self.__dict__["evict_one"] = tree, evict_one

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tree, name)
