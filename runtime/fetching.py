"""Pictures that are named by an address: which are taken, and their bytes in place of it. Knows no socket; whoever
fetches is given from outside, and without one no address is taken."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Protocol

from headrace.runtime.ask import Ask, Picture
from headrace.runtime.image_shape import COUNT_LIMIT
from headrace.runtime.refusal import Refusal

log = logging.getLogger("headrace.runtime")

_ADDRESS = re.compile(r"https?:", re.IGNORECASE)


class FetchRefused(Exception):
    """This picture is not fetched; the text is what follows "the picture's address" in a sentence."""


class PictureFetcher(Protocol):
    """Fetches what its operator allowed, and nothing else."""

    def check(self, url: str) -> None:
        """Raises FetchRefused for an address that will never be fetched. Asks nobody."""

    async def fetch(self, url: str) -> bytes:
        """The file behind the address, at most as large as a picture may be. Raises FetchRefused."""


def is_address(picture: Picture) -> bool:
    """It is named, not sent."""
    return isinstance(picture.source, str) and _ADDRESS.match(picture.source) is not None


def check_addresses(pictures: Iterable[Picture], fetcher: PictureFetcher | None) -> bool:
    """Whether one of the pictures has to be fetched. Raises Refusal for one that never will be."""
    named = [picture for picture in pictures if is_address(picture)]
    for picture in named:
        if fetcher is None:
            raise _refusal(
                picture,
                "addresses are never fetched here; send the picture itself as base64, in a data: URL like "
                "data:image/png;base64,...",
            )
        assert isinstance(picture.source, str)
        try:
            fetcher.check(picture.source)
        except FetchRefused as refused:
            raise _refusal(picture, f"the picture's address {refused}") from refused
    return bool(named)


async def with_pictures(ask: Ask, fetcher: PictureFetcher) -> Ask:
    """The ask with the bytes of every picture that it names by address. Each address is fetched once.

    Raises Refusal, for the first picture that is not to be had; then nothing is fetched any more."""
    pictures = ask.pictures
    if len(pictures) > COUNT_LIMIT:
        return ask  # it is refused for that, and nobody has to be asked before
    named = {picture.source: picture for picture in reversed(pictures) if is_address(picture)}

    async def fetched(url: str, picture: Picture) -> bytes:
        try:
            return await fetcher.fetch(url)
        except FetchRefused as refused:
            raise _refusal(picture, f"the picture's address {refused}") from refused

    urls = [url for url in named if isinstance(url, str)]
    try:
        async with asyncio.TaskGroup() as group:
            tasks = {url: group.create_task(fetched(url, named[url])) for url in urls}
    except* Refusal as refused:
        raise refused.exceptions[0] from None
    found = {url: task.result() for url, task in tasks.items()}

    def shown(picture: Picture) -> Picture:
        return replace(picture, source=found[str(picture.source)]) if is_address(picture) else picture

    messages = tuple(
        replace(message, pictures=tuple(map(shown, message.pictures))) for message in ask.messages or ()
    )
    return replace(ask, messages=messages)


class Fetches:
    """The asks whose pictures are being fetched. fetcher: who does it; None: nobody, and no address is taken."""

    def __init__(self) -> None:
        self.fetcher: PictureFetcher | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def check(self, pictures: Iterable[Picture]) -> bool:
        """Whether one of the pictures has to be fetched. Raises Refusal for one that never will be."""
        return check_addresses(pictures, self.fetcher)

    def start(self, ask: Ask, told: Callable[[Ask | Refusal], None]) -> asyncio.Task[None]:
        """Calls `told`, once and later, with the ask and all its pictures or with why they are not to be had; not
        at all if the task is cancelled."""
        task = asyncio.get_running_loop().create_task(self._run(ask, told))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def close(self) -> None:
        """Nobody waits any more."""
        for task in self._tasks:
            task.cancel()

    async def _run(self, ask: Ask, told: Callable[[Ask | Refusal], None]) -> None:
        assert self.fetcher is not None
        found: Ask | Refusal
        try:
            found = await with_pictures(ask, self.fetcher)
        except Refusal as refusal:
            found = refusal
        except Exception:
            log.exception("fetching a picture failed")
            found = Refusal("server_error", "a picture could not be fetched")
        told(found)


def _refusal(picture: Picture, what: str) -> Refusal:
    named = picture.name
    return Refusal("invalid_value", f"{named}: {what}" if named else what, named)


def unrefused(found: Ask | Refusal) -> Ask:
    """The ask. Raises the Refusal if it is one."""
    if isinstance(found, Refusal):
        raise found
    return found
